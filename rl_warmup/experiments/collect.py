"""Finds run folders, reads them, and sorts them: sections (what may be compared), arms (a setting), runs (seeds).

Two runs share a section only if they have the same task, the same model, the same rows (by their hash) and metrics computed
with the same settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from rl_warmup.runtime.ownership import fingerprint
from rl_warmup.runtime.run_files import (
    metric_name,
    read_environment,
    read_evaluation,
    read_records,
    read_result,
    read_run_recipe,
    scored_with,
)
from rl_warmup.runtime.settings import shown

ENVIRONMENT = "environment.json"  # of a run made in Python it holds the settings
Predictions = dict[str, list[dict[str, Any]]]

# recipe keys that do not make another arm: where a run goes, what it shows, which seed it has
INCIDENTAL = {
    "seed", "data_seed", "output_dir", "overwrite", "show_progress", "resume_from_checkpoint", "run_name", "logging_dir",
    "log_warmups", "disable_tqdm", "report_to", "controls", "push_to_hub", "hub_token", "model_card",
}  # fmt: skip
# keys in which the seeds of one arm may differ, e.g. because each was given another run's seconds
BUDGET = {"max_steps", "num_train_epochs", "eval_steps", "logging_steps", "save_steps", "warmup_steps", "warmup_ratio"}
ROWS = "training rows, hash"  # beside the recipe's keys: files of one name may have had other contents


def _records(name: str) -> cached_property[list[dict[str, Any]]]:
    """A file of a run folder, read when it is first asked for."""
    return cached_property(lambda run: read_records(run.folder / name))


@dataclass
class Run:
    """One finished run. `result` is metrics.json, its `metrics` joined by later evaluations of the same rows."""

    folder: Path
    result: dict[str, Any]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    extra: dict[str, Path] = field(default_factory=dict)  # predictions of controls that were evaluated later
    left_out: list[str] = field(default_factory=list)  # evaluations of other weights or rows, a sentence each

    logs = _records("metrics.jsonl")
    timing = _records("timing.jsonl")
    groups = _records("warmups.jsonl")
    warnings = _records("warnings.jsonl")  # of the collapse guard

    @property
    def seed(self) -> Any:
        return self.result.get("seed", self.recipe.get("seed"))

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by control; "" are the run's own warmups."""
        return self.result["metrics"]

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions by control, as far as their files are there."""
        files = {c: self.folder / f"predictions{'.' if c else ''}{c}.jsonl" for c in self.metrics} | self.extra
        count = self.result.get("rows")
        return {control: rows for control, path in files.items() if (rows := read_records(path, count))}

    def place(self, control: str) -> Path:
        """The folder that holds the predictions under a control: the run's, or a later evaluation's."""
        return self.extra[control].parent if control in self.extra else self.folder

    def stem(self) -> str | None:
        """The folder's name without its `-SEED`, or its parent's for `seed-SEED`; None where it does not end so."""
        if self.folder.name == f"seed-{self.seed}":
            return self.folder.resolve().parent.name
        name = re.sub(rf"[-_.](seed)?{re.escape(str(self.seed))}$", "", self.folder.name)
        return name if name and name != self.folder.name else None

    def setting(self) -> dict[str, Any]:
        """The recipe without what does not make another arm, and a hash of the training rows; a start from another run is told
        without its seed."""
        kept = {k: v for k, v in self.recipe.items() if k not in INCIDENTAL}
        name, rows = kept.get("model_name_or_path"), (self.environment.get("training_rows") or {}).get("sha256")
        return kept | ({"model_name_or_path": self.model} if name else {}) | ({ROWS: rows[:8]} if rows else {})

    @cached_property
    def model(self) -> str:
        """What the run started from; without its `-SEED` where that is a run of the same seed, and not a model called phi-2."""
        name = str(self.result.get("model", self.recipe.get("model_name_or_path", "")))
        stem = name.removesuffix(f"-{self.seed}")
        return stem if stem != name and _recipe_of(Path(name)).get("seed") == self.seed else name


@dataclass
class Arm:
    """Runs that differ in their seed only."""

    name: str
    runs: list[Run]

    @property
    def objective(self) -> str | None:
        return self.runs[0].result.get("objective")

    @property
    def controls(self) -> list[str]:
        """Controls that some run of the arm was scored under; "" comes first."""
        return list(dict.fromkeys(control for run in self.runs for control in run.metrics))

    def run(self, seed: Any) -> Run:
        return next(run for run in self.runs if run.seed == seed)

    def values(self, metric: str, control: str = "") -> dict[Any, float]:
        """A metric by seed, where it is there."""
        found = {run.seed: run.metrics.get(control, {}).get(metric) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def varying(self) -> list[str]:
        """Recipe keys in which its seeds differ all the same."""
        return sorted(_changes(self.runs))


@dataclass
class Section:
    """Arms that may stand in one table."""

    task: str
    model: str
    split: str
    rows: int
    rows_hash: str
    signatures: dict[str, str]
    arms: list[Arm]
    headline: str | None = None  # the metric that is named first; None: the first in metrics.json

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]

    @property
    def metrics(self) -> list[str]:
        """Metric names, the headline first."""
        found = (name for run in self.runs for values in run.metrics.values() for name in values)
        return sorted(dict.fromkeys(found), key=lambda name: name != self.headline)

    def recipe_changes(self) -> dict[str, list[Any]]:
        """Settings in which arms differ: key -> a value per arm (of its first run)."""
        return _changes([arm.runs[0] for arm in self.arms])


def _changes(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings in which runs differ: key -> a value per run."""
    settings = [run.setting() for run in runs]
    values = {key: [setting.get(key) for setting in settings] for key in chain(*settings)}
    return {key: column for key, column in values.items() if any(value != column[0] for value in column)}


