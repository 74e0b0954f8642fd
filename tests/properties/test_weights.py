"""Objectives for any rewards: sums, order, shifts, and numbers far from 0, as log P of a long target is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_warmup.method.objectives import (
    NEEDS_TWO,
    RULES,
    ObjectiveSettings,
    effective_sample_size,
    log_mean_exp,
    posterior,
    resample,
)

nats = st.floats(-1e4, 0, width=32)
SUMS = {  # of a and of b over a group
    "marginal": (0, 1), "marginal_loo": (None, 1), "joint": (1, 1), "expected_logprob": (0, 1), "grpo": (0, 1),
    "expected_prob": (0, None), "tsallis": (0, None),
}  # fmt: skip
SHIFTED = (
    "marginal",
    "marginal_loo",
    "joint",
    "expected_logprob",
    "grpo",
)  # the same for rewards that are all higher; no rank jumps


@st.composite
def groups(draw, least=2):
    """(B, G) rewards and log P(c|x)."""
    size, count = draw(st.integers(least, 5)), draw(st.integers(1, 3))
    rows = st.lists(st.lists(nats, min_size=size, max_size=size), min_size=count, max_size=count)
    return torch.tensor(draw(rows)).double(), torch.tensor(draw(rows)).double()


numbers = st.builds(ObjectiveSettings, st.floats(0.05, 20), st.floats(0, 1), st.floats(0, 1))


@pytest.mark.parametrize("name", RULES)
@given(groups(), numbers)
def test_weights_are_finite_and_sum_up(name, made, settings):
    for dtype in (torch.float32, torch.float64):
        for weights, total in zip(RULES[name](*(one.to(dtype) for one in made), settings), SUMS[name], strict=True):
            assert weights.isfinite().all()
            if total is not None and not (name == "expected_logprob" and dtype == torch.float32):
                torch.testing.assert_close(weights.sum(1), torch.full_like(weights[:, 0], total), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", RULES)
@given(groups(), numbers, st.randoms(use_true_random=False))
def test_order_in_a_group_is_no_matter(name, made, settings, random):
    order = random.sample(range(made[0].size(1)), made[0].size(1))
    for whole, shuffled in zip(
        RULES[name](*made, settings), RULES[name](*(one[:, order] for one in made), settings), strict=True
    ):
        torch.testing.assert_close(whole[:, order], shuffled, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
@given(groups(), numbers)
def test_groups_do_not_know_of_each_other(name, made, settings):
    for whole, alone in zip(
        RULES[name](*made, settings), RULES[name](*(one[:1] for one in made), settings), strict=True
    ):
        torch.testing.assert_close(whole[:1], alone, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("name", SHIFTED)
@given(groups(), numbers, st.integers(-5000, 5000))
def test_a_constant_beside_all_rewards_changes_nothing(name, made, settings, shift):
    rewards, logprobs = made
    for one, other in zip(
        RULES[name](rewards, logprobs, settings), RULES[name](rewards + shift, logprobs, settings), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@given(groups(), numbers)
def test_the_best_warmup_has_the_greatest_weight(made, settings):
    rewards, logprobs = made
    for name in ("marginal", "marginal_loo", "expected_logprob", "grpo"):
        policy = RULES[name](rewards, logprobs, settings)[0]
        assert (policy.gather(1, rewards.argmax(1, keepdim=True)) >= policy.max(1, keepdim=True).values - 1e-9).all()


@given(groups(1), st.floats(0.05, 20))
def test_posterior_and_effective_sample_size(made, tau):
    rewards, _ = made
    p = posterior(rewards, tau)
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
    ess = effective_sample_size(p)
    assert (ess >= 1 - 1e-6).all()
    assert (ess <= rewards.size(1) + 1e-6).all()
    bound = log_mean_exp(rewards)
    assert (bound <= rewards.max(1).values + 1e-9).all()
    assert (bound >= rewards.max(1).values - math.log(rewards.size(1)) - 1e-9).all()


@pytest.mark.parametrize("name", RULES)
def test_scale_limits(name):
    """A group of one where that is allowed, equal rewards, and one warmup far better than the rest."""
    settings = ObjectiveSettings()
    equal = torch.full((1, 4), -1e4)
    a, b = RULES[name](equal, torch.zeros(1, 4), settings)
    assert torch.equal(a, a[:, :1].expand(1, 4))
    assert torch.equal(b, b[:, :1].expand(1, 4))
    far = torch.tensor([[-1.0, -1e4, -1e4, -1e4]])
    a, b = RULES[name](far, torch.zeros(1, 4), settings)
    assert a.isfinite().all()
    assert b.argmax() == 0
    if name not in NEEDS_TWO:
        a, b = RULES[name](torch.tensor([[-1e4]]), torch.zeros(1, 1), settings)
        assert b.item() == pytest.approx(1)


@given(groups(), st.integers(1, 5), st.floats(0, 0.999))
def test_drawn_factors_keep_the_total(made, k, uniform):
    a, b = RULES["marginal"](*made, ObjectiveSettings())
    factors = resample(a, b, k, torch.full((a.size(0),), uniform))
    size = a.abs() + b.abs()
    assert (factors >= 0).all()
    torch.testing.assert_close((factors * size).sum(1), size.sum(1), atol=1e-4, rtol=1e-4)
