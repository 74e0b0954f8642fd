"""Knows every metric by its name: each module of this room registers its own, once; must not know any of them."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

from rl_warmup.metrics.segments import Segments, mean_segments

Rows = Sequence[dict[str, Any]]
RowScores = Callable[..., list[float]]


class Metric(NamedTuple):
    """What a name stands for. Functions take (predictions, targets, rows) and the spec's kwargs.

    function: gives {key: number}; keys: which of its keys this name stands for (None: all); signature: describes the
    settings; segments: gives {key: Segments}, for resampling; label: the key where it depends on kwargs.
    """

    function: Callable[..., dict[str, float]]
    keys: tuple[str, ...] | None = None
    signature: Callable[..., str] | None = None
    segments: Callable[..., dict[str, Segments]] | None = None
    label: Callable[..., str] | None = None
    higher_is_better: bool = True


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