def find_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """The finished runs in `paths` and below, and sentences about what was left out. ValueError for a path that does
    not exist, or holds no finished run."""
    runs: dict[Path, Run] = {}
    skipped = []
    listed = isinstance(paths, Iterable) and not isinstance(paths, str | bytes | Mapping)
    given = list(paths) if listed else []
    if not given or not all(isinstance(path, str | Path) for path in given):
        raise ValueError(
            f"paths: {shown(given or paths)} is no list of folders. Give run folders, or folders that hold some."
        )
    for path in map(Path, given):
        if not path.is_dir():
            raise ValueError(
                f"{path} is no folder. Give run folders (output_dir of a recipe) or folders that hold some."
            )
        folders = sorted({found.parent for name in ("recipe.yaml", ENVIRONMENT) for found in path.rglob(name)})
        finished = [folder for folder in folders if _result_of(folder) is not None]
        if not finished:
            found = (
                f"{len(folders)} unfinished, or exported and not evaluated (no metrics.json)"
                if folders
                else f"none (no recipe.yaml or {ENVIRONMENT} anywhere in it)"
            )
            raise ValueError(
                f"{path} holds no finished run: {found}. Give the output_dir of a run that has ended; `rl-warmup evaluate` makes "
                f"figures of exported weights."
            )
        others = [folder for folder in folders if folder not in finished]
        skipped += [f"{folder} is not finished (no metrics.json) and is left out." for folder in others]
        runs |= {folder.resolve(): read_run(folder) for folder in finished if folder.resolve() not in runs}
    return list(runs.values()), skipped + [said for run in runs.values() for said in run.left_out]


def _result_of(folder: Path) -> Path | None:
    """The metrics.json of a run; else the one that `rl-warmup evaluate` wrote, for a run made in Python (without a recipe) and
    for exported weights (without a log)."""
    own, later = folder / "metrics.json", folder / "evaluation" / "test" / "metrics.json"
    unfinished = (folder / "recipe.yaml").is_file() and (folder / "timing.jsonl").is_file()
    return own if own.is_file() else later if not unfinished and later.is_file() else None


def _recipe_of(folder: Path) -> dict[str, Any]:
    """The settings of a run; none where the folder is not there, or holds no run."""
    if (folder / "recipe.yaml").is_file():
        return read_run_recipe(folder)
    return read_environment(folder).get("settings") or {}


def read_run(folder: Path) -> Run:
    """One finished run; ValueError where a file of it cannot be read."""
    found, recipe = read_environment(folder), _recipe_of(folder)
    found.pop("settings", None)
    place = _result_of(folder) or folder / "metrics.json"
    result = read_result(folder) if place.parent == folder else read_evaluation(place)
    run = Run(folder, result, recipe, found)
    if place.parent != folder:  # made in Python or exported, and evaluated by a command
        last: dict[str, Any] = next(iter(reversed(run.timing)), {})
        known = {
            "objective": recipe.get("objective"),
            "seed": recipe.get("seed"),
            "model": recipe.get("model_name_or_path"),
        }
        known |= {"updates": last.get("step"), "train_seconds": last.get("train_seconds")}
        run.result.update({key: value for key, value in known.items() if value is not None})
        files = {c: place.with_name(f"predictions{'.' if c else ''}{c}.jsonl") for c in run.metrics}
        run.extra.update(files)
    if said := other_weights(folder, result.get("weights"), fingerprint(folder)):
        run.left_out.append(said)
    for later in sorted(folder.glob("evaluation/*/metrics.json")):
        _join(run, read_evaluation(later), later.parent)
    return run


