"""The report as Markdown: findings and tables, for a pull request or a notebook."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rl_warmup.experiments.report import words
from rl_warmup.experiments.report.page import Part
from rl_warmup.experiments.report.tables import markdown_table
from rl_warmup.experiments.report.words import Cells


def summary(parts: Sequence[Part], skipped: Sequence[str], pictures: Sequence[Sequence[str]]) -> str:
    """summary.md. `pictures`: file names of PNGs per part."""
    lines = ["# Report", ""]
    notice = words.separated([part.section for part in parts])
    lines += [line for text in [notice, *skipped] if text for line in (f"> {_(text)}", "")]
    for part, files in zip(parts, pictures, strict=True):
        section = part.section
        lines += [f"## {_(words.title(section))}", "", _(words.compared(section, part.control, part.asked)), ""]
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
