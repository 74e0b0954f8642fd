"""Weights that are known before the forward: the gradient formed in it is that of the loss, and rows can be selected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl_warmup.batch import RowKind, RowWeights, Warmup
from rl_warmup.engine import enable_scoring, score
from rl_warmup.engine.fast import logprobs
from rl_warmup.method.losses import weighted_loss
from rl_warmup.models.layouts.splice import splice

NETWORKS = {
    "t5-tied": ("t5", {}),
    "t5-untied": ("t5-v1.1", {}),
    "llama-tied": ("llama-tied", {}),
    "llama-untied": ("llama-grouped", {}),
    "gemma2-capped": ("gemma2", {"sliding_window": 64}),
    "granite-scaled": ("granite", {}),
}
PROMPTS = [
    {"prompt_ids": [3, 7, 8, 9, 10], "target_ids": [11, 12, 1]},
    {"prompt_ids": [5], "target_ids": [6, 6, 6, 13, 1]},
]
ROWS = [
    (0, RowKind.GROUP, Warmup([14, 15, 16], "length")),
    (0, RowKind.GROUP, Warmup([14], "separator")),
    (1, RowKind.GROUP, Warmup([8, 8], "separator")),
    (1, RowKind.GROUP, Warmup([7], "proposal")),
    (1, RowKind.EMPTY, Warmup([], "empty")),
]
POLICY = [0.7, -1.3, 0.0, 2.0, 0.0]  # losing warmups have negative weight
TARGET = [0.25, 0.75, 0.0, 1.0, 3.0]  # the third row has no weight at all


@pytest.fixture(params=NETWORKS)
def network(request, build, layout_of, constraints_of):
    """A model, a batch and sampling constraints."""
    name, changes = NETWORKS[request.param]
    model = build(name, **changes)
    if request.param == "t5-untied":  # transformers ties them whatever the config says
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (request.param not in ("t5-untied", "llama-untied", "granite-scaled"))
    enable_scoring(model)
    batch = splice(layout_of(model), PROMPTS, ROWS, 2)
    return model, batch, constraints_of(temperature=1.4, top_p=0.9, min_length=1, max_length=3)


def weights_of(policy=POLICY, target=TARGET) -> RowWeights:
    return RowWeights(
        torch.tensor(policy), torch.tensor(target), torch.empty(2, 0), torch.empty(2), torch.zeros(len(policy))
    )


def gradients(model, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    flat = [torch.cat([g.flatten().double() for g in found.values()]) for found in (one, other)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


@pytest.mark.parametrize("chunk", [None, 2], ids=["whole", "chunks"])
def test_the_objective_is_the_loss(network, monkeypatch, chunk):
    """Minus the objective per target token is `weighted_loss`, in value and gradient (float32 sums: 1e-6 of its norm)."""
    model, batch, constraints = network
    weights, tokens = weights_of(), 8.0
    plain = score(model, batch, constraints)
    policy, target = weighted_loss(plain, weights, tokens)
    if chunk:
        monkeypatch.setattr(logprobs, "ROWS_PER_CHUNK", chunk)
        monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 1)
    formed = score(model, batch, constraints, weights)
    assert plain.objective is None
    assert (-formed.objective / tokens).item() == pytest.approx((policy + target).item(), rel=1e-5)
    torch.testing.assert_close(formed.token_logps, plain.token_logps)
    assert not formed.token_logps.requires_grad
    assert not formed.warmup_logprob.requires_grad
    expected = gradients(model, policy + target)
    assert relative(gradients(model, -formed.objective / tokens), expected) < 1e-6


def test_the_objective_under_autocast(network):
    """In bf16 both methods see the same states and form the same gradient of them: 1e-5 of its norm is left to the order of
    sums, where bf16 itself is off from float32 by 2 to 3 %."""
    model, batch, constraints = network
    weights = weights_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, formed = score(model, batch, constraints), score(model, batch, constraints, weights)
    assert formed.objective.dtype == formed.token_logps.dtype == torch.float32
    torch.testing.assert_close(formed.token_logps, plain.token_logps, rtol=0, atol=1e-5)
    policy, target = weighted_loss(plain, weights, 1.0)
    assert -formed.objective.item() == pytest.approx((policy + target).item(), rel=1e-5)
    expected = gradients(model, policy + target)
    assert relative(gradients(model, -formed.objective), expected) < 1e-5


def test_rows_without_weight_have_no_gradient(network):
    """Scored all the same."""
    model, batch, constraints = network
    nothing = weights_of([0.0] * 5, [0.0] * 5)
    formed = score(model, batch, constraints, nothing)
    assert formed.objective.item() == 0
    assert all(g.abs().max() == 0 for g in gradients(model, formed.objective).values())
    assert (formed.target_logprob < 0).all()


def test_the_gradient_is_returned_once(network):
    model, batch, constraints = network
    formed = score(model, batch, constraints, weights_of())
    formed.objective.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="returns its gradient once"):
        formed.objective.backward()


def test_detached_scores_have_no_objective(network):
    model, batch, constraints = network
    detached = score(model, batch, constraints, weights_of()).detach()
    assert detached.objective is None
    assert not detached.target_logprob.requires_grad


# ---------------------------------------------------------------------- rows alone


@pytest.mark.parametrize("rows", [[1], [4, 1], [0, 1, 2, 3, 4], [3, 3]])
def test_selected_rows_are_scored_as_they_were_among_all(network, rows):
    model, batch, constraints = network
    some, scores = batch.select(rows), score(model, batch, constraints)
    assert some.group_size == 0
    assert some.warmups == [batch.warmups[row] for row in rows]
    assert (some.num_prompts, some.prompts) == (2, batch.prompts)
    assert some.seq_mask.sum(1).tolist() == batch.seq_mask[rows].sum(1).tolist()
    assert some.seq_ids.size(1) == int(some.seq_mask.sum(1).max())  # no column of padding alone
    assert some.row_kind.tolist() == batch.row_kind[rows].tolist()
    selected = score(model, some, constraints)
    for name in ("warmup_logprob", "target_logprob", "warmup_tokens", "target_tokens"):
        torch.testing.assert_close(getattr(selected, name), getattr(scores, name)[rows], rtol=0, atol=2e-5)


def test_weights_of_selected_rows_give_the_gradient_of_all(network):
    """Rows without weight may be left out: the same gradient to 1e-5 of its norm."""
    model, batch, constraints = network
    kept = [row for row in range(5) if POLICY[row] or TARGET[row]]
    some = weights_of([POLICY[row] for row in kept], [TARGET[row] for row in kept])
    chosen = gradients(model, score(model, batch.select(kept), constraints, some).objective)
    assert relative(chosen, gradients(model, score(model, batch, constraints, weights_of()).objective)) < 1e-5


@pytest.mark.parametrize("known", [True, False], ids=["known", "open"])
def test_equal_warmups_are_computed_once(network, known, layout_of, monkeypatch):
    """Of eight rows three repeat others; the same ids behind another prompt, or cut by the limit, do not."""
    model, once, constraints = network
    cut = [(0, RowKind.GROUP, Warmup([14], "length")), (1, RowKind.GROUP, Warmup([14], "separator"))]
    assert splice(layout_of(model), PROMPTS, [ROWS[1], *cut], 0).distinct()[0].tolist() == [0, 1, 2]
    again = [(0, RowKind.GROUP, Warmup([14], "proposal")), (0, RowKind.ANCHOR, Warmup([14, 15, 16], "length"))]
    again += [(1, RowKind.EMPTY, Warmup([], "empty"))]
    batch = splice(layout_of(model), PROMPTS, [ROWS[0], ROWS[1], *again[:1], *ROWS[2:], *again[1:]], 3)
    assert [rows.tolist() for rows in batch.distinct()] == [[0, 1, 3, 4, 5], [0, 1, 1, 2, 3, 4, 0, 4]]
    weights = weights_of([0.7, -1.0, -0.3, 0.0, 2.0, 0.0, 0.4, 0.0], [0.25, 0.5, 0.25, 0.0, 1.0, 3.0, 0.5, 1.0])
    together = weights_of([1.1, -1.3, 0.0, 2.0, 0.0], [0.75, 0.75, 0.0, 1.0, 4.0])

    def objective(part, of_part) -> tuple[Tensor, Tensor]:
        scores = score(model, part, constraints, of_part if known else None)
        if known:
            return scores.objective, scores.token_logps
        policy, target = weighted_loss(scores, of_part, torch.tensor(1.0))
        return -(policy + target), scores.token_logps

    sizes, stock = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: (sizes.append(len(k["seq_ids"])), stock(*a, **k))[1])
    (value, logps), (expected, expected_logps) = objective(batch, weights), objective(once, together)
    assert sizes == [5, 5]
    torch.testing.assert_close(logps, expected_logps[[0, 1, 1, 2, 3, 4, 0, 4]], rtol=0, atol=1e-5)
    torch.testing.assert_close(value, expected)
    assert relative(gradients(model, value), gradients(model, expected)) < 1e-5
