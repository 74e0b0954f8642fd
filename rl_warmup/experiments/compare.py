"""Compares arms: scores over seeds with their spread, differences with a test and an interval, and what each arm cost.

With two seeds or more on both sides the seeds decide (Welch's t test); with fewer, the rows of one run each do (paired
bootstrap), which says nothing about the seeds; `Difference.basis` tells which.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rl_warmup.experiments.collect import Arm, Run, Section
from rl_warmup.metrics import METRICS
from rl_warmup.metrics.registry import Bounds
from rl_warmup.metrics.significance import Comparison, SeedSummary, compare_runs, compare_seeds, holm, over_seeds

SEEDS, ROWS = "seeds", "rows"
LOWER_IS_BETTER = {name for name, metric in METRICS.items() if not metric.higher_is_better}
BOUNDS = {name: metric.bounds for name, metric in METRICS.items() if metric.bounds}
LOWER_IS_BETTER |= {"unparsed", "loss", "ter", "wer", "cer"}  # values beside a metric's, and other people's metrics
ALPHA = 0.05
# Equal compute aims above the other arm's seconds, as runs are timed unevenly, so it errs on the control's side.
COMPUTE_MARGIN = 1.1
RowTest = Callable[[Path, str, Path, str], dict[str, Comparison] | str]  # `row_test`, or that in a cache
# what a run may cost: key in timing.jsonl or metrics.json -> in words
COSTS = {"updates": "updates", "train_seconds": "seconds of training", "train_tokens": "tokens", "train_flops": "FLOPs"}


@dataclass(frozen=True)
class Difference:
    """How far one entry lies from another. `basis`: SEEDS or ROWS; `p_holm` is adjusted for `family` comparisons."""

    against: str
    value: float
    interval: tuple[float, float] | None
    p_value: float | None
    basis: str
    untested: str | None = None  # why there is no test over rows
    p_holm: float | None = None
    family: int = 0

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class Entry:
    """A metric of one arm under one kind of warmup at test ("": its own). `values`: by seed, where they are there."""

    arm: Arm
    control: str
    values: dict[Any, float]
    difference: Difference | None = None
    bounds: Bounds | None = None  # of the metric

    @property
    def summary(self) -> SeedSummary | None:
        """Mean, deviation and interval over the seeds; None where no run has a value."""
        return over_seeds(list(self.values.values()), self.bounds) if self.values else None


@dataclass
class MetricResults:
    """All entries of one metric."""

    metric: str
    control_arm: Arm | None
    entries: list[Entry]
    direction: str | None = None  # "maximize" or "minimize"; None: as the metric is usually read

    def better(self, difference: float) -> bool:
        """Whether a difference of this sign is an improvement."""
        return better(self.metric, difference, self.direction)

    @property
    def digits(self) -> int:
        """Shares to three digits, points to two."""
        return 3 if all(abs(entry.summary.mean) <= 1 for entry in self.entries if entry.summary) else 2

    def entry(self, arm: str, control: str = "") -> Entry | None:
        return next((x for x in self.entries if x.arm.name == arm and x.control == control), None)


def better(metric: str, difference: float, direction: str | None = None) -> bool:
    """Whether a difference of this sign is an improvement. `direction`: "maximize" or "minimize"; None: as usually read."""
    lower = metric in LOWER_IS_BETTER if direction is None else direction == "minimize"
    return (difference < 0) if lower else (difference > 0)


def mean_and_deviation(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± standard deviation` over seeds; the deviation is left out for a single one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def control_arm(section: Section, wanted: str | None = None) -> Arm | None:
    """The arm that others are compared with, or None: the one whose name or run folder is `wanted`, or the SFT arm that
    trained longest."""
    if wanted is not None:
        folder = Path(wanted).resolve()
        found = (a for a in section.arms if a.name == wanted or folder in [run.folder.resolve() for run in a.runs])
        return next(found, None)

    def seconds(arm: Arm) -> float:
        return statistics.mean(run.result.get("train_seconds") or 0 for run in arm.runs)

    return max((arm for arm in section.arms if arm.objective == "sft"), key=seconds, default=None)


def compare_section(
    section: Section, control: Arm | None, directions: Mapping[str, str] | None = None
) -> list[MetricResults]:
    """Every metric of a section: arms against the control, foreign warmups against the same arm's own warmups.

    `directions`: metric -> "maximize" or "minimize", where it is not read as usual."""
    test, found = cache(row_test), []
    for metric in section.metrics:
        entries = [Entry(arm, name, arm.values(metric, name)) for arm in section.arms for name in arm.controls]
        own = {entry.arm.name: entry for entry in entries if not entry.control}
        base = own.get(control.name) if control else None
        bases = [own.get(entry.arm.name) if entry.control else base for entry in entries]
        compared = compare_entries(metric, entries, bases, test)
        found.append(MetricResults(metric, control, compared, (directions or {}).get(metric)))
    return found


def compare_entries(metric: str, entries: Sequence[Entry], bases: Sequence[Entry | None], test: RowTest) -> list[Entry]:
    """The entries with their differences from their bases; without a base, or as one's own, there is none. Holm over all."""
    differences = [
        _difference(metric, entry, base, test) if base and base is not entry and base.values and entry.values else None
        for entry, base in zip(entries, bases, strict=True)
    ]
    adjusted = holm({str(i): d.p_value for i, d in enumerate(differences) if d and d.p_value is not None})
    return [
        replace(
            entry,
            bounds=BOUNDS.get(metric),
            difference=d and replace(d, p_holm=adjusted.get(str(i)), family=len(adjusted)),
        )
        for i, (entry, d) in enumerate(zip(entries, differences, strict=True))
    ]


