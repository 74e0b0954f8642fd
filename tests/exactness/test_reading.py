"""Reading before writing, on six enumerated warmups: what the starting model's samples teach, and what the KL holds."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from rl_warmup.batch import EMPTY_WARMUP, RowKind
from rl_warmup.engine import score
from rl_warmup.method.losses import kl_loss, weighted_loss
from rl_warmup.method.objectives import log_mean_exp
from rl_warmup.method.proposals import ProposalContext
from rl_warmup.method.reference import StartingPolicy
from rl_warmup.method.rollout import Rollout
from rl_warmup.models.tokens import end_by_separator

from .conftest import Space

PAIRS = list(product(range(6), repeat=2))


def make_rollout(space, **settings):
    context = ProposalContext(space.constraints.max_length)
    return Rollout(space.lab.layout, space.constraints, "marginal", 2, ["reference"], context, 8, **settings)


def all_pairs(space, **settings):
    """Every group of two as a prompt of one batch, and how likely the start draws it."""
    rollout = make_rollout(space, **settings)
    plans = [[(RowKind.GROUP, space.warmups[i]) for i in pair] for pair in PAIRS]
    batch = rollout.batch([space.row] * len(PAIRS), plans)
    scores = score(space.lab.model, batch, space.constraints)
    weights = rollout.weigh(batch, scores.target_logprob, scores.warmup_logprob, 1.0, cold_start=True)
    drawn = torch.stack([space.prior[list(pair)].prod() for pair in PAIRS]).repeat_interleave(2).float()
    weights.policy, weights.target = weights.policy * drawn, weights.target * drawn
    return scores, weights


def gradient(space, value, flatten):
    return flatten(torch.autograd.grad(value, space.parameters, retain_graph=True, allow_unused=True), space.parameters)


def test_imitating_all_samples_of_the_start_leaves_the_policy_where_it_is(space, error, flatten):
    """E_{c ~ P_0}[∇log P(c)] = -∇KL(P_0 || P), which is 0 while P is P_0; one warmup's own gradient is far from 0."""
    scores, weights = all_pairs(space, imitates_all=True)
    policy, _ = weighted_loss(scores, weights, 1)
    one = gradient(space, scores.warmup_logprob[0], flatten).norm()
    assert gradient(space, policy, flatten).norm() < 1e-4 * one


def test_imitating_the_posterior_moves_it(space, flatten):
    scores, weights = all_pairs(space, imitates_all=False)
    policy, _ = weighted_loss(scores, weights, 1)
    one = gradient(space, scores.warmup_logprob[0], flatten).norm()
    assert gradient(space, policy, flatten).norm() > 1e-2 * one


def test_the_generator_ascends_the_bound_of_the_starts_groups(space, error, flatten):
    """Target part: E over groups of two of ∇ log mean_i P(y|x,c_i), the policy's part left out."""
    scores, weights = all_pairs(space, imitates_all=True)
    _, target = weighted_loss(scores, weights, 1)

    def bound(warmup, likelihood):
        value = 0.0
        for i, j in PAIRS:
            value = value + space.prior[i] * space.prior[j] * log_mean_exp(likelihood[[i, j]][None])[0]
        return value

    assert error(-gradient(space, target, flatten), space.gradient(bound)) < 1e-4


def test_an_empty_warmup_takes_the_groups_place_for_the_target_alone(space):
    rollout = make_rollout(space, imitates_all=True)
    plan = [(RowKind.GROUP, space.warmups[0]), (RowKind.GROUP, space.warmups[3]), (RowKind.EMPTY, EMPTY_WARMUP)]
    batch = rollout.batch([space.row], [plan])
    weights = rollout.weigh(batch, torch.tensor([-1.0, -2.0]), torch.zeros(3), 1.0, cold_start=True)
    assert weights.policy.tolist() == [0.5, 0.5, 0.0]
    assert weights.target.tolist() == [0.0, 0.0, 1.0]
    assert weights.kl.tolist() == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------------- the KL


@pytest.fixture
def moved(space):
    """A copy of the space whose network has moved away from the start, and that start."""
    start = StartingPolicy(space.lab.model)
    lab = replace(space.lab, model=copy.deepcopy(space.lab.model))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lab.model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return Space(lab, space.constraints, space.row), start


def every_warmup(space, start):
    """The six warmups as rows: log P per action with gradient, the start's, the batch, P(c) in float64."""
    rollout = make_rollout(space, beta=1.0)
    batch = rollout.batch([space.row], [[(RowKind.GROUP, warmup) for warmup in space.warmups]])
    scores = score(space.lab.model, batch, space.constraints)
    before = start.warmup_logps(space.lab.model, batch, space.constraints)
    return scores.token_logps * batch.warmup_mask, before, batch, scores.warmup_logprob.detach().double().exp()


