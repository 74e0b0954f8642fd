"""The amortised proposal on a space of six warmups: its density, its draws, its weights and its gradient, enumerated."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from rl_warmup.batch import RowKind
from rl_warmup.layouts.scoring import score
from rl_warmup.objectives.amortised import marginal_under_mixture
from rl_warmup.objectives.losses import weighted_loss
from rl_warmup.objectives.weights import Knobs
from rl_warmup.proposals import ProposalContext
from rl_warmup.rollout import EMPTY, Rollout

from .conftest import count_vectors


def make_rollout(space, size, amortised, **settings):
    context = ProposalContext(space.law.max_length)
    return Rollout(space.lab.layout, space.law, "marginal", size, [], context, 8, amortised=amortised, **settings)


def with_target(space, row):
    """A row whose prompt is q's."""
    return {**row, "prompt_ids": space.lab.layout.prompt_with_target(row["prompt_ids"], row["target_ids"])}


def density(space):
    """q(c|x,y) of every warmup, each row scored behind a prompt written out by hand."""
    return space.lab.score(with_target(space, space.row), space.warmups, space.law).warmup_logprob.detach().double()


def log_marginal(warmup, target):
    return (warmup + target).logsumexp(0)


def test_prompts_of_q_are_the_layouts(t5, llama):
    read = {name: lab.layout.prompt_with_target(lab.ids("a b"), [*lab.ids("c"), lab.tokens.eos_id]) for name, lab in
            (("t5", t5), ("llama", llama))}  # fmt: skip
    separator, end = t5.tokens.separator_id, t5.tokens.eos_id
    assert read["t5"] == [*t5.ids("a b"), separator, *t5.ids("c"), end]
    separator = llama.tokens.separator_id
    assert read["llama"] == [*llama.ids("a b"), separator, *llama.ids("c"), separator]


def test_log_q_is_scored_in_the_same_forward(space, error):
    """Two prompts of different length, every warmup: log q as if each row were alone, and a density that is not P's."""
    other = space.lab.row("a b c", "d")
    plan = [(RowKind.GROUP, warmup) for warmup in space.warmups]
    batch = make_rollout(space, 6, 3).batch([space.row, other], [[*plan, (RowKind.EMPTY, EMPTY)], plan])
    scores = score(space.lab.model, batch, space.law)
    q = scores.warmup_logprob[batch.row_kind == RowKind.AMORTISED].view(2, 6).detach().double()
    alone = space.lab.score(with_target(space, other), space.warmups, space.law).warmup_logprob.detach().double()
    torch.testing.assert_close(q, torch.stack([density(space), alone]), rtol=1e-4, atol=1e-5)
    assert q.exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (q[0].exp() - space.prior).abs().max() > 0.03  # it has read the target
    torch.testing.assert_close(scores.warmup_logprob[:6].detach().double().exp(), space.prior, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.target_logprob[:6].detach().double(), space.rewards, rtol=1e-4, atol=1e-5)
    assert scores.target_logprob[batch.row_kind == RowKind.AMORTISED].tolist() == [0.0] * 12


def test_the_last_warmups_of_a_group_are_qs_draws(space):
    plans = make_rollout(space, 3, 2).plan(space.lab.model, [space.row] * 4000, cold_start=False)
    assert [len(plan) for plan in plans] == [3] * 4000
    for members, expected in (((0,), space.prior), ((1, 2), density(space).exp())):
        drawn = [plan[i][1] for plan in plans for i in members]
        counts = Counter((tuple(warmup.ids), warmup.finish) for warmup in drawn)
        for warmup, probability in zip(space.warmups, expected.tolist(), strict=True):
            spread = (probability * (1 - probability) / len(drawn)) ** 0.5
            assert abs(counts[tuple(warmup.ids), warmup.finish] / len(drawn) - probability) < 4 * spread


def test_all_warmups_at_once_give_the_exact_posterior_and_gradient(space, error):
    """q = (1 - P)/5 and five draws of six make m = 1/6 for each: the group of all six is the space itself."""
    ratios = (space.prior / (space.prior / 6 + 5 / 6 * (1 - space.prior) / 5)).log()
    torch.testing.assert_close(ratios, (6 * space.prior).log())
    w, a, b = marginal_under_mixture(space.rewards[None], ratios[None], Knobs())
    exact = space.prior * space.rewards.exp()
    torch.testing.assert_close(w[0], exact / exact.sum(), rtol=1e-5, atol=1e-7)
    assert error(space.estimate((a[0], b[0])), space.gradient(log_marginal)) < 1e-4


