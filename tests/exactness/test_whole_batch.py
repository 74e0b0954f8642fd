"""The same through the whole chain: Rollout.batch -> score -> Rollout.weigh -> weighted_loss -> backward."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from rl_warmup.batch import EMPTY_WARMUP, RowKind, Warmup
from rl_warmup.engine import score
from rl_warmup.method.losses import weighted_loss
from rl_warmup.method.objectives import RULES, ObjectiveSettings
from rl_warmup.method.proposals import ProposalContext
from rl_warmup.method.rollout import Rollout


def make_rollout(lab, constraints, objective, num_warmups=2, **settings):
    proposals = settings.pop("proposals", [])
    return Rollout(
        lab.layout,
        constraints,
        objective,
        num_warmups,
        proposals,
        ProposalContext(constraints.max_length),
        8,
        **settings,
    )


def loss_gradient(lab, loss, flatten):
    parameters = list(lab.model.parameters())
    return flatten(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        ("expected_logprob", lambda warmup, target: (warmup.exp() * target).sum()),
        ("expected_prob", lambda warmup, target: (warmup + target).exp().sum()),
    ],
)
def test_all_36_groups_of_two_in_one_batch(space, error, flatten, objective, formula):
    """Every pair of warmups is one prompt of the batch; each group's weights count as often as the pair is drawn."""
    lab, pairs = space.lab, list(product(range(6), repeat=2))
    rollout = make_rollout(lab, space.constraints, objective)
    plans = [[(RowKind.GROUP, space.warmups[i]) for i in pair] for pair in pairs]
    batch = rollout.batch([space.row] * len(pairs), plans)
    scores = score(lab.model, batch, space.constraints)
    weights = rollout.weigh(batch, scores.target_logprob, scores.warmup_logprob, 1.0, cold_start=False)
    drawn = torch.stack([space.prior[list(pair)].prod() for pair in pairs]).repeat_interleave(2).float()
    weights.policy, weights.target = weights.policy * drawn, weights.target * drawn
    loss = sum(weighted_loss(scores, weights, 1))
    assert error(-loss_gradient(lab, loss, flatten), space.gradient(formula)) < 1e-4


def naive_gradient(lab, constraints, rows, terms, flatten):
    """Σ a ∇log P(c|x) + b ∇log P(y|x,c), each row scored alone, divided by the target tokens of the prompts."""
    total = 0.0
    for index, warmup, a, b in terms:
        alone = lab.score(rows[index], [warmup], constraints)
        total = total - (a * alone.warmup_logprob + b * alone.target_logprob).sum()
    return loss_gradient(lab, total / sum(len(row["target_ids"]) for row in rows), flatten)


@pytest.mark.parametrize("objective", ["marginal", "marginal_loo", "joint", "expected_logprob", "tsallis", "grpo"])
def test_groups_with_an_empty_row_and_anchors(lab, error, flatten, objective):
    constraints = lab.constraints(min_length=1, max_length=3)
    rows = [lab.row("a b c", "d"), lab.row("e", "f g h"), lab.row("b", "a a")]
    groups = [
        [Warmup(lab.ids("a"), "separator"), Warmup(lab.ids("b c d"), "length"), Warmup(lab.ids("h h"), "separator")],
        [Warmup(lab.ids("c d"), "separator"), Warmup(lab.ids("c d"), "separator"), Warmup(lab.ids("f g h"), "length")],
        [Warmup(lab.ids("g"), "separator"), Warmup(lab.ids("a b"), "separator"), Warmup(lab.ids("b a"), "separator")],
    ]
    anchors = [[Warmup(lab.ids(c), "proposal") for c in pair] for pair in (("d", "d d"), ("f g h", "h"), ("a a", "a"))]
    plans = [[(RowKind.GROUP, warmup) for warmup in group] for group in groups]
    plans[1].append((RowKind.EMPTY, EMPTY_WARMUP))
    for plan, pair in zip(plans, anchors, strict=True):
        plan += [(RowKind.ANCHOR, anchor) for anchor in pair]
    settings = ObjectiveSettings(uniform_target_share=0.2)
    rollout = make_rollout(
        lab, constraints, objective, 3, anchor_weight=0.6, settings=settings, proposals=["head", "reverse"]
    )
    batch = rollout.batch(rows, plans)
    scores = score(lab.model, batch, constraints)
    extra = torch.randn(9)  # what further rewards would add
    weights = rollout.weigh(
        batch, scores.target_logprob[:9].detach() + extra, scores.warmup_logprob[:9], 0.7, cold_start=False
    )
    tokens = sum(len(row["target_ids"]) for row in rows)
    got = loss_gradient(lab, sum(weighted_loss(scores, weights, tokens)), flatten)

    terms = [(1, EMPTY_WARMUP, 0.0, 1.0)] + [(i, anchor, 0.3, 0.3) for i, pair in enumerate(anchors) for anchor in pair]
    for i, group in enumerate(groups):
        alone = [lab.score(rows[i], [warmup], constraints) for warmup in group]
        rewards = torch.cat([s.target_logprob for s in alone]).detach() + extra[3 * i : 3 * i + 3]
        prior = torch.cat([s.warmup_logprob for s in alone]).detach()
        a, b = RULES[objective](rewards[None], prior[None], ObjectiveSettings(0.7, 0.2))
        b = b * (i != 1)  # the empty row takes the group's place in the target's loss
        terms += [(i, warmup, a[0, j].item(), b[0, j].item()) for j, warmup in enumerate(group)]
    assert error(got, naive_gradient(lab, constraints, rows, terms, flatten)) < 1e-4
    assert weights.posterior.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert all(1 <= ess <= 3 for ess in weights.ess.tolist())


