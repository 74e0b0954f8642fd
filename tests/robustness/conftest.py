"""The command line as it would be, but forked from this process, which has imported all of it: a refusal takes a tenth of a second."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rl_warmup.cli.main as command_line

RECIPE = """\
model_name_or_path: scratch-t5
scratch: {width: 16, encoder_layers: 1, layers: 1, heads: 2, tokenizer: words}
task: file
task_kwargs: {train: rows.jsonl, test: rows.jsonl}
num_warmups: 2
max_warmup_length: 3
max_target_length: 12
controls: []
output_dir: out
max_steps: 2
per_device_train_batch_size: 2
eval_strategy: "no"
save_strategy: "no"
logging_steps: 1
use_cpu: true
show_progress: false
"""
LINES = "".join(f'{{"id": "{i}", "prompt": "a b c w{i}", "target": "w{i} c b a"}}\n' for i in range(8))
LIMIT = 100  # seconds
WORDS = ["alpha", "beta", "gamma", "delta"]
ROWS = [
    {"id": str(i), "prompt": " ".join(WORDS[i % 4 :]), "target": WORDS[(i * 3) % 4]} for i in range(8)
]  # for Python


def named(given: Any) -> str:
    """The id of a test, the same in every process: no addresses of objects."""
    return re.sub(r" at 0x\w+", "", str(getattr(given, "args", given)))[:40]


def refused(call: Any, *facts: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        call()
    for fact in facts:
        assert fact in str(caught.value), str(caught.value)


for name in [*(f"rl_warmup.cli.{command}" for command in command_line.COMMANDS), "peft", "trl",
             "torch.distributed.elastic.multiprocessing.errors"]:  # fmt: skip
    with suppress(ImportError):
        import_module(name)  # once here, not in every child
gc.freeze()  # else every child copies these pages when its collector looks at them


class Ended(NamedTuple):
    code: int
    text: str  # stdout, then stderr


def run(argv: Sequence[str], folder: Path) -> Ended:
    """A command in a folder."""
    log = folder.with_name(f"{folder.name}.log")
    child = os.fork()
    if child == 0:
        _be(list(argv), folder, log)
    end = time.monotonic() + LIMIT
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return Ended(os.waitstatus_to_exitcode(found[1]), log.read_text("utf-8", "replace"))


def _be(argv: list[str], folder: Path, log: Path) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for number in (1, 2):
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.environ |= {"HF_HUB_OFFLINE": "1"}
        sys.argv = ["rl-warmup", *argv]
        code = command_line.main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fill(folder: Path) -> Path:
    """A recipe and its rows."""
    folder.mkdir(parents=True)
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "rows.jsonl").write_text(LINES)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with `r.yaml` and `rows.jsonl`."""
    return fill(tmp_path / "case")


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fill(tmp_path_factory.mktemp("trained") / "case")
    for argv in (
        ["train", "--config", "r.yaml", "--log_warmups", "2"],
        ["evaluate", "out", "--controls", "filler"],
        ["sample", "out", "--output", "w.jsonl"],
    ):
        ended = run(argv, folder)
        assert ended.code == 0, ended.text
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """The same after training, with `out`, `out/evaluation/test` and stored warmups `w.jsonl`."""
    return Path(shutil.copytree(_trained, tmp_path / "case"))


@pytest.fixture(scope="session")
def check() -> Callable[..., None]:
    """Runs a command and compares its exit code and what it says; a refusal is one sentence."""

    def compare(argv: Sequence[str], folder: Path, code: int, *facts: str) -> None:
        ended = run(argv, folder)
        assert "Traceback" not in ended.text, ended.text[-3000:]
        assert ended.code == code, ended.text[-3000:]
        for fact in facts:
            assert fact in ended.text, ended.text[-3000:]
        if code == 2:
            assert f"rl-warmup {argv[0]}: " in ended.text
            assert len(ended.text) < 4000, ended.text

    return compare
