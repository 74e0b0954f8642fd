"""Results as tables and pictures.

Knows: result.json and metrics.jsonl of run folders. Must not know: how runs are made.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = {"": "own warmup", "shuffled": "shuffled warmup", "empty_warmup": "no warmup", "filler": "filler warmup"}
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2")


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain table: the first column to the left, the others to the right; None is an empty cell."""
    cells = [[("" if cell is None else str(cell)) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def result_table(result: dict[str, Any]) -> str:
    """The metrics of one run: a line per kind of warmup, a column per metric."""
    names = list(next(iter(result["metrics"].values())))
    label = "no warmup (SFT)" if result.get("objective") == "sft" else NAMES[""]
    rows = [
        [label if not control else NAMES.get(control, control), *(f"{values[name]:.4g}" for name in names)]
        for control, values in result["metrics"].items()
    ]
    title = f"{result['task']}, {result['split']} split, {result['rows']} rows"
    return f"\n{title}\n" + text_table(["warmup", *names], rows)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± standard deviation` over seeds; the deviation is left out for a single one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def plot_curves(
    curves: dict[str, list[list[tuple[float, float]]]], path: Path, title: str, x_label: str, y_label: str
) -> None:
    """Learning curves: one line per arm (mean over seeds, seeds as a band), as PNG.

    Args:
        curves: arm -> one list of (x, y) points per seed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"Plots need matplotlib: pip install 'rl_warmup[metrics]' ({error}).") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=150)
    for (arm, seeds), colour in zip(curves.items(), COLOURS * 3, strict=False):
        points = min(len(seed) for seed in seeds)
        xs = [statistics.mean(seed[i][0] for seed in seeds) for i in range(points)]
        ys = [[seed[i][1] for seed in seeds] for i in range(points)]
        axes.plot(xs, [statistics.mean(y) for y in ys], label=arm, color=colour, marker="o", markersize=3)
        axes.fill_between(xs, [min(y) for y in ys], [max(y) for y in ys], color=colour, alpha=0.15, linewidth=0)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
