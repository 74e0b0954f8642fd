"""Scores of arms with their spread, and what tells an arm from the control and a control from an arm's own warmups.

Knows: sections, and the tests of `metrics.significance`. Must not know: files of runs beyond what a test reads, words or
pages. With two seeds or more on both sides the seeds decide (Welch's t test); with fewer, the rows of one run each do
(paired bootstrap), which says nothing about the seeds, and `Difference.basis` tells which it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rl_warmup.experiments.report.collect import Arm, Run, Section
from rl_warmup.metrics import METRICS
from rl_warmup.metrics.significance import Comparison, SeedSummary, compare_runs, compare_seeds, holm, over_seeds

SEEDS, ROWS = "seeds", "rows"
LOWER_IS_BETTER = {name for name, metric in METRICS.items() if not metric.higher_is_better}
LOWER_IS_BETTER |= {"unparsed", "loss", "ter", "wer", "cer"}  # of keys beside a metric's, and of other people's metrics
ALPHA = 0.05
SAMPLES = 1000  # of a bootstrap


@dataclass(frozen=True)
class Difference:
    """How far a line lies from another one. `basis`: SEEDS or ROWS; `p_holm` is adjusted for `family` comparisons."""

    against: str
    value: float
    interval: tuple[float, float] | None
    p_value: float | None
    basis: str
    p_holm: float | None = None
    family: int = 0


@dataclass(frozen=True)
class Line:
    """A metric of one arm under one control. `summary` is None where no run has a value."""

    arm: Arm
    control: str
    summary: SeedSummary | None
    difference: Difference | None = None


@dataclass
class Scores:
    """All lines of one metric of a section, and why some have no test."""

    metric: str
    control_arm: Arm | None
    lines: list[Line]
    untested: list[str]

    @property
    def digits(self) -> int:
        """Shares to three digits, points to two."""
        return 3 if all(abs(line.summary.mean) <= 1 for line in self.lines if line.summary) else 2

    def line(self, arm: str, control: str = "") -> Line | None:
        """The line of an arm under a control."""
        return next((x for x in self.lines if x.arm.name == arm and x.control == control), None)


def better(metric: str, difference: float) -> bool:
    """Whether a difference of this sign is an improvement."""
    return (difference < 0) if metric in LOWER_IS_BETTER else (difference > 0)


def control_arm(section: Section, wanted: str | None = None) -> Arm | None:
    """The arm that others are compared with: the one asked for, or the SFT arm that trained longest.

    Args:
        wanted: an arm's name, or a run folder of it.

    Returns:
        None if the section has no such arm.
    """
    if wanted is not None:
        folder = Path(wanted).resolve()
        return next(
            (
                arm
                for arm in section.arms
                if arm.name == wanted or any(run.folder.resolve() == folder for run in arm.runs)
            ),
            None,
        )
    arms = [arm for arm in section.arms if arm.objective == "sft"]
    return max(
        arms, key=lambda arm: statistics.mean(run.result.get("train_seconds") or 0 for run in arm.runs), default=None
    )


def score(section: Section, control: Arm | None) -> list[Scores]:
    """Every metric of a section, with differences from the control; controls are compared with their arm's own warmups."""
    tests = Tests()
    found = []
    for metric in section.metrics:
        tests.failed = []
        lines = [
            Line(arm, name, over_seeds(values) if (values := list(arm.values(metric, name).values())) else None)
            for arm in section.arms
            for name in arm.controls
        ]
        lines = [replace(line, difference=_difference(line, metric, control, tests)) for line in lines]
        adjusted = adjust([line.difference for line in lines])
        lines = [replace(line, difference=d) for line, d in zip(lines, adjusted, strict=True)]
        found.append(Scores(metric, control, lines, list(dict.fromkeys(tests.failed))))
    return found


class Tests:
    """Row-by-row tests between two runs, each done once for all metrics."""

    def __init__(self) -> None:
        self.known: dict[tuple[Path, str, Path, str], dict[str, Comparison]] = {}
        self.failed: list[str] = []

    def rows(self, metric: str, one: Run, one_control: str, other: Run, other_control: str) -> Comparison | None:
        """A paired bootstrap over the rows of two runs; None, and a reason in `failed`, where there can be none."""
        sides = _place(one, one_control), _place(other, other_control)
        key = (sides[0], one_control, sides[1], other_control)
        try:
            if key not in self.known:
                found = compare_runs(
                    *sides, samples=SAMPLES, one_control=one_control, other_control=other_control
                )  # fmt: skip
                self.known[key] = {comparison.metric: comparison for comparison in found}
            return self.known[key].get(metric)
        except (ValueError, ImportError) as error:
            self.failed.append(str(error))
            return None


def _place(run: Run, control: str) -> Path:
    """The folder that holds the predictions: the run's, or a later evaluation's."""
    return run.extra[control].parent if control in run.extra else run.folder


def _difference(line: Line, metric: str, control: Arm | None, tests: Tests) -> Difference | None:
    """From the arm's own warmups for a control line, from the control arm for an arm's own line."""
    if line.summary is None or (not line.control and (control is None or line.arm is control)):
        return None
    base = line.arm if line.control else control
    assert base is not None
    name = "own warmup" if line.control else base.name
    ours, theirs = line.arm.values(metric, line.control), base.values(metric)
    if not theirs:
        return None
    if len(ours) > 1 and len(theirs) > 1:
        found = compare_seeds(list(theirs.values()), list(ours.values()))
        return Difference(name, found.difference, found.interval, found.p_value, SEEDS)
    shared = [seed for seed in ours if seed in theirs]
    pair = (shared[0], shared[0]) if shared else (next(iter(ours)), next(iter(theirs)))
    run, other = (next(r for r in arm.runs if r.seed == s) for arm, s in zip((line.arm, base), pair, strict=True))
    tested = tests.rows(metric, other, "", run, line.control)
    if tested is None:
        return Difference(name, ours[pair[0]] - theirs[pair[1]], None, None, ROWS)
    return Difference(name, tested.difference, tested.interval, tested.p_value, ROWS)


def adjust(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Holm over all tests of a table, in the order given; None stays None."""
    p_values = {str(i): d.p_value for i, d in enumerate(differences) if d is not None and d.p_value is not None}
    adjusted = holm(p_values) if p_values else {}
    return [
        None if d is None else replace(d, p_holm=adjusted.get(str(i)), family=len(adjusted))
        for i, d in enumerate(differences)
    ]
