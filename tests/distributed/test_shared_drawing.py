"""`rl-warmup sample` by two processes: the file of one process, byte for byte, also where it goes on with a torn one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl_warmup.cli.main import main

pytestmark = pytest.mark.distributed

WORKER = """
import os, sys
import torch, torch.distributed as dist
from rl_warmup.cli.main import main
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[1]), world_size=2)
codes = [main(sys.argv[3:]), main(sys.argv[3:])]  # drawn, and then recognised as finished
other = ["8" if value == "7" else value for value in sys.argv[3:]]
codes.append(main(other))  # another seed is another drawing: both processes refuse
dist.destroy_process_group()
sys.stdout.flush()
sys.stderr.flush()
os._exit(codes != [0, 0, 2])  # as a process of a launch ends: destructors of C++ abort now and then
"""


def flags(path: Path) -> list[str]:
    task = [
        "--task",
        "ledger",
        "--task_kwargs",
        "{length: 8, modulus: 5, train_size: 40, validation_size: 2, test_size: 2}",
    ]
    size = ["--num_warmups", "3", "--max_warmup_length", "10", "--batch-size", "8", "--seed", "7"]
    return ["sample", "start:skills-llama", *task, *size, "--show_progress", "false", "--output", str(path)]


def test_two_processes_write_the_file_of_one(tmp_path, capsys):
    alone, torn = tmp_path / "alone.jsonl", tmp_path / "torn.jsonl"
    assert main(flags(alone)) == 0
    capsys.readouterr()
    beside = "alone.jsonl.drawing.json"
    (tmp_path / beside.replace("alone", "torn")).write_bytes((tmp_path / beside).read_bytes())
    torn.write_bytes(alone.read_bytes()[:3000])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "meeting-place"), *flags(torn)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        answers = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()
    for process, (_, errors) in zip(both, answers, strict=True):
        assert process.returncode == 0, errors
        assert "is another drawing (seed is 7, now 8)" in errors
    assert torn.read_bytes() == alone.read_bytes()
    assert answers[0][0].count("120 warmups for 40 rows") == 2
    assert answers[0][0].count("was finished; nothing was drawn") == 1
    assert answers[1][0] == ""
