"""A sweep whose runs are played by a script: it writes what training would, at once, and a line when it starts and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

BASE = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 2, "per_device_train_batch_size": 4, "num_warmups": 2, "proposals": [], "max_warmup_length": 4,
    "save_strategy": "no", "use_cpu": True, "logging_steps": 1,
}  # fmt: skip
# exact match is num_warmups / 10 + seed / 100, and 0 for shuffled warmups; five warmups are too much
PLAYER = """
import json, os, pathlib, sys, time, yaml
recipe = yaml.safe_load(open(sys.argv[-1]))
folder = pathlib.Path(recipe["output_dir"])
with open({started!r}, "a") as file:
    file.write(f"{{folder.parent.name}}/{{folder.name}} {{os.environ.get('CUDA_VISIBLE_DEVICES', '')}} {{os.getpid()}}\\n")
(folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
(folder / "environment.json").write_text("{{}}")
value = recipe["num_warmups"] / 10 + recipe["seed"] / 100
for step in (1, 2):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({{"step": step, "eval_exact_match": value}}) + "\\n")
    time.sleep({seconds} / 2)
if recipe["num_warmups"] == 5 and not os.environ.get("MENDED"):
    print("noise before it")
    sys.exit("rl-warmup train: five are too many")
result = {{"task": "ledger", "model": "scratch-t5", "objective": recipe["objective"], "seed": recipe["seed"], "updates": 2,
    "train_seconds": 1.5, "split": "test", "rows": 4, "rows_hash": "h", "signatures": {{}},
    "metrics": {{"": {{"exact_match": value}}, "shuffled": {{"exact_match": 0.0}}}}}}
(folder / "metrics.json").write_text(json.dumps(result))
with open({ended!r}, "a") as file:
    file.write(f"{{folder.parent.name}}/{{folder.name}}\\n")
"""


class Stage:
    """A folder with a base recipe, a player of runs, and what it wrote down."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.output = folder, folder / "out"
        (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
        names = {name: str(folder / f"{name}.txt") for name in ("started", "ended")}
        (folder / "player.py").write_text(PLAYER.format(seconds=seconds, **names))

    def write(self, **keys: Any) -> Path:
        """A sweep over four numbers of warmups with three seeds, changed by keys; None removes one."""
        values = {
            "question": "How many warmups?", "base": "base.yaml", "grid": {"num_warmups": [1, 2, 3, 4]}, "seeds": 3,
            "metric": "exact_match", "control": "num_warmups=2", "launch": f"{sys.executable} {self.folder / 'player.py'}",
        }  # fmt: skip
        path = self.folder / "warmups.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in {**values, **keys}.items() if v is not None}))
        return path

    def kill_runs(self) -> None:
        """SIGKILL every run that is still going."""
        ended = self.lines("ended")
        for line in (self.folder / "started.txt").read_text().splitlines():
            run, _, pid = line.split(" ")
            if run not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def lines(self, name: str) -> list[str]:
        """Runs that started or ended, in order."""
        path = self.folder / f"{name}.txt"
        return [line.split(" ")[0] for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """Sets a stage; `seconds`: how long a run takes."""
    return lambda seconds=0.0: Stage(tmp_path, seconds)
