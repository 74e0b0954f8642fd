"""The report as Markdown: findings and tables, for a pull request or a notebook.

Knows: what a `Part` holds. Must not know: how its numbers were made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rl_warmup.experiments.report import words
from rl_warmup.experiments.report.page import LIKELIHOOD, Part
from rl_warmup.experiments.report.words import Table


def summary(parts: Sequence[Part], skipped: Sequence[str], pictures: Sequence[Sequence[str]]) -> str:
    """summary.md. `pictures`: file names of PNGs per part."""
    lines = ["# Report", ""]
    notice = words.separated([part.section for part in parts])
    lines += [line for text in [notice, *skipped] if text for line in (f"> {_(text)}", "")]
    for part, files in zip(parts, pictures, strict=True):
        section = part.section
        lines += [f"## {_(words.title(section))}", "", _(words.compared(section, part.control, part.asked)), ""]
        lines += [f"- {f'**{_(f.verdict)}**: ' if f.verdict else ''}{_(f.text)}" for f in part.findings]
        lines += [""] + [line for note in words.notes(section, part.scores) for line in (_(note), "")]
        for scores in part.scores:
            lines += [f"### {_(scores.metric)}", "", _(words.how_tested(scores)), ""]
            lines += [*_table(words.result_cells(scores)), ""]
        likelihood = words.likelihood_cells(section)
        if likelihood:
            lines += ["### Likelihood of the targets", "", LIKELIHOOD, "", *_table(likelihood), ""]
        lines += ["### Cost, means over seeds", "", *_table(words.cost_cells(section, part.control)), ""]
        equal = words.equal_compute_cells(part.quality[0], part.control) if part.quality and part.control else None
        if equal:
            lines += [f"### {_(part.quality[0].title)} on validation rows, within the control's budget", ""]
            lines += [*_table(equal), ""]
        lines += [f"Rows: `{section.rows_hash}`", ""]
        lines += [f"{_(name)}: `{text}`\n" for name, text in section.signatures.items()]
        lines += [f"![{name.removesuffix('.png')}]({name})" for name in files] + [""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    rule = ["---" if i == 0 else "---:" for i in range(len(table.header))]
    rows = [table.header, rule, *([_(cell) for cell in row] for row in table.rows)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _(text: str) -> str:
    """Text that stays text in Markdown."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(text.split()))
