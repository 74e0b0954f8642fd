"""Knows when two texts are the same; must not know choices, n-grams or libraries."""

from collections.abc import Sequence

from rl_warmup.metrics.registry import Rows, metric


@metric("exact_match", bounds=(0, 1))
def exact_match(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> list[float]:
    """1 for a prediction that equals its target once runs of whitespace count as one space, else 0."""
    return [float(one.split() == other.split()) for one, other in zip(predictions, targets, strict=True)]
