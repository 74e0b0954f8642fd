"""Which warmups get a gradient: shares by hand, and an expectation that is taken over every draw there is."""

from __future__ import annotations

import pytest
import torch

from rl_warmup.method.objectives import RULES, ObjectiveSettings, resample

POINTS = 4000


def every_draw(a, b, k):
    """(POINTS, G): the multipliers at evenly spread u, which stand for the uniform distribution."""
    uniforms = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    return resample(a.expand(POINTS, -1), b.expand(POINTS, -1), k, uniforms)


def test_one_posterior_draw_by_hand():
    """Shares 1/8, 2/8, 5/8: u picks the first warmup below 1/8, the second below 3/8, and gives it 1/share."""
    p = torch.tensor([[1 / 8, 2 / 8, 5 / 8]])
    for u, expected in [
        (0.0, [8, 0, 0]),
        (0.12, [8, 0, 0]),
        (0.13, [0, 4, 0]),
        (0.38, [0, 0, 1.6]),
        (0.999, [0, 0, 1.6]),
    ]:
        torch.testing.assert_close(resample(p, p, 1, torch.tensor([u])), torch.tensor([expected], dtype=torch.float32))


def test_two_draws_stand_half_apart():
    """u = 0.2 gives the points 0.1 and 0.6: the first and the third of the shares above, each 1/(2 share) once."""
    p = torch.tensor([[1 / 8, 2 / 8, 5 / 8]])
    torch.testing.assert_close(resample(p, p, 2, torch.tensor([0.2])), torch.tensor([[4.0, 0.0, 0.8]]))
    torch.testing.assert_close(resample(p, p, 2, torch.tensor([0.9])), torch.tensor([[0.0, 0.0, 1.6]]))  # 0.45 and 0.95


def test_a_warmup_is_drawn_by_the_size_of_both_weights():
    """|a| + |b| = 3, 0, 1: the second is never drawn, signs do not matter."""
    a, b = torch.tensor([[-2.0, 0.0, 0.5]]), torch.tensor([[1.0, 0.0, -0.5]])
    times = every_draw(a, b, 1)
    assert sorted(times[:, 0].unique().tolist()) == pytest.approx([0, 4 / 3])
    assert times[:, 1].abs().max() == 0
    assert sorted(times[:, 2].unique().tolist()) == pytest.approx([0, 4])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_multipliers_average_to_one(rule, k):
    rewards = torch.tensor([[-3.0, -1.0, -2.5, -7.0]], dtype=torch.float64)
    a, b = RULES[rule](rewards, rewards.roll(1, 1), ObjectiveSettings(tau=1.5))
    mean = every_draw(a, b, k).mean(0)
    size = (a.abs() + b.abs())[0]
    # of a warmup that gets one ten-thousandth of the group's weight, 4000 draws say little
    shown = size > 1e-3 * size.sum()
    torch.testing.assert_close(mean[shown], torch.ones_like(mean[shown]), rtol=0, atol=0.2)
    torch.testing.assert_close((mean * a)[0], a[0], rtol=0, atol=3e-3 * size.sum().item())
    torch.testing.assert_close((mean * b)[0], b[0], rtol=0, atol=3e-3 * size.sum().item())


def test_as_many_draws_as_equal_warmups_take_each_once():
    even = torch.full((3, 4), 0.25)
    torch.testing.assert_close(resample(even, even, 4, torch.tensor([0.1, 0.5, 0.9])), torch.ones(3, 4))


def test_systematic_draws_vary_less_than_independent_ones():
    p = torch.tensor([[0.09, 0.70, 0.18, 0.03]])
    value = torch.tensor([1.0, -1.0, 3.0, 2.0])
    systematic = (every_draw(p, p, 2) * p * value).sum(1)
    one = (every_draw(p, p, 1) * p * value).sum(1)
    assert systematic.mean().item() == pytest.approx((p * value).sum().item(), abs=5e-3)
    assert systematic.var() < one.var() / 2  # independent draws would have exactly half


def test_a_group_without_any_weight_stays_without():
    nothing = torch.zeros(2, 3)
    times = resample(nothing, nothing, 1, torch.tensor([0.1, 0.9]))
    assert times.isfinite().all()
