"""From a question to jobs: every arm by name, every run as one complete recipe with a folder of its own.

Random arms are drawn beforehand, so that every worker, and `--dry-run`, sees the same ones; arms of `sampler: tpe` are made by
the study, one at a time.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from rl_warmup.config import Recipe, build_recipe, effective, without_effect
from rl_warmup.experiments.collect import Arm, Run
from rl_warmup.experiments.compare import better, updates_at_equal_compute
from rl_warmup.experiments.sweeps.question import OWN, Question, read_question
from rl_warmup.metrics import METRICS, compute, signatures
from rl_warmup.runtime.documents import file_hash, read_json
from rl_warmup.runtime.ownership import RESULT, fingerprint, sources
from rl_warmup.runtime.recipe_file import read_values, read_yaml
from rl_warmup.runtime.run_files import read_result
from rl_warmup.tasks import load_task

ASKED = "asked.yaml"  # beside the run's own recipe.yaml, which holds every default too
INPUTS = "inputs.json"
INCIDENTAL = ("output_dir", "show_progress", "resume_from_checkpoint", "overwrite")
# settings that only say where a run goes or how it is called; and when it logs, which a guard that acts goes by
ALIKE = {
    *INCIDENTAL, "run_name", "project", "report_to", "log_warmups", "disable_tqdm", "push_to_hub", "hub_model_id", "hub_revision",
    "hub_private_repo", "hub_token", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "log_level",
    "log_level_replica", "log_on_each_node", "hang_timeout", "skip_memory_metrics", "model_card",
}  # fmt: skip
LOGGING = {"logging_steps", "logging_strategy", "logging_first_step"}
HEAVY_METRICS = ("bertscore", "comet")
SEARCHED = "trial-"  # names of arms that the study makes


@dataclass
class Variant:
    """What an arm changes, by the arm's name. `params`: what of it the study shows and searches."""

    name: str
    changes: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """A run to be made: one recipe, one seed, one folder. `after`: folders of the runs that its recipe depends on."""

    variant: Variant
    seed: int
    folder: Path
    recipe: Recipe
    after: list[Path] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.variant.name}/seed-{self.seed}"

    @property
    def done(self) -> bool:
        return (self.folder / RESULT).is_file()

    @property
    def ready(self) -> bool:
        """Whether the runs it depends on are finished."""
        return all((folder / RESULT).is_file() for folder in self.after)

    def refuse_another(self) -> None:
        """Raises ValueError where the folder holds a run of other settings, of other contents of its files, or given the seconds
        of a run that is not there any more."""
        remedy = "Choose another --output, or remove that folder."
        found = [self.folder / ASKED, self.folder / "recipe.yaml"]  # the second may be there without the first
        now, own = self.recipe.resolved(), self.recipe.values
        if self.done and (gone := [folder for folder in self.after if not (folder / RESULT).is_file()]):
            raise ValueError(f"{self.folder} was given as many seconds as {gone[0]} took, which is gone. {remedy}")
        for before in [read_yaml(path, "recipe") for path in found if path.is_file()]:
            known = {**before, **own}  # a default that came with a newer version changes nothing
            if keys := [k for k in known if k not in INCIDENTAL and before.get(k) != now.get(k)]:
                shown = ", ".join(f"{k} {before.get(k)!r} -> {now.get(k)!r}" for k in keys[:4])
                raise ValueError(f"{self.folder} holds a run of other settings ({shown}). {remedy}")
        inputs = self.folder / INPUTS
        read = read_json(inputs) if self.done and inputs.is_file() else {}
        if changed := [path for path, contents in self._inputs().items() if read.get(path, contents) != contents]:
            raise ValueError(f"{self.folder} holds a run that read other contents of {changed[0]}. {remedy}")

    def _inputs(self) -> dict[str, str]:
        """Path -> a hash, of every file and model that the recipe names."""
        paths = sources({key: value for key, value in self.recipe.values.items() if key not in INCIDENTAL}).values()
        return {str(path): found for path in paths if (found := _contents(path, path.stat().st_mtime_ns))}

    def write(self) -> Path:
        """The complete recipe as `asked.yaml` in the run's folder, and hashes of what it reads. Raises as `refuse_another`."""
        self.refuse_another()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.done:
            (self.folder / INPUTS).write_text(json.dumps(self._inputs(), indent=2) + "\n", encoding="utf-8")
        # another worker may be reading it, or the run itself
        return self.recipe.save(self.folder, f"{ASKED}.{uuid4().hex}").replace(self.folder / ASKED)


