"""Log-probabilities of given tokens, and their gradient, without a (tokens x vocabulary) tensor for a whole batch.

Knows: hidden states of the counted positions and the matrix that turns them into logits. Must not know: models, layouts.
Always float32, also under autocast: bf16 logits were measured off by 0.07 nats on a small sum. The gradient is written out
by hand, d log P(t) / d logits = onehot(t) - softmax, and goes into the matrix products without being written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 1 << 21  # 8 MiB of float32, which stay in a processor's cache ...
ROWS_PER_CHUNK = 256  # ... but never fewer rows: every chunk reads and writes the whole gradient of the head
KEPT_LOGITS = 1 << 26  # 256 MiB: up to here logits wait for the backward; beyond, they are computed again


class Constraints(Protocol):
    """What scoring needs of `models.constraints.SamplingConstraints`."""

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

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """(m, V) float32. A weight in half precision is cast, so cast it once with `in_float32` for several calls."""
        out = torch.mm(hidden.float(), self.weight.float().t(), out=out)
        if self.bias is not None:
            out += self.bias.float()
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
    constraints: Constraints | None = None
    weights: Tensor | None = None  # (M,) float32, where they are known before the forward

    def pieces(self, vocab_size: int) -> Iterator[slice]:
        """Slices of bounded size, none of which holds both kinds."""
        rows = max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // vocab_size)
        for begin, end in ((0, self.num_actions), (self.num_actions, len(self.ids))):
            for start in range(begin, end, rows):
                yield slice(start, min(start + rows, end))

    def temperature(self, piece: slice) -> float:
        """By which the logits of a piece are divided."""
        return self.constraints.temperature if self.constraints is not None and piece.start < self.num_actions else 1.0


def token_logps(hidden: Tensor, tokens: Tokens, head: OutputHead) -> Tensor:
    """log P(token | what came before) for M positions, in nats: (M,) float32, differentiable.

    The weight of every token reaches the backward as its incoming gradient. Up to `KEPT_LOGITS` numbers wait for it; the
    logits beyond are computed a second time.

    Args:
        hidden: (M, d) states that predict the tokens. Only counted positions: padding never reaches the head.
    """
    weight, bias = head.weight, head.bias
    if not torch.is_grad_enabled():  # a Function cannot tell: it would keep 256 MiB for a backward that never comes
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    return _TokenLogps.apply(hidden, weight, bias, tokens, head.scale, head.cap)


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
            work = _Work(hidden, OutputHead(weight, bias, scale, cap), tokens)
            room = KEPT_LOGITS if any(ctx.needs_input_grad[:3]) else 0
            kept = []
            for piece in work.pieces:
                keep = room >= (piece.stop - piece.start) * len(weight)  # from the first on, without gaps
                probs = work.probabilities(piece, torch.empty(0, device=hidden.device) if keep else None)
                room = room - probs.numel() if keep else 0
                if keep:
                    kept.append(probs)
        ctx.tokens, ctx.pieces, ctx.scale, ctx.cap = tokens, work.pieces, scale, cap
        ctx.save_for_backward(hidden, weight, bias, work.logps, work.normalizer, *kept)
        return work.logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, logps, normalizer, *kept = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            work = _Work(hidden, OutputHead(weight, bias, ctx.scale, ctx.cap), ctx.tokens, ctx.pieces)
            work.logps, work.normalizer = logps.clone(), normalizer.clone()
            sums = _Gradients(work, hidden, weight, bias, ctx.needs_input_grad)
            for index, piece in enumerate(work.pieces):
                probs = kept[index] if index < len(kept) else work.probabilities(piece)
                sums.add(piece, probs, grad[piece])
        return (*sums.as_given(), None, None, None)


class _WeightedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, scale: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        assert tokens.weights is not None
        with torch.autocast(hidden.device.type, enabled=False):
            work = _Work(hidden, OutputHead(weight, bias, scale, cap), tokens)
            sums = _Gradients(work, hidden, weight, bias, ctx.needs_input_grad)
            for piece in work.pieces:
                probs = work.probabilities(piece)
                if any(ctx.needs_input_grad[:3]):
                    sums.add(piece, probs, tokens.weights[piece])
            total = (tokens.weights.double() * work.logps.double()).sum().float()
        ctx.gradients = sums.as_given()
        ctx.mark_non_differentiable(work.logps)
        return total, work.logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("weighted_logps hands out its gradient once: it is scaled in place, not copied.")
        # let go of the buffers, so that autograd can keep the head's as its .grad instead of copying it
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if g is None else g.mul_(grad) for g in gradients), None, None, None)


class _Work:
    """M tokens piece by piece; two buffers serve all pieces, as fresh memory costs a processor more than the arithmetic."""

    def __init__(self, hidden: Tensor, head: OutputHead, tokens: Tokens, pieces: list[slice] | None = None) -> None:
        self.hidden, self.head, self.tokens = hidden.detach(), head.in_float32(), tokens
        vocab_size = len(head.weight)
        self.pieces = list(tokens.pieces(vocab_size)) if pieces is None else pieces
        longest = max((piece.stop - piece.start for piece in self.pieces), default=0)
        self.buffers = [torch.empty(longest, vocab_size if longest else 0, device=hidden.device) for _ in range(2)]
        self.logps, self.normalizer = (torch.empty(len(tokens.ids), device=hidden.device) for _ in range(2))

    def states(self, piece: slice) -> Tensor:
        """(m, d) float32."""
        return self.hidden[piece].float()

    def probabilities(self, piece: slice, out: Tensor | None = None) -> Tensor:
        """(m, V) softmax of the logits, in `out` or in a buffer; fills in the piece's `logps` and `normalizer`."""
        tokens, rows = self.tokens, piece.stop - piece.start
        logits = self.head.logits(self.states(piece), self.buffers[0][:rows])
        if piece.start < tokens.num_actions and tokens.constraints is not None and tokens.steps is not None:
            tokens.constraints.restrict_(logits, tokens.steps[piece], tokens.ids[piece])
        probs = torch.softmax(logits, 1, out=self.buffers[1][:rows] if out is None else out)
        # exact also where a probability is too small for a float32, as log softmax is
        self.normalizer[piece] = logits.amax(1) - probs.amax(1).log()
        self.logps[piece] = logits.gather(1, tokens.ids[piece, None])[:, 0] - self.normalizer[piece]
        return probs


