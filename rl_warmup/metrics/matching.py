"""Knows when two texts are equal; must not know choices, n-grams or libraries."""

from collections.abc import Sequence
from typing import Any

from rl_warmup.metrics.segments import Segments, mean_segments

Rows = Sequence[dict[str, Any]]


def exact_match_segments(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, Segments]:
    """`exact_match`: share, 0 to 1, of predictions equal to their target, apart from the width of white space."""
    same = [one.split() == other.split() for one, other in zip(predictions, targets, strict=True)]
    return {"exact_match": mean_segments(same)}