def test_the_starts_log_probabilities_are_those_it_had(space):
    start = StartingPolicy(space.lab.model)
    logps, before, _, prior = every_warmup(space, start)
    torch.testing.assert_close(before, logps.detach(), rtol=1e-5, atol=1e-6)
    assert prior.sum().item() == pytest.approx(1, abs=1e-5)
    assert kl_loss(logps, before, torch.ones(6)).item() == pytest.approx(0, abs=1e-6)


def test_a_start_that_ends_its_samples_by_the_end_token_is_one_whose_separator_is_a_copy_of_it(space):
    """For adapters, which cannot keep such a copy: the same law with the two tokens exchanged."""
    copied = copy.deepcopy(space.lab.model)
    end_by_separator(copied, space.lab.tokens)
    expected = every_warmup(space, StartingPolicy(copied))[1]
    before = every_warmup(space, StartingPolicy(space.lab.model, space.lab.tokens.eos_id))[1]
    torch.testing.assert_close(before, expected, rtol=1e-5, atol=1e-6)
    assert before.double().sum(1).exp().sum().item() == pytest.approx(1, abs=1e-5)  # of the six warmups


def test_its_mean_over_the_policys_warmups_is_the_kl(moved):
    """Σ_c P(c) Σ_t k3 = Σ_c P(c) log(P(c)/P_0(c)) on the whole space."""
    logps, before, _, prior = every_warmup(*moved)
    exact = (prior * (prior.log() - before.double().sum(1))).sum().item()
    assert exact > 0.01
    assert kl_loss(logps, before, prior.float()).item() == pytest.approx(exact, rel=1e-4)


def test_its_gradient_pulls_towards_the_start_at_every_prefix(moved, error, flatten):
    """-Σ_prefix P(prefix) Σ_token P_0(token|prefix) ∇log P(token|prefix), written as a loop over prefixes and tokens."""
    space, start = moved
    logps, before, _, prior = every_warmup(space, start)
    got = gradient(space, kl_loss(logps, before, prior.float()), flatten)
    index = {tuple(warmup.ids): row for row, warmup in enumerate(space.warmups)}
    a, b = space.lab.ids("a b")
    naive = 0.0
    for token in (a, b):  # the first token: any warmup that begins with it holds its log-probability
        row = index[(token, a)]
        naive = naive - before[row, 0].exp() * logps[row, 0]
    for first in (a, b):
        reached = logps[index[(first, a)], 0].detach().exp()
        after = [(index[(first, second)], 1) for second in (a, b)] + [(index[(first,)], 1)]  # the last: the separator
        naive = naive - reached * sum(before[row, t].exp() * logps[row, t] for row, t in after)
    assert error(got, gradient(space, naive, flatten)) < 1e-3


def test_rows_without_targets_are_scored_alike(moved):
    """The start reads `c [sep]` alone: the targets behind it change nothing."""
    space, start = moved
    _, before, batch, _ = every_warmup(space, start)
    whole = score(start.model, batch, space.constraints).token_logps.detach() * batch.warmup_mask
    torch.testing.assert_close(before, whole, rtol=1e-5, atol=1e-6)
    assert before.shape == batch.seq_ids.shape


def test_hold_weights_are_shared_by_the_group_and_only_while_the_policy_writes(space):
    rollout = make_rollout(space, beta=0.3)
    plan = [*((RowKind.GROUP, space.warmups[i]) for i in (0, 1)), (RowKind.EMPTY, EMPTY_WARMUP)]
    batch = rollout.batch([space.row] * 2, [plan] * 2)
    weights = rollout.weigh(batch, torch.zeros(4), torch.zeros(6), 1.0, cold_start=False)
    assert weights.kl.tolist() == pytest.approx([0.15] * 4 + [0.0] * 2)


def test_a_drawn_warmup_stands_for_the_kl_of_its_group(space):
    """`backward_samples: 1`: on average over draws the weights of the KL are those of the whole group."""
    rollout = make_rollout(space, beta=0.4, backward_samples=1)
    plan = [(RowKind.GROUP, space.warmups[i]) for i in (0, 4)]
    prompts = 4000
    batch = rollout.batch([space.row] * prompts, [plan] * prompts)
    rewards = torch.tensor([-1.0, -3.0]).repeat(prompts)
    weights = rollout.weigh(batch, rewards, torch.zeros(2 * prompts), 1.0, cold_start=False)
    torch.manual_seed(3)
    trained, drawn = rollout.draw_rows(batch, weights)
    assert len(trained.warmups) == prompts
    for warmup in (space.warmups[0], space.warmups[4]):
        mine = torch.tensor([row.ids == warmup.ids for row in trained.warmups])
        assert drawn.kl[mine].sum().item() / prompts == pytest.approx(0.2, rel=0.1)
    assert F.relu(drawn.kl).equal(drawn.kl)
