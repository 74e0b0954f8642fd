"""Knows the metrics by name: predictions and targets in, numbers out; must not know tasks, models or files.

    compute(["chrf++", "bleu"], predictions, targets)  # {"chrf++": 41.3, "bleu": 17.9}
    compute([{"name": "bertscore", "kwargs": {"model": "roberta-large", "num_layers": 17}}], predictions, targets)

Scales: exact_match, accuracy, macro_f1 and reasoning_gym_score go from 0 to 1; bleu, chrf++ and rouge run from 0 to 100, as
published tables do; bertscore and comet are as their libraries give them; `unparsed` is a number of predictions.
Libraries are imported on use: `pip install 'rl_warmup[metrics]'`. Is a difference real? `metrics/significance.py`.
"""

import copy
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from rl_warmup.metrics.registry import METRICS, Metric, Rows, Segments
from rl_warmup.plugins import ProcessExit, build_plugin, contained, find_plugin

__all__ = ["METRICS", "Metric", "Segments", "Spec", "compute", "row_statistics", "scores_of", "signatures"]

SHARED = ("unparsed",)  # keys that several of our metrics give, and mean the same by
Spec = str | Mapping[str, Any]  # a name, or {"name": ..., "kwargs": {...}}


def compute(
    names: Iterable[Spec] | Spec, predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, float]:
    """All metrics of `names` for one list of predictions.

    Args:
        names: keys of METRICS, or own ones (see `plugins`): a function, called as (predictions, targets, rows), that
            returns a number (kept under the function's name) or a dict of numbers; or a `Metric`.
            A metric with settings is given as {"name": ..., "kwargs": {...}}.
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
    """The same metrics as statistics per row, for resampling; `row_statistics(...)[key].value()` equals `compute(...)[key]`.

    Raises ValueError, ImportError: as `compute`, and ValueError for a metric that has no such statistics.
    """
    return _gather(names, predictions, targets, rows, lambda metric: metric.segments, lambda name, found: found)


def scores_of(name: str, function: Callable[[], Any]) -> dict[str, float]:
    """What a function of one's own gives, as `compute` reads a metric's; here it may give nothing, as {}.

    Raises ValueError: it fails, or gives something else than finite numbers.
    """
    found = _called(name, function)
    return {} if found == {} else _checked(name, found)


def signatures(names: Iterable[Spec] | Spec) -> dict[str, str]:
    """For each name that has one, the settings and version it is computed with: sacrebleu's signature, or the like.

    Print them beside the numbers; figures with different signatures are not comparable. To ask before a long run
    whether all metrics can be computed, call this: it raises as `compute` does for names, settings and libraries.
    """
    found = {}
    for name, metric, kwargs in map(_metric, _listed(names)):
        if metric.signature is not None:
            label = name if metric.label is None else _called(name, partial(metric.label, **kwargs))
            found[label] = _called(name, partial(metric.signature, **kwargs))
    return found


def _gather(
    names: Iterable[Spec] | Spec,
    predictions: Sequence[str],
    targets: Sequence[str],
    rows: Rows | None,
    choose: Callable[[Metric], Callable[..., Any] | None],
    check: Callable[[str, Any], dict[str, Any]],
) -> dict[str, Any]:
    """Call each function once, however many names stand for its keys."""
    once = {json.dumps(spec, sort_keys=True, default=repr): spec for spec in _listed(names)}
    wanted = [_metric(spec) for spec in once.values()]
    predictions, targets = _texts("predictions", predictions), _texts("targets", targets)
    if rows is not None and (not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows)):
        raise ValueError(f"metrics: rows are {rows!r:.80}; give a list of rows (dicts), or leave it out")
    lengths = {"predictions": len(predictions), "targets": len(targets)}
    if rows is not None:
        lengths["rows"] = len(rows)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {what}" for what, count in lengths.items())
        raise ValueError(f"metrics: {counts}; give one of each per row")
    if not predictions:
        raise ValueError("metrics: no predictions; an empty list has no score, so leave the result empty instead")
    results: dict[str, Any] = {}
    sources: dict[str, tuple[tuple[Any, str], str]] = {}  # of each key: the call, and the metric's name
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
            given = predictions, targets, rows
            if name not in METRICS:  # what somebody else's changes, no other metric may see
                given = list(predictions), list(targets), rows and [copy.deepcopy(row) for row in rows]
            computed[call] = check(name, _called(name, partial(function, *given, **kwargs)))
        for key in computed[call] if metric.keys is None else metric.keys:
            source, other = sources.setdefault(key, (call, name))
            if source != call and source[0] is function:
                raise ValueError(
                    f"metric '{name}' is asked for with two settings, and both are called '{key}'; ask once"
                )
            if source != call and not (key in SHARED and {name, other} <= METRICS.keys()):
                raise ValueError(
                    f"metric '{name}' gives a number '{key}', as another metric does; rename one of the two"
                )
            results[key] = computed[call][key]
    return results


def _texts(what: str, given: Any) -> Sequence[str]:
    """Raises ValueError: no sequence of texts; names the first one that is none."""
    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        raise ValueError(
            f"metrics: {what} are a {type(given).__name__} ({given!r:.80}); give a list of texts, one per row"
        )
    texts = given if isinstance(given, list | tuple) else list(given)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"metrics: number {number} of the {what} is {text!r:.80}; give a text, '' where there is none"
            )
    return texts


def _called(name: str, function: Callable[[], Any]) -> Any:
    """The result of a metric's function; what one of somebody else's raises becomes a sentence."""
    try:
        with contained():
            return function()
    except Exception as error:
        if name in METRICS and not isinstance(error, ProcessExit):
            raise  # has a sentence of its own
        raise ValueError(f"metric '{name}' failed with {type(error).__name__}: {error}") from error


def _listed(names: Iterable[Spec] | Spec) -> list[Spec]:
    if isinstance(names, str | Mapping) or not isinstance(names, Iterable):
        return [names]
    return list(names)


def _checked(name: str, scores: Any) -> dict[str, float]:
    """The numbers that a metric's function gave, all of them finite: one that is not has no place in a table or in JSON."""
    given = scores if isinstance(scores, dict) else {name.rpartition(":")[2]: scores}
    if odd := [key for key in given if not isinstance(key, str)]:
        raise ValueError(f"metric '{name}' calls a number {odd[0]!r}; let the keys of its dict be texts")
    try:
        if not given or any(isinstance(value, str | bytes) for value in given.values()):
            raise TypeError
        floats = {key: float(value) for key, value in given.items()}
        found = {key: value if type(value) is int else floats[key] for key, value in given.items()}
    except (TypeError, ValueError, OverflowError):  # of 10**400
        kinds = (
            {key: type(value).__name__ for key, value in given.items()} if given is scores else type(scores).__name__
        )
        raise ValueError(f"metric '{name}' returned a {kinds}; let it return a number or a dict of numbers") from None
    if lost := [key for key, value in found.items() if not math.isfinite(value)]:
        raise ValueError(
            f"metric '{name}' gave {found[lost[0]]} as {lost[0]}; let it return a finite number whatever "
            f"a model writes, 0 for instance where all predictions are the same or empty"
        )
    return found


