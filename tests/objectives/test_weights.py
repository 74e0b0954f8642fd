"""Every rule by hand-computed numbers for a group of two or three, by invariants, and by a naive loop as its twin."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rl_warmup.config import SINGLE_WARMUP_OBJECTIVES
from rl_warmup.method.objectives import (
    GRPO_EPS,
    RULES,
    ObjectiveSettings,
    effective_sample_size,
    log_mean_exp,
    posterior,
)

# log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8 after normalising, mean of e^R 8/3
REWARDS = torch.tensor([[0.0, math.log(2), math.log(5)]])
PRIOR = torch.tensor([[math.log(4), 0.0, 0.0]])  # joint: 4*1, 1*2, 1*5 -> 4/11, 2/11, 5/11


def weigh(
    rule: str, rewards: Tensor = REWARDS, prior: Tensor | None = None, **settings: float
) -> tuple[Tensor, Tensor]:
    return RULES[rule](rewards, torch.zeros_like(rewards) if prior is None else prior, ObjectiveSettings(**settings))


def close(given: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(given, torch.tensor([expected]), rtol=1e-5, atol=1e-6)


def random_groups(size: int, count: int = 7, scale: float = 3.0) -> Tensor:
    return torch.randn(count, size) * scale - 20


# ---------------------------------------------------------------------- by hand


def test_marginal_by_hand():
    a, b = weigh("marginal")
    close(a, [1 / 8 - 1 / 3, 2 / 8 - 1 / 3, 5 / 8 - 1 / 3])
    close(b, [1 / 8, 2 / 8, 5 / 8])


def test_marginal_with_tau_and_a_uniform_share():
    a, b = weigh("marginal", tau=2.0, uniform_target_share=0.25)  # e^{R/2}: 1, sqrt 2, sqrt 5
    total = 1 + math.sqrt(2) + math.sqrt(5)
    p = [1 / total, math.sqrt(2) / total, math.sqrt(5) / total]
    close(a, [x - 1 / 3 for x in p])
    close(b, [0.25 / 3 + 0.75 * x for x in p])


def test_marginal_loo_by_hand():
    a, b = weigh("marginal_loo")
    bound = math.log(8 / 3)
    close(a, [bound - math.log(7 / 2), bound - math.log(6 / 2), bound - math.log(3 / 2)])
    close(b, [1 / 8, 2 / 8, 5 / 8])


def test_joint_by_hand():
    a, b = weigh("joint", prior=PRIOR)
    close(a, [4 / 11, 2 / 11, 5 / 11])
    close(b, [4 / 11, 2 / 11, 5 / 11])


def test_expected_logprob_by_hand():
    a, b = weigh("expected_logprob", torch.tensor([[-1.0, -2.0, -6.0]]))
    close(a, [(-1 + 4) / 3, (-2 + 3.5) / 3, (-6 + 1.5) / 3])
    close(b, [1 / 3, 1 / 3, 1 / 3])


def test_expected_prob_by_hand():
    a, b = weigh("expected_prob")
    close(a, [(1 - 3.5) / 3, (2 - 3) / 3, (5 - 1.5) / 3])
    close(b, [1 / 3, 2 / 3, 5 / 3])


def test_tsallis_by_hand():
    a, b = weigh("tsallis", tsallis_q=0.5)
    scale = (8 / 3) ** -0.5
    close(a, [scale * (1 - 3.5) / 3, scale * (2 - 3) / 3, scale * (5 - 1.5) / 3])
    close(b, [scale / 3, scale * 2 / 3, scale * 5 / 3])


def test_grpo_by_hand():
    a, b = weigh("grpo", torch.tensor([[1.0, 3.0]]))  # mean 2, standard deviation sqrt 2
    step = 1 / (math.sqrt(2) + GRPO_EPS) / 2
    close(a, [-step, step])
    close(b, [0.5, 0.5])


def test_posterior_ess_and_bound_by_hand():
    close(posterior(REWARDS), [1 / 8, 2 / 8, 5 / 8])
    assert effective_sample_size(posterior(REWARDS)).item() == pytest.approx(64 / 30)
    assert log_mean_exp(REWARDS).item() == pytest.approx(math.log(8 / 3))
    assert effective_sample_size(torch.full((1, 5), 0.2)).item() == pytest.approx(5)
    assert effective_sample_size(torch.tensor([[1.0, 0.0]])).item() == 1
    assert effective_sample_size(torch.zeros(3, 0)).tolist() == [0, 0, 0]


# ---------------------------------------------------------------------- invariants


@pytest.mark.parametrize("rule", ["marginal", "expected_logprob", "expected_prob", "tsallis", "grpo"])
def test_policy_weights_cancel_within_a_group(rule):
    a, _ = weigh(rule, random_groups(4, scale=1.0) + 20)
    torch.testing.assert_close(a.sum(1), torch.zeros(len(a)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["marginal", "marginal_loo", "joint", "expected_logprob", "grpo"])
def test_target_weights_share_out_one(rule):
    _, b = weigh(rule, random_groups(4))
    torch.testing.assert_close(b.sum(1), torch.ones(len(b)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_members_are_treated_alike(rule, size):
    rewards, prior, order = random_groups(size), random_groups(size), torch.randperm(size)
    straight = weigh(rule, rewards, prior)
    shuffled = weigh(rule, rewards[:, order], prior[:, order])
    for one, other in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(one[:, order], other)


@pytest.mark.parametrize("rule", RULES)
def test_groups_do_not_see_each_other(rule):
    rewards, prior = random_groups(3), random_groups(3)
    together = weigh(rule, rewards, prior)
    for row in range(len(rewards)):
        alone = weigh(rule, rewards[row : row + 1], prior[row : row + 1])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[row : row + 1], other)


@pytest.mark.parametrize("rule", ["marginal", "marginal_loo", "joint", "expected_logprob", "grpo"])
def test_a_constant_added_to_every_reward_changes_nothing(rule):
    rewards = random_groups(4)
    for one, other in zip(weigh(rule, rewards), weigh(rule, rewards + 7), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_better_warmup_gets_more_of_both_weights(rule):
    a, b = weigh(rule)  # rewards ascend
    assert all(x < y for x, y in pairwise(a[0].tolist()))
    assert all(x <= y for x, y in pairwise(b[0].tolist()))


@pytest.mark.parametrize("rule", RULES)
def test_weights_carry_no_gradient_of_their_own_making(rule):
    a, b = weigh(rule)
    assert not a.requires_grad
    assert not b.requires_grad


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("level", [-150.0, -1000.0])
def test_very_unlikely_targets_stay_finite(rule, level):
    rewards = torch.tensor([[level, level - 40, level + 3], [level, level, level]])
    for weights in weigh(rule, rewards, rewards):
        assert weights.isfinite().all()


@pytest.mark.parametrize("rule", ["marginal", "marginal_loo", "joint", "expected_logprob", "grpo"])
def test_long_targets_are_told_apart(rule):
    a, _ = weigh(rule, torch.tensor([[-150.0, -153.0]]))
    assert a[0, 0] - a[0, 1] > 0.1


# ---------------------------------------------------------------------- between rules


def test_a_large_tau_turns_marginal_into_centred_rewards():
    rewards, tau = random_groups(5), 1e4
    a, b = weigh("marginal", rewards, tau=tau)
    centred = (rewards - rewards.mean(1, keepdim=True)) / (5 * tau)
    torch.testing.assert_close(a, centred, rtol=2e-2, atol=1e-7)
    torch.testing.assert_close(b, torch.full_like(b, 1 / 5), rtol=1e-2, atol=0)


def test_a_small_tau_chooses_the_best_warmup():
    a, b = weigh("marginal", tau=1e-2)
    close(b, [0.0, 0.0, 1.0])
    close(a, [-1 / 3, -1 / 3, 2 / 3])


def test_a_uniform_share_of_one_trains_the_target_evenly():
    a, b = weigh("marginal", uniform_target_share=1.0)
    close(b, [1 / 3, 1 / 3, 1 / 3])
    torch.testing.assert_close(a, weigh("marginal")[0])


def test_tsallis_spans_from_expected_prob_to_the_marginal():
    rewards = random_groups(4, scale=1.0)
    for one, other in zip(weigh("tsallis", rewards, tsallis_q=0.0), weigh("expected_prob", rewards), strict=True):
        torch.testing.assert_close(one, other)
    a, b = weigh("tsallis", rewards, tsallis_q=1.0)
    marginal_a, marginal_b = weigh("marginal", rewards)
    torch.testing.assert_close(b, marginal_b)
    torch.testing.assert_close(a, marginal_a * 4 / 3, rtol=1e-4, atol=1e-6)  # leaving one out: n/(n-1) times as much


def test_joint_without_a_prior_is_the_posterior():
    close(weigh("joint")[0], posterior(REWARDS)[0].tolist())


def test_one_warmup_alone():
    assert [w.item() for w in weigh("marginal", torch.tensor([[-3.0]]))] == [0, 1]
    assert [w.item() for w in weigh("joint", torch.tensor([[-3.0]]))] == [1, 1]


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("rule", RULES)
def test_rules_that_need_two_say_so(rule):
    try:
        works = all(w.isfinite().all() for w in weigh(rule, torch.tensor([[-3.0]])))
    except (ValueError, RuntimeError):  # the mean of no others, the best of none
        works = False
    assert works == (rule in SINGLE_WARMUP_OBJECTIVES)


# ---------------------------------------------------------------------- naive twins


def naive(rule: str, rewards: list[float], prior: list[float], q: float) -> tuple[list[float], list[float]]:
    """The table of docs/method.md, one number at a time and without log space."""
    n, likelihood = len(rewards), [math.exp(r) for r in rewards]
    mean = sum(likelihood) / n
    a, b = [], []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        p = likelihood[i] / sum(likelihood)
        mean_of_others = sum(likelihood[j] for j in others) / (n - 1)
        joint = likelihood[i] * math.exp(prior[i]) / sum(likelihood[j] * math.exp(prior[j]) for j in range(n))
        deviation = statistics.stdev(rewards) + GRPO_EPS
        pairs = {
            "marginal": (p - 1 / n, p),
            "marginal_loo": (math.log(mean) - math.log(mean_of_others), p),
            "joint": (joint, joint),
            "expected_logprob": ((rewards[i] - sum(rewards[j] for j in others) / (n - 1)) / n, 1 / n),
            "expected_prob": ((likelihood[i] - mean_of_others) / n, likelihood[i] / n),
            "tsallis": (mean**-q * (likelihood[i] - mean_of_others) / n, mean**-q * likelihood[i] / n),
            "grpo": ((rewards[i] - statistics.mean(rewards)) / deviation / n, 1 / n),
        }
        a.append(pairs[rule][0])
        b.append(pairs[rule][1])
    return a, b


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [2, 3, 6])
def test_rules_equal_their_naive_twins(rule, size):
    rewards, prior = torch.randn(5, size).double() - 2, torch.randn(5, size).double()
    a, b = weigh(rule, rewards, prior, tsallis_q=0.3)
    for row in range(len(rewards)):
        expected_a, expected_b = naive(rule, rewards[row].tolist(), prior[row].tolist(), q=0.3)
        torch.testing.assert_close(a[row], torch.tensor(expected_a).double(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(b[row], torch.tensor(expected_b).double(), rtol=1e-6, atol=1e-7)
