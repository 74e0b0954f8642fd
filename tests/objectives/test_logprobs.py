"""Chunked log-probabilities: the same numbers and gradients as one log-softmax, in float32 whatever comes in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rl_warmup.objectives.logprobs import token_logps

VOCAB, WIDTH, COUNT = 11, 5, 9


def inputs() -> tuple[Tensor, Tensor, nn.Linear]:
    head = nn.Linear(WIDTH, VOCAB)
    return torch.randn(COUNT, WIDTH, requires_grad=True), torch.randint(VOCAB, (COUNT,)), head


def never_seven(logits: Tensor, steps: Tensor, chosen: Tensor) -> Tensor:
    """A law that also depends on the step and leaves the chosen token alone."""
    drop = torch.zeros_like(logits, dtype=torch.bool)
    drop[:, 7] = True
    drop[:, 3] = steps < 4
    return logits.masked_fill(drop.scatter(1, chosen[:, None], False), -torch.inf)


@pytest.mark.parametrize("logits_per_chunk", [1, VOCAB, 2 * VOCAB, 4 * VOCAB + 3, COUNT * VOCAB, 1 << 20])
@pytest.mark.parametrize("restrict", [None, never_seven])
def test_chunks_change_neither_values_nor_gradients(logits_per_chunk, restrict):
    hidden, ids, head = inputs()
    steps = torch.arange(COUNT)
    logits = head(hidden) if restrict is None else restrict(head(hidden), steps, ids)
    expected = logits.log_softmax(1)[torch.arange(COUNT), ids]
    got = token_logps(hidden, ids, head, VOCAB, restrict, steps, logits_per_chunk)
    torch.testing.assert_close(got, expected)
    tensors = [hidden, *head.parameters()]
    uneven = torch.randn(COUNT)
    for one, other in zip(
        torch.autograd.grad((got * uneven).sum(), tensors),
        torch.autograd.grad((expected * uneven).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_chunk_never_holds_more_logits_than_allowed():
    hidden, ids, head = inputs()
    seen = []
    token_logps(hidden, ids, lambda h: seen.append(h.size(0) * VOCAB) or head(h), VOCAB, logits_per_chunk=3 * VOCAB)
    assert seen == [3 * VOCAB] * 3


def test_without_gradient_the_same_numbers():
    hidden, ids, head = inputs()
    with torch.no_grad():
        got = token_logps(hidden, ids, head, VOCAB, logits_per_chunk=2 * VOCAB)
    torch.testing.assert_close(got, token_logps(hidden, ids, head, VOCAB).detach())
    assert not got.requires_grad


def test_half_precision_states_are_scored_in_float32_also_under_autocast():
    hidden, ids, head = inputs()
    expected = token_logps(hidden.bfloat16().float(), ids, head, VOCAB)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = token_logps(hidden.bfloat16(), ids, head, VOCAB)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


def test_no_positions_at_all():
    _, _, head = inputs()
    got = token_logps(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long), head, VOCAB)
    assert got.shape == (0,)