class _Gradients:
    """Sums over pieces of the gradients of hidden states, head and bias, float32; None where nobody asks."""

    def __init__(
        self, work: _Work, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]
    ) -> None:
        self.work = work
        self.dtypes = [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]
        shapes = [hidden.shape, weight.shape, None if bias is None else bias.shape]
        make = torch.empty if work.pieces else torch.zeros  # the first piece writes where the others add
        self.sums = [
            make(shape, dtype=torch.float32, device=hidden.device) if shape is not None and wanted else None
            for shape, wanted in zip(shapes, needed, strict=False)
        ]

    def add(self, piece: slice, probs: Tensor, weights: Tensor) -> None:
        """d Σ w_t log P_t of one piece: per token w·(onehot - softmax), times what stands between matrix and softmax.

        A token's weight is multiplied into its rows of width d rather than into its row of width V, and the onehot is a
        row of the head: `probs` (m, V) is only read.
        """
        to_hidden, to_weight, to_bias = self.sums
        head, ids, temperature = self.work.head, self.work.tokens.ids[piece], self.work.tokens.temperature(piece)
        chosen = torch.ones_like(weights)
        if head.cap:  # capped = cap·tanh(raw/cap) has the slope 1 - (capped/cap)²
            normalizer, ratio = self.work.normalizer[piece], temperature / head.cap
            slope = 1 - ((probs.log() + normalizer[:, None]) * ratio).clamp_(-1, 1).square_()
            probs = probs * slope
            chosen = 1 - ((self.work.logps[piece] + normalizer) * ratio).square()
        factor = (weights * (-head.scale / temperature))[:, None]
        states = self.work.states(piece) * factor
        if to_hidden is not None:
            torch.mm(probs, head.weight, out=to_hidden[piece])
            to_hidden[piece].sub_(head.weight[ids] * chosen[:, None]).mul_(factor)
        if to_weight is not None:
            to_weight.addmm_(probs.t(), states, beta=int(piece.start > 0))
            to_weight.index_add_(0, ids, states * -chosen[:, None])
        if to_bias is not None:
            to_bias.addmv_(probs.t(), factor[:, 0], beta=int(piece.start > 0))
            to_bias.index_add_(0, ids, factor[:, 0] * -chosen)

    def as_given(self) -> list[Tensor | None]:
        """In the precision of what they are gradients of."""
        return [None if g is None else g.to(dtype) for g, dtype in zip(self.sums, self.dtypes, strict=True)]
