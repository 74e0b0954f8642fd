"""Each estimator's expected gradient, over all groups it may draw, against the exact gradient of its formula.

On the real parameters of a T5 and a Llama: nothing is simulated, every group of warmups is enumerated.
"""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch

from rl_warmup.method.objectives import RULES, ObjectiveSettings

FLOAT32 = 1e-4


def log_mean_exp_bound(space, n):
    """E over groups of log mean_i P(y|x,c_i), with gradient through the draw and through the targets."""

    def formula(warmup, target):
        groups = torch.tensor(list(product(range(len(space.prior)), repeat=n)))
        return (warmup[groups].sum(1).exp() * (target[groups].logsumexp(1) - math.log(n))).sum()

    return formula


def log_marginal(warmup, target):
    """log P(y|x) = log Σ_c P(c|x) P(y|x,c)."""
    return (warmup + target).logsumexp(0)


def test_the_space_is_whole(space):
    assert len(space.warmups) == 6
    assert space.prior.sum().item() == pytest.approx(1, abs=1e-5)
    assert space.prior.min() > 0.01
    assert space.rewards.max() - space.rewards.min() > 0.5  # which warmup it is makes a difference


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"min_length": 0, "max_length": 1}, 3), ({"min_length": 0, "max_length": 3}, 15), ({"min_length": 2, "max_length": 2}, 4)],
)  # fmt: skip
def test_other_spaces_are_whole_too(lab, settings, count):
    constraints = lab.constraints("a b", **settings)
    warmups = lab.all_warmups(constraints)
    assert len(warmups) == count
    assert lab.score(lab.row("c", "d"), warmups, constraints).warmup_logprob.exp().sum().item() == pytest.approx(
        1, abs=1e-5
    )


def test_groups_and_their_orders_are_the_same_as_all_tuples(space):
    """The count vectors used for large n, against a plain loop over all 6^3 tuples."""
    total = torch.zeros_like(space.prior)
    for group in product(range(6), repeat=3):
        rewards = space.rewards[list(group)][None]
        a, _ = RULES["marginal_loo"](rewards, rewards, ObjectiveSettings())
        for member, weight in zip(group, a[0], strict=True):
            total[member] += space.prior[list(group)].prod() * weight
    torch.testing.assert_close(space.expectation("marginal_loo", 3)[0], total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_expected_logprob_is_unbiased(space, error, n):
    exact = space.gradient(lambda warmup, target: (warmup.exp() * target).sum())
    assert error(space.estimate(space.expectation("expected_logprob", n)), exact) < FLOAT32


@pytest.mark.parametrize("n", [2, 3])
def test_expected_prob_is_unbiased(space, error, n):
    exact = space.gradient(lambda warmup, target: (warmup + target).exp().sum())
    assert error(space.estimate(space.expectation("expected_prob", n)), exact) < FLOAT32


@pytest.mark.parametrize("n", [2, 3])
def test_marginal_loo_is_unbiased_for_its_bound(space, error, n):
    exact = space.gradient(log_mean_exp_bound(space, n))
    assert error(space.estimate(space.expectation("marginal_loo", n)), exact) < FLOAT32
    assert error(space.estimate(space.expectation("marginal", n)), exact) > 1e-2  # the test can tell


@pytest.mark.parametrize("rule", ["marginal", "expected_logprob", "grpo"])
def test_the_control_variate_costs_no_bias(space, error, rule):
    """Σ_c P(c) ∇log P(c) = 0, so a constant in `a` moves nothing; here for a group of one constant reward."""
    constant = torch.ones_like(space.prior)
    noise = space.estimate((space.prior * constant, torch.zeros_like(space.prior)))
    assert noise.norm() < 1e-4 * space.gradient(log_marginal).norm()
    a, b = space.expectation(rule, 3)
    shifted = space.estimate((a + 0.7 * space.prior, b))
    assert error(shifted, space.estimate((a, b))) < FLOAT32


@pytest.mark.parametrize("group", [[0, 1], [2, 2, 5], [0, 1, 2, 3, 4, 5]])
def test_joint_is_the_gradient_over_its_samples(space, error, group):
    prior = space.scores.warmup_logprob.detach().double()
    a, b = RULES["joint"](space.rewards[group][None], prior[group][None], ObjectiveSettings())
    totals = [torch.zeros_like(prior).index_add(0, torch.tensor(group), weights[0]) for weights in (a, b)]
    exact = space.gradient(lambda warmup, target: (warmup + target)[group].logsumexp(0))
    assert error(space.estimate((totals[0], totals[1])), exact) < FLOAT32


@pytest.mark.parametrize("rule", ["marginal", "marginal_loo"])
def test_marginals_approach_the_gradient_of_the_evidence(space, error, rule):
    exact = space.gradient(log_marginal)
    estimates = [space.estimate(space.expectation(rule, n)) for n in (2, 4, 8, 16)]
    errors = [error(estimate, exact) for estimate in estimates]
    cosines = [torch.cosine_similarity(estimate, exact, dim=0).item() for estimate in estimates]
    assert all(more > less for more, less in pairwise(errors)), errors
    assert all(less < more for less, more in pairwise(cosines)), cosines
    assert errors[-1] < errors[0] / 4  # the bias falls as 1/n
    assert cosines[-1] > 0.99


def test_joint_does_not_approach_it(space, error):
    exact = space.gradient(log_marginal)
    errors = [error(space.estimate(space.expectation("joint", n)), exact) for n in (2, 4, 8, 16)]
    marginal = error(space.estimate(space.expectation("marginal", 16)), exact)
    assert errors[-1] > 0.2
    assert errors[-1] > 5 * marginal


@pytest.mark.parametrize("q", [0.3, 0.7])
def test_tsallis_approaches_its_power_of_the_evidence(space, error, q):
    exact = space.gradient(lambda warmup, target: ((1 - q) * log_marginal(warmup, target)).exp() / (1 - q))
    errors = [error(space.estimate(space.expectation("tsallis", n, tsallis_q=q)), exact) for n in (2, 4, 8, 16)]
    assert all(more > less for more, less in pairwise(errors)), errors
    assert errors[-1] < errors[0] / 4


def test_expected_prob_has_the_right_direction_and_a_vanishing_size(space):
    exact = space.gradient(log_marginal)
    estimate = space.estimate(space.expectation("expected_prob", 2))
    assert torch.cosine_similarity(estimate, exact, dim=0) > 1 - 1e-6
    evidence = (space.prior * space.rewards.exp()).sum()
    torch.testing.assert_close(estimate.norm() / exact.norm(), evidence, rtol=1e-4, atol=0)


def test_the_bound_rises_with_n_towards_the_evidence(space):
    evidence = (space.prior * space.rewards.exp()).sum().log().item()
    bounds = []
    for n in (1, 2, 3):
        groups = torch.tensor(list(product(range(6), repeat=n)))
        values = space.rewards[groups].logsumexp(1) - math.log(n)
        bounds.append((space.prior[groups].prod(1) * values).sum().item())
    assert bounds[0] < bounds[1] < bounds[2] < evidence
