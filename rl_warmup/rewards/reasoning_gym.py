"""reasoning-gym's score of the prediction after each warmup, as a reward.

Knows: the columns of that task. Must not know: how predictions are made.
"""

from __future__ import annotations

from collections.abc import Sequence

from rl_warmup.metrics.reasoning_gym import reasoning_gym_signature, row_scores


class ReasoningGymScore:
    """`score_answer` of the likeliest prediction after each warmup, 0 to 1. Costs a generation per warmup.

    Args:
        allow_eval: also score generators that run the prediction as Python (`metrics.reasoning_gym.BY_EVAL`).

    Raises:
        ImportError: reasoning-gym is missing.
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
