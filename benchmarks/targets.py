"""What a step may cost: the targets of the project, and what was measured beside each of them.

Knows: rows of results. Must not know: torch. A target without a measurement says so; a miss says so too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Row, grid

OURS = {"ours_all": "all n", "ours_k1": "k=1", "ours_k2": "k=2"}
GROWTH = 3.5  # at most, of a step's cost from n=4 to n=16


@dataclass(frozen=True)
class Target:
    """A quotient of two variants' times."""

    shape: str
    n: int
    above: str  # the variant in the numerator
    below: str
    bound: float
    at_most: bool  # False: at least


def _both(shape: str, above: str, below: str, bounds: tuple[float, float], at_most: bool) -> list[Target]:
    return [Target(shape, n, above, below, bound, at_most) for n, bound in zip((4, 8), bounds, strict=True)]


TARGETS = [
    *_both("t5-d256", "ours_all", "sft", (3.9, 7.5), True),
    *_both("t5-d256", "ours_k1", "sft", (2.6, 4.4), True),
    *_both("llama-d256", "ours_all", "sft", (3.1, 6.0), True),
    *_both("llama-d256", "ours_k1", "sft", (2.0, 3.0), True),
    *_both("llama-d256", "trl_grpo", "ours_all", (2.2, 2.2), False),
    *_both("llama-d256", "trl_grpo", "ours_k1", (3.4, 4.3), False),
    *_both("llama-d256", "latro", "ours_all", (4.5, 4.3), False),
    *_both("t5-d256", "generate", "own_loop", (1.8, 2.0), False),
]


def compare(rows: Iterable[Row]) -> str:
    """A Markdown table of every target, measured beside it, then the growth of our step from n=4 to n=16."""
    ms = {(row.shape, row.n, row.variant): row.cpu_ms for row in rows if row.cpu_ms is not None}
    lines = []
    for target in TARGETS:
        above, below = (ms.get((target.shape, target.n, variant)) for variant in (target.above, target.below))
        measured = above / below if above and below else None
        what = f"{target.above} / {target.below}"
        lines.append(_line(what, target.shape, str(target.n), measured, target.bound, target.at_most))
    for shape, variant in sorted({(shape, variant) for shape, _, variant in ms if variant in OURS}):
        few, many = ms.get((shape, 4, variant)), ms.get((shape, 16, variant))
        lines.append(_line(variant, shape, "16 / 4", many / few if few and many else None, GROWTH, True))
    return grid(["time of", "shape", "n", "measured", "target", "met"], lines)


def _line(what: str, shape: str, n: str, measured: float | None, bound: float, at_most: bool) -> list[str]:
    target = f"{'<=' if at_most else '>='} {bound}"
    if measured is None:
        return [what, shape, n, "", target, "not measured"]
    return [what, shape, n, f"{measured:.2f}", target, "yes" if (measured <= bound) == at_most else "NO"]
