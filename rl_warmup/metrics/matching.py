"""Knows when two texts are the same; must not know choices, n-grams or libraries."""

from collections.abc import Sequence
from typing import Any

from rl_warmup.metrics.registry import METRICS, Metric
from rl_warmup.metrics.segments import Segments, mean_segments

Rows = Sequence[dict[str, Any]]


def exact_match(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, float]:
    """`exact_match`: share, 0 to 1, of predictions equal to their target once runs of whitespace count as one space."""
    same = _same(predictions, targets)
    return {"exact_match": sum(same) / len(same)}


def exact_match_segments(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, Segments]:
    """`exact_match` as the mean of 1 (same) and 0 over rows."""
    return {"exact_match": mean_segments(_same(predictions, targets))}


def _same(predictions: Sequence[str], targets: Sequence[str]) -> list[bool]:
    return [one.split() == other.split() for one, other in zip(predictions, targets, strict=True)]


METRICS["exact_match"] = Metric(exact_match, segments=exact_match_segments)