def expectation(space, n, drawn):
    """E over groups, n - drawn from P and drawn from q: what is taken of ∇log P(c|x), ∇log P(y|x,c) and ∇log q(c|x,y)."""
    q = density(space)
    own, of_own = count_vectors(space.prior, n - drawn)
    seen, of_seen = count_vectors(q.exp() / q.exp().sum(), drawn)
    groups = torch.cat([own.repeat_interleave(len(seen), 0), seen.repeat(len(own), 1)], 1)
    probability = of_own.repeat_interleave(len(seen)) * of_seen.repeat(len(own))
    mixture = ((n - drawn) * space.prior + drawn * q.exp()) / n
    ratios = (space.prior / mixture).log()[groups]
    w, a, b = marginal_under_mixture(space.rewards[groups], ratios, Knobs())
    return [
        torch.zeros_like(q).index_add(0, groups.flatten(), (part * probability[:, None]).flatten())
        for part in (a, b, w)
    ]


def test_more_draws_approach_the_gradient_of_the_evidence_and_the_posterior(space, error):
    """Half of each group from q: policy, target and what q is taught, with a bias that falls as 1/n."""
    exact, posterior = space.gradient(log_marginal), space.prior * space.rewards.exp()
    found = [expectation(space, n, n // 2) for n in (2, 4, 8)]
    errors = [error(space.estimate((a, b)), exact) for a, b, _ in found]
    taught = [error(w, posterior / posterior.sum()) for _, _, w in found]
    for row in (errors, taught):
        assert all(more > less for more, less in pairwise(row)), row
        assert row[-1] < row[0] / 3


def naive(space, rows, terms):
    """Σ a ∇log P(c|x) + b ∇log P(y|x,c) + w ∇log q(c|x,y), each row scored alone, over the rows' target tokens."""
    total = 0.0
    for index, warmup, a, b, w in terms:
        alone = space.lab.score(rows[index], [warmup], space.law)
        seen = space.lab.score(with_target(space, rows[index]), [warmup], space.law)
        total = total - (a * alone.warmup_logprob + b * alone.target_logprob + w * seen.warmup_logprob).sum()
    return total / sum(len(row["target_ids"]) for row in rows)


def test_the_whole_chain_is_the_sum_of_three_cross_entropies(space, error, flatten):
    """Rollout.batch -> score -> weigh -> loss: q's part is the posterior's cross-entropy; an empty row changes b alone."""
    rows = [space.row, space.lab.row("a b c", "d")]
    chosen = [[0, 3, 3, 5], [1, 2, 4, 0]]
    plans = [[(RowKind.GROUP, space.warmups[i]) for i in group] for group in chosen]
    plans[1].append((RowKind.EMPTY, EMPTY))
    rollout = make_rollout(space, 4, 1)
    batch = rollout.batch(rows, plans)
    scores = score(space.lab.model, batch, space.law)
    extra = torch.randn(8)  # what further rewards would add
    rewards = scores.target_logprob[:8].detach() + extra
    weights = rollout.weigh(batch, rewards, scores.warmup_logprob, 0.7, cold_start=False)
    loss = sum(weighted_loss(scores, weights, sum(len(row["target_ids"]) for row in rows)))

    terms, given = [(1, EMPTY, 0.0, 1.0, 0.0)], extra.view(2, 4).double()
    for i, group in enumerate(chosen):
        warmups = [space.warmups[c] for c in group]
        plain = space.lab.score(rows[i], warmups, space.law)
        policy, reward = plain.warmup_logprob.detach().double(), plain.target_logprob.detach().double() + given[i]
        q = space.lab.score(with_target(space, rows[i]), warmups, space.law).warmup_logprob.detach().double()
        mixture = (3 * policy.exp() + q.exp()) / 4
        posterior, prior = policy.exp() * (reward / 0.7).exp() / mixture, policy.exp() / mixture
        posterior, prior = posterior / posterior.sum(), prior / prior.sum()
        torch.testing.assert_close(weights.posterior[i].double(), posterior, rtol=1e-4, atol=1e-6)
        assert weights.ess[i].item() == pytest.approx(1 / posterior.square().sum().item(), rel=1e-4)
        terms += [
            (i, c, (p - v).item(), p.item() * (i == 0), p.item())
            for c, p, v in zip(warmups, posterior, prior, strict=True)
        ]
    one, other = (
        flatten(torch.autograd.grad(total, space.parameters, allow_unused=True), space.parameters)
        for total in (loss, naive(space, rows, terms))
    )
    assert error(one, other) < 1e-4


def test_evaluation_asks_the_policy_alone(space):
    rollout = make_rollout(space, 4, 3).for_evaluation(2)
    batch = rollout.batch([space.row], rollout.plan(space.lab.model, [space.row], cold_start=False))
    assert batch.row_kind.tolist() == [0, 0, 1]
    assert len(batch.prompt_ids) == 1