def _metric(spec: Spec) -> tuple[str, Metric, dict[str, Any]]:
    """Name, metric and settings of a spec."""
    given = spec if isinstance(spec, Mapping) else {"name": spec}
    name, kwargs = given.get("name"), given.get("kwargs") or {}
    if not isinstance(name, str) or not isinstance(kwargs, Mapping) or set(given) - {"name", "kwargs"}:
        raise ValueError(f"metrics: {spec!r:.80}; give a name, or {{'name': ..., 'kwargs': {{...}}}}")
    metric = _found(name)
    try:
        allowed = inspect.signature(metric.function)
    except ValueError:  # some functions written in C do not say
        return name, metric, dict(kwargs)
    try:
        allowed.bind(None, None, None, **kwargs)
    except TypeError as error:
        known = ", ".join(list(allowed.parameters)[3:]) or "none"
        if "positional" in str(error) and name not in METRICS:
            raise ValueError(
                f"metric '{name}': it takes fewer than 3 arguments; write f(predictions, targets, rows)"
            ) from None
        raise ValueError(
            f"metric '{name}': {error}; its settings (kwargs) are: {known}, beside predictions, targets and rows"
        ) from None
    return name, metric, dict(kwargs)


def _found(name: str) -> Metric:
    found, _ = find_plugin("metric", name, METRICS)
    return found if isinstance(found, Metric) else Metric(build_plugin("metric", name, found))


for _module in iter_modules(__path__):  # each registers its metrics
    import_module(f"{__name__}.{_module.name}")
