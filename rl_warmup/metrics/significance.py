"""Knows whether a difference between two runs is more than luck; must not know models, tasks or how runs are made.

Luck of the rows: `paired_bootstrap` and `approximate_randomization` take two lists of predictions for the same rows.
Luck of the seed: `over_seeds` and `compare_seeds` take one value per seed. The first cannot stand for the second: a
significant difference between two runs of one seed each may come from the seeds. Many comparisons at once: `holm`.

A difference is always other - one. What does not exist is None, never 0: one seed has no standard deviation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from rl_warmup.metrics import METRICS, Segments, Spec, row_statistics
from rl_warmup.metrics.registry import Bounds, mean_segments
from rl_warmup.runtime.run_files import read_evaluation, read_records

LEVEL = 0.95
MOST = 1e150  # of one value: its square is a number too
CHUNK = 100  # samples drawn at a time: CHUNK x rows numbers are held
METHODS = ("paired bootstrap", "approximate randomization")

Predictions = Sequence[Mapping[str, Any]] | Sequence[float]


@dataclass(frozen=True)
class Comparison:
    """One metric of two lists of predictions for the same rows."""

    metric: str
    one: float
    other: float
    difference: float  # other - one, in the metric's unit
    interval: tuple[float, float] | None  # 95 % percentile interval of the difference; None for randomization
    p_value: float  # two-sided, of the hypothesis that both are equally good; at least 1 / (samples + 1)
    method: str
    samples: int
    rows: int
    p_holm: float | None = None  # p_value adjusted for `family` comparisons made together, where they were
    family: int | None = None


@dataclass(frozen=True)
class SeedSummary:
    """Values of one metric over seeds: std with n - 1, 95 % interval of the mean by Student's t. Both are None for one seed, and
    there is no interval where the seeds do not vary."""

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class SeedComparison:
    """Welch's t test between the seeds of two arms; interval and p_value are None where a test is not possible."""

    one: SeedSummary
    other: SeedSummary
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    method: str = "Welch t test"


def paired_bootstrap(
    metric: Spec, one: Predictions, other: Predictions, samples: int = 1000, seed: int = 0
) -> Comparison:
    """Draw the rows again with replacement, the same for both, and see how the difference varies (Koehn 2004).

    The p-value is the share of samples whose difference lies as far from the samples' mean as the observed one lies
    from 0, on either side (Riezler and Maxwell 2005), with one added to both counts. sacrebleu's own paired bootstrap
    counts one side only, so that its p-values are about half of these.

    Args:
        metric: a name or spec with one key, see `rl_warmup.metrics`; any name if rows are numbers.
        one, other: records with `prediction` and `target` (predictions.jsonl) in the same order of rows; or one number
            per row, such as a log-probability, whose mean is then compared.

    Raises:
        ValueError: the rows differ, or the metric has no statistics per row.
    """
    return _compare(METHODS[0], *_pair(metric, one, other), samples, seed)


