"""Posterior weights of a group that two densities drew, by hand-computed numbers and by their limits."""

from __future__ import annotations

import math

import pytest
import torch

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.layouts.splice import splice
from rl_warmup.objectives.amortised import log_ratios, marginal_under_mixture
from rl_warmup.objectives.weights import RULES, Knobs


def batch_of(lab, prompts, size, amortised):
    row = lab.row("a", "b")
    warmups = [(i, RowKind.GROUP, Warmup(lab.ids("c"), "separator")) for i in range(prompts) for _ in range(size)]
    return splice(lab.layout, [row] * prompts, warmups, size, amortised)


def logs(*probabilities):
    return torch.tensor(probabilities).double().log()


def test_two_warmups_by_hand(t5):
    """P = 1/2, 1/4 and q = 1/4, 3/4, one draw each: m = 3/8, 1/2, so P/m = 4/3, 1/2."""
    batch = batch_of(t5, 1, 2, 1)
    ratios = log_ratios(batch, logs(1 / 2, 1 / 4, 1 / 4, 3 / 4))
    torch.testing.assert_close(ratios.exp(), torch.tensor([[4 / 3, 1 / 2]]).double())
    w, a, b = marginal_under_mixture(logs(1.0, 4.0)[None], ratios, Knobs(uniform_target_share=0.25))
    # with e^R = 1, 4 the weights are 4/3 : 2, the prior's 4/3 : 1/2
    torch.testing.assert_close(w, torch.tensor([[2 / 5, 3 / 5]]).double())
    torch.testing.assert_close(a, torch.tensor([[-18 / 55, 18 / 55]]).double())
    torch.testing.assert_close(b, torch.tensor([[2 / 11 + 3 / 10, 3 / 44 + 9 / 20]]).double())


def test_tau_tempers_the_reward_and_leaves_the_densities_alone(t5):
    """e^{R/2} = 1, 2 gives 4/3 : 1."""
    ratios = log_ratios(batch_of(t5, 1, 2, 1), logs(1 / 2, 1 / 4, 1 / 4, 3 / 4))
    w, _, _ = marginal_under_mixture(logs(1.0, 4.0)[None], ratios, Knobs(tau=2.0))
    torch.testing.assert_close(w, torch.tensor([[4 / 7, 3 / 7]]).double())


def test_other_rows_stand_between_the_two_densities(t5):
    """The second of two prompts has an empty row: log q is found by its kind, not by its place."""
    row, warmup = t5.row("a", "b"), Warmup(t5.ids("c"), "separator")
    rows = [(i, RowKind.GROUP, warmup) for i in (0, 0, 1, 1)] + [(1, RowKind.EMPTY, Warmup([], "empty"))]
    batch = splice(t5.layout, [row, row], rows, 2, 1)
    assert batch.row_kind.tolist() == [0, 0, 0, 0, 1, 3, 3, 3, 3]
    logprobs = logs(1 / 2, 1 / 4, 1 / 8, 1 / 8, 1.0, 1 / 4, 3 / 4, 1 / 8, 3 / 8)
    torch.testing.assert_close(log_ratios(batch, logprobs).exp(), torch.tensor([[4 / 3, 1 / 2], [1, 1 / 2]]).double())


@pytest.mark.parametrize("amortised", [1, 2, 3])
def test_where_q_is_the_policy_nothing_changes(t5, amortised):
    policy, rewards = torch.randn(5 * 4).double() - 9, torch.randn(5, 4).double() * 3 - 20
    ratios = log_ratios(batch_of(t5, 5, 4, amortised), torch.cat([policy, policy]))
    torch.testing.assert_close(ratios, torch.zeros(5, 4).double())
    knobs = Knobs(tau=0.7, uniform_target_share=0.2)
    w, a, b = marginal_under_mixture(rewards, ratios, knobs)
    plain_a, plain_b = RULES["marginal"](rewards, policy.view(5, 4), knobs)
    torch.testing.assert_close((a, b), (plain_a, plain_b))
    torch.testing.assert_close(w, (rewards / 0.7).softmax(1))


def test_without_draws_by_q_every_ratio_is_one(t5):
    assert log_ratios(batch_of(t5, 2, 2, 0), torch.randn(4)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("amortised", [1, 3])
def test_a_ratio_is_bounded_whatever_q_overlooks(t5, amortised):
    """q may miss a warmup by 500 nats, or find one that the policy would never make."""
    ratios = log_ratios(batch_of(t5, 1, 4, amortised), torch.tensor([-1.0, -2, -3, -400, -501, -2, -700, -1]).double())
    assert ratios.isfinite().all()
    assert ratios.max() <= math.log(4 / (4 - amortised)) + 1e-9
    assert ratios[0, 0].item() == pytest.approx(math.log(4 / (4 - amortised)))
    assert ratios[0, 3].item() == pytest.approx(-399 - math.log(amortised / 4))


def test_rewards_that_are_all_alike_move_no_policy():
    ratios = torch.randn(6, 4).double()
    w, a, _ = marginal_under_mixture(torch.full((6, 4), -7.0).double(), ratios, Knobs())
    torch.testing.assert_close(a, torch.zeros(6, 4).double())
    torch.testing.assert_close(w, ratios.softmax(1))


def test_a_find_of_qs_is_pushed_up_by_all_its_weight():
    """q's draw is 20 nats unlikely under the policy and 30 nats better: it has all the weight and nothing to give back."""
    w, a, b = marginal_under_mixture(torch.tensor([[-40.0, -10.0]]), torch.tensor([[0.69, -20.0]]), Knobs())
    assert w[0, 1] > 0.999
    assert a[0, 1] == pytest.approx(w[0, 1].item())
    assert a.sum().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(b, w)
