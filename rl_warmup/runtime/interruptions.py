"""What ends a run before its last update: a scheduler's signal, or a process that does not keep up.

Knows: signals, the points of an update that processes reach, files they tell each other by. Must not know: what is trained.
Exit codes are listed in docs/checkpoints.md.
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

EXIT_SIGNALLED = 143  # what a shell reports for SIGTERM: the checkpoint is written, the run can go on
EXIT_HUNG = 124  # what timeout(1) reports
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # USR1: `sbatch --signal=USR1@300` sends it ahead of the end


class Interruption(TrainerCallback):
    """On SIGTERM or SIGUSR1: finish the update, save a checkpoint, end with `EXIT_SIGNALLED`.

    Args:
        most: the largest of all processes' values, so that all save after the same update whoever was told.
    """

    def __init__(self, most: Callable[[int], int]) -> None:
        self.most = most
        self.heard = 0  # by this process, at any moment
        self.agreed = 0  # by all of them, at the end of an update
        self.before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard = self.agreed = 0
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def _hear(self, number: int, frame: Any) -> None:
        # launcher and scheduler may both send it; nothing is gained by dying half way the second time
        self.heard = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.agreed = self.most(self.heard)
        if self.agreed:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.agreed:  # a signal of the last moment, of which the others do not know, waits for the next update
            return
        if state.is_world_process_zero:
            name = signal.Signals(self.agreed).name
            tqdm.write(
                f"{name}: update {state.global_step} of {state.max_steps} is finished and checkpoint-{state.global_step} "
                f"written; go on with `--resume_from_checkpoint auto`. Exit code {EXIT_SIGNALLED}."
            )
        raise SystemExit(EXIT_SIGNALLED)

    def close(self) -> None:
        """Hand the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


class Watchdog(TrainerCallback):
    """Ends the run when one of several processes falls behind the others inside an update, or stops altogether.

    Every process counts the points of an update it has reached and writes the count to a file of its own, every second, from
    a thread. A process that has waited for `limit` seconds where another has not arrived, or whose file stands still, says
    which one it is; the one that is late prints where each of its threads is. Both end with `EXIT_HUNG`. Nobody is judged
    while checkpoints are written or evaluations run, where waiting for the main process is right.

    Args:
        folder: where the files lie; processes that do not share it are not watched.
        limit: seconds; None or 0 waits forever.
    """

    def __init__(self, folder: Path, limit: float | None) -> None:
        self.folder, self.limit = folder, limit
        self.rank = self.count = 0
        self.what = ""
        self.since: float | None = None  # None: not inside an update
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
            with suppress(OSError):  # the last one out
                self.folder.rmdir()

    def reached(self, what: str) -> None:
        """This process has come to a point that all reach equally often."""
        self.what, self.since, self.count = what, time.monotonic(), self.count + 1

    def rest(self) -> None:
        """Nobody is judged by this process until it reaches the next point."""
        self.since = None

    def _watch(self, processes: int) -> None:
        beats = 0
        heard: dict[int, tuple[dict[str, Any], float]] = {}
        while not self.stopped.wait(1.0):
            beats += 1
            now, since = time.monotonic(), self.since
            self._tell({"beats": beats, "count": self.count, "what": self.what})
            for rank in range(processes):
                told = self._told(rank)
                if told and (rank not in heard or heard[rank][0]["beats"] != told["beats"]):
                    heard[rank] = (told, now)
            if since is not None and now - since > (self.limit or 0):
                self._judge(now, heard)

    def _judge(self, now: float, heard: dict[int, tuple[dict[str, Any], float]]) -> None:
        """End if somebody is late. The late one goes first, so that its stack is printed before the launcher ends it."""
        furthest = max((told["count"] for told, _ in heard.values()), default=self.count)
        waited = f"for {self.limit:g} seconds (hang_timeout)"
        if self.count < furthest:
            print(
                f"rl-warmup: process {self.rank} hangs: since `{self.what}` it has not come further {waited}, while others "
                f"wait for it. Its threads are here:",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            faulthandler.dump_traceback(all_threads=True)
            os._exit(EXIT_HUNG)
        late = {rank: told["what"] for rank, (told, _) in heard.items() if told["count"] < self.count}
        frozen = {rank: told["what"] for rank, (told, at) in heard.items() if now - at > (self.limit or 0)}
        if not late and not frozen:
            return
        time.sleep(2)
        for rank, what in (late | frozen).items():
            how = "has stopped altogether" if rank in frozen else "has not come further"
            print(
                f"rl-warmup: process {rank} {how} since `{what}`, and process {self.rank} has waited {waited} at "
                f"`{self.what}`. The log of process {rank} says where it is.",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        os._exit(EXIT_HUNG)

    def _file(self, rank: int) -> Path:
        return self.folder / f"process-{rank}.json"

    def _tell(self, state: dict[str, Any]) -> None:
        part = self.folder / f"process-{self.rank}.part"
        try:
            part.write_text(json.dumps(state), encoding="utf-8")
            part.replace(self._file(self.rank))
        except OSError:
            return  # a full disk is for the training to report

    def _told(self, rank: int) -> dict[str, Any] | None:
        try:
            return read_json(self._file(rank))
        except (OSError, ValueError):
            return None
