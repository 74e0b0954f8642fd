"""Knows every metric by its name: each module of this room registers its own, once; must not know any of them."""

from collections.abc import Callable
from typing import NamedTuple

from rl_warmup.metrics.segments import Segments


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
