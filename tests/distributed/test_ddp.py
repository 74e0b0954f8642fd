"""The command on two processes equals the command on one: the same logged numbers, one set of files, one table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.runtime.documents import read_jsonl

pytestmark = pytest.mark.distributed

RECIPE = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 16, "validation_size": 4, "test_size": 4},
    "max_steps": 4, "num_warmups": 2, "max_warmup_length": 4, "logging_steps": 1, "save_strategy": "no",
    "use_cpu": True, "show_progress": False, "empty_share": 0.0,
}  # fmt: skip


def train(folder: Path, processes: int, batch: int, **changes) -> list[dict]:
    """Run the command on that many processes; the metrics it logged."""
    folder.mkdir()
    path = folder / "recipe-asked.yaml"
    settings = {"output_dir": str(folder / "run"), "per_device_train_batch_size": batch}
    path.write_text(yaml.safe_dump({**RECIPE, **settings, **changes}))
    if processes == 1:
        assert main(["train", "--config", str(path)]) == 0
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*launch, "-m", "rl_warmup.cli.train", "--config", str(path)],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("own warmup") <= 1  # the main process alone reports
    return read_jsonl(folder / "run" / "metrics.jsonl")


def test_two_processes_equal_one(tmp_path):
    changes = {"proposals": ["reverse"], "proposal_only": True}
    one = train(tmp_path / "one", 1, 4, **changes)
    two = train(tmp_path / "two", 2, 2, **changes)
    assert [record["step"] for record in two] == [1, 2, 3, 4]
    for name in (
        "loss",
        "grad_norm",
        "target_logprob",
        "warmup_logp",
        "proposal_logp",
        "completions/distinct_across_prompts",
    ):
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=1e-4), name
    assert (tmp_path / "two" / "run" / "metrics.json").is_file()
