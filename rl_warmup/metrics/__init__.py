"""Knows the metrics by name: predictions and targets in, numbers out; must not know tasks, models or files.

    compute(["chrf++", "bleu"], predictions, targets)  # {"chrf++": 41.3, "bleu": 17.9}

Scales: exact_match, accuracy and macro_f1 are shares from 0 to 1; bleu, chrf++ and rouge run from 0 to 100, as
published tables do; `unparsed` is a number of predictions. Libraries are imported on use: `pip install
'rl_warmup[metrics]'`.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rl_warmup.metrics.choices import accuracy, macro_f1
from rl_warmup.metrics.matching import exact_match
from rl_warmup.metrics.ngrams import bleu, bleu_signature, bleu_zh, chrf, chrf_signature, rouge, rouge_signature

__all__ = ["METRICS", "compute", "signatures"]

Rows = Sequence[dict[str, Any]]
Function = Callable[[Sequence[str], Sequence[str], Rows | None], dict[str, float]]


class Metric(NamedTuple):
    """A function, which of its keys this name stands for (None: all), and how it describes its settings."""

    function: Function
    keys: tuple[str, ...] | None = None
    signature: Callable[[], str] | None = None


METRICS = {
    "exact_match": Metric(exact_match),
    "accuracy": Metric(accuracy),
    "macro_f1": Metric(macro_f1),
    "bleu": Metric(bleu, signature=bleu_signature),
    "bleu_zh": Metric(bleu_zh, signature=lambda: bleu_signature("zh")),
    "chrf++": Metric(chrf, signature=chrf_signature),
    "rouge": Metric(rouge, signature=rouge_signature),
    "rouge1": Metric(rouge, ("rouge1",), rouge_signature),
    "rouge2": Metric(rouge, ("rouge2",), rouge_signature),
    "rougeL": Metric(rouge, ("rougeL",), rouge_signature),
}


def compute(
    names: Iterable[str], predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, float]:
    """All metrics of `names` for one list of predictions.

    Args:
        names: keys of METRICS, or `package.module:function` for a function of one's own, called as
            (predictions, targets, rows), that returns a number (kept under the function's name) or a dict of numbers.
        predictions, targets: texts, one per row.
        rows: the task's rows, for metrics that need more than text (`choices` of multiple-choice rows).

    Raises:
        ValueError: for an unknown name, no predictions, or lists of different length.
        ImportError: if a metric's library is missing.
    """
    wanted = [(name, _metric(name)) for name in ([names] if isinstance(names, str) else names)]
    lengths = {"predictions": len(predictions), "targets": len(targets)}
    if rows is not None:
        lengths["rows"] = len(rows)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {what}" for what, count in lengths.items())
        raise ValueError(f"metrics: {counts}; give one of each per row")
    if not predictions:
        raise ValueError("metrics: no predictions; an empty list has no score, so leave the result empty instead")
    results: dict[str, float] = {}
    computed: dict[Function, dict[str, float]] = {}
    for name, metric in wanted:
        if metric.function not in computed:
            computed[metric.function] = _checked(name, metric.function(predictions, targets, rows))
        scores = computed[metric.function]
        results.update(scores if metric.keys is None else {key: scores[key] for key in metric.keys})
    return results


def signatures(names: Iterable[str]) -> dict[str, str]:
    """For each name that has one, the settings and version it is computed with: sacrebleu's signature, or the like.

    Print them beside the numbers; figures with different signatures are not comparable.
    """
    metrics = {name: _metric(name) for name in names}
    return {name: metric.signature() for name, metric in metrics.items() if metric.signature is not None}


def _checked(name: str, scores: Any) -> dict[str, float]:
    if isinstance(scores, dict):
        return scores
    try:
        return {name.partition(":")[2]: float(scores)}
    except (TypeError, ValueError):
        found = type(scores).__name__
        raise ValueError(f"metric '{name}' returned a {found}; let it return a number or a dict of numbers") from None


def _metric(name: str) -> Metric:
    if name in METRICS:
        return METRICS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        known = ", ".join(METRICS)
        raise ValueError(f"unknown metric '{name}'{hint}; known: {known}, or 'package.module:function' for your own")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise ValueError(f"metric '{name}': no module '{error.name}'; give 'package.module:function'") from None
    if not callable(function):
        raise ValueError(f"metric '{name}': module '{module_name}' has no function '{function_name}'")
    return Metric(function)