def interval_over_rows(
    metric: Spec, records: Predictions, samples: int = 1000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """A metric's value and its 95 % percentile interval, the rows being drawn again with replacement (Efron 1979).

    Arguments and errors as for `paired_bootstrap`. It says nothing about other seeds.
    """
    import numpy as np

    _check_draws(samples, seed)
    _, found, _ = _pair(metric, records, records)
    rows, rng = np.asarray(found.rows, dtype=float), np.random.default_rng(seed)
    values = []
    for start in range(0, samples, CHUNK):
        drawn = rng.integers(len(rows), size=(min(CHUNK, samples - start), len(rows)))
        counts = np.stack([np.bincount(row, minlength=len(rows)) for row in drawn]).astype(float)
        values += [found.score(sums) for sums in (counts @ rows).tolist()]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return found.value(), (float(low), float(high))


def approximate_randomization(
    metric: Spec, one: Predictions, other: Predictions, samples: int = 1000, seed: int = 0
) -> Comparison:
    """Swap the two predictions of each row with probability 1/2: how often is the difference as large (Noreen 1989)?

    It assumes only that under the null the two predictions of a row are exchangeable. It gives no interval. Arguments
    and errors as for `paired_bootstrap`.
    """
    return _compare(METHODS[1], *_pair(metric, one, other), samples, seed)


def over_seeds(values: Sequence[float], bounds: Bounds | None = None) -> SeedSummary:
    """Mean, standard deviation (n - 1) and 95 % Student interval of one value per seed.

    `bounds`: of the metric. The interval is cut there, which costs no coverage: the true mean lies between them.

    Raises ValueError: no values, or one is missing (None) or not finite.
    """
    import numpy as np

    _check_bounds(bounds)
    sound = isinstance(values, Sized) and not isinstance(values, str | Mapping | Set) and len(values)
    if not sound or any(not isinstance(value, Real) or not abs(value) <= MOST for value in values):
        given = list(values) if isinstance(values, Iterable) else values
        raise ValueError(f"over_seeds: {given!r:.200}; give a number for each seed, and leave out seeds without one")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return SeedSummary(1, mean, None, None)
    std = float(np.std(values, ddof=1)) if len(set(values)) > 1 else 0.0
    if not std:
        return SeedSummary(n, mean, std, None)
    half = float(_scipy_stats().t.ppf((1 + LEVEL) / 2, n - 1)) * std / math.sqrt(n)
    return SeedSummary(n, mean, std, _cut((mean - half, mean + half), bounds))


def _check_bounds(bounds: Any) -> None:
    sound = isinstance(bounds, tuple | list) and len(bounds) == 2 and all(isinstance(one, Real) for one in bounds)
    if bounds is not None and not (sound and bounds[0] < bounds[1]):
        raise ValueError(f"bounds={bounds!r:.80}; give the metric's lowest and highest value, such as (0, 1), or None")


def _cut(interval: Bounds, bounds: Bounds | None) -> Bounds:
    """What of an interval lies within bounds."""
    return interval if bounds is None else (max(interval[0], bounds[0]), min(interval[1], bounds[1]))


def compare_seeds(one: Sequence[float], other: Sequence[float], bounds: Bounds | None = None) -> SeedComparison:
    """Welch's unequal-variances t test between two arms, one value per seed in each.

    `bounds`: of the metric; the interval of the difference is cut where no difference can lie. Without two seeds in each arm, or
    if no arm varies at all, there is no test: interval and p_value are None.

    Raises:
        ValueError: as for `over_seeds`.
    """
    first, second = over_seeds(one, bounds), over_seeds(other, bounds)
    difference = second.mean - first.mean
    if first.std is None or second.std is None or not first.std + second.std:
        return SeedComparison(first, second, difference, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one arm may have the same value for every seed
        test = _scipy_stats().ttest_ind(other, one, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    most = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    shown = _cut((float(interval.low), float(interval.high)), most)
    return SeedComparison(first, second, difference, shown, float(test.pvalue))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979), under the same names: reject what is at most 0.05, and the chance of one false
    rejection among all of them stays at most 0.05, whatever their dependence.

    Raises:
        ValueError: a p-value is missing or outside 0 to 1.
    """
    if not isinstance(p_values, Mapping):
        raise ValueError(f"holm: {p_values!r:.80}; give a mapping of names to p-values")
    for name, p_value in p_values.items():
        if not isinstance(p_value, Real) or not 0 <= p_value <= 1:
            raise ValueError(f"holm: the p-value of '{name}' is {p_value!r:.80}; leave out comparisons without one")
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def compare_runs(
    one: str | Path, other: str | Path, metrics: Sequence[Spec] | None = None, *, method: str = METHODS[0], samples: int = 1000,
    seed: int = 0, one_control: str = "", other_control: str = "",
) -> list[Comparison]:  # fmt: skip
    """Compare the predictions of two run folders, or of two controls, on every metric; Holm over these metrics.

    Args:
        one, other: folders with metrics.json and predictions.jsonl; a difference is other - one.
        metrics: specs; None takes those of both metrics.json that need no settings.
        one_control, other_control: whose predictions to take ("" own warmups, else predictions.CONTROL.jsonl).

    Raises:
        ValueError: a file is missing, the folders hold different rows, or a metric cannot be compared.
    """
    if method not in METHODS:
        raise ValueError(f"compare_runs: method={method!r}; choose one of: {', '.join(METHODS)}")
    for folder in (one, other):
        if not isinstance(folder, str | Path):
            raise ValueError(f"compare_runs: {folder!r:.80} is no folder; give the path of a run that has ended")
    results = [_result(Path(folder)) for folder in (one, other)]
    _same_data((one, other), results)
    sides = [
        _predictions(Path(folder), control, result)
        for folder, control, result in zip((one, other), (one_control, other_control), results, strict=True)
    ]
    _same_rows(*sides)
    specs = _common_metrics(results) if metrics is None else metrics
    first, second = (_segments(specs, side) for side in sides)
    found = [_compare(method, key, first[key], second[key], samples, seed) for key in first]
    adjusted = holm({comparison.metric: comparison.p_value for comparison in found})
    return [replace(item, p_holm=adjusted[item.metric], family=len(found)) for item in found]


def _with_columns(rows: Any, columns: Sequence[str], names: list[str]) -> Any:
    """Statistics of rows with all columns of `names`, in their order; without names they stay as they are."""
    import numpy as np

    if not names:
        return rows
    found = np.zeros((len(rows), len(names)))
    found[:, np.searchsorted(names, columns)] = rows
    return found


def _compare(method: str, key: str, one: Segments, other: Segments, samples: int, seed: int) -> Comparison:
    import numpy as np

    _check_draws(samples, seed)
    names = sorted({*one.columns, *other.columns})
    first, second = (_with_columns(np.asarray(side.rows, dtype=float), side.columns, names) for side in (one, other))
    values = one.value(), other.value()
    observed = values[1] - values[0]
    rng = np.random.default_rng(seed)
    differences = []
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        if method == METHODS[0]:
            drawn = rng.integers(len(first), size=(size, len(first)))
            counts = np.stack([np.bincount(row, minlength=len(first)) for row in drawn]).astype(float)
            sums = counts @ first, counts @ second
        else:
            moved = rng.integers(2, size=(size, len(first))).astype(float) @ (second - first)
            sums = first.sum(0) + moved, second.sum(0) - moved
        pairs = zip(sums[0].tolist(), sums[1].tolist(), strict=True)
        differences += [other.score(theirs) - one.score(ours) for ours, theirs in pairs]
    spread = np.array(differences)
    interval = None
    if method == METHODS[0]:
        low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = float(low), float(high)
        spread = spread - spread.mean()
    # equal differences of shares differ in their last bits
    least = abs(observed) - 1e-9 * max(1.0, *map(abs, values))
    p_value = float((1 + (abs(spread) >= least).sum()) / (1 + samples))
    return Comparison(key, *values, observed, interval, p_value, method, samples, len(first))


def _check_draws(samples: Any, seed: Any) -> None:
    if not isinstance(samples, Integral) or samples < 1:
        raise ValueError(f"samples={samples!r}; give 1000 or so")
    if seed is not None and (not isinstance(seed, Integral) or seed < 0):
        raise ValueError(f"seed={seed!r}; give a whole number of at least 0")


def _pair(metric: Spec, one: Predictions, other: Predictions) -> tuple[str, Segments, Segments]:
    if not all(isinstance(side, Sized) and not isinstance(side, str | bytes | Mapping | Set) for side in (one, other)):
        kinds = " and ".join(type(side).__name__ for side in (one, other))
        raise ValueError(f"{kinds}; give two lists of predictions, or of one number per row")
    if len(one) != len(other) or not len(one):
        raise ValueError(f"{len(one)} and {len(other)} predictions; give two lists for the same rows, at least one row")
    if len({isinstance(item, Mapping) for side in (one, other) for item in side}) > 1:
        raise ValueError("rows and numbers are mixed; give two lists of predictions, or two of one number per row")
    if not isinstance(one[0], Mapping):
        try:
            if odd := [item for side in (one, other) for item in side if isinstance(item, str | bytes)]:
                raise TypeError(f"{odd[0]!r:.60} is a text")
            numbers = mean_segments(one), mean_segments(other)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{metric}: a row score is no number ({error}); compare rows that both have") from error
        if not all(math.isfinite(value) for side in numbers for value, _ in side.rows):
            raise ValueError(f"{metric}: a row score is missing or not finite; compare rows that both have")
        return str(metric), *numbers
    _same_rows(one, other)  # type: ignore[arg-type]
    first, second = (_segments([metric], side) for side in (one, other))  # type: ignore[arg-type]
    if len(first) != 1:
        raise ValueError(f"metric {metric!r} has several values: {', '.join(first)}; compare one of them")
    key = next(iter(first))
    return key, first[key], second[key]


def _segments(specs: Sequence[Spec], records: Sequence[Mapping[str, Any]]) -> dict[str, Segments]:
    predictions, targets = ([record[column] for record in records] for column in ("prediction", "target"))
    return row_statistics(specs, predictions, targets, [dict(record) for record in records])


def _same_rows(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> None:
    for number, (first, second) in enumerate(zip(one, other, strict=True)):
        for column in ("id", "prompt", "target"):
            if first.get(column) != second.get(column):
                raise ValueError(
                    f"row {number} differs: its {column} is {first.get(column)!r} in one list and "
                    f"{second.get(column)!r} in the other; give predictions for the same rows in the same order"
                )
        for record in (first, second):
            if "prediction" not in record or "target" not in record:
                raise ValueError(f"row {number} has no prediction or no target, only: {', '.join(record)}")


def _same_data(folders: tuple[str | Path, str | Path], results: list[dict[str, Any]]) -> None:
    if results[0]["rows_hash"] == results[1]["rows_hash"]:
        return
    described = [
        f"{folder} has rows_hash {result['rows_hash'][:12]}... ({result.get('rows')} rows, {result.get('split')} split, "
        f"{result.get('task')})"
        for folder, result in zip(folders, results, strict=True)
    ]
    raise ValueError(
        f"These runs were predicted on different rows and cannot be compared: {'; '.join(described)}. "
        "Predict both on the same task, split and sizes with `rl-warmup evaluate`."
    )


def _result(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no metrics.json: the run is not finished, or this is not a run folder.")
    result = read_evaluation(path)
    if not result.get("rows_hash"):
        raise ValueError(f"{path} has no rows_hash, so its rows are unknown; predict again with `rl-warmup evaluate`.")
    return result


def _predictions(folder: Path, control: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    path = folder / f"predictions{'.' if control else ''}{control}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(found.name for found in folder.glob("predictions*.jsonl"))) or "none"
        raise ValueError(f"{folder} holds no {path.name} (predictions there: {there}); run `rl-warmup evaluate` on it.")
    records = read_records(path)
    if not records or len(records) != result.get("rows", len(records)):
        raise ValueError(f"{path} holds {len(records)} predictions, and metrics.json says {result.get('rows')} rows.")
    return records


def _common_metrics(results: list[dict[str, Any]]) -> list[str]:
    """Keys of both results that a plain name gives; the settings of others are not in metrics.json."""
    found = [set().union(*result.get("metrics", {}).values()) for result in results]
    names = [name for name in METRICS if all(name in keys for keys in found)]
    if not names:
        raise ValueError("The two results share no metric that needs no settings; name the `metrics` to compare.")
    return names


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("intervals over seeds need the package scipy; pip install 'rl_warmup[metrics]'") from error
    return stats
