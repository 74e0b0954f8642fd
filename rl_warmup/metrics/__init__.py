"""Knows the metrics by name: predictions and targets in, numbers out; must not know tasks, models or files.

    compute(["chrf++", "bleu"], predictions, targets)  # {"chrf++": 41.3, "bleu": 17.9}
    compute([{"name": "bertscore", "kwargs": {"model": "roberta-large", "num_layers": 17}}], predictions, targets)

Scales: exact_match, accuracy, macro_f1 and reasoning_gym_score are in [0, 1]; bleu, chrf++ and rouge in [0, 100], as in
published tables; bertscore and comet as in their libraries; `unparsed` is a number of predictions. Libraries are imported
on use: `pip install 'rl_warmup[metrics]'`. `metrics/significance.py` tests differences.
"""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rl_warmup.metrics import ngrams
from rl_warmup.metrics.bertscore import bertscore_label, bertscore_segments, bertscore_signature
from rl_warmup.metrics.choices import accuracy, accuracy_segments, macro_f1, macro_f1_segments
from rl_warmup.metrics.comet import comet_label, comet_segments, comet_signature
from rl_warmup.metrics.matching import exact_match_segments
from rl_warmup.metrics.reasoning_gym import reasoning_gym_segments, reasoning_gym_signature
from rl_warmup.metrics.segments import Segments, values_of
from rl_warmup.plugins import ProcessExit, build_plugin, contained, find_plugin

__all__ = ["METRICS", "Segments", "Spec", "compute", "row_statistics", "signatures"]

Rows = Sequence[dict[str, Any]]
Spec = str | Mapping[str, Any]  # a name, or {"name": ..., "kwargs": {...}}


class Metric(NamedTuple):
    """The functions of a metric; they take (predictions, targets, rows) and the spec's kwargs.

    function: gives {key: number}; keys: those of its keys that belong to this name (None: all); signature: describes the
    settings; segments: gives {key: Segments}, for resampling; label: the key if it depends on kwargs.
    """

    function: Callable[..., dict[str, float]]
    keys: tuple[str, ...] | None = None
    signature: Callable[..., str] | None = None
    segments: Callable[..., dict[str, Segments]] | None = None
    label: Callable[..., str] | None = None


def _sacrebleu(name: str) -> Metric:
    signature, segments = partial(ngrams.sacrebleu_signature, name), partial(ngrams.sacrebleu_segments, name)
    return Metric(partial(ngrams.sacrebleu_score, name), None, signature, segments)


def _by_segments(segments: Callable[..., dict[str, Segments]], *rest: Callable[..., str]) -> Metric:
    """A metric whose values follow from its segments; rest: signature, label."""
    signature, label = (*rest, None, None)[:2]
    return Metric(values_of(segments), None, signature, segments, label)


_ROUGE = _by_segments(ngrams.rouge_segments, ngrams.rouge_signature)
METRICS = {
    "exact_match": _by_segments(exact_match_segments),
    "accuracy": Metric(accuracy, segments=accuracy_segments),
    "macro_f1": Metric(macro_f1, segments=macro_f1_segments),
    **{name: _sacrebleu(name) for name in ngrams.SACREBLEU_NAMES},
    "rouge": _ROUGE,
    **{key: _ROUGE._replace(keys=(key,)) for key in ngrams.ROUGE_KEYS},
    "bertscore": _by_segments(bertscore_segments, bertscore_signature, bertscore_label),
    "reasoning_gym_score": _by_segments(reasoning_gym_segments, reasoning_gym_signature),
    "comet": _by_segments(comet_segments, comet_signature, comet_label),
}


def compute(
    names: Iterable[Spec] | Spec, predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, float]:
    """All metrics of `names` for one list of predictions.

    Args:
        names: keys of METRICS, or plugins (see `plugins`): a function of (predictions, targets, rows) that returns a number
            (under the function's name) or a dict of numbers; or a `Metric`. A metric with settings is given as
            {"name": ..., "kwargs": {...}}.
        predictions, targets: texts, one per row.
        rows: the task's rows, for metrics that need more than text (`choices` of multiple-choice rows).

    Raises:
        ValueError: for an unknown name or setting, no predictions, or lists of different length.
        ImportError: if a metric's library is missing.
    """
    return _gather(names, predictions, targets, rows, lambda metric: metric.function, _checked)


def row_statistics(
    names: Iterable[Spec] | Spec, predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, Segments]:
    """The same metrics as statistics per row, for resampling: `row_statistics(...)[key].value()` equals `compute(...)[key]`.

    Raises:
        ValueError, ImportError: as `compute`, and ValueError for a metric that has no such statistics.
    """
    return _gather(names, predictions, targets, rows, lambda metric: metric.segments, lambda name, found: found)


