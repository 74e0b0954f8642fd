"""Output that nobody takes is lost and ends nothing; progress is lines where there is no terminal."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rl_warmup.runtime import terminal
from rl_warmup.runtime.run_folder import _keep_until
from rl_warmup.runtime.terminal import Steady, lost_output, progress, steady_streams

RECIPE = {
    "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "file", "task_kwargs": {"train": "rows.jsonl", "test": "rows.jsonl"}, "output_dir": "run", "logging_steps": 5,
    "max_steps": 60, "num_warmups": 2, "max_warmup_length": 3, "use_cpu": True, "save_strategy": "no", "controls": [],
    "per_device_train_batch_size": 2, "proposals": ["reverse"],
}  # fmt: skip
TRAIN = f"{sys.executable} -m rl_warmup train --config r.yaml"


class Fails:
    """A stream that can never be written."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.error, self.descriptor = OSError(number, os.strerror(number)), descriptor

    def write(self, text):
        raise self.error

    flush = lambda self: None  # noqa: E731
    fileno = lambda self: self.descriptor  # noqa: E731


@pytest.mark.parametrize(("number", "words"), [(errno.EPIPE, None), (errno.EIO, None), (errno.ENOSPC, "No space left")])
def test_a_stream_that_fails_is_lost(tmp_path, number, words):
    with (tmp_path / "out").open("w") as file:
        stream = Steady(Fails(number, file.fileno()))
        print("lost", file=stream, flush=True)
        os.write(file.fileno(), b"lost too")  # of a C library
    said = lost_output(stream)
    assert (said is None) == (words is None)
    assert words is None or words in said
    assert (tmp_path / "out").read_text() == ""


def test_the_streams_come_back():
    before = sys.stdin, sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)
    with steady_streams(outlives_terminal=True):
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert isinstance(sys.stdout, Steady)
    assert (sys.stdin, sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)) == before


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SECONDS", 0.0)
    assert list(progress("abc", "Reading")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [f"Reading: {n} of 3" for n in (1, 2, 3)]
    assert list(progress("abc", "Reading", shown=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("lines", "kept", "lost"),
    [
        (['{"step": 1}', '{"step": 2}', '{"step": 3'], 2, None),  # torn by a kill
        (['{"step": 1}', "{damaged}\n", '{"step": 2}\n'], 1, "line 2: is damaged; it and all after it are left out (2 lines)"),
        (['{"step": 1}', '["no object"]\n', '{"step": 2}\n'], 1, "line 2"),
    ],
)  # fmt: skip
def test_a_log_that_is_cut_off_says_so(tmp_path, capsys, lines, kept, lost):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines).replace("\n\n", "\n"))
    _keep_until(path, 2)
    assert len(path.read_text().splitlines()) == kept
    said = capsys.readouterr().out
    assert (lost in said) if lost else not said


@pytest.fixture
def here(tmp_path):
    rows = [{"prompt": f"a b é{n}→", "target": f"é{n}→ b"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = ["bash", "-c", line]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "line",
    [f"{TRAIN} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", f"{TRAIN} > /dev/full", f"{TRAIN} <&- >&- 2>&-"],
    ids=["head", "full", "closed"],
)
def test_a_run_outlives_its_output(here, line):
    done = shell(line, here, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert (here / "run" / "metrics.json").is_file()
    assert "Traceback" not in done.stdout + done.stderr
    assert ("No space left" in done.stderr) == ("full" in line)


def test_a_run_outlives_its_terminal(here):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([*TRAIN.split(), "--max_steps", "100"], cwd=here, env=env, stdout=subprocess.DEVNULL)
    while not (here / "run" / "environment.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    assert process.wait(100) == 0
    assert (here / "run" / "metrics.json").is_file()


def test_help_that_cannot_be_shown(here):
    done = shell(f"{sys.executable} -m rl_warmup --help > /dev/full", here)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "No space left" in done.stderr
    done = shell(f"{sys.executable} -m rl_warmup train --help | true; exit ${{PIPESTATUS[0]}}", here)
    assert (done.returncode, done.stderr) == (0, "")
