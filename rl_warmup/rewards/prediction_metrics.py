"""A metric of the prediction after each warmup, as a reward.

Knows: metrics by name, the columns of reasoning-gym's rows. Must not know: how predictions are made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from rl_warmup.metrics import compute
from rl_warmup.metrics.reasoning_gym import reasoning_gym_signature, row_scores


class PredictionMetric:
    """The metric of the likeliest prediction after each warmup, as in evaluation. Costs a generation per warmup.

    Args:
        metric: `chrf++`, `bleu` (of one sentence: n-grams up to the shorter text's length count), `rouge1`, `rouge2`,
            `rougeL` or `exact_match`, all as shares from 0 to 1; any other name of `rl_warmup.metrics`, or
            `package.module:function`, in its own scale. It is computed on one row at a time.
    """

    def __init__(self, metric: str) -> None:
        self.score = functools.partial(_row_score, metric)
        self.score("a", "a")  # raises for an unknown metric or a missing library before training

    def __call__(self, predictions: list[str], target: list[str]) -> list[float]:
        return [self.score(written, wanted) for written, wanted in zip(predictions, target, strict=True)]


class SampledPredictionMetric(PredictionMetric):
    """The same for one prediction sampled from P(y|x,c): noisier, and its mean is the expected metric."""

    def __call__(self, sampled_predictions: list[str], target: list[str]) -> list[float]:
        return super().__call__(sampled_predictions, target)


def _row_score(metric: str, prediction: str, target: str) -> float:
    if metric == "bleu":
        try:
            from sacrebleu import sentence_bleu  # with effective_order
        except ImportError as error:
            raise ImportError("BLEU needs the package sacrebleu; pip install 'rl_warmup[metrics]'") from error
        return sentence_bleu(prediction, [target]).score / 100
    scores = compute([metric], [prediction], [target])
    if len(scores) != 1:
        raise ValueError(f"The metric {metric!r} gives {', '.join(scores)}; give a metric of one number.")
    is_percent = metric == "chrf++" or metric.startswith("rouge")
    return next(iter(scores.values())) / (100.0 if is_percent else 1.0)


class ReasoningGymScore:
    """`score_answer` of the likeliest prediction after each warmup, 0 to 1. Costs a generation per warmup.

    `allow_eval`: also score generators that run the prediction as Python (`metrics.reasoning_gym.BY_EVAL`).
    """

    def __init__(self, allow_eval: bool = False) -> None:
        self.allow_eval = allow_eval
        reasoning_gym_signature()

    def __call__(
        self, predictions: list[str], target: list[str], prompts: list[str], generator: list[str], metadata: list[str],
        question: Sequence[str | None] | None = None,
    ) -> list[float]:  # fmt: skip
        columns = zip(prompts, generator, metadata, question or [None] * len(prompts), strict=True)
        names = ("prompt", "generator", "metadata", "question")
        rows = [dict(zip(names, values, strict=True)) for values in columns]
        return row_scores(predictions, target, rows, self.allow_eval)


class SampledReasoningGymScore(ReasoningGymScore):
    """The same for one prediction sampled from P(y|x,c): noisier, and its mean is the expected score."""

    def __call__(
        self, sampled_predictions: list[str], target: list[str], prompts: list[str], generator: list[str],
        metadata: list[str], question: Sequence[str | None] | None = None,
    ) -> list[float]:  # fmt: skip
        return super().__call__(sampled_predictions, target, prompts, generator, metadata, question)