def signatures(names: Iterable[Spec] | Spec) -> dict[str, str]:
    """The settings and version of each metric that has a signature (sacrebleu's, or a similar one).

    Numbers with different signatures are not comparable. Call this before a long run to check the metrics: it raises as
    `compute` does for names, settings and libraries.
    """
    found = {}
    for name, metric, kwargs in map(_metric, _listed(names)):
        if metric.signature is not None:
            label = name if metric.label is None else _called(name, partial(metric.label, **kwargs))
            found[label] = _called(name, partial(metric.signature, **kwargs))
    return found


def _gather(
    names: Iterable[Spec] | Spec, predictions: Sequence[str], targets: Sequence[str], rows: Rows | None,
    choose: Callable[[Metric], Callable[..., Any] | None], check: Callable[[str, Any], dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Call each function once, even if several names share it."""
    wanted = [_metric(spec) for spec in _listed(names)]
    lengths = {"predictions": len(predictions), "targets": len(targets)}
    if rows is not None:
        lengths["rows"] = len(rows)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {what}" for what, count in lengths.items())
        raise ValueError(f"metrics: {counts}; give one of each per row")
    if not predictions:
        raise ValueError("metrics: no predictions; an empty list has no score")
    results: dict[str, Any] = {}
    sources: dict[str, tuple[Any, str]] = {}
    computed: dict[tuple[Any, str], dict[str, Any]] = {}
    for name, metric, kwargs in wanted:
        function = choose(metric)
        if function is None:
            raise ValueError(
                f"metric '{name}' has no statistics per row, so it cannot be resampled; give its row scores (numbers) "
                "to paired_bootstrap or approximate_randomization instead"
            )
        call = function, json.dumps(kwargs, sort_keys=True, default=repr)
        if call not in computed:
            computed[call] = check(name, _called(name, partial(function, predictions, targets, rows, **kwargs)))
        for key in computed[call] if metric.keys is None else metric.keys:
            if sources.setdefault(key, call) != call and sources[key][0] is function:
                raise ValueError(
                    f"metric '{name}' is given with two settings, and both have the key '{key}'; remove one"
                )
            results[key] = computed[call][key]
    return results


def _called(name: str, function: Callable[[], Any]) -> Any:
    """The result of a metric's function; any other error of a plugin becomes a ValueError."""
    try:
        with contained():
            return function()
    except (ValueError, ImportError):
        raise  # with its own message
    except Exception as error:
        if name in METRICS and not isinstance(error, ProcessExit):
            raise
        raise ValueError(f"metric '{name}' failed with {type(error).__name__}: {error}") from error


def _listed(names: Iterable[Spec] | Spec) -> list[Spec]:
    return [names] if isinstance(names, str | Mapping) else list(names)


def _checked(name: str, scores: Any) -> dict[str, float]:
    """The numbers of a metric's function. Raises ValueError unless all are finite, as tables and JSON need."""
    given = scores if isinstance(scores, dict) else {name.rpartition(":")[2]: scores}
    try:
        if not given or any(isinstance(value, str | bytes) for value in given.values()):
            raise TypeError
        found = {str(key): value if type(value) is int else float(value) for key, value in given.items()}
    except (TypeError, ValueError):
        kinds: Any = type(scores).__name__
        if given is scores:
            kinds = {key: type(value).__name__ for key, value in given.items()}
        raise ValueError(f"metric '{name}' returned a {kinds}; let it return a number or a dict of numbers") from None
    if lost := [key for key, value in found.items() if not math.isfinite(value)]:
        raise ValueError(
            f"metric '{name}' gave {found[lost[0]]} as {lost[0]}; let it return a finite number for any predictions, for "
            f"instance 0 if all are equal or empty"
        )
    return found


def _metric(spec: Spec) -> tuple[str, Metric, dict[str, Any]]:
    """Name, metric and settings of a spec."""
    given = {"name": spec} if isinstance(spec, str) else spec
    name, kwargs = given.get("name"), given.get("kwargs") or {}
    if not isinstance(name, str) or not isinstance(kwargs, Mapping) or set(given) - {"name", "kwargs"}:
        raise ValueError(f"metrics: {dict(given)!r}; give a name, or {{'name': ..., 'kwargs': {{...}}}}")
    found, _ = find_plugin("metric", name, METRICS)
    metric = found if isinstance(found, Metric) else Metric(build_plugin("metric", name, found))
    try:
        allowed = inspect.signature(metric.function)
    except ValueError:  # some functions written in C have no signature
        return name, metric, dict(kwargs)
    try:
        allowed.bind(None, None, None, **kwargs)
    except TypeError as error:
        known = ", ".join(list(allowed.parameters)[3:]) or "none"
        raise ValueError(f"metric '{name}': {error}; its settings (kwargs) are: {known}") from None
    return name, metric, dict(kwargs)
