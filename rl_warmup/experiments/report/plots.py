"""Curves as PNG files.

Knows: points. Must not know: runs, files of runs, or pages.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from pathlib import Path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b2569a", "#a06a00", "#4b4bb8", "#5b6770", "#8c2d19")
MARKERS = "osD^vPX*"
Panel = tuple[dict[str, list[list[tuple[float, float]]]], str, str]


def require_extras() -> None:
    """Raises ImportError, before anything is computed, where matplotlib, scipy or jinja2 is missing."""
    for package in ("matplotlib", "scipy", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"Reports need {package}, which is not installed: pip install 'rl_warmup[metrics]'.")


def plot_curves(
    panels: Sequence[Panel], path: Path, x_label: str, marks: Sequence[float] = (), mark_label: str = ""
) -> None:
    """Learning curves beside each other as PNG: in every panel one line per arm (mean over seeds, seeds as a band).

    An arm keeps its colour over the panels. Where the seeds of an arm have points at different x, the line stands at their mean.

    Args:
        panels: (arm -> one list of (x, y) points per seed, title, label of the y axis).
        marks: x at which a vertical line stands in every panel.
    """
    require_extras()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = list(dict.fromkeys(arm for curves, _, _ in panels for arm in curves))
    drawing, places = plt.subplots(1, len(panels), figsize=(7 * len(panels), 4.2), dpi=150, squeeze=False)
    for axes, (curves, title, y_label) in zip(places[0], panels, strict=True):
        for arm, seeds in curves.items():
            index = arms.index(arm)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            points = min(len(seed) for seed in seeds)
            xs = [statistics.mean(seed[i][0] for seed in seeds) for i in range(points)]
            ys = [[seed[i][1] for seed in seeds] for i in range(points)]
            axes.plot(xs, [statistics.mean(y) for y in ys], label=arm, color=colour, marker=marker, markersize=3.5)
            axes.fill_between(xs, [min(y) for y in ys], [max(y) for y in ys], color=colour, alpha=0.15, linewidth=0)
        for number, mark in enumerate(marks):
            axes.axvline(mark, color="#5b6770", linestyle=":", label=mark_label if number == 0 else None)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)
    plt.close(drawing)
