"""Results as files: CSV, a Markdown table, a plot; and the command line that all scripts share.

Knows: rows of results. Must not know: torch, so that every `--help` answers at once. A value that was not measured is
an empty cell, never 0.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.shapes import SHAPES


@dataclass
class Row:
    """One line of a CSV file."""

    bench: str
    shape: str
    n: int | None  # warmups per prompt
    variant: str
    ratio: float | None = None  # of cpu_ms to the reference variant's
    flop_ratio: float | None = None
    cpu_ms: float | None = None  # median over the rounds
    peak_mb: float | None = None  # 10^6 bytes above where the call began


COLUMNS = [field.name for field in fields(Row)]
DIGITS = {"ratio": 2, "flop_ratio": 2, "cpu_ms": 1, "peak_mb": 1}


def arguments(
    text: str | None, n: Sequence[int], shapes: Sequence[str] = (), repeats: int = 5
) -> argparse.ArgumentParser:
    """The parser of a script: what it says for `--help`, and the defaults of its options."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if shapes:
        parser.add_argument(
            "--shapes", nargs="+", default=list(shapes), choices=list(SHAPES), help="default: all of this script"
        )
    if n:
        parser.add_argument("--n", nargs="+", type=int, default=list(n), help="warmups per prompt (%(default)s)")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder (%(default)s)")
    return parser


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows under the names of `COLUMNS`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_cells(row) for row in rows)


def markdown(rows: Iterable[Row]) -> str:
    """The same rows as a Markdown table."""
    return grid(COLUMNS, [_cells(row) for row in rows])


def grid(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned as text, too."""
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *cells]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def save(out: Path, name: str, rows: list[Row], *sections: str) -> None:
    """Write `<name>.csv` and `<name>.md`, and print the latter. `sections` follow the table of all rows."""
    write_csv(out / f"{name}.csv", rows)
    text = "\n\n".join([markdown(rows), *sections])
    (out / f"{name}.md").write_text(f"# {name}\n\n{text}\n", encoding="utf-8")
    print(f"\n{text}\n\nWritten: {out / name}.csv, .md")


def plot(path: Path, rows: list[Row]) -> None:
    """Cost against n in steps of the reference: a panel per shape, a line per variant, its FLOP ratio dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure, axes = plt.subplots(1, len(shapes), figsize=(4.5 * len(shapes), 4), squeeze=False)
    variants = list(dict.fromkeys(row.variant for row in rows))
    for axis, shape in zip(axes[0], shapes, strict=True):
        for i, variant in enumerate(variants):
            line = sorted(
                (row for row in rows if (row.shape, row.variant) == (shape, variant)), key=lambda row: row.n or 0
            )
            for style, column in (("o-", "ratio"), ("--", "flop_ratio")):
                points = [(row.n, getattr(row, column)) for row in line if getattr(row, column) is not None]
                label = variant if style == "o-" else None
                axis.plot(*zip(*points, strict=True) if points else ([], []), style, color=f"C{i}", label=label)
        axis.set(title=shape, xlabel="n, warmups per prompt", ylabel="cost of a step / SFT step", xscale="log")
        ticks = sorted({row.n for row in rows if row.n is not None})
        axis.set_xticks(ticks, map(str, ticks))
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(title="solid: time, dashed: FLOPs", fontsize=8, title_fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cells(row: Row) -> list[str]:
    cells = []
    for name, value in asdict(row).items():
        cells.append("" if value is None else f"{value:.{DIGITS[name]}f}" if name in DIGITS else str(value))
    return cells
