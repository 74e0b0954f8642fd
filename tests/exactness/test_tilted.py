"""Extra rewards tilt the posterior: p(c) ∝ P(c|x) · exp(R(c)/τ), R = log P(y|x,c) + Σ w r. By hand, and by enumeration."""

from __future__ import annotations

import math

import pytest
import torch

from rl_warmup.method.objectives import RULES, ObjectiveSettings, posterior

from .conftest import count_vectors


def test_two_warmups_by_hand():
    """One nat of extra reward makes up for one nat of likelihood; ln 3 more makes three times as likely."""
    l = torch.tensor([[-1.0, -2.0]])  # noqa: E741
    assert posterior(l + torch.tensor([[0.0, 1.0]])).tolist() == [[0.5, 0.5]]
    extra = torch.tensor([[0.0, 1.0 + math.log(3)]])
    assert posterior(l + extra)[0].tolist() == pytest.approx([0.25, 0.75])
    assert posterior(l + extra, tau=2.0)[0, 1].item() == pytest.approx(3**0.5 / (1 + 3**0.5))


def test_what_all_warmups_of_a_prompt_share_does_not_count():
    rewards = torch.tensor([[-1.0, -2.0, -4.0]])
    for rule in ("marginal", "marginal_loo", "expected_logprob", "grpo", "joint"):
        plain, shifted = (RULES[rule](r, torch.zeros(1, 3), ObjectiveSettings()) for r in (rewards, rewards + 7.0))
        for one, other in zip(plain, shifted, strict=True):
            torch.testing.assert_close(one, other)


def test_the_weights_are_a_softmax_of_the_weighted_sum(space):
    extra = torch.tensor([float(len(warmup.ids)) for warmup in space.warmups]).double()
    total = space.rewards + 0.5 * extra
    a, b = RULES["marginal"](total[None], torch.zeros_like(total)[None], ObjectiveSettings(tau=0.7))
    e = [math.exp((l + 0.5 * r) / 0.7) for l, r in zip(space.rewards.tolist(), extra.tolist(), strict=True)]  # noqa: E741
    assert b[0].tolist() == pytest.approx([w / sum(e) for w in e])
    assert a[0].tolist() == pytest.approx([w / sum(e) - 1 / len(e) for w in e])


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_over_all_groups_it_approaches_the_tilted_posterior(space, tau):
    """E Σ_i p_i [c_i = c] over enumerated groups of n comes closer to P(c|x) exp(R(c)/τ) / Z as n grows, from P(c|x)."""
    extra = torch.tensor([float(warmup.ids[0]) for warmup in space.warmups]).double()
    total = space.rewards + 1.5 * (extra - extra.min())
    exact = space.prior * (total / tau).exp()
    exact /= exact.sum()
    distances = []
    for n in (1, 2, 4, 8):
        groups, probability = count_vectors(space.prior, n)
        p = posterior(total[groups], tau)
        mass = torch.zeros_like(exact).index_add(0, groups.flatten(), (p * probability[:, None]).flatten())
        assert mass.sum().item() == pytest.approx(1.0, abs=1e-5)  # float32 to the power n
        distances.append((mass - exact).abs().sum().item())
    assert distances[0] == pytest.approx((space.prior - exact).abs().sum().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 3


def test_the_loo_objective_ascends_the_tilted_bound(space, error):
    """Its expected gradient is that of E log mean_i exp(R_i), with an extra reward that no network computed."""
    extra = torch.tensor([float(len(warmup.ids)) for warmup in space.warmups]).double()
    groups, _ = count_vectors(space.prior, 2)
    kept = space.rewards

    def bound(warmup, target):
        logprob = warmup[groups].sum(1)
        orders = torch.where(groups[:, 0] == groups[:, 1], 1.0, 2.0)
        total = target + extra
        return (orders * logprob.exp() * (total[groups].logsumexp(1) - math.log(2))).sum()

    exact = space.gradient(bound)
    try:
        space.__dict__["rewards"] = kept + extra
        given = space.estimate(space.expectation("marginal_loo", 2))
    finally:
        space.__dict__["rewards"] = kept
    assert error(given, exact) < 1e-5
