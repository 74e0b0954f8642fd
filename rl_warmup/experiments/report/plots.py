"""Curves as PNG files."""

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
            xs, ys = ([[point[k] for point in points] for points in zip(*seeds, strict=False)] for k in (0, 1))
            means = [list(map(statistics.mean, values)) for values in (xs, ys)]
            axes.plot(*means, label=arm, color=colour, marker=marker, markersize=3.5)
            axes.fill_between(means[0], list(map(min, ys)), list(map(max, ys)), color=colour, alpha=0.15, linewidth=0)
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
