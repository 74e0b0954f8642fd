"""The plain path against the naive twin, and the fast path against the plain one: values, gradients, draws, whole steps."""

from __future__ import annotations

import copy
import gc
import random

import pytest
import torch

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.engine import choose_path, enable_scoring, plain, sample_warmups, score
from rl_warmup.method.objectives import ObjectiveSettings, load_objective
from rl_warmup.models.layouts.splice import splice

FAMILIES = (
    "t5",
    "t5-v1.1",
    "mt5",
    "bart",
    "t5gemma",
    "t5gemma2",
    "llama",
    "llama-grouped",
    "qwen3",
    "gemma2",
    "gpt2",
    "granite",
    "cohere",
)


def any_batch(layout, seed: int):
    """Prompts, warmups and targets of random lengths, groups of random size, single rows beside them."""
    numbers = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [numbers.randrange(5, 20) for _ in range(numbers.randint(least, most))]

    prompts = [{"prompt_ids": ids(1, 6), "target_ids": [*ids(0, 4), 1]} for _ in range(numbers.randint(1, 3))]
    size = numbers.randint(1, 4)
    rows = [
        (i, RowKind.GROUP, Warmup(ids(1, 4), numbers.choice(["separator", "length", "proposal"])))
        for i in range(len(prompts))
        for _ in range(size)
    ]
    rows += [(i, RowKind.EMPTY, Warmup([], "empty")) for i in range(len(prompts)) if numbers.random() < 0.5]
    return splice(layout, prompts, rows, size)


def gradient(model, scores):
    weights = torch.arange(1.0, 1.0 + len(scores.target_logprob))
    loss = (weights * scores.warmup_logprob + weights.flip(0) * scores.target_logprob).sum()
    parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_scores_are_those_of_the_stock_model_one_row_at_a_time(name, build, layout_of, constraints_of, stock):
    model = build(name)
    batch = any_batch(layout_of(model), 3)
    scores = plain.score(model, batch, constraints_of(max_length=5))
    for row in range(len(batch.warmups)):
        target = batch.target_mask[row, : int(batch.seq_mask[row].sum())].bool()
        expected = stock(model, batch, row)[target].sum()
        torch.testing.assert_close(scores.target_logprob[row].detach(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", FAMILIES)
def test_fast_scores_and_gradients_are_the_plain_ones(name, seed, build, layout_of, constraints_of):
    model = build(name)
    enable_scoring(model)
    batch = any_batch(layout_of(model), seed)
    constraints = constraints_of(max_length=5, temperature=1.3, **({"top_p": 0.8} if seed % 2 else {"min_length": 2}))
    fast = score(model, batch, constraints)
    choose_path(model, "padded", "auto")
    slow = score(model, batch, constraints)
    torch.testing.assert_close(fast.token_logps, slow.token_logps, rtol=0, atol=2e-4)
    one, other = gradient(model, fast), gradient(model, slow)
    assert (one - other).norm() < 1e-3 * other.norm()


@pytest.mark.parametrize("name", ["t5", "mt5", "llama", "qwen3"])
def test_both_samplers_draw_the_same_tokens_from_the_same_numbers(name, build, layout_of, constraints_of):
    model = build(name)
    enable_scoring(model)
    layout, constraints = layout_of(model), constraints_of(max_length=5, temperature=1.4, min_length=1)
    prompts, draws = [[5, 6, 7], [8], [9, 10]], torch.rand(12, 5, dtype=torch.float64)
    fast = sample_warmups(model, layout, constraints, prompts, 4, draws=draws)
    choose_path(model, "auto", "generate")
    slow = sample_warmups(model, layout, constraints, prompts, 4, draws=draws)
    assert [(w.ids, w.finish) for w in fast] == [(w.ids, w.finish) for w in slow]
    assert {w.logprob for w in slow} == {None}


@pytest.mark.parametrize("objective", ["marginal", "grpo"])
@pytest.mark.parametrize("lab_name", ["t5", "llama"])
def test_the_trainer_makes_the_loss_and_the_gradient_of_the_plain_step(
    lab_name, objective, request, tmp_path, monkeypatch, copied_trainer
):
    lab = request.getfixturevalue(lab_name)
    rows = [lab.row("a b c", "d e"), lab.row("f", "g")]
    trainer, loss = copied_trainer(lab, rows, tmp_path, objective=objective)
    groups = trainer.update.shown[0].warmups[:6]
    model = copy.deepcopy(lab.model)
    monkeypatch.setattr(plain, "sample", lambda *args, **kwargs: groups)

    def weigh(rewards, logprobs):
        return load_objective(objective)(rewards, logprobs, ObjectiveSettings())

    expected = plain.step(model, lab.layout, trainer.constraints, rows, 3, weigh)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    expected.backward()
    loss.backward()
    pairs = zip(trainer.model.parameters(), model.parameters(), strict=True)
    difference = [
        ((p.grad - q.grad).norm() / q.grad.norm().clamp(min=1e-3)).item() for p, q in pairs if p.grad is not None
    ]
    assert max(difference) < 2e-3


def with_graph() -> int:
    """How many tensors of this process still hold a graph."""
    gc.collect()
    return sum(type(thing) is torch.Tensor and thing.grad_fn is not None for thing in gc.get_objects())


@pytest.mark.parametrize("lab_name", ["t5", "llama"])
def test_the_graph_of_a_prefix_cache_ends_with_its_update(lab_name, request, tmp_path, copied_trainer):
    lab, before = request.getfixturevalue(lab_name), with_graph()
    trainer, loss = copied_trainer(lab, [lab.row("a b c", "d e"), lab.row("f", "g")], tmp_path)
    assert with_graph() > before
    loss.backward()
    del loss
    assert trainer.update.shown is not None
    assert with_graph() == before
