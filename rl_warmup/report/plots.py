"""Curves as PNG files.

Knows: points. Must not know: runs, files of runs, or pages.
"""

from __future__ import annotations

import statistics
from pathlib import Path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b2569a", "#a06a00", "#4b4bb8", "#5b6770", "#8c2d19")
MARKERS = "osD^vPX*"


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

    drawing, axes = plt.subplots(figsize=(7, 4.2), dpi=150)
    for index, (arm, seeds) in enumerate(curves.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        points = min(len(seed) for seed in seeds)
        xs = [statistics.mean(seed[i][0] for seed in seeds) for i in range(points)]
        ys = [[seed[i][1] for seed in seeds] for i in range(points)]
        axes.plot(xs, [statistics.mean(y) for y in ys], label=arm, color=colour, marker=marker, markersize=3.5)
        axes.fill_between(xs, [min(y) for y in ys], [max(y) for y in ys], color=colour, alpha=0.15, linewidth=0)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)
    plt.close(drawing)
