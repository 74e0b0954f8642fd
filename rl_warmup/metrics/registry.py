"""Knows every metric by its name, and what a metric is made of: statistics of rows; must not know any of them.

Each module of this room registers its own metrics, once. Statistics add up, so that a resampled score costs one sum instead of
one more reading of all texts (Koehn 2004, and sacrebleu).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NamedTuple

Rows = Sequence[dict[str, Any]]
RowScores = Callable[..., list[float]]
Bounds = tuple[float, float]


class Segments(NamedTuple):
    """The statistics of each row, all of one length, and the function from their sum over rows to the metric's value.

    Two systems that predict the same rows have the same columns, so their rows may also be swapped; where the columns depend on
    what is predicted, they have names, and one that a system lacks is 0.
    """

    rows: list[Sequence[float]]
    score: Callable[[Sequence[float]], float]
    columns: tuple[str, ...] = ()  # sorted

    def value(self) -> float:
        """The metric over all rows."""
        return self.score([sum(column) for column in zip(*self.rows, strict=True)])


def mean_segments(values: Iterable[float]) -> Segments:
    """A metric that is the mean of one number per row."""
    return Segments([(float(value), 1.0) for value in values], lambda sums: sums[0] / sums[1])


class Metric(NamedTuple):
    """What a name stands for. Functions take (predictions, targets, rows) and the spec's kwargs."""

    function: Callable[..., dict[str, float]]  # gives {key: number}
    keys: tuple[str, ...] | None = None  # which of the function's keys this name stands for (None: all)
    signature: Callable[..., str] | None = None  # describes the settings
    segments: Callable[..., dict[str, Segments]] | None = None  # gives {key: Segments}, for resampling
    label: Callable[..., str] | None = None  # the key where it depends on kwargs
    higher_is_better: bool = True
    bounds: Bounds | None = None  # the lowest and the highest value there can be


METRICS: dict[str, Metric] = {}


def metric(name: str, **parts: Any) -> Callable[[RowScores], RowScores]:
    """Make a function that gives a number for every row a metric, their mean. `parts`: of `Metric`."""

    def register(score: RowScores) -> RowScores:
        @wraps(score)
        def segments(predictions: Any, targets: Any, rows: Any = None, **kwargs: Any) -> dict[str, Segments]:
            key = parts["label"](**kwargs) if "label" in parts else name
            return {key: mean_segments(score(predictions, targets, rows, **kwargs))}

        METRICS[name] = Metric(values_of(segments), segments=segments, **parts)
        return score

    return register


def values_of(segments: Callable[..., dict[str, Segments]]) -> Callable[..., dict[str, float]]:
    """The function of a metric that is known by its segments."""

    @wraps(segments)
    def function(*texts: Any, **kwargs: Any) -> dict[str, float]:
        return {key: found.value() for key, found in segments(*texts, **kwargs).items()}

    return function
