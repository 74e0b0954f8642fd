"""Log-probabilities of given tokens, and their gradient, without a (tokens x vocabulary) tensor for a whole batch.

Knows: hidden states of the counted positions and the matrix that turns them into logits. Must not know: models, layouts.
Always float32, also under autocast: bf16 logits were measured off by 0.07 nats on a small sum. The gradient is written out
by hand, d log P(t) / d logits = onehot(t) - softmax, so that one buffer serves logits, probabilities and gradient in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_PER_CHUNK = 1 << 21  # 8 MiB of float32, which stay in a processor's cache ...
ROWS_PER_CHUNK = 256  # ... but never fewer rows: every chunk reads and writes the whole gradient of the head
KEPT_LOGITS = 1 << 26  # 256 MiB: up to here logits wait for the backward; beyond, they are computed again


class Law(Protocol):
    """What scoring needs of `layouts.law.WarmupLaw`."""

    @property
    def temperature(self) -> float:
        """By which logits are divided."""

    def restrict_(self, logits: Tensor, steps: Tensor, chosen: Tensor) -> Tensor:
        """Temper and mask (m, V) logits in place."""


@dataclass(frozen=True)
class OutputHead:
    """hidden (m, d) -> logits (m, V): a matrix, perhaps a bias, a factor (Granite, Cohere), a soft cap (Gemma)."""

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    cap: float | None = None  # logits become cap·tanh(logits/cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """(m, V) float32. A weight in half precision is cast, so cast it once with `in_float32` for several calls."""
        bias = None if self.bias is None else self.bias.float()
        out = F.linear(hidden.float(), self.weight.float(), bias)
        if self.scale != 1:
            out *= self.scale
        return out.div_(self.cap).tanh_().mul_(self.cap) if self.cap else out

    def in_float32(self) -> OutputHead:
        """The same head with its weights as float32; no copy where they are."""
        bias = None if self.bias is None else self.bias.detach().float()
        return OutputHead(self.weight.detach().float(), bias, self.scale, self.cap)


@dataclass(frozen=True)
class Tokens:
    """M tokens to score; the first `num_actions` are the policy's and obey its law, the others are targets."""

    ids: Tensor  # (M,) int64
    num_actions: int = 0
    steps: Tensor | None = None  # (num_actions,) the index of each action within its warmup
    law: Law | None = None
    weights: Tensor | None = None  # (M,) float32, where they are known before the forward

    def pieces(self, vocab_size: int) -> Iterator[slice]:
        """Slices of bounded size, none of which holds both kinds."""
        rows = max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // vocab_size)
        for begin, end in ((0, self.num_actions), (self.num_actions, len(self.ids))):
            for start in range(begin, end, rows):
                yield slice(start, min(start + rows, end))

    def temperature(self, piece: slice) -> float:
        """By which the logits of a piece are divided."""
        return self.law.temperature if self.law is not None and piece.start < self.num_actions else 1.0


def token_logps(hidden: Tensor, tokens: Tokens, head: OutputHead) -> Tensor:
    """log P(token | what came before) for M positions, in nats: (M,) float32, differentiable.

    The weight of every token reaches the backward as its incoming gradient. Up to `KEPT_LOGITS` numbers wait for it; the
    logits beyond are computed a second time.

    Args:
        hidden: (M, d) states that predict the tokens. Only counted positions: padding never reaches the head.
    """
    return _TokenLogps.apply(hidden, head.weight, head.bias, tokens, head.scale, head.cap)


def weighted_logps(hidden: Tensor, tokens: Tokens, head: OutputHead) -> tuple[Tensor, Tensor]:
    """Σ_t w_t log P_t, a scalar that carries the gradient, and the M log-probabilities, which carry none.

    With `tokens.weights` known, the gradient is formed while the logits are at hand: nothing is computed twice, and no more
    than one chunk of logits exists at any time.
    """
    return _WeightedLogps.apply(hidden, head.weight, head.bias, tokens, head.scale, head.cap)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, scale: float, cap: float | None
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            head = OutputHead(weight, bias, scale, cap).in_float32()
            logps = torch.empty(len(tokens.ids), dtype=torch.float32, device=hidden.device)
            pieces = list(tokens.pieces(len(weight)))
            kept, room = [], KEPT_LOGITS if any(ctx.needs_input_grad[:3]) else 0
            for piece in pieces:
                log_probs = _log_probs(hidden[piece], tokens, piece, head)
                logps[piece] = _pick(log_probs, tokens.ids[piece])
                room = (
                    room - log_probs.numel() if room >= log_probs.numel() else 0
                )  # kept from the first on, without gaps
                if room:
                    kept.append(log_probs)
        ctx.tokens, ctx.pieces, ctx.scale, ctx.cap = tokens, pieces, scale, cap
        ctx.save_for_backward(hidden, weight, bias, *kept)
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *kept = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            head = OutputHead(weight, bias, ctx.scale, ctx.cap).in_float32()
            sums = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
            for index, piece in enumerate(ctx.pieces):
                if index < len(kept):
                    log_probs, probs = kept[index], kept[index].exp()
                else:
                    log_probs = _log_probs(hidden[piece], ctx.tokens, piece, head)
                    probs = log_probs.exp() if head.cap else log_probs.exp_()
                sums.add(piece, log_probs, probs, ctx.tokens, grad[piece], head)
        return (*sums.as_given(), None, None, None)


