"""The Python of docs/serving.md runs, where the program is installed, and writes what this package does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rl_warmup import WarmupGenerator
from rl_warmup.cli.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
PROMPTS = ["a+1 b+2 c+0", "b+1"]


def blocks(section: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `runs/mine`, a T5, and `runs/llama`."""
    folder = tmp_path_factory.mktemp("page")
    for name, kind in (("mine", "t5"), ("llama", "llama")):
        recipe = {
            "model_name_or_path": f"scratch-{kind}", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
            "task": "ledger", "task_kwargs": {"length": 3, "modulus": 4, "train_size": 32, "validation_size": 4, "test_size": 4},
            "max_steps": 10, "learning_rate": 0.01, "max_warmup_length": 4, "max_target_length": 5, "num_warmups": 2,
            "use_cpu": True, "per_device_train_batch_size": 4, "show_progress": False, "report_to": "none",
            "save_strategy": "no", "controls": [], "output_dir": str(folder / "runs" / name),
        }  # fmt: skip
        (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        assert main(["train", "--config", str(folder / "r.yaml")]) == 0
    return folder


def test_ctranslate2_writes_the_same_targets(place, monkeypatch, capsys):
    pytest.importorskip("ctranslate2")
    monkeypatch.chdir(place)
    known: dict = {}
    for block, name in zip(blocks("CTranslate2"), ("llama", "mine"), strict=True):
        capsys.readouterr()
        exec(block, known)
        expected = [row["prediction"] for row in WarmupGenerator.from_pretrained(f"runs/{name}").generate(PROMPTS)]
        assert capsys.readouterr().out.splitlines()[-2:] == expected


def test_the_tokenizer_splits_an_answer(place, monkeypatch):
    monkeypatch.chdir(place)
    known: dict = {}
    for block in blocks("transformers serve"):
        exec(block, known)
    assert known["answer"]["role"] == "assistant"
    assert set(known["answer"]) <= {"role", "content", "reasoning_content"}


def test_the_command_of_the_harness_is_the_one_that_is_tested():
    """tests/test_harness.py runs it."""
    (command,) = re.findall(
        r"^    (python -m rl_warmup\.inference\.harness .*)$", SECTIONS["lm-evaluation-harness"], re.MULTILINE
    )
    tested = (Path(__file__).parent / "test_harness.py").read_text(encoding="utf-8")
    assert all(f'"{flag}"' in tested for flag in re.findall(r"--\w+", command))
