"""Sentences for errors of the machine around a command: paths, launchers, the other processes of a launch.

Knows: error numbers, the variables that launchers set. Must not know: what a command does, torch.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress
from pathlib import Path

RANK, PROCESSES = "RANK", "WORLD_SIZE"
ERRORS = "TORCHELASTIC_ERROR_FILE"  # a file of each process, in a folder of its own beside those of the others
REMEDIES = {
    errno.ENOENT: "it, or the folder it would lie in, is not there and cannot be made; give another path",
    errno.ENOTDIR: "a part of the path is a file; give a path through folders alone",
    errno.EEXIST: "it is a file, and a folder is needed; give another path",
    errno.EISDIR: "it is a folder, and a file is needed; give another path",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EACCES: "this user may not use it; change its permissions, or give another path",
    errno.EPERM: "this user may not use it; change its permissions, or give another path",
    errno.EROFS: "it lies on a disk that is read-only; give another path",
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the quota is used up; make room",
    errno.EFBIG: "the file is larger than `ulimit -f` allows; raise that",
    errno.EMFILE: "this process has too many files open; raise `ulimit -n`",
    errno.ELOOP: "its links lead in a circle; give another path",
}
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
)

terminal: int | None = None  # the launch's standard error, where this process's own output goes to a file


def launch_fault() -> str | None:
    """A sentence for a variable of a launcher that cannot be used, or for a current folder that is gone."""
    for name in (RANK, "LOCAL_RANK", PROCESSES, "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if value and not (value.isascii() and value.lstrip("-").isdigit()):
            return f"the environment variable {name} is {value!r}; launchers set it to a whole number. Unset it."
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() not in ("", "no"):
        why = "every update has other shapes, so the model would be compiled again each time"
        return f"the environment variable ACCELERATE_DYNAMO_BACKEND is {compiler!r}, but {why}. Unset it."
    if 0 < _number(PROCESSES, 1) <= _number(RANK, 0):
        numbers = f"{RANK} is {os.environ[RANK]} and {PROCESSES} {os.environ.get(PROCESSES, 1)}"
        return f"the environment variable {numbers}; ranks count from 0. Unset both, or start all by a launcher."
    try:
        os.getcwd()
    except OSError:
        return "the current folder does not exist any more; change to another one."
    return None


def disk_sentence(error: Exception, args: list[str]) -> str | None:
    """What a path could not be used for, with the flag that gave it; None for other errors."""
    if isinstance(error, UnicodeDecodeError):
        where = f"{error.reason} at byte {error.start}"
        return f"a file or the standard input is no text in UTF-8 ({where}); convert it, e.g. by iconv."
    if not isinstance(error, OSError) or error.errno is None or not str(error).startswith("[Errno"):
        return None
    path = str(error.filename or "")
    if not path and error.errno not in REMEDIES:  # of memory, processes, the network
        return None
    said = f"{path if len(path) <= 80 else path[:60] + '...'}: {error.strerror}" if path else str(error.strerror)
    flag = _flag_of(path, args)
    return f"{f'{flag}: ' if flag else ''}{said} ({REMEDIES.get(error.errno, 'give another path')})."


def _flag_of(path: str, args: list[str]) -> str | None:
    """The flag whose value is this path, or a folder above it."""
    for at, arg in enumerate(args):
        flag, sign, value = arg.partition("=")
        if not sign and at:
            flag, value = args[at - 1], arg
        if value and path and (path == value or path.startswith((value.rstrip("/") + "/", value + "."))):
            return flag if flag.startswith("--") or sign else None
    return None


def connection_lost(error: Exception) -> str | None:
    """A sentence where an error says that another process of the launch has gone; None for other errors."""
    if processes() < 2 or not any(word in str(error) for word in LOST):
        return None
    return "another process of the launch ended, and the connection to it is lost; its own output says why."


def claim(sentence: str, own: bool = True) -> bool:
    """Whether this process may tell its error: alone, or the first of its machine that fails in this launch.

    The launcher gets the sentence too, in the file where it looks for it, if the fault is this process's `own`.
    """
    file = os.environ.get(ERRORS)
    if processes() < 2 or not file:
        return True
    try:
        Path(file).parents[1].joinpath("told").open("x").close()
    except FileExistsError:
        return False
    except OSError:
        return True
    if own:
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")
    return True


def processes() -> int:
    """How many processes the launcher says there are; 1 without one."""
    return _number(PROCESSES, 1)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    return int(value) if value.lstrip("-").isdigit() else default