@dataclass
class Sweep:
    """All that is to be done for a question. `variants` are known beforehand; the study makes `trials` more from `ranges`."""

    question: Question
    base: dict[str, Any]
    output: Path
    variants: list[Variant]
    ranges: dict[str, Any] = field(default_factory=dict)  # setting -> Optuna distribution

    @property
    def trials(self) -> int:
        return self.question.trials if self.ranges else 0

    def folder(self, name: str, seed: int) -> Path:
        return self.output / name / f"seed-{seed}"

    def job(self, variant: Variant, seed: int) -> Job:
        """One run of an arm; ValueError names the arm and every setting that cannot be used."""
        folder = self.folder(variant.name, seed)
        rule = self.question.equal_compute.get(variant.name)
        after = [self.folder(rule[key], seed) for key in ("like", "seconds_of")] if rule else []
        values = {
            **self.base, **self.question.settings, **variant.changes, "seed": seed, "output_dir": str(folder),
            "show_progress": False, "resume_from_checkpoint": "auto",
        }  # fmt: skip
        try:
            job = Job(variant, seed, folder, build_recipe(values), after)
            return replace(job, recipe=build_recipe(values | _equal_compute(job))) if after and job.ready else job
        except ValueError as error:
            raise ValueError(f"The arm {variant.name} cannot be run: {error}") from error

    def jobs(self) -> list[Job]:
        """The runs that are known beforehand: those that others wait for, then the first seed of every arm, so that a stop
        leaves something to look at."""
        awaited = {name for rule in self.question.equal_compute.values() for name in rule.values()}
        pairs = itertools.product(self.question.seeds, self.variants)
        jobs = [self.job(variant, seed) for seed, variant in pairs if seed in self.question.seeds_of(variant.name)]
        return sorted(jobs, key=lambda job: job.variant.name not in awaited)

    def made_jobs(self) -> Iterator[Job]:
        """The runs of arms that the study made, as far as their folders are there."""
        for asked in sorted(self.output.glob(f"{SEARCHED}*/seed-*/{ASKED}")) if self.ranges else ():
            before = read_yaml(asked, "recipe")
            drawn = {key: before[key] for key in self.ranges if key in before}
            yield self.job(Variant(asked.parents[1].name, drawn), int(before["seed"]))

    def arms(self, variants: list[Variant] | None = None) -> list[Arm]:
        """The arms with their finished runs, without later evaluations; those that have none are left out."""
        found = []
        for name in [variant.name for variant in (self.variants if variants is None else variants)]:
            folders = [self.folder(name, seed) for seed in self.question.seeds_of(name)]
            finished = [folder for folder in folders if (folder / RESULT).is_file()]
            found.append(Arm(name, [Run(folder, read_result(folder), {}, {}) for folder in finished]))
        return [arm for arm in found if arm.runs]

    def check(self) -> None:
        """Raises ValueError for arms, control, metric or pruner that cannot work together, before anything is run."""
        names = [variant.name for variant in self.variants]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"Two arms are called {twice[0]}: names come from the values, which must differ.")
        control, several = self.question.control, len(names) > 1 and not self.ranges
        if control is None and several and not self.question.random:
            raise ValueError(f"control is missing: name the arm to compare with, one of {', '.join(names)}.")
        self._check_others(names)
        first = self.job(self.variants[0] if self.variants else Variant("base", {}), self.question.seeds[0]).recipe
        if control is not None and control not in names:
            known = ", ".join(names) or "none is known"
            raise ValueError(f"control: {control!r} is no arm of this sweep. Arms: {known}.")
        if (scored := metric_names(first)) and self.question.metric not in scored:
            said = f"metric: {self.question.metric!r} is not among what the base recipe scores ({', '.join(scored)})."
            raise ValueError(f"{said} Choose one, or add it to `metrics` under settings.")
        if wanted := [w for w in self.question.warmups if w != OWN and w not in first.task.controls]:
            there = ", ".join(first.task.controls) or "none"
            said = f"warmups: {wanted[0]} is not scored by the base recipe"
            raise ValueError(f"{said}; add it to `controls` under settings (there now: {there}).")
        if self.question.pruner and str(getattr(first.config.eval_strategy, "value", "no")) == "no":
            raise ValueError("pruner: needs evaluations during training; set eval_strategy and eval_steps in the base.")
        if alike := [key for key in self.ranges if key in ALIKE]:
            raise ValueError(f"random: {alike[0]} makes no difference between runs. Remove it.")
        self._check_alike()

    def _check_others(self, names: list[str]) -> None:
        """Arms named by `seeds` and `equal_compute`."""
        by_arm = self.question.seeds_by_arm
        named = {"seeds": list(by_arm)}
        named |= {f"equal_compute: {arm}": list(rule.values()) for arm, rule in self.question.equal_compute.items()}
        for place, asked in named.items():
            if unknown := [name for name in asked if name not in names]:
                raise ValueError(f"{place}: {unknown[0]!r} is no arm of this sweep. Arms: {', '.join(names)}.")
        if by_arm and (without := [name for name in names if name not in by_arm]):
            raise ValueError(f"seeds: {without[0]} is missing; a mapping names the seeds of every arm.")
        for arm, rule in self.question.equal_compute.items():
            for name in rule.values():
                if lacking := set(self.question.seeds_of(arm)) - set(self.question.seeds_of(name)):
                    raise ValueError(f"equal_compute: {arm} needs the seed {min(lacking)} of {name} too.")

    def _check_alike(self) -> None:
        seen: dict[str, Variant] = {}
        for variant in self.variants:
            if variant.name in self.question.equal_compute:
                continue  # its number of updates is not known yet
            same = seen.setdefault(_what_counts(self.job(variant, self.question.seeds[0]).recipe), variant)
            drawn_twice = variant.changes == same.changes and variant.name.startswith(SEARCHED)
            if same is not variant and not drawn_twice:
                one, other = same.changes, variant.changes
                keys = ", ".join(key for key in one | other if one.get(key) != other.get(key)) or "nothing"
                said = f"The arms {same.name} and {variant.name} would be the same run: {keys} makes no difference"
                recipe = self.job(variant, self.question.seeds[0]).recipe
                void = without_effect(recipe.config, recipe.model, recipe.task)
                why = next((f", as {reason}" for key, reason in void.items() if key in keys.split(", ")), "")
                raise ValueError(f"{said} between them{why}. Remove one of them.")


