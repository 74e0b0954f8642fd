"""Whoever trains for somebody ends with them, however they went."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_warmup.runtime import orphans

# a parent starts a launcher, which knows nothing of us, which starts a worker
PARENT = """
import os, subprocess, sys, time
from rl_warmup.runtime.orphans import as_parent
code = "import os, time\\nfrom rl_warmup.runtime import orphans\\norphans.end_with_parent()\\n"
code += "print(os.getpid(), flush=True)\\ntime.sleep(60)"
launcher = "import subprocess, sys; subprocess.call([sys.executable, '-c', sys.argv[1]])"
subprocess.Popen([sys.executable, "-c", launcher, code], env={**os.environ, **as_parent()}, process_group=0)
time.sleep(60)
"""


def ends(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process is gone, or will be soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if orphans._start_time(pid) is None:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_behind_a_launcher_ends_with_the_parent(number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert orphans._start_time(worker)
    parent.send_signal(number)  # and nobody asks for it: it stays in the table of processes
    assert ends(worker)
    parent.wait()
    parent.stdout.close()


def test_who_is_watched(monkeypatch):
    started = []
    monkeypatch.setattr(orphans.threading, "Thread", lambda **kwargs: started.append(kwargs["args"]) or _Quiet())
    for value in ("", "elsewhere:1:5", "nonsense"):
        monkeypatch.setenv(orphans.PARENT, value)
        orphans.end_with_parent()
    assert started == []
    for name, value in orphans.as_parent().items():
        monkeypatch.setenv(name, value)
    orphans.end_with_parent()
    assert started == [(os.getpid(), orphans._start_time(os.getpid()))]
    assert os.environ[orphans.PARENT].startswith(f"{socket.gethostname()}:{os.getpid()}:")


def test_a_number_that_was_given_out_again_is_another_process(monkeypatch):
    ended = []
    monkeypatch.setattr(orphans.os, "_exit", ended.append)
    orphans._watch(os.getpid(), "0")
    assert ended == [1]


def test_without_a_process_table_signals_tell(monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert orphans._start_time(os.getpid()) == ""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert orphans._start_time(child.pid) is None


class _Quiet:
    def start(self) -> None:
        """Nothing."""
