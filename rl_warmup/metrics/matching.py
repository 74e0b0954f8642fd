"""Knows when two texts are the same; must not know choices, n-grams or libraries."""

from collections.abc import Sequence
from typing import Any


def exact_match(
    predictions: Sequence[str], targets: Sequence[str], rows: Sequence[dict[str, Any]] | None = None
) -> dict[str, float]:
    """`exact_match`: share, 0 to 1, of predictions equal to their target once runs of whitespace count as one space."""
    same = [one.split() == other.split() for one, other in zip(predictions, targets, strict=True)]
    return {"exact_match": sum(same) / len(same)}
