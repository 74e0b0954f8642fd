"""A stream on two processes: nothing twice, nothing missing, the order of one process, and resumed to the bit.

The trained run then serves `evaluate` and `generate`, which two processes share and which have to answer as one does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rl_warmup.cli.main import main
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.ownership import LOCK

pytestmark = pytest.mark.distributed
ROWS = [{"id": f"row-{i}", "prompt": f"a+{i % 3} b+{i % 2}", "target": f"b={i % 2} a={i % 3}"} for i in range(10)]
HELD_OUT = 5  # an odd number for two processes, in batches of two
UPDATES, PER_UPDATE = 5, 4


def settings(folder: Path) -> dict:
    """Two passes of ten rows, in updates of four: the third update takes the last two rows of a pass and two of the next."""
    for name, rows in (("train", ROWS), ("test", ROWS[:HELD_OUT])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    return {
        "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "file", "task_kwargs": {**files, "stream": True, "shuffle_buffer": 4},
        "max_steps": UPDATES, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "num_warmups": 2,
        "max_warmup_length": 4, "logging_steps": 1, "save_steps": 3, "learning_rate": 0.01, "use_cpu": True,
        "show_progress": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder, and what both processes say."""
    folder = tmp_path_factory.mktemp("streams")
    worker = Path(__file__).with_name("stream_worker.py")
    arguments = [json.dumps(settings(folder)), str(folder / "whole"), str(folder / "resumed")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, worker, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        answers = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()
    said = b"\n\n".join(errors[-3000:] for _, errors in answers).decode()
    assert [process.returncode for process in both] == [0, 0], said
    return folder, [json.loads(output.splitlines()[-1]) for output, _ in answers]  # libraries print before it


def test_each_pass_holds_every_row_once_in_the_order_of_one_process(trained, tmp_path):
    """Updates on two processes with batches of two are those on one with batches of four."""
    _, ranks = trained
    updates = [[*one, *other] for one, other in zip(*(rank["ids"][:UPDATES] for rank in ranks), strict=True)]
    order = [name for update in updates for name in update]
    names = sorted(row["id"] for row in ROWS)
    assert sorted(order[:10]) == sorted(order[10:]) == names
    assert order[:10] != order[10:]  # each pass has an order of its own
    assert order[:10] != names

    from rl_warmup.config import build_recipe
    from rl_warmup.experiments.run import make_trainer, recipe_task

    alone = {**settings(tmp_path), "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": PER_UPDATE}
    recipe = build_recipe(alone)
    stream = make_trainer(recipe, recipe_task(recipe)).train_dataset
    assert [row["id"] for row in stream] == order


def test_a_resumed_run_takes_up_the_same_rows_and_ends_with_the_same_weights(trained):
    folder, ranks = trained
    for rank in ranks:
        assert rank["ids"][UPDATES:] == rank["ids"][3:UPDATES]
    whole, resumed = (load_file(folder / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(whole[name].equal(resumed[name]) for name in whole)
    logs = [read_jsonl(folder / name / "metrics.jsonl") for name in ("whole", "resumed")]
    assert [record for record in logs[0] if record["step"] > 3] == logs[1]


def test_both_processes_predict_and_one_writes(trained):
    folder, ranks = trained
    assert [rank["rows"] for rank in ranks] == [[HELD_OUT, HELD_OUT], [None, None]]
    predictions = read_jsonl(folder / "whole" / "predictions.jsonl")
    assert [row["id"] for row in predictions] == [row["id"] for row in ROWS[:HELD_OUT]]
    assert len(read_jsonl(folder / "whole" / "predictions.shuffled.jsonl")) == HELD_OUT


def on_two(launcher: list[str], *arguments: str) -> str:
    """What a command prints on two processes."""
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_one(*arguments: str) -> str:
    """What a command prints in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(list(arguments)) == 0
    return printed.getvalue()


def test_evaluate_says_the_same_on_two_processes(trained, tmp_path):
    """Every control, sampled ones too, and likelihoods; three batches of five rows, of which one process has two."""
    run = str(trained[0] / "whole")
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    asked = [run, "--controls", "all", "--num-warmups", "2", "--batch-size", "2", "--output"]
    two = on_two([*launcher, "-m", "rl_warmup.cli.evaluate"], *asked, str(tmp_path / "two"))
    one = on_one("evaluate", *asked, str(tmp_path / "one"))
    assert two.replace(str(tmp_path / "two"), "") == one.replace(str(tmp_path / "one"), "")
    names = {path.name for path in (tmp_path / "one").iterdir()} - {LOCK}
    assert len(names) == 7  # own warmups, five controls, metrics.json
    for name in names:
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text(), name


def test_generate_says_the_same_on_two_processes(trained, tmp_path):
    """One batch in all: the second process has nothing to do, and neither waits."""
    prompts = ["a+1 b+1", "a+2 b+0", "b+1"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    asked = [str(trained[0] / "whole"), "--file", str(tmp_path / "prompts.txt"), "--json", "--sample"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rl_warmup.cli.generate"]
    two = on_two(launcher, *asked)
    assert two == on_one("generate", *asked)
    assert [json.loads(line)["prompt"] for line in two.splitlines()] == prompts
