"""From folders of runs to the files of a report: report.html, summary.md and a PNG per curve.

Knows: the order of the steps and the names of the files. Must not know: what any of them looks like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rl_warmup.experiments.collect import Section, find_runs, sections
from rl_warmup.experiments.compare import COSTS, compare_section, control_arm
from rl_warmup.experiments.report import curves, examples
from rl_warmup.experiments.report.page import Part, page
from rl_warmup.experiments.report.plots import plot_curves, require_extras
from rl_warmup.experiments.report.summary import summary
from rl_warmup.experiments.report.words import title
from rl_warmup.runtime.ownership import refuse_link


def write_report(
    paths: Sequence[str | Path], output: str | Path, control: str | None = None, limit: int = examples.LIMIT
) -> list[Path]:
    """Write a report on all finished runs in `paths` and below into the folder `output`.

    Args:
        control: the arm to compare with, by its name or one of its run folders; None: the SFT arm that trained longest.
        limit: how many predictions the page may hold.

    Returns:
        The files written, report.html first.

    Raises:
        ValueError: a path without a finished run, or a control that no run belongs to.
        ImportError: matplotlib or scipy is missing.
    """
    require_extras()
    runs, skipped = find_runs(paths)
    found = sections(runs)
    parts = [_part(section, control) for section in found]
    if control is not None and all(part.control is None for part in parts):
        names = ", ".join(dict.fromkeys(arm.name for section in found for arm in section.arms))
        raise ValueError(
            f"--control-run: no run belongs to {control!r}. Give one of the arms ({names}) or a run folder."
        )
    folder = Path(output)
    if (folder / "summary.md").exists() and not (folder / "report.html").exists():
        raise ValueError(f"--output: {folder} holds a summary.md that no report wrote. Give another folder.")
    for name in ("report.html", "summary.md", "*.png"):
        for place in [folder / name, *folder.glob(name)]:
            refuse_link(place)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_pictures(part, folder) for part in parts]
    html, text = folder / "report.html", folder / "summary.md"
    html.write_text(
        page(parts, examples.example_data(found, limit), skipped), encoding="utf-8", errors="backslashreplace"
    )
    text.write_text(summary(parts, skipped, pictures), encoding="utf-8", errors="backslashreplace")
    return [html, text, *(folder / name for names in pictures for name in names)]


def _part(section: Section, wanted: str | None) -> Part:
    control = control_arm(section, wanted)
    if control is not None:  # first in tables, and always in the first colour
        section.arms.sort(key=lambda arm: arm is not control)
    results = compare_section(section, control)
    asked = wanted is not None
    return Part(section, control, asked, results, curves.quality_charts(section), curves.training_charts(section))


def _pictures(part: Part, folder: Path) -> list[str]:
    """A PNG per quantity over updates; quality over every other axis too."""
    names = []
    for chart in [*part.quality, *part.training]:
        for axis in chart.axes if chart in part.quality else ["updates"]:
            short = re.sub(r"[^a-z0-9+]+", "-", f"{title(part.section)} {chart.key} {axis}".lower()).strip("-")
            if f"{short}.png" in names or (folder / f"{short}.png") in names:
                continue
            points = {curve.arm: curve.points(axis) for curve in chart.curves}
            unit = f"{chart.title} ({chart.unit})" if chart.unit else chart.title
            plot_curves([(points, title(part.section), unit)], folder / f"{short}.png", COSTS[axis])
            names.append(f"{short}.png")
    return names
