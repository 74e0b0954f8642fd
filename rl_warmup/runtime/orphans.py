"""A process that trains for another one ends when that one is gone, also if it was killed and could tell nobody.

Knows: process numbers. Must not know: what is trained, torch. The parent puts `as_parent()` into the environment of what it
starts; every training process below it, behind a launcher too, calls `end_with_parent`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

PARENT = "RL_WARMUP_PARENT"  # host:number:birth of the process to end with
POLL = 1.0  # seconds between two looks


def as_parent() -> dict[str, str]:
    """The environment variable by which this process is watched."""
    pid = os.getpid()
    return {PARENT: f"{socket.gethostname()}:{pid}:{_birth(pid)}"}


def end_with_parent() -> None:
    """Watch the process that the environment names, from a thread, and end with code 1 once it is gone.

    A parent on another machine (a launcher may start processes there) cannot be watched; nothing happens then, nor where the
    environment names none.
    """
    host, _, process = os.environ.get(PARENT, "").rpartition(":")[0].rpartition(":")
    birth = os.environ.get(PARENT, "").rpartition(":")[2]
    if process.isdigit() and host == socket.gethostname():
        threading.Thread(target=_watch, args=(int(process), birth), daemon=True).start()


def _watch(pid: int, birth: str) -> None:
    while _birth(pid) == birth:
        time.sleep(POLL)
    os._exit(1)


def _birth(pid: int) -> str | None:
    """When a process began, in the kernel's own unit; "" where that cannot be told; None for one that has ended.

    One that was killed keeps its number until its own parent asks for it, and a number may be given out again.
    """
    if not Path("/proc/self/stat").is_file():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # it is there, and somebody else's
        return ""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else numbers[18]
