"""Lines up the logs of an arm's seeds: quality over updates, seconds, tokens and FLOPs.

A point that some seed lacks is left out for all of them, so that a mean is always over the same seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_warmup.experiments.collect import Arm, Run, Section
from rl_warmup.experiments.compare import COSTS

# what a training log says about itself: key -> (title, unit)
TRAINING = {
    "loss": ("training loss", "nats; not comparable between objectives"),
    "gain": ("gain: log P(y|x,c) − log P(y|x)", "nats"),
    "ess": ("effective sample size of a group", "warmups"),
    "completions/mean_length": ("length of warmups", "tokens"),
    "completions/distinct_ratio": ("distinct warmups in a group", "share"),
    "completions/target_overlap": ("warmup tokens that stand in the target", "share"),
}

LIKELIHOOD = "eval_log_likelihood"
Log = dict[str, Any]
Point = tuple[float, float]


@dataclass
class Curve:
    """One arm's line. `xs[axis]`: an x per point, mean over seeds; `seeds`: y values, a list per seed."""

    arm: str
    xs: dict[str, list[float]]
    seeds: list[list[float]]

    @property
    def mean(self) -> list[float]:
        return list(map(statistics.mean, zip(*self.seeds, strict=True)))

    @property
    def low(self) -> list[float]:
        return list(map(min, zip(*self.seeds, strict=True)))

    @property
    def high(self) -> list[float]:
        return list(map(max, zip(*self.seeds, strict=True)))

    def points(self, axis: str) -> list[list[Point]]:
        """(x, y) points per seed."""
        return [list(zip(self.xs[axis], seed, strict=True)) for seed in self.seeds]


@dataclass
class Chart:
    """One quantity, a curve per arm that has it."""

    key: str
    title: str
    unit: str
    curves: list[Curve]

    @property
    def axes(self) -> list[str]:
        """Axes that every curve has."""
        return [axis for axis in COSTS if all(axis in curve.xs for curve in self.curves)]


def quality_charts(section: Section) -> list[Chart]:
    """The metrics of the results table on validation rows while training, and the target's log-likelihood."""
    quantities = {f"eval_{name}": (name.replace("_", " "), "") for name in section.metrics}
    return _charts(section, {**quantities, LIKELIHOOD: ("log P(y|x)", "nats; a bound over several warmups")})


def training_charts(section: Section) -> list[Chart]:
    """Loss, gain, and what warmups look like, on training rows."""
    return _charts(section, TRAINING)


def at_budget(curve: Curve, axis: str, budget: float) -> tuple[float, float] | None:
    """The last point (x, mean y) that `budget` pays for; None where even the first costs more."""
    affordable = [(x, y) for x, y in zip(curve.xs[axis], curve.mean, strict=True) if x <= budget * (1 + 1e-9)]
    return affordable[-1] if affordable else None


def _charts(section: Section, quantities: Mapping[str, tuple[str, str]]) -> list[Chart]:
    """A chart for each key with a title and a unit, as far as some arm has it."""
    charts = []
    for key, (title, unit) in quantities.items():
        if curves := [curve for arm in section.arms if (curve := _curve(arm, key))]:
            charts.append(Chart(key, title, unit, curves))
    return charts


def _value(record: Log, key: str) -> float | None:
    """What a log says of a key; log P(y|x) is exact without warmups, else the bound over several."""
    bound = record.get("eval_target_bound" if key == LIKELIHOOD else key)
    return record.get("eval_target_logprob") if key == LIKELIHOOD and bound is None else bound


def _curve(arm: Arm, key: str) -> Curve | None:
    """An arm's points; seeds are lined up by their order, as equal compute may mean other steps for each."""
    logged = [
        (run, [(log["step"], value) for log in run.logs if (value := _value(log, key)) is not None]) for run in arm.runs
    ]
    found = [(run, points) for run, points in logged if points]
    if not found:
        return None
    length = min(len(points) for _, points in found)
    xs = {}
    for axis in COSTS:
        seeds = [_axis(run, axis, [step for step, _ in points[:length]]) for run, points in found]
        if all(seeds):
            xs[axis] = list(map(statistics.mean, zip(*seeds, strict=True)))
    return Curve(arm.name, xs, [[value for _, value in points[:length]] for _, points in found])


def _axis(run: Run, axis: str, steps: Sequence[int]) -> list[float]:
    """The x of each step on an axis; nothing where a step has none."""
    if axis == "updates":
        return [float(step) for step in steps]
    known = {record["step"]: record[axis] for record in reversed(run.timing) if record.get(axis) is not None}
    return [known[step] for step in steps] if known.keys() >= set(steps) else []