def row_test(one: Path, one_control: str, other: Path, other_control: str) -> dict[str, Comparison] | str:
    """A paired bootstrap over the rows of two runs, by metric; the reason where there can be none."""
    try:
        found = compare_runs(one, other, one_control=one_control, other_control=other_control)
    except (ValueError, ImportError) as error:
        return str(error)
    return {comparison.metric: comparison for comparison in found}


def _difference(metric: str, entry: Entry, base: Entry, test: RowTest) -> Difference:
    name = "own warmup" if base.arm is entry.arm else base.arm.name
    ours, theirs = entry.values, base.values
    if len(ours) > 1 and len(theirs) > 1:
        found = compare_seeds(list(theirs.values()), list(ours.values()), BOUNDS.get(metric))
        return Difference(name, found.difference, found.interval, found.p_value, SEEDS)
    seed = next((seed for seed in ours if seed in theirs), next(iter(ours)))
    other = seed if seed in theirs else next(iter(theirs))
    places = base.arm.run(other).place(base.control), entry.arm.run(seed).place(entry.control)
    tested = test(places[0], base.control, places[1], entry.control)
    if isinstance(tested, str) or metric not in tested:
        untested = tested if isinstance(tested, str) else None
        return Difference(name, ours[seed] - theirs[other], None, None, ROWS, untested)
    return Difference(name, tested[metric].difference, tested[metric].interval, tested[metric].p_value, ROWS)


def spent(arm: Arm) -> dict[str, float]:
    """Mean cost over an arm's seeds, by the keys of `COSTS`; those that some seed did not measure are missing."""
    costs = {key: [cost for run in arm.runs if (cost := _cost(run, key)) is not None] for key in COSTS}
    return {key: statistics.mean(values) for key, values in costs.items() if len(values) == len(arm.runs)}


def _cost(run: Run, key: str) -> float | None:
    """What a finished run spent, as its result or else its log says."""
    value = run.result.get(key) if key in ("updates", "train_seconds") else None
    logged = [record[key] for record in run.timing if record.get(key) is not None]
    return max(logged, default=None) if value is None else value


def updates_at_equal_compute(result: dict[str, Any], seconds: float) -> int:
    """Updates that should take a finished run `COMPUTE_MARGIN` times `seconds` at its speed, and never fewer than it had."""
    ratio = COMPUTE_MARGIN * seconds / result["train_seconds"]
    return max(result["updates"], math.ceil(ratio * result["updates"]))
