"""Numbers as text: plain tables, and how a figure is printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

NAMES = {
    "": "own warmup", "shuffled": "shuffled warmup", "empty_warmup": "no warmup", "filler": "filler warmup",
    "other_run": "another run's warmup", "sampled": "sampled warmup", "rerank": "reranked",
}  # fmt: skip


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain table: the first column to the left, the others to the right; None is an empty cell."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join(map("  ".join, lines))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [header, rule, *rows]]


def result_table(result: dict[str, Any]) -> str:
    """The metrics of one run: a line per kind of warmup, a column per metric."""
    if not result["metrics"]:
        return f"\n{result['task']}: no rows in the {result['split']} split, so nothing was predicted or scored."
    names = list(next(iter(result["metrics"].values())))
    objective = "sft" if result.get("inference") == "empty" else result.get("objective")
    rows = [
        [control_name(control, objective), *(f"{values[name]:.4g}" for name in names)]
        for control, values in result["metrics"].items()
    ]
    title = f"{result['task']}, {result['split']} split, {result['rows']} rows"
    return f"\n{title}\n" + text_table(["warmup", *names], rows)


def control_name(control: str, objective: str | None = None) -> str:
    """How a control is called in tables; "" is the run's own warmups, or none for SFT."""
    return "no warmup (SFT)" if not control and objective == "sft" else NAMES.get(control, control)


def figure(value: float | None, digits: int, signed: bool = False) -> str:
    """A number at fixed digits with a true minus sign; empty where there is none."""
    if value is None or math.isnan(value):
        return ""
    text = f"{abs(value):.{digits}f}"
    sign = "" if not text.strip("0.") else "−" if value < 0 else "+" if signed else ""
    return sign + text


def between(interval: tuple[float, float] | None, digits: int, signed: bool = False) -> str:
    """An interval in words; empty where there is none."""
    if interval is None or any(map(math.isnan, interval)):
        return ""
    low, high = interval
    return f"{figure(low, digits, signed)} to {figure(high, digits, signed)}"


def probability(p: float | None) -> str:
    """A p-value: never printed as 0; empty where there is none."""
    if p is None or math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def amount(value: float | None) -> str:
    """A large count, shortly: 12,300 or 1.2e+12; empty where there is none."""
    if value is None:
        return ""
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"
