"""When a warmup is worth its cost: a model sure of its target without one may write it at once.

Knows: a `WarmupGenerator`, metrics. Must not know: training. The threshold is chosen on validation rows and has to be
measured on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_warmup.inference.asked import check_tolerance
from rl_warmup.metrics import Spec, compute

if TYPE_CHECKING:
    from rl_warmup.inference.generation import WarmupGenerator

STEPS = 50  # thresholds that are tried at most


@dataclass(frozen=True)
class Gate:
    """A threshold, and what it did on the rows that it was chosen on.

    Args:
        threshold: in nats per token. A prediction without a warmup is kept where its mean log-probability reaches this.
        skipped: share of the rows that were predicted without a warmup.
        quality, always, never: the metric with the gate, with a warmup on every row, and without any.
    """

    threshold: float
    skipped: float
    quality: float
    always: float
    never: float
    rows: int


def sureness(prediction: dict[str, Any]) -> float:
    """Mean log-probability per token of a prediction, its end token included; nats."""
    tokens = len(prediction["prediction_ids"]) + (prediction["prediction_finish"] == "end")
    return float(prediction["prediction_logprob"]) / max(tokens, 1)


def calibrate(
    warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]], metric: Spec = "exact_match",
    tolerance: float = 0.0, batch_size: int = 32,
) -> Gate:  # fmt: skip
    """The threshold that skips most warmups while the metric stays within `tolerance` of the best over all thresholds.

    Args:
        rows: with targets, which the model was not trained on.
        metric: as in a recipe, of one number that grows with quality.

    Raises:
        ValueError: no rows, the metric gives several numbers, or the model was trained without warmups.
    """
    if not rows:
        raise ValueError("rows: none are given. Give rows with targets that the model was not trained on.")
    if without := [place for place, row in enumerate(rows) if "target" not in row and "completion" not in row]:
        raise ValueError(
            f"rows: row {without[0]} has no target, so nothing says whether it was predicted well. Give one."
        )
    check_tolerance(tolerance)
    if warmup_generator.mode != "policy":
        raise ValueError("A gate skips warmups, and this model was trained without them.")
    rows = warmup_generator.encoded(rows)
    direct = warmup_generator.generate(rows, warmup="", batch_size=batch_size)
    warmed = warmup_generator.generate(rows, batch_size=batch_size, logprobs=False)
    targets = [row["target"] for row in rows]
    sure = [sureness(prediction) for prediction in direct]

    def quality(threshold: float) -> float:
        texts = [(d if s >= threshold else w)["prediction"] for d, w, s in zip(direct, warmed, sure, strict=True)]
        found = compute([metric], texts, targets, rows)
        if len(found) != 1:
            raise ValueError(f"metric: {metric!r} gives {', '.join(found)}. Give a metric of one number.")
        return next(iter(found.values()))

    ordered = sorted(set(sure))
    tried = {ordered[round(k * (len(ordered) - 1) / STEPS)] for k in range(STEPS + 1)}
    measured = {threshold: quality(threshold) for threshold in sorted(tried | {math.inf})}
    best = max(measured.values())
    threshold = min(t for t, value in measured.items() if value >= best - tolerance)
    skipped = sum(s >= threshold for s in sure) / len(rows)
    return Gate(threshold, skipped, measured[threshold], measured[math.inf], measured[ordered[0]], len(rows))
