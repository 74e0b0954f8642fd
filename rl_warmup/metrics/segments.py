"""Knows statistics per row that add up, and the score of their sum; must not know any metric.

With them a resampled score costs one sum instead of reading all texts again (Koehn 2004, and sacrebleu).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Segments(NamedTuple):
    """The statistics of each row, all of one length, and the function from their sum over rows to the metric's value.

    Predictions by two systems for the same rows have the same columns, so their rows can be swapped.
    """

    rows: list[Sequence[float]]
    score: Callable[[Sequence[float]], float]

    def value(self) -> float:
        """The metric over all rows."""
        return self.score([sum(column) for column in zip(*self.rows, strict=True)])


def mean_segments(values: Iterable[float]) -> Segments:
    """A metric that is the mean of one number per row."""
    return Segments([(float(value), 1.0) for value in values], lambda sums: sums[0] / sums[1])


def values_of(segments: Callable[..., dict[str, Segments]]) -> Callable[..., dict[str, float]]:
    """A metric's function of values, made from its function of segments; it takes the same arguments."""

    @functools.wraps(segments)
    def values(*args: Any, **kwargs: Any) -> dict[str, float]:
        return {key: found.value() for key, found in segments(*args, **kwargs).items()}

    return values
