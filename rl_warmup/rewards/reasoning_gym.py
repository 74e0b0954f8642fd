"""What a generator of reasoning-gym says about the answer that the model writes after a warmup, as a reward.

Knows: the columns of that task. Must not know: how predictions are made; a function that names them gets them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rl_warmup.metrics.reasoning_gym import reasoning_gym_signature, row_scores


class ReasoningGymScore:
    """`score_answer` of the likeliest prediction after each warmup, 0 to 1. Costs a generation per warmup.

    Args:
        allow_eval: also where scoring runs what the model wrote as Python (`metrics.reasoning_gym.BY_EVAL`).

    Raises:
        ImportError: reasoning-gym is missing; before training.
    """

    def __init__(self, allow_eval: bool = False) -> None:
        self.allow_eval = allow_eval
        reasoning_gym_signature()

    def __call__(
        self,
        predictions: list[str],
        target: list[str],
        prompts: list[str],
        generator: list[str],
        metadata: list[str],
        question: Sequence[str | None] | None = None,
    ) -> list[float]:
        questions = question or [None] * len(prompts)
        columns = zip(prompts, generator, metadata, questions, strict=True)
        names = ("prompt", "generator", "metadata", "question")
        rows = [dict(zip(names, values, strict=True)) for values in columns]
        return row_scores(predictions, target, rows, self.allow_eval)


class SampledReasoningGymScore(ReasoningGymScore):
    """The same of one prediction drawn from P(y|x,c): noisier, and its mean is the expected score."""

    def __call__(
        self,
        sampled_predictions: list[str],
        target: list[str],
        prompts: list[str],
        generator: list[str],
        metadata: list[str],
        question: Sequence[str | None] | None = None,
    ) -> list[float]:
        return super().__call__(sampled_predictions, target, prompts, generator, metadata, question)
