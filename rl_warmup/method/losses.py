"""The loss of a micro-batch: weights times log-probabilities, divided by the target tokens of the whole update.

Knows: `Scores`, `RowWeights`, one number. Must not know: where the weights come from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl_warmup.batch import RowWeights, Scores


def weighted_loss(scores: Scores, weights: RowWeights, num_target_tokens: Tensor | float) -> tuple[Tensor, Tensor]:
    """-Σ a log P(c|x) and -Σ b log P(y|x,c), both per target token of the whole update.

    Dividing by the same number in every micro-batch makes eight micro-batches of one prompt equal one of eight: sums add
    up, means would not. With one row of b = 1 per prompt the second part is the token cross-entropy of SFT.

    Args:
        scores: log-probabilities of N rows, with gradient.
        weights: constants of the same N rows.
        num_target_tokens: target tokens of the update, each prompt counted once, in all micro-batches and processes.

    Returns:
        Two scalars (policy part, target part), in nats per target token; their sum is the loss.
    """
    policy = -(weights.policy * scores.warmup_logprob).sum() / num_target_tokens
    target = -(weights.target * scores.target_logprob).sum() / num_target_tokens
    return policy, target


def kl_loss(token_logps: Tensor, reference_logps: Tensor, weights: Tensor) -> Tensor:
    """Σ_i w_i Σ_t (e^d - d - 1), d = log P_start(c_t) - log P(c_t): the distance of the policy from the starting policy.

    Source: the k3 estimator of KL(P || P_start) per token (Schulman 2020), as in TRL's `beta`. Every term is at least 0 and
    its mean over c_t ~ P is the KL of that step. For a fixed c_t its gradient is (1 - e^d) ∇log P(c_t), with the mean
    -Σ P_start ∇log P over c_t: the gradient of KL(P_start || P) at every prefix that the policy writes.

    Args:
        token_logps: (N, T) of the policy, with gradient; 0 where there is no action.
        reference_logps: (N, T) of the starting policy; 0 where there is no action.
        weights: (N,) w, of every row.

    Returns:
        A scalar, nats times weight.
    """
    distance = reference_logps - token_logps
    return (weights[:, None] * (torch.expm1(distance) - distance)).sum()
