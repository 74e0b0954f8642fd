"""When one of two processes goes wrong, the job ends, soon and not with 0, and says which one it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rl_warmup.runtime import checkpoints
from rl_warmup.runtime.interruptions import EXIT_SIGNALLED

pytestmark = pytest.mark.distributed
REWARDS = Path(__file__).with_name("misbehaving.py")
RECIPE = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 16, "validation_size": 4, "test_size": 4},
    "max_steps": 2000, "num_warmups": 2, "max_warmup_length": 4, "logging_steps": 1, "save_steps": 2,
    "per_device_train_batch_size": 2, "use_cpu": True, "show_progress": False,
}  # fmt: skip


def launch(folder: Path, **changes: object) -> subprocess.Popen:
    """`torchrun` with two processes that write logs of their own."""
    path = folder / "recipe-asked.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(folder / "run"), **changes}))
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "--log-dir",
        str(folder / "logs"),
    ]
    command = [sys.executable, *launcher, "--tee", "3", "-m", "rl_warmup.cli.train", "--config", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def finish(process: subprocess.Popen, timeout: float) -> str:
    """What was printed. An overdue launcher is told to end, which ends its processes too."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail(f"still running after {timeout} seconds:\n{process.communicate(timeout=60)[0]}")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raises", ["(process 1, counted from 0)", "the judge is out of cards", "rank      : 1"]),
        ("dies", ["rank      : 1", "exitcode  : -9"]),
        # what the waiting process says itself may be lost when the late one's end breaks its connection first
        ("hangs", ["process 1 hangs: since `update 3, rows read`", "misbehaving.py\", line"]),
    ],
)  # fmt: skip
def test_the_job_ends_and_names_the_process(tmp_path, what, words):
    patience = {"hang_timeout": 8} if what == "hangs" else {}  # not so short that a busy machine seems to hang
    process = launch(tmp_path, rewards=["target_logprob", f"{REWARDS}:{what}"], **patience)
    wait_for(tmp_path / "run" / "checkpoint-2", process)
    out = finish(process, 60)
    assert process.returncode == 1
    for word in words:
        assert word in out
    assert checkpoints.newest(tmp_path / "run").name == "checkpoint-2"


def test_other_rows_on_one_process_are_told_once(tmp_path):
    (tmp_path / "own.py").write_text(
        "import os\nfrom rl_warmup.tasks import Task\n"
        "def task():\n"
        "    rows = [{'id': str(n), 'prompt': f'a w{n}', 'target': f'w{n}'} for n in range(8)]\n"
        "    test = rows[: 8 - int(os.environ['RANK'])]\n"
        "    return Task('own', {'train': rows, 'validation': [], 'test': test}, ('exact_match',))\n"
    )
    out = finish(launch(tmp_path, task=f"{tmp_path}/own.py:task", task_kwargs=None), 90)
    told = [line for line in out.splitlines() if "rl-warmup train" in line]
    assert len(told) == 1, out
    assert "Process 1 has other test rows than process 0" in told[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_launcher_told_to_end_saves_first(tmp_path):
    process = launch(tmp_path)
    wait_for(tmp_path / "run" / "checkpoint-2", process)
    process.send_signal(signal.SIGTERM)
    out = finish(process, 60)
    assert process.returncode != 0
    assert f"Exit code {EXIT_SIGNALLED}" in out
    assert "SIGTERM: update" in out
    step = checkpoints.step_of(checkpoints.newest(tmp_path / "run"))
    assert f"checkpoint-{step} written" in out
