"""Log-probabilities of given tokens, and their gradient, without a (tokens x vocabulary) tensor for a whole batch.

Knows: hidden states of the counted positions and the matrix that turns them into logits. Must not know: models, layouts.
Always float32, also under autocast: with bf16 logits a small sum was off by 0.07 nats. The gradient is coded by hand,
d log P(t) / d logits = onehot(t) - softmax; no tensor holds it, as it goes straight into the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 1 << 21  # 8 MiB of float32, which stay in a CPU's cache ...
ROWS_PER_CHUNK = 256  # ... but at least so many rows, as every chunk reads and writes the whole gradient of the head
KEPT_LOGITS = 1 << 26  # 256 MiB: so many are kept for the backward; the others are computed again


class Constraints(Protocol):
    """The part of `models.constraints.SamplingConstraints` that scoring uses."""

    @property
    def temperature(self) -> float:
        """Divides the logits."""

    def restrict_(self, logits: Tensor, steps: Tensor, chosen: Tensor) -> Tensor:
        """Divide (m, V) logits by the temperature and mask impossible tokens, in place."""


@dataclass(frozen=True)
class OutputHead:
    """hidden (m, d) -> logits (m, V): a matrix and, in some models, a bias, a factor (Granite, Cohere), a soft cap (Gemma)."""

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    cap: float | None = None  # logits become cap·tanh(logits/cap)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """(m, V) float32. Casts a half-precision weight at every call; for many calls use `in_float32` first."""
        out = torch.mm(hidden.float(), self.weight.float().t(), out=out)
        if self.bias is not None:
            out += self.bias.float()
        if self.scale != 1:
            out *= self.scale
        return out.div_(self.cap).tanh_().mul_(self.cap) if self.cap else out

    def in_float32(self) -> OutputHead:
        """The same head with float32 weights; no copy if they are float32 already."""
        bias = None if self.bias is None else self.bias.detach().float()
        return OutputHead(self.weight.detach().float(), bias, self.scale, self.cap)


@dataclass(frozen=True)
class Tokens:
    """M tokens to score: first `num_actions` warmup tokens, scored under the sampling constraints, then target tokens."""

    ids: Tensor  # (M,) int64
    num_actions: int = 0
    steps: Tensor | None = None  # (num_actions,) the index of each action within its warmup
    constraints: Constraints | None = None
    weights: Tensor | None = None  # (M,) float32, if they are known before the forward

    def chunks(self, vocab_size: int) -> Iterator[slice]:
        """Slices of bounded size, each of warmup tokens alone or of target tokens alone."""
        rows = max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // vocab_size)
        for begin, end in ((0, self.num_actions), (self.num_actions, len(self.ids))):
            for start in range(begin, end, rows):
                yield slice(start, min(start + rows, end))

    def temperature(self, chunk: slice) -> float:
        """Divides the logits of a chunk."""
        return self.constraints.temperature if self.constraints is not None and chunk.start < self.num_actions else 1.0


def token_logps(hidden: Tensor, tokens: Tokens, head: OutputHead) -> Tensor:
    """log P(token | tokens before it) for M positions, in nats: (M,) float32, differentiable.

    The backward uses up to `KEPT_LOGITS` numbers kept by the forward and computes the other logits a second time.

    Args:
        hidden: (M, d) states that predict the tokens. Only counted positions: padding never reaches the head.
    """
    weight, bias = head.weight, head.bias
    if not torch.is_grad_enabled():  # inside a Function this is unknown: it would keep 256 MiB for no backward
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    return _TokenLogps.apply(hidden, weight, bias, tokens, head.scale, head.cap)


def weighted_logps(hidden: Tensor, tokens: Tokens, head: OutputHead) -> tuple[Tensor, Tensor]:
    """Σ_t w_t log P_t, a differentiable scalar, and the M log-probabilities without gradient.

    As `tokens.weights` are known, the forward computes the gradient chunk by chunk: nothing is computed twice, and only one
    chunk of logits exists at any time. The gradient can be used once.
    """
    return _WeightedLogps.apply(hidden, head.weight, head.bias, tokens, head.scale, head.cap)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, scale: float, cap: float | None
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden, OutputHead(weight, bias, scale, cap), tokens)
            room = KEPT_LOGITS if any(ctx.needs_input_grad[:3]) else 0
            kept = []
            for chunk in chunks.slices:
                keep = room >= (chunk.stop - chunk.start) * len(weight)  # the first chunks are kept
                probs = chunks.probabilities(chunk, torch.empty(0, device=hidden.device) if keep else None)
                room = room - probs.numel() if keep else 0
                if keep:
                    kept.append(probs)
        ctx.tokens, ctx.slices, ctx.scale, ctx.cap = tokens, chunks.slices, scale, cap
        ctx.save_for_backward(hidden, weight, bias, chunks.logps, chunks.normalizer, *kept)
        return chunks.logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, logps, normalizer, *kept = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden, OutputHead(weight, bias, ctx.scale, ctx.cap), ctx.tokens, ctx.slices)
            chunks.logps, chunks.normalizer = logps.clone(), normalizer.clone()
            gradients = _Gradients(chunks, hidden, weight, bias, ctx.needs_input_grad)
            for index, chunk in enumerate(chunks.slices):
                probs = kept[index] if index < len(kept) else chunks.probabilities(chunk)
                gradients.add(chunk, probs, grad[chunk])
        return (*gradients.in_input_dtypes(), None, None, None)


class _WeightedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, scale: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        assert tokens.weights is not None
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden, OutputHead(weight, bias, scale, cap), tokens)
            gradients = _Gradients(chunks, hidden, weight, bias, ctx.needs_input_grad)
            for chunk in chunks.slices:
                probs = chunks.probabilities(chunk)
                if any(ctx.needs_input_grad[:3]):
                    gradients.add(chunk, probs, tokens.weights[chunk])
            total = (tokens.weights.double() * chunks.logps.double()).sum().float()
        ctx.gradients = gradients.in_input_dtypes()
        ctx.mark_non_differentiable(chunks.logps)
        return total, chunks.logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("weighted_logps returns its gradient once: it is scaled in place, not copied.")
        # drop our references, so that autograd can keep the buffer as .grad instead of copying it
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if g is None else g.mul_(grad) for g in gradients), None, None, None)


class _Chunks:
    """Computes M tokens chunk by chunk. Two buffers serve all chunks: on a CPU fresh memory costs more than the arithmetic."""

    def __init__(self, hidden: Tensor, head: OutputHead, tokens: Tokens, slices: list[slice] | None = None) -> None:
        self.hidden, self.head, self.tokens = hidden.detach(), head.in_float32(), tokens
        vocab_size = len(head.weight)
        self.slices = list(tokens.chunks(vocab_size)) if slices is None else slices
        longest = max((chunk.stop - chunk.start for chunk in self.slices), default=0)
        self.buffers = [torch.empty(longest, vocab_size if longest else 0, device=hidden.device) for _ in range(2)]
        self.logps, self.normalizer = (torch.empty(len(tokens.ids), device=hidden.device) for _ in range(2))

    def probabilities(self, chunk: slice, out: Tensor | None = None) -> Tensor:
        """(m, V) softmax of the logits, in `out` or in a buffer; also sets the chunk's `logps` and `normalizer`."""
        tokens, rows = self.tokens, chunk.stop - chunk.start
        logits = self.head.logits(self.hidden[chunk].float(), self.buffers[0][:rows])
        if chunk.start < tokens.num_actions and tokens.constraints is not None and tokens.steps is not None:
            tokens.constraints.restrict_(logits, tokens.steps[chunk], tokens.ids[chunk])
        probs = torch.softmax(logits, 1, out=self.buffers[1][:rows] if out is None else out)
        # exact even if a probability is too small for a float32, as log softmax is
        self.normalizer[chunk] = logits.amax(1) - probs.amax(1).log()
        self.logps[chunk] = logits.gather(1, tokens.ids[chunk, None])[:, 0] - self.normalizer[chunk]
        return probs