@lru_cache(maxsize=1000)
def _contents(path: Path, changed: int) -> str | None:
    """A hash of a file, or of the weights in a folder; None where there are none. `changed`: when, for the cache."""
    return file_hash(path) if path.is_file() else fingerprint(path)


def _equal_compute(job: Job) -> dict[str, int]:
    """How long a job trains to take the seconds of the second run that it depends on, and a margin, at the speed of the first."""
    like, other = (read_result(folder) for folder in job.after)
    updates = updates_at_equal_compute(like, other["train_seconds"])
    tenths = {"eval_steps": max(1, updates // 10)} if job.recipe.config.eval_strategy.value == "steps" else {}
    return {"max_steps": updates, **tenths}


def _what_counts(recipe: Recipe) -> str:
    """What of a recipe can make its run another one."""
    values = effective(recipe.config, recipe.model, recipe.task)
    silent = ALIKE if recipe.config.guard in ("act", "stop") else ALIKE | LOGGING
    return json.dumps({key: values[key] for key in sorted(values.keys() - silent)}, default=str)


def read_sweep(file: str | Path, output: Path | None = None) -> Sweep:
    """A sweep file with every arm, checked; the runs go to `output`, or runs/sweeps/ and the file's name.
    ValueError for a key, setting, name or metric that cannot be used; ImportError for random ranges without Optuna."""
    question = read_question(file)
    try:
        return _checked(question, output)
    except ValueError as error:  # with the file, as the fault may be in it or in its base
        raise ValueError(f"{file}: {error}") from error.__cause__


def _checked(question: Question, output: Path | None) -> Sweep:
    """The sweep of a question. Raises as `read_sweep`, without the name of the file."""
    # checked together, as settings may be what lets a base for a GPU run here
    base = build_recipe({**read_values(question.base), **question.settings}).values
    variants = [Variant(name, changes) for name, changes in question.runs.items()] + _grid(question.grid)
    for name, rule in question.equal_compute.items():
        at = next((i for i, variant in enumerate(variants) if variant.name == rule["like"]), None)
        if at is not None:  # else `check` names it
            variants.insert(at + 1, Variant(name, dict(variants[at].changes)))
    sweep = Sweep(question, base, output or Path("runs", "sweeps", question.name), variants)
    if question.random:
        ranges = {key: distribution(key, given) for key, given in question.random.items()}
        if question.sampler == "tpe":
            sweep.ranges = ranges
        else:
            variants += _drawn(ranges, question.trials)
    sweep.check()
    question.direction = question.direction or ("maximize" if better(question.metric, 1.0) else "minimize")
    return sweep


def metric_names(recipe: Recipe) -> list[str]:
    """What a recipe scores, found by scoring one target against itself; empty where a metric would load a network."""
    task = load_task(recipe.task.task, **(recipe.task.task_kwargs or {}))
    specs = recipe.task.metrics or task.metrics
    signatures(specs)
    if not all(spec in METRICS and spec not in HEAVY_METRICS for spec in map(str, specs)):
        return []
    if not (rows := task.splits[recipe.task.predict_split]):
        said = f"predict_split: the task {task.name} has no rows in its {recipe.task.predict_split} split"
        raise ValueError(f"{said}, so no metric can answer the question. Give rows, or another split.")
    target = [rows[0]["target"]]
    return list(compute(specs, target, target, [rows[0]]))


def _grid(grid: Mapping[str, list[Any]]) -> list[Variant]:
    variants = []
    for values in itertools.product(*grid.values()) if grid else ():
        changes = dict(zip(grid, values, strict=True))
        name = re.sub(r"[^A-Za-z0-9_.=,+-]", "-", ",".join(f"{key}={label(v)}" for key, v in changes.items()))
        # a database takes numbers and texts
        params = {key: value if type(value) in (int, float) else label(value) for key, value in changes.items()}
        variants.append(Variant(name, changes, params))
    return variants


def _drawn(ranges: Mapping[str, Any], trials: int) -> list[Variant]:
    """Arms drawn at random, always the same ones."""
    optuna = import_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [study.ask(dict(ranges)).params for _ in range(trials)]
    return [Variant(f"{SEARCHED}{i:0{len(str(trials))}d}", params, params) for i, params in enumerate(drawn)]


def distribution(key: str, given: Any) -> Any:
    """A list of values, or {low, high, log, step}, as Optuna's distribution."""
    kinds = import_optuna().distributions
    if isinstance(given, list):
        if any(isinstance(value, (list, dict)) for value in given):
            raise ValueError(
                f"random: {key} has lists or mappings as values; give plain ones, or list arms under runs."
            )
        return kinds.CategoricalDistribution(given)
    low, high, step, log = given["low"], given["high"], given.get("step"), bool(given.get("log"))
    step = float(step) if isinstance(step, str) else step
    if isinstance(low, int) and isinstance(high, int) and not isinstance(step, float):
        return kinds.IntDistribution(low, high, log=log, step=step or 1)
    return kinds.FloatDistribution(float(low), float(high), log=log, step=step)


def suggest(trial: Any, key: str, space: Any) -> Any:
    """A value of `distribution`, chosen by the study's sampler."""
    if hasattr(space, "choices"):
        return trial.suggest_categorical(key, space.choices)
    choose = trial.suggest_int if isinstance(space.low, int) else trial.suggest_float
    return choose(key, space.low, space.high, step=space.step, log=space.log)


def label(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list):
        return "+".join(map(label, value)) or "none"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def import_optuna() -> Any:
    """Optuna, without its lines in the terminal; ImportError says how to install it."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("sweeps need the package optuna; pip install 'rl_warmup[sweeps]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
