"""A gradient through k drawn warmups, averaged over the draws, is the gradient through all of them."""

from __future__ import annotations

import pytest
import torch

from rl_warmup.batch import EMPTY_WARMUP, RowKind
from rl_warmup.engine import score
from rl_warmup.method.losses import weighted_loss
from rl_warmup.method.proposals import ProposalContext
from rl_warmup.method.rollout import Rollout

DRAWS = 400


def make(space, objective, k):
    """A group of all six warmups, and an empty row whose gradient no draw may touch."""
    rollout = Rollout(
        space.lab.layout,
        space.constraints,
        objective,
        6,
        [],
        ProposalContext(space.constraints.max_length),
        8,
        backward_samples=k,
    )
    plan = [(RowKind.GROUP, warmup) for warmup in space.warmups]
    other = space.lab.row("a b c", "d")
    batch = rollout.batch([space.row, other], [plan, [*plan, (RowKind.EMPTY, EMPTY_WARMUP)]])
    scores = score(space.lab.model, batch, space.constraints)
    weights = rollout.weigh(batch, scores.target_logprob[:12], scores.warmup_logprob[:12], 1.0, cold_start=False)
    return rollout, batch, scores, weights


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("objective", ["marginal", "expected_logprob", "grpo", "marginal_loo"])
def test_it_is_unbiased(space, error, flatten, monkeypatch, objective, k):
    rollout, batch, scores, weights = make(space, objective, k)
    parameters = space.parameters
    exact = flatten(
        torch.autograd.grad(sum(weighted_loss(scores, weights, 1)), parameters, retain_graph=True, allow_unused=True),
        parameters,
    )
    terms = torch.zeros(len(batch.warmups), 2)
    for draw in range(DRAWS):  # the same evenly spread point for both prompts: expectations do not ask for independence
        monkeypatch.setattr(torch, "rand", lambda *size, u=(draw + 0.5) / DRAWS, **kw: torch.full(size, u, **kw))
        part, drawn = rollout.draw_rows(batch, weights)
        assert len({id(w) for w in part.warmups} - {id(EMPTY_WARMUP)}) <= 6
        assert int((part.row_kind == RowKind.EMPTY).sum()) == 1
        rows = [find(batch, part, i) for i in range(len(part.warmups))]
        terms[rows, 0] += drawn.policy / DRAWS
        terms[rows, 1] += drawn.target / DRAWS
    mean = -(terms[:, 0] * scores.warmup_logprob + terms[:, 1] * scores.target_logprob).sum()
    got = flatten(torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True), parameters)
    assert error(got, exact) < 2e-2


def find(batch, part, row):
    """The row of `batch` that became `row` of `part`."""
    index, warmup = int(part.prompt_index[row]), part.warmups[row]
    return next(i for i, w in enumerate(batch.warmups) if w is warmup and int(batch.prompt_index[i]) == index)


@pytest.mark.parametrize("k", [1, 3])
def test_one_draw_is_the_weighted_gradient_of_its_rows(space, error, flatten, k):
    """Formed in the forward of the drawn rows alone, against the same rows taken out of the whole batch's graph."""
    rollout, batch, scores, weights = make(space, "marginal", k)
    part, drawn = rollout.draw_rows(batch, weights)
    assert len(part.warmups) <= 2 * k + 1
    objective = score(space.lab.model, part, space.constraints, drawn).objective
    rows = [find(batch, part, i) for i in range(len(part.warmups))]
    whole = (drawn.policy * scores.warmup_logprob[rows] + drawn.target * scores.target_logprob[rows]).sum()
    one, other = (
        flatten(
            torch.autograd.grad(total, space.parameters, retain_graph=total is whole, allow_unused=True),
            space.parameters,
        )
        for total in (objective, whole)
    )
    assert error(one, other) < 1e-4
    assert objective.item() == pytest.approx(whole.item(), rel=1e-5)