class _Gradients:
    """Gradients of hidden states, head and bias, summed over chunks in float32; None where autograd needs none."""

    def __init__(
        self, chunks: _Chunks, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]
    ) -> None:
        self.chunks = chunks
        self.dtypes = [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]
        shapes = [hidden.shape, weight.shape, None if bias is None else bias.shape]
        make = torch.empty if chunks.slices else torch.zeros  # the first chunk overwrites, the others add
        self.sums = [
            make(shape, dtype=torch.float32, device=hidden.device) if shape is not None and wanted else None
            for shape, wanted in zip(shapes, needed, strict=False)
        ]

    def add(self, chunk: slice, probs: Tensor, weights: Tensor) -> None:
        """Add the gradient of Σ w_t log P_t over one chunk.

        It is w·(onehot - softmax) times the derivative of temperature, scale and soft cap. Weights are multiplied into states
        (m, d), not into `probs` (m, V), which is only read; the onehot picks rows of the head.
        """
        to_hidden, to_weight, to_bias = self.sums
        head, ids, temperature = self.chunks.head, self.chunks.tokens.ids[chunk], self.chunks.tokens.temperature(chunk)
        chosen = torch.ones_like(weights)
        if head.cap:  # capped = cap·tanh(raw/cap) has the slope 1 - (capped/cap)²
            normalizer, ratio = self.chunks.normalizer[chunk], temperature / head.cap
            slope = 1 - ((probs.log() + normalizer[:, None]) * ratio).clamp_(-1, 1).square_()
            probs = probs * slope
            chosen = 1 - ((self.chunks.logps[chunk] + normalizer) * ratio).square()
        factor = (weights * (-head.scale / temperature))[:, None]
        states = self.chunks.hidden[chunk].float() * factor
        if to_hidden is not None:
            torch.mm(probs, head.weight, out=to_hidden[chunk])
            to_hidden[chunk].sub_(head.weight[ids] * chosen[:, None]).mul_(factor)
        if to_weight is not None:
            to_weight.addmm_(probs.t(), states, beta=int(chunk.start > 0))
            to_weight.index_add_(0, ids, states * -chosen[:, None])
        if to_bias is not None:
            to_bias.addmv_(probs.t(), factor[:, 0], beta=int(chunk.start > 0))
            to_bias.index_add_(0, ids, factor[:, 0] * -chosen)

    def in_input_dtypes(self) -> list[Tensor | None]:
        """The gradients in the dtypes of their inputs."""
        return [None if g is None else g.to(dtype) for g, dtype in zip(self.sums, self.dtypes, strict=True)]
