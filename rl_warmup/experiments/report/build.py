"""From folders of runs to the files of a report: report.html, summary.md and a PNG per curve."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from rl_warmup.experiments.collect import Section, find_runs, sections
from rl_warmup.experiments.compare import COSTS, compare_section, control_arm
from rl_warmup.experiments.report import curves, examples, words
from rl_warmup.experiments.report.curves import Chart
from rl_warmup.experiments.report.page import Part, page
from rl_warmup.experiments.report.plots import plot_curves, require_extras
from rl_warmup.experiments.report.tables import markdown_table
from rl_warmup.experiments.report.words import Cells, title


def write_report(paths: Sequence[str | Path], output: str | Path, control: str | None = None) -> list[Path]:
    """Write a report on all finished runs in `paths` and below into the folder `output`; its files, report.html first.

    Args:
        control: the arm to compare with, by its name or one of its run folders; None: the SFT arm that trained longest.

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
        said = f"--control-run: no run belongs to {control!r}."
        raise ValueError(f"{said} Give one of the arms ({names}) or a run folder.")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_pictures(part, folder) for part in parts]
    texts = {"report.html": page(parts, examples.example_data(found), skipped)}
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


def summary(parts: Sequence[Part], skipped: Sequence[str], pictures: Sequence[Sequence[str]]) -> str:
    """summary.md. `pictures`: file names of PNGs per part."""
    lines = ["# Report", ""]
    notice = words.separated([part.section for part in parts])
    lines += [line for text in [notice, *skipped] if text for line in (f"> {_(text)}", "")]
    for part, files in zip(parts, pictures, strict=True):
        section = part.section
        lines += [f"## {_(title(section))}", "", _(words.compared(section, part.control, part.asked)), ""]
        lines += [f"- {f'**{_(f.verdict)}**: ' if f.verdict else ''}{_(f.text)}" for f in part.findings]
        lines += [""] + [line for note in words.notes(section, part.results) for line in (_(note), "")]
        for results in part.results:
            lines += [f"### {_(results.metric)}", "", _(words.how_tested(results)), ""]
            lines += [*_table(words.result_cells(results)), ""]
        if likelihood := words.likelihood_cells(section):
            lines += ["### Likelihood of the targets", "", words.LIKELIHOOD, "", *_table(likelihood), ""]
        lines += ["### Cost, means over seeds", "", *_table(words.cost_cells(section, part.control)), ""]
        equal = words.equal_compute_cells(part.quality[0], part.control) if part.quality else None
        if equal:
            heading = f"### {_(part.quality[0].title)} on validation rows, within the control's budget"
            lines += [heading, "", *_table(equal), ""]
        lines += [f"Rows: `{section.rows_hash}`", ""]
        lines += [f"{_(name)}: `{text}`\n" for name, text in section.signatures.items()]
        lines += [f"![{name.removesuffix('.png')}]({name})" for name in files] + [""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _table(cells: Cells) -> list[str]:
    return markdown_table(cells.header, [[_(cell) for cell in row] for row in cells.rows])


def _(text: str) -> str:
    """Text that stays text in Markdown."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(text.split()))
