"""Every block of docs/inference.md but those of its measurements runs, in a folder with a run `runs/mine`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.runtime.run_folder import write_jsonl

PAGE = (Path(__file__).parents[1] / "docs" / "inference.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (rl-warmup (?:generate|evaluate|report) .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    recipe = {
        "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "ledger", "task_kwargs": {"length": 3, "modulus": 4, "train_size": 32, "validation_size": 4, "test_size": 4},
        "max_steps": 3, "max_warmup_length": 4, "max_target_length": 5, "num_warmups": 2, "use_cpu": True,
        "per_device_train_batch_size": 4, "show_progress": False, "report_to": "none", "save_strategy": "no",
        "output_dir": str(folder / "runs/mine"),
    }  # fmt: skip
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", "--config", str(folder / "r.yaml")]) == 0
    rows = [{"prompt": "a+1 b+2 c+0", "target": "c=3 b=3 a=1"}, {"prompt": "b+1", "target": "b=1"}]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "prompts.jsonl", rows)
    (folder / "prompts.txt").write_text("a+1 b+2 c+0\nb+1\n", encoding="utf-8")
    return folder


def test_the_python_of_the_page_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    known: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, known)
    assert known["answer"]["prediction"] is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(place, monkeypatch, command):
    monkeypatch.chdir(place)
    asked, _, piped = command.partition(" < ")
    if piped:
        with Path(piped).open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            assert main(shlex.split(asked)[1:]) == 0
    else:
        assert main(shlex.split(asked)[1:]) == 0
