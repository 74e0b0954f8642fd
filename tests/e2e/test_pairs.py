"""Features in pairs: each part is tested elsewhere, here all of `FEATURES` meet in one run, so every two of them do.

One run of each architecture, and one on two processes. What must hold: nothing of the run before is left, a run that goes on
ends like one left alone, and a later evaluation measures what was measured.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rl_warmup.cli.main import main
from rl_warmup.runtime.documents import read_jsonl

from .conftest import ledger_rows, tiny_model

FEATURES = ("overwrite", "resume", "evaluate", "truncation", "LoRA", "stream", "plugin", "plan", "reading", "report")
PLUGIN = "def brevity(completions, **columns):\n    return [-0.1 * len(text.split()) for text in completions]\n"
LIMIT = 2  # of three tokens that a prompt has


def recipe(place: Path, kind: str) -> Path:
    """A recipe that turns everything on, beside its rows, its plugin, and a model for its adapter."""
    for name, rows in (("train", ledger_rows(10)), ("test", ledger_rows(5, seed=1))):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "mine.py").write_text(PLUGIN)
    model, tokenizer = tiny_model(kind)
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    files = {"train": str(place / "train.jsonl"), "test": str(place / "test.jsonl")}
    settings = {
        "model_name_or_path": str(place / "base"), "task": "file",
        "task_kwargs": {**files, "stream": True, "shuffle_buffer": 4}, "output_dir": str(place / "run"),
        "use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "learning_rate": 0.02,
        "rewards": ["target_logprob", f"{place}/mine.py:brevity"], "max_prompt_length": LIMIT, "prompt_truncation": "left",
        "max_target_length": 8, "max_warmup_length": 4, "num_warmups": 2, "proposals": ["reference"],
        "min_reading_updates": 2, "max_reading_updates": 3, "reading_threshold": 0.0, "max_steps": 5,
        "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "save_strategy": "steps", "save_steps": 2,
        "logging_steps": 1, "use_cpu": True, "show_progress": False, "report_to": "none",
    }  # fmt: skip
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def train(path: Path, processes: int, *flags: str) -> None:
    asked = ["train", "--config", str(path), *flags]
    if processes > 1:
        asked = ["train", "--launch", "cpu", "--num_processes", str(processes), *asked[1:]]
        ended = subprocess.run(
            [sys.executable, "-m", "rl_warmup.cli.main", *asked],
            timeout=300,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    else:
        assert main(asked) == 0


def outcome(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its weights, and what its files say; what a restart changes is left out."""
    result = json.loads((run / "metrics.json").read_text())
    del result["train_seconds"], result["truncation"]  # of a stream it counts from the last restart on
    names = (
        "metrics.jsonl",
        "warmups.jsonl",
        "predictions.jsonl",
        "predictions.shuffled.jsonl",
        "reference_warmups.jsonl",
    )
    return load_file(run / "adapter_model.safetensors"), {"result": result, **{n: read_jsonl(run / n) for n in names}}


@pytest.mark.parametrize(
    ("kind", "processes"),
    [("scratch-t5", 1), ("scratch-llama", 1), pytest.param("scratch-llama", 2, marks=pytest.mark.distributed)],
)
def test_every_two_features_at_once(tmp_path, capsys, kind, processes):
    path, run = recipe(tmp_path, kind), tmp_path / "run"
    if processes == 1:
        train(path, 1, "seed=7", "objective=sft", "max_steps=1", "proposals=[]", "save_strategy=no", "eval_strategy=no")
        assert main(["evaluate", str(run), "--controls"]) == 0
        assert (run / "evaluation/test/metrics.json").is_file()
    else:
        run.mkdir()
        shutil.copy(path, run / "recipe.yaml")  # a run that was broken off at its beginning
    train(path, processes, "overwrite=true")
    assert not (run / "evaluation").exists()
    assert json.loads((run / "metrics.json").read_text())["objective"] == "marginal"
    logs = read_jsonl(run / "metrics.jsonl")
    assert logs[0]["phase"] == "reading"
    weights, said = outcome(run)
    assert said["result"]["switched_at"] == 2
    assert all(-0.41 <= log["rewards/brevity/mean"] <= 0 for log in logs if "loss" in log)

    for later_one in ("checkpoint-4", "checkpoint-5"):  # as if it had been killed after its first checkpoint
        shutil.rmtree(run / later_one)
    train(path, processes, "resume_from_checkpoint=auto")
    again, later = outcome(run)
    assert all(weights[name].equal(again[name]) for name in weights)
    assert later == said

    flags = ["--controls", "shuffled", "empty_warmup", "--batch-size", "3", "--allow_code"]
    assert main(["evaluate", str(run), *flags]) == 0
    measured = json.loads((run / "evaluation/test/metrics.json").read_text())
    assert measured["metrics"] == said["result"]["metrics"]
    assert measured["weights"] == said["result"]["weights"]
    assert measured["truncation"] == {"prompts_truncated": 5}
    assert read_jsonl(run / "evaluation/test/predictions.jsonl") == said["predictions.jsonl"]
    capsys.readouterr()
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 0
    assert "left out" not in capsys.readouterr().out
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["plan", str(path), "--hardware", "2xCPU", "--json"]) == 0
    assert json.loads(shown.getvalue())