def other_weights(folder: Path, measured: str | None, there: str | None) -> str | None:
    """A sentence where the model in a run's folder is not the one that its metrics.json is about; None where it is, or is gone.
    `measured` and `there` are fingerprints, in metrics.json and of the files."""
    if None in (measured, there) or measured == there:
        return None
    return (
        f"{folder} holds another model ({there}) than the one its metrics.json is about ({measured}): the weights, an adapter's "
        f"settings or its base model were changed since. What metrics.json says is not true of it."
    )


def _join(run: Run, later: dict[str, Any], folder: Path) -> None:
    """Add what `rl-warmup evaluate` measured on the same rows, with the same weights, and the run itself lacks."""
    first, again = run.result, f"and is left out; repeat `rl-warmup evaluate {run.folder}`"
    if later.get("split") != first.get("split"):
        return
    if later.get("rows_hash") != first.get("rows_hash"):
        rows = f"other rows of the split {later.get('split')} ({later.get('rows')})"
        said = f"{folder} was measured on {rows} than {run.folder} ({first.get('rows')})"
        run.left_out.append(f"{said} {again} on the same rows.")
        return
    if later.get("weights") != first.get("weights"):  # both lack it in folders of older versions
        weights = f"{later.get('weights', 'not known')}, not {first.get('weights', 'known')}"
        said = f"{folder} was measured on other weights than {run.folder} ended with ({weights})"
        run.left_out.append(f"{said} {again}.")
        return
    settings = scored_with(first), scored_with(later)
    asked = [{metric_name(spec) for spec in result.get("metric_specs") or ()} for result in (first, later)]
    if other := sorted(name for name in asked[0] & asked[1] if settings[0].get(name) != settings[1].get(name)):
        said = f"{folder} has {other[0]} with other settings than {run.folder}"
        run.left_out.append(f"{said} {again} with the same ones.")
        return
    for control, values in later.get("metrics", {}).items():
        if control not in run.metrics:
            run.extra[control] = folder / f"predictions.{control}.jsonl"
        run.metrics[control] = {**values, **run.metrics.get(control, {})}
    if "likelihood" in later:
        run.result.setdefault("likelihood", later["likelihood"])


def sections(runs: Sequence[Run], headline: str | None = None) -> list[Section]:
    """Runs sorted into what may be compared, the largest comparison first. `headline`: see `Section`."""
    sorted_runs: dict[str, list[Run]] = {}
    for run in runs:
        fixed = [*(run.result.get(key) for key in ("task", "split", "rows", "rows_hash")), scored_with(run.result)]
        # without a hash no other run is known to have these rows
        unknown = "" if run.result.get("rows_hash") else str(run.folder)
        sorted_runs.setdefault(json.dumps([run.model, unknown, *fixed], sort_keys=True), []).append(run)
    found = []
    for members in sorted_runs.values():
        result = members[0].result
        task, split, rows_hash = (str(result.get(key, "")) for key in ("task", "split", "rows_hash"))
        rows, signatures = int(result.get("rows") or 0), scored_with(result)
        found.append(Section(task, members[0].model, split, rows, rows_hash, signatures, _arms(members), headline))
    return sorted(found, key=lambda section: -len(section.runs))


def _arms(runs: Sequence[Run]) -> list[Arm]:
    """Arms: runs of one recipe; and runs of one name side by side, even where their budgets differ."""
    groups: list[list[Run]] = []
    for same in (lambda one, other: one[0].setting() == other[0].setting(), _same_name):
        joined: list[list[Run]] = []
        for group in groups or [[run] for run in runs]:
            seeds = {run.seed for run in group}  # a second run of one seed is no further seed
            free = (other for other in joined if same(other, group) and seeds.isdisjoint(run.seed for run in other))
            home = next(free, [])
            if not home:
                joined.append(home)
            home += group
        groups = joined
    members = [sorted(group, key=lambda run: (str(type(run.seed)), run.seed)) for group in groups]
    return [Arm(name, group) for name, group in zip(_names(members), members, strict=True)]


def _same_name(one: Sequence[Run], other: Sequence[Run]) -> bool:
    reduced = [{k: v for k, v in group[0].setting().items() if k not in BUDGET | {ROWS}} for group in (one, other)]
    places = [{(run.folder.parent.resolve(), run.stem()) for run in group if run.stem()} for group in (one, other)]
    return reduced[0] == reduced[1] and bool(places[0] & places[1])


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name per arm: the folder's without its seed; the whole folder name, or with its parents, where that is taken."""
    ways = [
        lambda run: run.stem() or run.folder.name,
        lambda run: run.folder.name,
        lambda run: f"{run.folder.parent.name}/{run.stem() or run.folder.name}",
        lambda run: str(run.folder),
    ]
    names = [ways[0](group[0]) for group in groups]
    for way in ways[1:]:
        taken = {name for name in names if names.count(name) > 1}
        names = [way(group[0]) if name in taken else name for name, group in zip(names, groups, strict=True)]
    return names
