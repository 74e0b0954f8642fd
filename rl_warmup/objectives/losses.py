"""The loss of a micro-batch: weights times log-probabilities, divided by the target tokens of the whole update.

Knows: `Scores`, `RowWeights`, one number. Must not know: where the weights come from.
"""

from __future__ import annotations

from torch import Tensor

from rl_warmup.batch import RowWeights, Scores


def weighted_loss(scores: Scores, weights: RowWeights, num_target_tokens: Tensor | float) -> tuple[Tensor, Tensor]:
    """-Σ a log P(c|x) and -Σ b log P(y|x,c), both per target token of the whole update.

    Dividing by the same number in every micro-batch makes eight micro-batches of one prompt equal one of eight: sums add
    up, means would not. With one row of b = 1 per prompt the second part is the token cross-entropy of SFT.

    Args:
        scores: log-probabilities of N rows, with gradient.
        weights: constants of the same N rows.
        num_target_tokens: target tokens of the update, each prompt counted once, over all micro-batches and processes.

    Returns:
        Two scalars (policy part, target part), in nats per target token; their sum is the loss.
    """
    policy = -(weights.policy * scores.warmup_logprob).sum() / num_target_tokens
    target = -(weights.target * scores.target_logprob).sum() / num_target_tokens
    return policy, target