def test_the_cold_start_imitates_proposals_by_their_posterior(lab, error, flatten):
    constraints, rows = lab.constraints(max_length=3), [lab.row("a b c", "d e"), lab.row("e", "f")]
    groups = [[Warmup(lab.ids(words), "proposal") for words in pair] for pair in (("e d", "d"), ("f", "a b c"))]
    rollout = make_rollout(
        lab,
        constraints,
        "marginal",
        proposals=["reverse", "head"],
        settings=ObjectiveSettings(uniform_target_share=0.4),
    )
    plans = [[(RowKind.GROUP, warmup) for warmup in group] for group in groups]
    plans[0].append((RowKind.EMPTY, EMPTY_WARMUP))
    batch = rollout.batch(rows, plans)
    scores = score(lab.model, batch, constraints)
    weights = rollout.weigh(batch, scores.target_logprob[:4], scores.warmup_logprob[:4], 2.0, cold_start=True)
    got = loss_gradient(lab, sum(weighted_loss(scores, weights, 5)), flatten)
    terms = [(0, EMPTY_WARMUP, 0.0, 1.0)]
    for i, group in enumerate(groups):
        rewards = torch.cat([lab.score(rows[i], [warmup], constraints).target_logprob for warmup in group]).detach()
        p = (rewards / 2.0).softmax(0).tolist()
        terms += [(i, c, p[j], (0.2 + 0.6 * p[j]) * (i != 0)) for j, c in enumerate(group)]
    assert error(got, naive_gradient(lab, constraints, rows, terms, flatten)) < 1e-4


def test_the_separator_is_learned_where_it_is_an_action(lab):
    """A warmup that ran into the limit differs from the same proposal by exactly log P(separator | x, c)."""
    constraints, row = lab.constraints(max_length=2), lab.row("a b", "c")
    ids = lab.ids("d e")
    kinds = ["separator", "proposal", "length", "empty"]
    scores = lab.score(row, [Warmup(ids, kind) for kind in kinds[:3]], constraints)
    assert scores.warmup_tokens.tolist() == [3, 3, 2]
    written, proposed, cut = scores.warmup_logprob.tolist()
    assert written == pytest.approx(proposed)
    separator = scores.token_logps[0, scores.token_logps.size(1) - 3].item()  # before y and the end token
    assert written - cut == pytest.approx(separator, abs=1e-5)
    assert separator < 0
    torch.testing.assert_close(scores.target_logprob[0], scores.target_logprob[2])
    assert lab.score(row, [EMPTY_WARMUP], constraints).warmup_tokens.tolist() == [0]


def stock_cross_entropy(lab, rows):
    """SFT by the stock model's own loss: labels on y and its end token, the separator in front and not learned."""
    separator, total = lab.tokens.separator_id, 0.0
    for row in rows:
        target = row["target_ids"]
        if lab.model.config.is_encoder_decoder:
            labels = torch.tensor([[separator, *target]])
            logits = lab.model(input_ids=torch.tensor([row["prompt_ids"]]), labels=labels).logits[0, 1:]
        else:
            ids = torch.tensor([[*row["prompt_ids"], separator, *target]])
            logits = lab.model(input_ids=ids).logits[0, -len(target) - 1 : -1]
        total = total + F.cross_entropy(logits, torch.tensor(target), reduction="sum")
    return total / sum(len(row["target_ids"]) for row in rows)


def test_sft_is_the_cross_entropy_of_the_stock_model(lab, error, flatten):
    rows = [lab.row("a b c", "d"), lab.row("e", "f g h"), lab.row("b b", "a a")]
    constraints = lab.constraints(max_length=2)
    rollout = make_rollout(lab, constraints, "sft")
    batch = rollout.batch(rows, rollout.choose_rows(lab.model, rows, cold_start=True))
    assert batch.group_size == 0
    scores = score(lab.model, batch, constraints)
    weights = rollout.weigh(batch, scores.target_logprob[:0], scores.warmup_logprob[:0], 1.0, cold_start=False)
    policy, target = weighted_loss(scores, weights, sum(len(row["target_ids"]) for row in rows))
    assert policy.item() == 0
    exact = stock_cross_entropy(lab, rows)
    assert target.item() == pytest.approx(exact.item(), rel=1e-5)
    assert error(loss_gradient(lab, policy + target, flatten), loss_gradient(lab, exact, flatten)) < 1e-4


@pytest.mark.parametrize("objective", ["marginal", "sft"])
def test_one_batch_of_three_equals_three_of_one(lab, error, flatten, objective):
    """With one plan and one denominator, micro-batches are exact: padding and company change nothing."""
    rows = [lab.row("a b c", "d"), lab.row("e", "f g h"), lab.row("b b", "a a")]
    constraints = lab.constraints(max_length=3)
    rollout = make_rollout(lab, constraints, objective, num_warmups=3, empty_share=0.5)
    plans = rollout.choose_rows(lab.model, rows, cold_start=False)

    def loss_of(some, plan):
        batch = rollout.batch(some, plan)
        scores = score(lab.model, batch, constraints)
        groups = batch.num_prompts * batch.group_size
        weights = rollout.weigh(
            batch, scores.target_logprob[:groups], scores.warmup_logprob[:groups], 1.0, cold_start=False
        )
        return sum(weighted_loss(scores, weights, 9))

    whole = loss_gradient(lab, loss_of(rows, plans), flatten)
    parts = sum(loss_gradient(lab, loss_of([row], [plan]), flatten) for row, plan in zip(rows, plans, strict=True))
    assert error(parts, whole) < 1e-4
