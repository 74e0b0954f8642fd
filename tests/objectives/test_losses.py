"""The loss: weights times log-probabilities, per target token of the whole update."""

from __future__ import annotations

import torch

from rl_warmup.batch import RowWeights, Scores
from rl_warmup.method.losses import weighted_loss


def scores_of(warmup: list[float], target: list[float]) -> Scores:
    count = torch.ones(len(warmup))
    leaves = [torch.tensor(values, requires_grad=True) for values in (warmup, target)]
    return Scores(leaves[0], leaves[1], torch.zeros(len(warmup), 1), count, count)


def weights_of(policy: list[float], target: list[float]) -> RowWeights:
    return RowWeights(
        torch.tensor(policy), torch.tensor(target), torch.ones(1, 1), torch.ones(1), torch.zeros(len(policy))
    )


def test_by_hand():
    scores = scores_of([-1.0, -2.0], [-3.0, -4.0])
    policy, target = weighted_loss(scores, weights_of([0.5, -0.5], [0.25, 0.75]), 10)
    torch.testing.assert_close(policy.item(), -(0.5 * -1 + -0.5 * -2) / 10)
    torch.testing.assert_close(target.item(), -(0.25 * -3 + 0.75 * -4) / 10)
    (policy + target).backward()  # a step downhill raises what has a positive weight
    torch.testing.assert_close(scores.warmup_logprob.grad, torch.tensor([-0.05, 0.05]))
    torch.testing.assert_close(scores.target_logprob.grad, torch.tensor([-0.025, -0.075]))


def test_micro_batches_add_up():
    whole = weighted_loss(scores_of([-1.0, -2.0], [-3.0, -4.0]), weights_of([0.5, -0.5], [0.25, 0.75]), 10)
    first = weighted_loss(scores_of([-1.0], [-3.0]), weights_of([0.5], [0.25]), torch.tensor(10.0))
    second = weighted_loss(scores_of([-2.0], [-4.0]), weights_of([-0.5], [0.75]), torch.tensor(10.0))
    for all_at_once, one, two in zip(whole, first, second, strict=True):
        torch.testing.assert_close(all_at_once, one + two)
