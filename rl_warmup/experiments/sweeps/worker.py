"""A worker: takes runs from the queue, gives each a process of its own, and shows one line for the sweep as a whole.

A run that is found finished (metrics.json) is not repeated; one that was cut off goes on from its checkpoints. A run's folder
is locked while its process lives, so that the process of a killed worker is waited for and not started a second time.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rl_warmup.experiments.sweeps.answer import Answer, write_answer
from rl_warmup.experiments.sweeps.jobs import SEARCHED, Job, Sweep, Variant, import_optuna, read_sweep, suggest
from rl_warmup.experiments.sweeps.study import CLAIMED, DONE, FAILED, OVER, PRUNED, RUNNING, Queue, RunFailed, Stopped
from rl_warmup.runtime.documents import parse_json
from rl_warmup.runtime.orphans import as_parent
from rl_warmup.runtime.ownership import RESULT, file_lock, run_of
from rl_warmup.runtime.run_files import read_records, read_result
from rl_warmup.runtime.terminal import SECONDS, bars

POLL = 0.1  # seconds between two looks at a run's process
PATIENT = 30.0  # seconds a run's process is given to end when asked to
WAITING_POLL = 1.0  # seconds between two looks at the queue while others are at work


@dataclass
class SweepSettings:
    """How sweeps are run. `budget` in seconds; `devices` are dealt out to the jobs as CUDA_VISIBLE_DEVICES.

    `threads` of each run; None: as OMP_NUM_THREADS says, or else a fair share of the processors.
    """

    output: Path | None = None
    jobs: int = 1
    storage: str | None = None
    budget: float | None = None
    retry_failed: bool = False
    devices: list[str] = field(default_factory=list)
    patience: int = 60
    threads: int | None = None


def run_sweep(file: str | Path, settings: SweepSettings) -> Answer:
    """Run what is still missing of a sweep, together with any other worker on the same study, and answer its question.
    ValueError where the sweep file, a recipe or the folder cannot be used; ImportError without Optuna."""
    sweep = read_sweep(file, settings.output)
    if run_of(sweep.output):
        raise ValueError(f"--output: {sweep.output} lies in a run's folder. Give a folder for the runs of the sweep.")
    (queue,), note = run_jobs([sweep], settings)
    return write_answer(sweep, queue, note)


def run_jobs(sweeps: Sequence[Sweep], settings: SweepSettings) -> tuple[list[Queue], str | None]:
    """Run what is still missing of all these sweeps, the first ones first; their queues, and why the budget ended it, if so.
    ValueError where a folder holds a run, or a study values, of other settings or files; ImportError without Optuna."""
    for job in (job for sweep in sweeps for job in sweep.made_jobs()):
        job.refuse_another()
    for job in (job for sweep in sweeps for job in sweep.jobs()):
        if job.ready:
            job.write()
        elif job.done:
            job.refuse_another()
    queues = [Queue(sweep, settings.storage, settings.patience) for sweep in sweeps]
    if settings.retry_failed:
        for queue in queues:
            queue.retry_failed()
    return queues, Worker(queues, settings).run()


class Worker:
    """`jobs` threads, each of which claims a run, starts its process and waits for it."""

    def __init__(self, queues: Sequence[Queue], settings: SweepSettings) -> None:
        self.queues, self.settings = queues, settings
        self.began = self.said = time.monotonic()
        self.stop = threading.Event()
        self.out_of_time: str | None = None
        self.news: list[str] = []  # lines for the terminal, written by the main thread
        self.at_work: dict[str, Job] = {}  # by name

    def run(self) -> str | None:
        """Until everything has ended, or the budget has; a sentence where it was the budget. KeyboardInterrupt on Ctrl-C
        and SIGTERM, after the runs in progress were ended and put back."""
        with _terminate_like_interrupt(), ThreadPoolExecutor(self.settings.jobs) as pool:
            try:
                slots = [pool.submit(self._slot, slot) for slot in range(self.settings.jobs)]
                self._show(slots)
            finally:
                self.stop.set()
        for slot in slots:
            slot.result()  # raises what ended it
        return self.out_of_time

    def _slot(self, slot: int) -> None:
        while not self.stop.is_set():
            states = set()
            for queue in self.queues:
                states.add(queue.work(partial(self._trial, queue, slot), partial(self._has_time, queue)))
                if CLAIMED in states:
                    break  # and look at the first queue again
            if states == {OVER}:
                return
            if CLAIMED not in states:
                self.stop.wait(WAITING_POLL)

    def _has_time(self, queue: Queue) -> bool:
        """Whether a run can end within the budget, as far as the runs so far tell."""
        if self.settings.budget is None or self.stop.is_set():
            return not self.stop.is_set()
        left = self.settings.budget - (time.monotonic() - self.began)
        needed = queue.median_seconds()
        if left > (needed or 0.0):
            return True
        usual = "" if needed is None else f", and a run takes {timedelta(seconds=round(needed))} (median)"
        self.out_of_time = f"Stopped by --budget: {timedelta(seconds=round(max(left, 0.0)))} were left{usual}."
        return False

    def _trial(self, queue: Queue, slot: int, trial: Any) -> float:
        """The metric of a trial's run; its mean over the seeds where the study makes the arms."""
        began, fresh = time.monotonic(), True
        values: list[float] = []
        key = trial.user_attrs["run"]
        try:
            for job in self._jobs(queue, trial):
                key = job.key
                offset = len(values) * max(1, job.recipe.config.max_steps)
                value, again = self._execute(queue, job, trial, slot, offset)
                values.append(value)
                fresh = fresh and not again
        except (RunFailed, ValueError) as error:
            trial.set_user_attr("error", str(error))
            self.news.append(f"{self._name(queue, key)} FAILED: {error}")
            raise RunFailed(str(error)) from error
        if fresh:
            trial.set_user_attr("seconds", round(time.monotonic() - began, 3))
        return statistics.mean(values)

    def _jobs(self, queue: Queue, trial: Any) -> list[Job]:
        sweep, key = queue.sweep, trial.user_attrs["run"]
        if job := queue.jobs.get(key):
            return [sweep.job(job.variant, job.seed)]  # again, as runs that it depends on have ended
        params = {name: suggest(trial, name, space) for name, space in sweep.ranges.items()}
        return [sweep.job(Variant(key, params, params), seed) for seed in sweep.question.seeds]

    def _name(self, queue: Queue, key: str) -> str:
        return key if len(self.queues) == 1 else f"{queue.sweep.question.name}/{key}"

    def _execute(self, queue: Queue, job: Job, trial: Any, slot: int, offset: int) -> tuple[float, bool]:
        """The metric of a run, and whether (a part of) it was there already."""
        with file_lock(job.folder / "run.lock", self._raise_if_stopped) as lock:
            begun = (job.folder / "environment.json").is_file()
            if not job.done:
                name = self._name(queue, job.key)
                self.at_work[name] = job
                try:
                    self._process(queue, job, trial, slot, offset, lock)
                finally:
                    self.at_work.pop(name, None)
            result = read_result(job.folder)
        metric, warmups = queue.sweep.question.metric, queue.sweep.question.warmups[0]
        found = result["metrics"].get(warmups, result["metrics"].get("", {}))
        scored = {name: value for name, value in found.items() if value is not None}
        if metric not in scored:
            raise RunFailed(f"it has no {metric}, only {', '.join(scored) or 'nothing'}")
        seconds = result["train_seconds"]
        self.news.append(f"{self._name(queue, job.key)}  {metric} {scored[metric]:.4g}  {seconds:.0f} s of training")
        return float(scored[metric]), begun

    def _process(self, queue: Queue, job: Job, trial: Any, slot: int, offset: int, lock: int) -> None:
        question = queue.sweep.question
        launch = shlex.split(question.launch) if question.launch else [sys.executable]
        try:
            command = [*launch, "-m", "rl_warmup.cli.train", "--config", str(job.write())]
        except ValueError as error:
            raise RunFailed(str(error)) from error
        share = str(max(1, (os.cpu_count() or 1) // self.settings.jobs))
        environment = {"OMP_NUM_THREADS": share, **os.environ, **as_parent()}
        if self.settings.threads:
            environment["OMP_NUM_THREADS"] = str(self.settings.threads)
        if self.settings.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.settings.devices[slot % len(self.settings.devices)]
        log = job.folder / "train.log"
        with log.open("a", encoding="utf-8") as out:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, pass_fds=(lock,),
                    process_group=0,
                )  # fmt: skip
            except OSError as error:
                raise RunFailed(f"launch: {launch[0]} cannot be started: {error}") from error
            seen = 0
            try:
                while process.poll() is None:
                    self._raise_if_stopped()
                    if question.pruner is not None:
                        seen = self._report(queue, job, trial, offset, seen)
                    time.sleep(POLL)
            except BaseException:
                _end(process)
                raise
        if process.returncode:
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            raise RunFailed(f"{_last_line(log) or how} ({how}; {log})")
        if not (job.folder / RESULT).is_file():
            raise RunFailed(f"it ended without {RESULT} ({log})")

    def _report(self, queue: Queue, job: Job, trial: Any, offset: int, seen: int) -> int:
        """Tell the study what validation says so far, and end a run that has no prospects."""
        key = f"eval_{queue.sweep.question.metric}"
        lines = read_records(job.folder / "metrics.jsonl")
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for step, value in points[seen:]:
            trial.report(value, offset + step)
            if trial.should_prune():
                self.news.append(f"{self._name(queue, job.key)} pruned at update {step}: {key} {value:.4g}")
                raise queue.optuna.TrialPruned
        return len(points)

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _show(self, slots: list[Future[None]]) -> None:
        """Until all slots have ended, or one of them with an error."""
        counts = self._counts()
        with tqdm(
            total=sum(queue.total for queue in self.queues), initial=counts[DONE] + counts[PRUNED] + counts[FAILED],
            desc=self.queues[0].sweep.question.name if len(self.queues) == 1 else "runs", miniters=0,
            mininterval=0.3, disable=not bars(),
            bar_format="{desc} {n_fmt}/{total_fmt}{postfix} [{elapsed}, ETA {remaining}]",
        ) as bar:  # fmt: skip
            running: set[Future[None]] = set(slots)
            while running and not any(slot.done() and slot.exception() for slot in slots):
                self._line(bar)
                running = wait(slots, timeout=1.0, return_when=FIRST_EXCEPTION).not_done
            self._line(bar)

    def _counts(self) -> Counter[str]:
        return Counter(state for queue in self.queues for state in queue.standing().values())

    def _line(self, bar: Any) -> None:
        counts = self._counts()
        ended = counts[DONE] + counts[PRUNED] + counts[FAILED]
        shown = [f"{counts[word]} {word}" for word in (FAILED, PRUNED, RUNNING) if counts[word]]
        shown += [f"{name} {_standing(job)}" for name, job in list(self.at_work.items())]
        while self.news:
            bar.write(self.news.pop(0))
        if bars():
            bar.set_postfix_str(", ".join(shown), refresh=False)
            bar.update(ended - bar.n)
        elif self.at_work and time.monotonic() - self.said >= SECONDS:
            self.said = time.monotonic()
            total = sum(queue.total for queue in self.queues)
            print(f"{ended} of {total} ended, {', '.join(shown)}", file=sys.stderr, flush=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM, with the exit code that a shell reports for it."""

    code = 143


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends a worker as cleanly as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise Terminated

    with ExitStack() as restored:
        if threading.current_thread() is threading.main_thread():
            restored.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, interrupt))
        yield


def _end(process: subprocess.Popen) -> None:
    """End a run's process and whatever it launched."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _standing(job: Job) -> str:
    """The update that a run has reached, and the last validation or loss of its log."""
    found: dict[str, Any] = {}
    with suppress(OSError), (job.folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
        for line in file:
            with suppress(ValueError):  # of a line cut off
                found |= parse_json(line)
    asked = f"eval_{str(job.recipe.config.metric_for_best_model).removeprefix('eval_')}"
    shown = next((key for key in (asked, "eval_loss") if key in found), "loss")
    number = f", {shown} {found[shown]:.4g}" if isinstance(found.get(shown), float) else ""
    return f"update {found.get('step', 0)}/{job.recipe.config.max_steps}{number}"


def seconds_of(text: str) -> float:
    """`2h`, `90m`, `1h30m`, `45s` or a number of seconds; ValueError where it is none of these."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    if not text.strip() or parts is None:
        raise ValueError(f"--budget: {text!r} is no time. Write 2h, 90m, 1h30m or a number of seconds.")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def show_jobs(file: str | Path, settings: SweepSettings) -> str:
    """What a sweep would run and what that costs (`plan.planned_cost`); nothing is run or written."""
    from rl_warmup.experiments.plan import planned_cost
    from rl_warmup.experiments.report.words import amount, text_table

    sweep = read_sweep(file, settings.output)
    question = sweep.question
    rows, total = [], 0.0
    for job in sweep.made_jobs():
        job.refuse_another()
    for job in sweep.jobs():
        if job.ready or job.done:
            job.refuse_another()
        cost = planned_cost(job.recipe.resolved())
        total += cost["flops"] or 0.0
        flops, ratio = (cost["flops"] and amount(cost["flops"])), f"{cost['sft_ratio']:.1f}"
        finished = "done" if job.done else "" if job.ready else "more updates, once known"
        rows.append([job.key, cost["updates"], cost["tokens_per_update"], ratio, flops, finished])
    header = ["run", "updates", "tokens an update", "times SFT", "operations", ""]
    lines = [question.question, "", f"{len(rows)} runs, about {amount(total)} floating point operations (planned)"]
    if sweep.trials:
        space, seeds = ", ".join(f"{key}: {value}" for key, value in sweep.ranges.items()), len(question.seeds)
        lines.append(f"and {sweep.trials} arms named {SEARCHED}N, {seeds} seeds each, searched in {space}")
    try:
        import_optuna()
    except ImportError as error:
        lines.append(f"Before it can run: {error}.")
    return "\n".join([*lines, "", text_table(header, rows)])
