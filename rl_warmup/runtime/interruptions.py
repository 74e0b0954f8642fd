"""Ends a run early: after a scheduler's signal, or when one of several processes hangs.

Knows: signals, the points of an update that processes reach, heartbeat files. Must not know: what is trained.
docs/checkpoints.md lists the exit codes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from rl_warmup.runtime.documents import read_json
from rl_warmup.runtime.faults import claim

EXIT_SIGNALLED = 143  # a shell's code for SIGTERM; the checkpoint is written and the run can be resumed
EXIT_HUNG = 124  # the code of timeout(1)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # `sbatch --signal=USR1@300` sends USR1 before the time limit


class Interruption(TrainerCallback):
    """On SIGTERM or SIGUSR1: finish the update, save a checkpoint, end with `EXIT_SIGNALLED`.

    A checkpoint of an epoch's last update waits until the epoch has ended, so that a resumed run does not lose what is logged
    and evaluated there.
    """

    def __init__(self, maximum: Callable[[int], int]) -> None:
        self.maximum = maximum  # of a value over all processes, so that all save after the same update
        self.received = 0  # signal number, by this process
        self.agreed = 0  # signal number, by all processes, set at the end of an update
        self.waits = False  # for the end of the epoch
        self.handlers: dict[int, Any] = {}  # to restore

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.received, self.agreed, self.waits = 0, 0, False
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number  # launcher and scheduler may both send a signal: the second must not end the process

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.agreed = self.maximum(self.received)
        if self.agreed:
            control.should_save = True
        ends = state.global_step >= state.max_steps or float(state.epoch).is_integer()
        self.waits = control.should_save and ends
        if self.waits:
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.waits:
            self.waits, control.should_save = False, True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.agreed or self.waits:  # a signal that came after `on_step_end` waits for the next update
            return
        if state.is_world_process_zero:
            name = signal.Signals(self.agreed).name
            tqdm.write(
                f"{name}: update {state.global_step} of {state.max_steps} is finished and checkpoint-{state.global_step} "
                f"written; resume with `--resume_from_checkpoint auto`. Exit code {EXIT_SIGNALLED}."
            )
        raise SystemExit(EXIT_SIGNALLED)

    def close(self) -> None:
        """Restore the signal handlers."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


class Watchdog(TrainerCallback):
    """Ends the run when one of several processes falls behind the others inside an update, or stops.

    Every process counts the points of an update that it has reached. A thread writes the count to a heartbeat file every
    second. A process that has waited `limit` seconds for a process with a smaller count, or with an old heartbeat, prints the
    number of that process. The late process prints the stacks of its threads. Both end with `EXIT_HUNG`. The watchdog rests
    while checkpoints are written and evaluations run, as other processes then wait for the main process.

    Args:
        folder: of the heartbeat files; processes that do not share it are not watched.
        limit: seconds; None or 0 waits forever.
    """

    def __init__(self, folder: Path, limit: float | None) -> None:
        self.folder, self.limit = folder, limit
        self.rank = self.count = 0
        self.point = ""  # name of the last point reached
        self.since: float | None = None  # time of that; None: not inside an update
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size == 1 or not self.limit:
            return
        self.rank, self.count, self.since = args.process_index, 0, None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file(self.rank).unlink(missing_ok=True)
        self.stopped.clear()
        self.thread = threading.Thread(target=self._watch, args=(args.world_size,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop watching."""
        self.stopped.set()
        if self.thread is not None:
            self.thread.join()
            self.thread = None
            self._file(self.rank).unlink(missing_ok=True)
            with suppress(OSError):  # only the last process finds it empty
                self.folder.rmdir()

    def reached(self, point: str) -> None:
        """Count a point that all processes reach equally often."""
        self.point, self.since, self.count = point, time.monotonic(), self.count + 1

    def rest(self) -> None:
        """Do not compare processes until this one reaches the next point."""
        self.since = None

    def _watch(self, processes: int) -> None:
        beats = 0
        heartbeats: dict[int, tuple[dict[str, Any], float]] = {}  # by rank: content, when it last changed
        while not self.stopped.wait(1.0):
            beats += 1
            now, since = time.monotonic(), self.since
            self._write({"beats": beats, "count": self.count, "what": self.point})
            for rank in range(processes):
                found = self._read(rank)
                if found and (rank not in heartbeats or heartbeats[rank][0]["beats"] != found["beats"]):
                    heartbeats[rank] = (found, now)
            if since is not None and now - since > (self.limit or 0):
                self._end_if_late(now, heartbeats)

    def _end_if_late(self, now: float, heartbeats: dict[int, tuple[dict[str, Any], float]]) -> None:
        """End if a process is late. The late one ends first, to print its stacks before the launcher ends it."""
        furthest = max((found["count"] for found, _ in heartbeats.values()), default=self.count)
        waited = f"for {self.limit:g} seconds (hang_timeout)"
        if self.count < furthest:
            claim(f"it hangs at `{self.point}`")  # what the others say of the lost connection is no news
            print(
                f"rl-warmup: process {self.rank} hangs: since `{self.point}` it has not come further {waited}, while others "
                f"wait for it. The stacks of its threads:",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            faulthandler.dump_traceback(all_threads=True)
            os._exit(EXIT_HUNG)
        late = {rank: found["what"] for rank, (found, _) in heartbeats.items() if found["count"] < self.count}
        frozen = {rank: found["what"] for rank, (found, at) in heartbeats.items() if now - at > (self.limit or 0)}
        if not late and not frozen:
            return
        time.sleep(2)
        for rank, point in (late | frozen).items():
            how = "has stopped altogether" if rank in frozen else "has not come further"
            print(
                f"rl-warmup: process {rank} {how} since `{point}`, and process {self.rank} has waited {waited} at "
                f"`{self.point}`. The log of process {rank} shows its stacks.",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        os._exit(EXIT_HUNG)

    def _file(self, rank: int) -> Path:
        return self.folder / f"process-{rank}.json"

    def _write(self, state: dict[str, Any]) -> None:
        part = self.folder / f"process-{self.rank}.part"
        with suppress(OSError):  # training itself reports a full disk
            part.write_text(json.dumps(state), encoding="utf-8")
            part.replace(self._file(self.rank))

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            return read_json(self._file(rank))
        except (OSError, ValueError):
            return None
