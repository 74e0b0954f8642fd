"""From folders of runs to the files of a report: report.html, summary.md and, with matplotlib, a PNG per curve."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from rl_warmup.experiments.collect import Section, find_runs, sections
from rl_warmup.experiments.compare import COSTS, compare_section, control_arm
from rl_warmup.experiments.report import curves
from rl_warmup.experiments.report.curves import PHASES_END, Chart, can_plot, plot_curves, require_extras
from rl_warmup.experiments.report.page import Part, example_data, page, summary
from rl_warmup.experiments.report.words import file_name, titles
from rl_warmup.runtime.ownership import refuse_link


def write_report(
    paths: Sequence[str | Path], output: str | Path, control: str | None = None, *,
    question: str = "", metric: str | None = None, direction: str | None = None,
) -> list[Path]:  # fmt: skip
    """Write a report on all finished runs in `paths` and below into the folder `output`; its files, report.html first.

    Args:
        control: the arm to compare with, by its name or one of its run folders; None: the SFT arm that trained longest.
        question: what the runs were to find out, in words; the title.
        metric: the headline; None: the first in metrics.json.
        direction: "maximize" or "minimize", of `metric`; None: as the metric is usually read.

    Raises:
        ValueError: a path without a finished run, or a control that no run belongs to.
        ImportError: without scipy or jinja2. Without matplotlib there are no PNG files.
    """
    require_extras()
    runs, skipped = find_runs(paths)
    found = sections(runs, metric)
    named = zip(found, titles(found), strict=True)
    parts = [
        _part(section, name, control, {metric: direction} if metric and direction else {}) for section, name in named
    ]
    if control is not None and all(part.control is None for part in parts):
        names = ", ".join(dict.fromkeys(arm.name for section in found for arm in section.arms))
        said = f"--control-run: no run belongs to {control!r}."
        raise ValueError(f"{said} Give one of the arms ({names}) or a run folder.")
    folder = Path(output)
    if (folder / "summary.md").exists() and not (folder / "report.html").exists():
        raise ValueError(f"--output: {folder} holds a summary.md that no report wrote. Give another folder.")
    for name in ("report.html", "summary.md", "*.png"):
        for place in [folder / name, *folder.glob(name)]:
            refuse_link(place)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_pictures(part, folder) if can_plot() else [] for part in parts]
    texts = {"report.html": page(parts, example_data(found), skipped, question, any(pictures))}
    texts["summary.md"] = summary(parts, skipped, question, pictures)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    return [folder / name for name in (*texts, *itertools.chain(*pictures))]


def _part(section: Section, name: str, wanted: str | None, directions: Mapping[str, str]) -> Part:
    control = control_arm(section, wanted)
    if control is not None:  # first in tables, and always in the first colour
        section.arms.sort(key=lambda arm: arm is not control)
    charts = curves.quality_charts(section), curves.training_charts(section), curves.phase_ends(section)
    results = compare_section(section, control, directions)
    return Part(section, name, control, wanted is not None, results, *charts)


def _pictures(part: Part, folder: Path) -> list[str]:
    """A PNG per quantity over updates; quality over every other axis too."""
    names: dict[str, tuple[Chart, str, str]] = {}
    for chart in [*part.quality, *part.training]:
        unit = f"{chart.title} ({chart.unit})" if chart.unit else chart.title
        for axis in chart.axes if chart in part.quality else ["updates"]:
            names.setdefault(file_name(f"{part.title} {chart.key} {axis}") + ".png", (chart, axis, unit))
    for name, (chart, axis, unit) in names.items():
        points = {curve.arm: curve.points(axis) for curve in chart.curves}
        marks = [ends[axis] for arm, ends in part.phases.items() if arm in points and axis in ends]
        plot_curves([(points, part.title, unit)], folder / name, COSTS[axis], marks, PHASES_END)
    return list(names)
