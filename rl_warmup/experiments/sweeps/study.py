"""The queue that workers share: an Optuna study that holds one trial per run (per arm, where the study makes the arms).

A claim is taken under a file lock, because SQLite cannot tell two readers of the queue apart; workers that share a
server's database but no folder are kept apart by the database, and by the rule that of two trials of one run the earlier
counts. A worker that dies stops its heartbeat: after `patience` seconds its trials fail without an error, and every failed
trial without an error goes back into the queue.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import statistics
import warnings
from collections.abc import Callable
from typing import Any

from rl_warmup.experiments.sweeps.jobs import SEARCHED, Sweep, import_optuna
from rl_warmup.runtime.ownership import RESULT, file_lock

RUNNING, WAITING, DONE, PRUNED, FAILED = "running", "waiting", "done", "pruned", "failed"
CLAIMED, WAIT, OVER = "claimed", "wait", "over"


class RunFailed(Exception):
    """A run ended without a result; the sweep goes on."""


class Stopped(Exception):
    """The sweep was asked to stop; the run goes back into the queue."""


class Queue:
    """The study of one sweep, in the database at the URL `storage` or in `study.db` in the sweep's folder.
    After `patience` seconds without a heartbeat a run is taken over."""

    def __init__(self, sweep: Sweep, storage: str | None = None, patience: int = 60) -> None:
        self.optuna = optuna = import_optuna()
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.sweep, self.patience = sweep, patience
        self.lock = sweep.output / "study.lock"
        self.jobs = {job.key: job for job in sweep.jobs()}
        self.beside = storage is None  # the study lies beside the runs, so a run that is not there was removed
        url = storage or f"sqlite:///{sweep.output.resolve() / 'study.db'}"
        options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        with file_lock(self.lock):
            database = self._database(url, options)
            self.study = optuna.create_study(
                storage=database, study_name=sweep.question.name, load_if_exists=True,
                direction=sweep.question.direction, pruner=self._pruner(),
            )  # fmt: skip
            seed = len(self.study.get_trials(deepcopy=False))  # every worker draws from a sequence of its own
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=5)
            self.study.set_user_attr("question", sweep.question.question)
            self._fill()

    def _database(self, url: str, options: dict[str, Any]) -> Any:
        """Optuna's storage. Raises ValueError: it cannot be opened, or holds something else."""
        times = {"heartbeat_interval": max(1, self.patience // 4), "grace_period": self.patience}
        try:
            return self.optuna.storages.RDBStorage(url, engine_kwargs=options, **times)
        except Exception as error:  # of SQLAlchemy, drivers and servers, or of Optuna
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = (
                "It is damaged or no study: move it away, and the same command makes it again from the runs that are there"
                if self.beside
                else "Give what SQLAlchemy can open, e.g. sqlite:////shared/study.db or postgresql://user@host/name"
            )
            place = f"The study {url.removeprefix('sqlite:///')}" if self.beside else "--storage"
            raise ValueError(f"{place} cannot be opened ({first:.200}). {remedy}.") from None

    def work(self, objective: Callable[[Any], float], once: Callable[[], bool]) -> str:
        """Claim a trial and run it: CLAIMED; nothing to claim, but others are at work: WAIT; everything has ended: OVER.

        `objective` gets the Optuna trial and may raise RunFailed, Stopped or `optuna.TrialPruned`. `once` is asked under the
        lock, right before the claim; where it is false, nothing is claimed: OVER.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(file_lock(self.lock))
            self.optuna.storages.fail_stale_trials(self.study)
            self._fill()
            states = self.standing()
            if WAITING not in states.values() and len(self.made()) >= self.sweep.trials:
                return WAIT if RUNNING in states.values() else OVER
            if not once():
                return OVER

            def claimed(trial: Any) -> float:
                self._sign(trial)
                held.close()
                return objective(trial)

            try:
                self.study.optimize(claimed, n_trials=1, catch=(RunFailed, Stopped))
            except ValueError as error:
                if "Cannot tell" not in str(error):  # else another worker took it over, and its result stands
                    raise
        return CLAIMED

    def retry_failed(self) -> None:
        with file_lock(self.lock):
            for trial in self._failed().values():
                self._requeue(trial)

    def _sign(self, trial: Any) -> None:
        """Write down who has the trial; one that is surplus ends here."""
        key = trial.user_attrs.get("run")
        earlier = [t for t in self.study.get_trials(deepcopy=False) if t.number < trial.number]
        if key is None and self.sweep.trials:
            runs = {str(t.user_attrs.get("run", "")) for t in earlier}
            surplus = sum(run.startswith(SEARCHED) for run in runs) >= self.sweep.trials
            key = f"{SEARCHED}{trial.number}"
        else:
            same = [t for t in earlier if t.user_attrs.get("run") == key and t.state.name != "FAIL"]
            surplus = key not in self.jobs.keys() | self.made() or not all(map(self._removed, same))
        if surplus:
            trial.set_user_attr("surplus", True)
            raise self.optuna.TrialPruned("another worker has it")
        trial.set_user_attr("run", key)
        trial.set_user_attr("claimed", trial.number)
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")

    def _fill(self) -> None:
        """Every job that is ready has a trial that is not lost. Called under the lock."""
        by_run = self._by_run()
        for key, job in self.jobs.items():
            if key not in by_run and job.ready:
                spaces = self._distributions(job.variant.params)
                params = {k: str(v) if hasattr(spaces[k], "choices") else v for k, v in job.variant.params.items()}
                self._add(params, {"run": key, "arm": job.variant.name, "seed": job.seed}, spaces)
        trials = self.study.get_trials(deepcopy=False)
        lost = {trial.user_attrs["run"]: trial for trial in trials if self._is_searched(trial) and self._removed(trial)}
        for trial in (trial for key, trial in lost.items() if key not in by_run):
            self._requeue(trial)
        now = datetime.datetime.now()
        for trials in by_run.values():
            last = trials[-1]
            if last.state.name == "RUNNING" and last.user_attrs.get("claimed") != last.number:
                # claimed by a worker that died before its first heartbeat
                if (now - (last.datetime_start or now)).total_seconds() > self.patience:
                    self.study.tell(last.number, state=self.optuna.trial.TrialState.FAIL)
            elif self._state(trials) == FAILED and "error" not in last.user_attrs:
                self._requeue(last)

    def _requeue(self, trial: Any) -> None:
        kept = {k: v for k, v in trial.user_attrs.items() if k in ("run", "arm", "seed")}
        self._add(trial.params, kept, trial.distributions)

    def _add(self, params: dict[str, Any], attrs: dict[str, Any], spaces: dict[str, Any]) -> None:
        waiting = self.optuna.trial.TrialState.WAITING
        trial = self.optuna.create_trial(state=waiting, params=params, user_attrs=attrs, distributions=spaces)
        try:
            self.study.add_trial(trial)
        except ValueError as error:
            said = f"The study {self.sweep.question.name} was begun with other values for {', '.join(params)}: {error}"
            raise ValueError(f"{said} Choose another --output (or --storage), or remove the old one.") from error

    def standing(self) -> dict[str, str]:
        """State of every run (or arm that the study makes): RUNNING, WAITING, DONE, PRUNED or FAILED."""
        return {key: self._state(trials) for key, trials in self._by_run().items()}

    def errors(self) -> dict[str, str]:
        """What the failed runs said."""
        return {key: str(t.user_attrs.get("error", "its worker died")) for key, t in self._failed().items()}

    def made(self) -> dict[str, dict[str, Any]]:
        """Settings of the arms the study made, by name."""
        return {key: dict(trials[-1].params) for key, trials in self._by_run().items() if key not in self.jobs}

    def median_seconds(self) -> float | None:
        """Seconds of a trial that ran from its beginning to its end, the median; None before there is one."""
        trials = self.study.get_trials(deepcopy=False)
        seconds = [t.user_attrs["seconds"] for t in trials if t.state.name == "COMPLETE" and "seconds" in t.user_attrs]
        return statistics.median(seconds) if seconds else None

    @property
    def total(self) -> int:
        return len(self.jobs) + self.sweep.trials

    def _failed(self) -> dict[str, Any]:
        """The last trial of every failed run."""
        return {key: trials[-1] for key, trials in self._by_run().items() if self._state(trials) == FAILED}

    def _by_run(self) -> dict[str, list[Any]]:
        """Trials by the run they stand for, earliest first; runs that the sweep no longer has are left out."""
        found: dict[str, list[Any]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            key = trial.user_attrs.get("run")
            known = key in self.jobs or self._is_searched(trial)
            if key and known and not trial.user_attrs.get("surplus") and not self._removed(trial):
                found.setdefault(key, []).append(trial)
        return found

    def _is_searched(self, trial: Any) -> bool:
        """Whether it stands for an arm that the study makes, with all its seeds."""
        return bool(self.sweep.trials) and "seed" not in trial.user_attrs

    def _removed(self, trial: Any) -> bool:
        """Whether it ended with a result that somebody took away, or lacks seeds that were added since."""
        key = str(trial.user_attrs.get("run"))
        if not self.beside or trial.state.name != "COMPLETE":
            return False
        if job := self.jobs.get(key):
            return not job.done
        seeds = self.sweep.question.seeds if self._is_searched(trial) else []
        return not all((self.sweep.folder(key, seed) / RESULT).is_file() for seed in seeds)

    @staticmethod
    def _state(trials: list[Any]) -> str:
        names = {trial.state.name for trial in trials}
        order = {"COMPLETE": DONE, "PRUNED": PRUNED, "RUNNING": RUNNING, "WAITING": WAITING}
        return next((state for name, state in order.items() if name in names), FAILED)

    def _distributions(self, params: dict[str, Any]) -> dict[str, Any]:
        """Where the params of an arm lie, for the study's own plots: numbers as numbers, all else as words."""
        kinds, found = self.optuna.distributions, {}
        for key in params:
            values = [job.variant.params[key] for job in self.jobs.values() if key in job.variant.params]
            if all(isinstance(value, (int, float)) for value in values):
                whole = all(isinstance(value, int) for value in values)
                kind = kinds.IntDistribution if whole else kinds.FloatDistribution
                found[key] = kind(min(values), max(values))
            else:
                found[key] = kinds.CategoricalDistribution(sorted({str(value) for value in values}))
        return found

    def _pruner(self) -> Any:
        settings = dict(self.sweep.question.pruner or {"name": "nop"})
        name = settings.pop("name")
        kind = {"halving": "SuccessiveHalving"}.get(name, name.capitalize())
        try:
            return getattr(self.optuna.pruners, f"{kind}Pruner")(**settings)
        except TypeError as error:
            raise ValueError(f"pruner: {name} cannot be made: {error}.") from error
