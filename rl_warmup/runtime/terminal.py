"""The standard streams: what they cannot take is lost and ends nothing, and progress is a bar or plain lines.

Knows: file descriptors, encodings, signals of a lost terminal. Must not know: what is shown, torch. A run outlives the pipe,
the terminal and the disk that its output goes to; only its own files count.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

Item = TypeVar("Item")
READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal
SECONDS = 20.0  # between two plain lines of progress


class Steady:
    """A stream whose writes never fail: from the first failure on, its output goes to /dev/null."""

    def __init__(self, stream: Any) -> None:
        self.stream: Any = stream
        self.fault: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As the stream's."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """As the stream's."""
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        """It stays open: a plugin that closes it is not the last to write."""

    def _lose(self, error: OSError) -> None:
        self.fault = self.fault or error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # what is in the buffer goes there too, and what C libraries write
            os.close(nowhere)
            self.stream.flush()


@contextmanager
def steady_streams(outlives_terminal: bool = False) -> Iterator[Any]:
    """Inside, no output can end the program, and characters that the encoding lacks are escaped. Yields standard output.

    Args:
        outlives_terminal: go on when the terminal is closed (SIGHUP).
    """
    before = sys.stdin, sys.stdout, sys.stderr
    _open_closed()
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    shown = Steady(sys.stdout or open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    sys.stdout, sys.stderr = shown, Steady(sys.stderr) if sys.stderr else sys.stderr
    handled = outlives_terminal and threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN) if handled else None
    try:
        yield shown
    finally:
        shown.flush()
        if sys.stderr:
            sys.stderr.flush()
        if handled:
            signal.signal(signal.SIGHUP, handler)
        sys.stdin, sys.stdout, sys.stderr = before


def lost_output(shown: Steady) -> str | None:
    """A sentence where the output of a `Steady` stream was lost for want of room; None where its reader had gone."""
    if shown.fault is None or shown.fault.errno in READER_GONE:
        return None
    return f"the standard output cannot be written ({shown.fault.strerror}), so what was to be shown is lost."


def progress(items: Iterable[Item], title: str, shown: bool = True, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar on a terminal, and elsewhere a line every 20 seconds, on standard error."""
    if not shown or bars():
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=title, total=total, disable=not shown, leave=False)
        return
    total = len(items) if total is None and isinstance(items, Sized) else total
    said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said >= SECONDS:
            said = time.monotonic()
            print(f"{title}: {done}{f' of {total}' if total else ''}", file=sys.stderr, flush=True)


def bars() -> bool:
    """Whether bars can be drawn: standard error is a terminal."""
    return bool(sys.stderr and sys.stderr.isatty())


def _open_closed() -> None:
    """Give closed standard descriptors to /dev/null. Else the next file that is opened gets their number, and output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
