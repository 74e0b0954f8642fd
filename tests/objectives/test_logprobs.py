"""Log-probabilities and their hand-written gradient: the same as autograd through one log-softmax, in float32 always."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rl_warmup.engine.fast import logprobs
from rl_warmup.engine.fast.logprobs import OutputHead, Tokens, token_logps, weighted_logps

VOCAB, WIDTH, COUNT, ACTIONS = 11, 5, 9, 4
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.3},
    "soft cap": {"cap": 1.5},
    "everything": {"bias": True, "scale": 2.5, "cap": 2.0},
}


@dataclass(frozen=True)
class NeverSeven:
    """Constraints that also depend on the step and leave the chosen token alone."""

    temperature: float = 1.7

    def restrict_(self, logits: Tensor, steps: Tensor, chosen: Tensor) -> Tensor:
        drop = torch.zeros_like(logits, dtype=torch.bool)
        drop[:, 7] = True
        drop[:, 3] = steps < 2
        return logits.div_(self.temperature).masked_fill_(drop.scatter(1, chosen[:, None], False), -torch.inf)


def example(bias: bool = False, scale: float = 1.0, cap: float | None = None):
    hidden = torch.randn(COUNT, WIDTH, requires_grad=True)
    head = OutputHead(
        torch.randn(VOCAB, WIDTH, requires_grad=True),
        torch.randn(VOCAB, requires_grad=True) if bias else None,
        scale,
        cap,
    )
    tokens = {"ids": torch.randint(VOCAB, (COUNT,)), "num_actions": ACTIONS, "steps": torch.arange(ACTIONS)}
    return hidden, head, tokens | {"constraints": NeverSeven()}


def naive(hidden: Tensor, head: OutputHead, tokens: dict) -> Tensor:
    """One log-softmax over everything, by autograd."""
    logits = (hidden @ head.weight.T + (0 if head.bias is None else head.bias)) * head.scale
    if head.cap:
        logits = torch.tanh(logits / head.cap) * head.cap
    actions = tokens["constraints"].restrict_(logits[:ACTIONS].clone(), tokens["steps"], tokens["ids"][:ACTIONS])
    logps = torch.cat([actions, logits[ACTIONS:]]).log_softmax(1)
    return logps[torch.arange(COUNT), tokens["ids"]]


def leaves(hidden: Tensor, head: OutputHead) -> list[Tensor]:
    return [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]


def small_chunks(monkeypatch, rows: int, kept: int) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", rows * VOCAB)
    monkeypatch.setattr(logprobs, "ROWS_PER_CHUNK", 1)
    monkeypatch.setattr(logprobs, "KEPT_LOGITS", kept * VOCAB)


@pytest.mark.parametrize(("rows", "kept"), [(100, 100), (100, 0), (1, 0), (2, 3), (2, 100), (4, 4)])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_are_those_of_log_softmax(monkeypatch, kind, rows, kept):
    """Whether logits wait for the backward, are computed again, or both."""
    small_chunks(monkeypatch, rows, kept)
    hidden, head, tokens = example(**HEADS[kind])
    expected, got = naive(hidden, head, tokens), token_logps(hidden, Tokens(**tokens), head)
    torch.testing.assert_close(got, expected)
    uneven = torch.randn(COUNT)
    for _ in range(2):  # what waits is not used up
        one = torch.autograd.grad((got * uneven).sum(), leaves(hidden, head), retain_graph=True)
        other = torch.autograd.grad((expected * uneven).sum(), leaves(hidden, head), retain_graph=True)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("kind", HEADS)
def test_known_weights_give_the_same_gradient_in_the_forward(monkeypatch, kind, rows):
    small_chunks(monkeypatch, rows, 0)
    hidden, head, tokens = example(**HEADS[kind])
    weights = torch.randn(COUNT)
    expected = (naive(hidden, head, tokens) * weights).sum()
    total, logps = weighted_logps(hidden, Tokens(**tokens, weights=weights), head)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(logps, naive(hidden, head, tokens))
    assert not logps.requires_grad
    one = torch.autograd.grad(-3 * total, leaves(hidden, head))
    for a, b in zip(one, torch.autograd.grad(-3 * expected, leaves(hidden, head)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_formed_in_the_forward_is_handed_out_once():
    hidden, head, tokens = example()
    total, _ = weighted_logps(hidden, Tokens(**tokens, weights=torch.ones(COUNT)), head)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="returns its gradient once"):
        total.backward()


def test_a_frozen_head_gets_no_gradient():
    hidden, head, tokens = example()
    head.weight.requires_grad_(False)
    weights = torch.randn(COUNT)
    total, _ = weighted_logps(hidden, Tokens(**tokens, weights=weights), head)
    (one,) = torch.autograd.grad(total, [hidden])
    (other,) = torch.autograd.grad((token_logps(hidden, Tokens(**tokens), head) * weights).sum(), [hidden])
    torch.testing.assert_close(one, other)


def test_a_tied_matrix_gets_both_gradients():
    _, head, tokens = example()
    read = torch.randint(VOCAB, (COUNT,))
    weights = torch.randn(COUNT)

    def gradient(total):
        return torch.autograd.grad(total, [head.weight])[0]

    got = gradient(weighted_logps(head.weight[read], Tokens(**tokens, weights=weights), head)[0])
    torch.testing.assert_close(got, gradient((naive(head.weight[read], head, tokens) * weights).sum()))


def test_a_chunk_never_holds_more_rows_than_allowed_nor_both_kinds(monkeypatch):
    small_chunks(monkeypatch, 3, 0)
    _, _, tokens = example()
    pieces = list(Tokens(**tokens).chunks(VOCAB))
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 3), (3, 4), (4, 7), (7, 9)]


def test_without_gradient_the_same_numbers():
    hidden, head, tokens = example()
    with torch.no_grad():
        got = token_logps(hidden, Tokens(**tokens), head)
    torch.testing.assert_close(got, token_logps(hidden, Tokens(**tokens), head).detach())
    assert not got.requires_grad


def test_without_gradient_nothing_waits_for_a_backward(monkeypatch):
    buffers = []
    stock = logprobs._Chunks.probabilities

    def spied(work, piece, out=None):
        buffers.append(out)
        return stock(work, piece, out)

    monkeypatch.setattr(logprobs._Chunks, "probabilities", spied)
    hidden, head, tokens = example()
    small_chunks(monkeypatch, 100, kept=100)
    token_logps(hidden, Tokens(**tokens), head)
    assert all(out is not None for out in buffers)
    buffers.clear()
    with torch.no_grad():
        token_logps(hidden, Tokens(**tokens), head)
    assert buffers
    assert all(out is None for out in buffers)


@pytest.mark.parametrize("weights", [None, torch.ones(COUNT)], ids=["later", "known"])
def test_half_precision_is_scored_in_float32_also_under_autocast(weights):
    hidden, head, tokens = example(bias=True)
    states, matrix = hidden.detach().bfloat16().requires_grad_(), head.weight.detach().bfloat16().requires_grad_()
    exact = token_logps(states.float(), Tokens(**tokens), OutputHead(matrix.float(), head.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if weights is None:
            got = token_logps(states, Tokens(**tokens), OutputHead(matrix, head.bias))
            total = got.sum()
        else:
            total, got = weighted_logps(states, Tokens(**tokens, weights=weights), OutputHead(matrix, head.bias))
        total.backward()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact)
    assert (states.grad.dtype, matrix.grad.dtype, head.bias.grad.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    expected = torch.autograd.grad(exact.sum(), [states, matrix])
    torch.testing.assert_close([states.grad, matrix.grad], list(expected), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("weights", [None, torch.zeros(0)], ids=["later", "known"])
def test_no_positions_at_all(weights):
    _, head, _ = example()
    none = Tokens(torch.zeros(0, dtype=torch.long), weights=weights)
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    out = token_logps(hidden, none, head) if weights is None else weighted_logps(hidden, none, head)[0]
    (gradient,) = torch.autograd.grad(out.sum(), [head.weight])
    assert gradient.abs().sum() == 0
