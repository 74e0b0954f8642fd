"""Ends a training process when the process that started it is gone, even if that was killed.

Knows: process numbers. Must not know: what is trained, torch. The parent puts `as_parent()` into the environment of its
children; every training process below it, also behind a launcher, calls `end_with_parent`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

PARENT = "RL_WARMUP_PARENT"  # host:number:start time of the parent
POLL = 1.0  # seconds between two checks


def as_parent() -> dict[str, str]:
    """The environment variable that names this process as the parent."""
    pid = os.getpid()
    return {PARENT: f"{socket.gethostname()}:{pid}:{_start_time(pid)}"}


def end_with_parent() -> None:
    """Watch the parent from a thread, and end with code 1 once it is gone.

    Does nothing if the environment names no parent, or one on another machine.
    """
    parent = os.environ.get(PARENT, "").rsplit(":", 2)
    if len(parent) == 3 and parent[0] == socket.gethostname() and parent[1].isdigit():
        threading.Thread(target=_watch, args=(int(parent[1]), parent[2]), daemon=True).start()


def _watch(pid: int, start: str) -> None:
    while _start_time(pid) == start:
        time.sleep(POLL)
    os._exit(1)


def _start_time(pid: int) -> str | None:
    """The start time of a process, in clock ticks; "" where it is unknown; None for a process that has ended.

    It is compared because a number may be used again. A killed process counts as ended even before its parent waits for it.
    """
    if not Path("/proc/self/stat").is_file():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # it runs under another user
        return ""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else numbers[18]