class _WeightedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, scale: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        assert tokens.weights is not None
        with torch.autocast(hidden.device.type, enabled=False):
            head = OutputHead(weight, bias, scale, cap).in_float32()
            sums = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
            logps = torch.empty(len(tokens.ids), dtype=torch.float32, device=hidden.device)
            for piece in tokens.pieces(len(weight)):
                log_probs = _log_probs(hidden[piece], tokens, piece, head)
                logps[piece] = _pick(log_probs, tokens.ids[piece])
                if any(ctx.needs_input_grad[:3]):
                    probs = log_probs.exp() if head.cap else log_probs.exp_()
                    sums.add(piece, log_probs, probs, tokens, tokens.weights[piece], head)
            total = (tokens.weights.double() * logps.double()).sum().float()
        ctx.gradients = sums.as_given()
        ctx.mark_non_differentiable(logps)
        return total, logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("weighted_logps hands out its gradient once: it is scaled in place, not copied.")
        # let go of the buffers, so that autograd can keep the head's as its .grad instead of copying it
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if g is None else g.mul_(grad) for g in gradients), None, None, None)


class _Gradients:
    """Sums over pieces of the gradients of hidden states, head and bias, float32; None where nobody asks."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self.hidden = hidden.detach()
        self.dtypes = [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]
        shapes = [hidden.shape, weight.shape, None if bias is None else bias.shape]
        self.sums = [
            torch.zeros(shape, dtype=torch.float32, device=hidden.device) if shape is not None and wanted else None
            for shape, wanted in zip(shapes, needed, strict=False)
        ]

    def add(
        self, piece: slice, log_probs: Tensor, probs: Tensor, tokens: Tokens, weights: Tensor, head: OutputHead
    ) -> None:
        """d Σ w_t log P_t of one piece. `probs` is overwritten.

        Per token w·(onehot - softmax), times what stands between matrix and softmax. A token's weight is multiplied into
        its rows of width d rather than into its row of width V.
        """
        to_hidden, to_weight, to_bias = self.sums
        ids, temperature = tokens.ids[piece], tokens.temperature(piece)
        if (
            head.cap
        ):  # capped = cap·tanh(raw/cap) has the slope 1 - (capped/cap)²; a masked token has no probability anyway
            normalizer = self._capped(piece, ids, head) / temperature - _pick(log_probs, ids)
            capped = (log_probs + normalizer[:, None]).mul_(temperature / head.cap).clamp_(-1, 1)
        probs.scatter_add_(1, ids[:, None], probs.new_full((len(ids), 1), -1.0))
        if head.cap:
            probs.mul_(1 - capped.square_())
        factor = (weights * (-head.scale / temperature))[:, None]
        if to_hidden is not None:
            torch.mm(probs, head.weight, out=to_hidden[piece]).mul_(factor)
        if to_weight is not None:
            to_weight.addmm_(probs.t(), self.hidden[piece].float() * factor)
        if to_bias is not None:
            to_bias.addmv_(probs.t(), factor[:, 0])

    def _capped(self, piece: slice, ids: Tensor, head: OutputHead) -> Tensor:
        """(m,) logits of the chosen tokens, by which log-probabilities are told apart from logits."""
        chosen = (self.hidden[piece].float() * head.weight[ids]).sum(1)
        chosen = (chosen if head.bias is None else chosen + head.bias[ids]) * head.scale
        return torch.tanh(chosen / head.cap) * head.cap if head.cap else chosen

    def as_given(self) -> list[Tensor | None]:
        """In the precision of what they are gradients of."""
        return [None if g is None else g.to(dtype) for g, dtype in zip(self.sums, self.dtypes, strict=True)]


def _log_probs(hidden: Tensor, tokens: Tokens, piece: slice, head: OutputHead) -> Tensor:
    """(m, V) log-probabilities of a piece."""
    logits = head.logits(hidden.detach())
    if piece.start < tokens.num_actions and tokens.law is not None and tokens.steps is not None:
        logits = tokens.law.restrict_(logits, tokens.steps[piece], tokens.ids[piece])
    return logits.log_softmax(1)


def _pick(log_probs: Tensor, ids: Tensor) -> Tensor:
    return log_probs.gather(1, ids[:, None])[:, 0]
