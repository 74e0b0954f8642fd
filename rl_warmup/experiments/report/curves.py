"""Lines up the logs of an arm's seeds, quality over updates, seconds, tokens and FLOPs, and draws them as PNG.

A point that some seed lacks is left out for all of them, so that a mean is always over the same seeds.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b2569a", "#a06a00", "#4b4bb8", "#5b6770", "#8c2d19")
MARKERS = "osD^vPX*"
EARLY = ("cold start", "reading")  # phases in which proposals, or samples of the starting model, are imitated or read
PHASES_END = "proposals end: the policy takes over, or nobody"
Panel = tuple[dict[str, list[list[tuple[float, float]]]], str, str]
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


def phase_ends(section: Section) -> dict[str, dict[str, float]]:
    """Where an arm stops training on proposals or samples of the starting model: an x per axis, mean over its seeds. Arms that
    never did are missing; one that does to the end has its last update."""
    found = {arm.name: [(run, end) for run in arm.runs if (end := _phase_end(run)) is not None] for arm in section.arms}
    return {
        name: {
            axis: statistics.mean(xs)
            for axis in COSTS
            if (xs := [x for run, end in ends if (x := _at(run, axis, end)) is not None])
        }
        for name, ends in found.items()
        if ends
    }


def _phase_end(run: Run) -> int | None:
    early = [log["step"] for log in run.logs if log.get("phase") in EARLY]
    for key in ("switched_at", "gave_up_at"):
        if (end := run.result.get(key)) is not None:
            return end
    return run.result.get("updates", early[-1]) if early else None


def _at(run: Run, axis: str, step: int) -> float | None:
    """What a run had spent at an update, between the two logged ones around it; None where it was not measured."""
    import numpy as np

    if axis == "updates":
        return float(step)
    known = sorted((record["step"], record[axis]) for record in run.timing if record.get(axis) is not None)
    steps, spent = zip((0, 0), *known, strict=True)
    return float(np.interp(step, steps, spent)) if known else None


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
    found = []
    for run in arm.runs:
        if points := [(log["step"], value) for log in run.logs if (value := _value(log, key)) is not None]:
            found.append((run, points))
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
    """The x of each step on an axis, as first logged; nothing where a step has none."""
    if axis == "updates":
        return [float(step) for step in steps]
    known = {record["step"]: record[axis] for record in reversed(run.timing) if record.get(axis) is not None}
    return [known[step] for step in steps] if known.keys() >= set(steps) else []


def require_extras() -> None:
    """Raises ImportError, before anything is computed, where scipy or jinja2 is missing."""
    for package in ("scipy", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"Reports need {package}, which is not installed: pip install 'rl_warmup[metrics]'.")


def can_plot() -> bool:
    """Whether PNG files can be drawn; the page draws its own curves."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(
    panels: Sequence[Panel], path: Path, x_label: str, marks: Sequence[float] = (), mark_label: str = ""
) -> None:
    """Learning curves as PNG, three panels in a row: in every panel one line per arm (mean over seeds, seeds as a band).

    A panel is (arm -> one list of (x, y) points per seed, title, label of the y axis). An arm keeps its colour over the panels.
    Where the seeds of an arm have points at different x, the line stands at their mean. `marks`: x of vertical lines.
    """
    if not can_plot():
        raise ImportError(f"{path.name} needs matplotlib, which is not installed: pip install 'rl_warmup[metrics]'.")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    arms = list(dict.fromkeys(arm for curves, _, _ in panels for arm in curves))
    across, down = min(3, len(panels)), -(-len(panels) // 3)
    drawing, places = plt.subplots(down, across, figsize=(7 * across, 4.2 * down), dpi=150, squeeze=False)
    for axes in places.flat[len(panels) :]:
        axes.axis("off")
    for axes, (curves, title, y_label) in zip(places.flat, panels, strict=False):
        for arm, seeds in curves.items():
            index = arms.index(arm)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            xs, ys = ([[point[k] for point in points] for points in zip(*seeds, strict=False)] for k in (0, 1))
            means = [list(map(statistics.mean, values)) for values in (xs, ys)]
            axes.plot(*means, label=arm, color=colour, marker=marker, markersize=3.5)
            axes.fill_between(means[0], list(map(min, ys)), list(map(max, ys)), color=colour, alpha=0.15, linewidth=0)
        for number, mark in enumerate(marks):
            axes.axvline(mark, color="#5b6770", linestyle=":", label=mark_label if number == 0 else None)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if x_label == COSTS["updates"]:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)
    plt.close(drawing)
