"""From folders of runs to the files of a report: report.html, summary.md and a PNG per curve."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from rl_warmup.experiments.collect import Section, find_runs, sections
from rl_warmup.experiments.compare import COSTS, compare_section, control_arm
from rl_warmup.experiments.report import curves
from rl_warmup.experiments.report.curves import Chart, plot_curves, require_extras
from rl_warmup.experiments.report.page import Part, example_data, page, summary
from rl_warmup.experiments.report.words import title
from rl_warmup.runtime.ownership import refuse_link


def write_report(paths: Sequence[str | Path], output: str | Path, control: str | None = None) -> list[Path]:
    """Write a report on all finished runs in `paths` and below into the folder `output`; its files, report.html first.

    `control`: the arm to compare with, by its name or one of its run folders; None: the SFT arm that trained longest.
    ValueError for a path without a finished run, or a control that no run belongs to; ImportError
    without matplotlib, scipy or jinja2.
    """
    require_extras()
    runs, skipped = find_runs(paths)
    found = sections(runs)
    parts = [_part(section, control) for section in found]
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
    pictures = [_pictures(part, folder) for part in parts]
    texts = {"report.html": page(parts, example_data(found), skipped)}
    texts["summary.md"] = summary(parts, skipped, pictures)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    return [folder / name for name in (*texts, *itertools.chain(*pictures))]


def _part(section: Section, wanted: str | None) -> Part:
    control = control_arm(section, wanted)
    if control is not None:  # first in tables, and always in the first colour
        section.arms.sort(key=lambda arm: arm is not control)
    charts = curves.quality_charts(section), curves.training_charts(section)
    return Part(section, control, wanted is not None, compare_section(section, control), *charts)


def _pictures(part: Part, folder: Path) -> list[str]:
    """A PNG per quantity over updates; quality over every other axis too."""
    names: dict[str, tuple[Chart, str, str]] = {}
    for chart in [*part.quality, *part.training]:
        unit = f"{chart.title} ({chart.unit})" if chart.unit else chart.title
        for axis in chart.axes if chart in part.quality else ["updates"]:
            short = re.sub(r"[^a-z0-9+]+", "-", f"{title(part.section)} {chart.key} {axis}".lower()).strip("-")
            names.setdefault(f"{short}.png", (chart, axis, unit))
    for name, (chart, axis, unit) in names.items():
        points = {curve.arm: curve.points(axis) for curve in chart.curves}
        plot_curves([(points, title(part.section), unit)], folder / name, COSTS[axis])
    return list(names)
