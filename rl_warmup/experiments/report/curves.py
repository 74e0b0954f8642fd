"""Lines up the logs of an arm's seeds: quality over updates, seconds, tokens and FLOPs.

Knows: keys of metrics.jsonl and timing.jsonl. Must not know: how a curve is drawn. A point that some seed lacks is left
out for all of them, so that a mean is always over the same seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
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
        return [statistics.mean(values) for values in zip(*self.seeds, strict=True)]

    @property
    def low(self) -> list[float]:
        return [min(values) for values in zip(*self.seeds, strict=True)]

    @property
    def high(self) -> list[float]:
        return [max(values) for values in zip(*self.seeds, strict=True)]

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
    charts = [_chart(section, f"eval_{name}", name.replace("_", " "), "") for name in section.metrics]
    bound = _chart(section, "eval_log_likelihood", "log P(y|x)", "nats; a bound over several warmups", _likelihood)
    return [chart for chart in [*charts, bound] if chart.curves]


def training_charts(section: Section) -> list[Chart]:
    """Loss, gain, and what warmups look like, on training rows."""
    charts = [_chart(section, key, title, unit) for key, (title, unit) in TRAINING.items()]
    return [chart for chart in charts if chart.curves]


def at_budget(curve: Curve, axis: str, budget: float) -> tuple[float, float] | None:
    """The last point (x, mean y) that `budget` pays for; None where even the first costs more."""
    affordable = [(x, y) for x, y in zip(curve.xs[axis], curve.mean, strict=True) if x <= budget * (1 + 1e-9)]
    return affordable[-1] if affordable else None


def _chart(
    section: Section, key: str, title: str, unit: str, read: Callable[[Log], float | None] | None = None
) -> Chart:
    curves = (_curve(arm, read or (lambda record: record.get(key))) for arm in section.arms)
    return Chart(key, title, unit, [curve for curve in curves if curve is not None])


def _likelihood(record: Log) -> float | None:
    """log P(y|x): exact without warmups, else the bound over several."""
    bound = record.get("eval_target_bound")
    return record.get("eval_target_logprob") if bound is None else bound


def _curve(arm: Arm, read: Callable[[Log], float | None]) -> Curve | None:
    """An arm's points; seeds are lined up by their order, as equal compute may mean other steps for each."""
    found = []
    for run in arm.runs:
        points = [(record["step"], value) for record in run.logs if (value := read(record)) is not None]
        if points:
            found.append((run, points))
    if not found:
        return None
    length = min(len(points) for _, points in found)
    steps = [[step for step, _ in points[:length]] for _, points in found]
    xs = {axis: _means([_axis(run, axis, of) for (run, _), of in zip(found, steps, strict=True)]) for axis in COSTS}
    known = {axis: values for axis, values in xs.items() if values is not None}
    return Curve(arm.name, known, [[value for _, value in points[:length]] for _, points in found])


def _axis(run: Run, axis: str, steps: Sequence[int]) -> list[float] | None:
    """The x of each step on an axis; None where a step has none."""
    if axis == "updates":
        return [float(step) for step in steps]
    known: dict[int, float] = {}
    for record in run.timing:
        if record.get(axis) is not None:
            known.setdefault(record["step"], record[axis])
    return [known[step] for step in steps] if all(step in known for step in steps) else None


def _means(seeds: Sequence[list[float] | None]) -> list[float] | None:
    known = [values for values in seeds if values is not None]
    return [statistics.mean(values) for values in zip(*known, strict=True)] if len(known) == len(seeds) else None
