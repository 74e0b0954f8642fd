"""The tokens of many rows, end to end, through a stock network; in padded rectangles only where they look at each other.

Knows: transformers' table of attention functions, how a T5 adds distances to scores. Must not know: prompts, warmups, heads.
Everything in a transformer but its attention treats tokens one by one, so padding is left out there, and products are as
large as they can be. Attention remains the network's own: it is called on rectangles of lines of similar length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from rl_warmup.engine.fast.buckets import WORTH_A_GROUP, buckets

NAME = "rl_warmup_packed"  # in transformers' table
IMPLEMENTATIONS = ("sdpa", "eager")  # that take any mask

Layers = list[tuple[Tensor, Tensor]]  # keys and values of every layer
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Any]  # of transformers' table, for one module


class PaddedGroups:
    """Where N tokens, line after line, are once lines of similar length have been put into padded rectangles.

    Args:
        width: of a single rectangle for all lines; without it their number and widths follow from the lengths.
    """

    def __init__(self, lengths: list[int], device: torch.device, width: int | None = None) -> None:
        groups = buckets(lengths, WORTH_A_GROUP) if width is None else [(list(range(len(lengths))), width)]
        self.groups = [(torch.tensor(chosen, device=device), width) for chosen, width in groups]
        self.total, count = sum(lengths), torch.tensor(lengths, device=device)
        self.begin = torch.tensor([0, *accumulate(lengths[:-1])], device=device)  # (lines,) tokens
        self.line = torch.arange(len(lengths), device=device).repeat_interleave(count)  # (N,)
        self.place = torch.arange(self.total, device=device) - self.begin[self.line]  # (N,) in their line
        self.real = [torch.arange(width, device=device) < count[chosen, None] for chosen, width in self.groups]
        held = [self.begin[chosen, None] + torch.arange(width, device=device) for chosen, width in self.groups]
        token = [part.masked_fill(~real, self.total) for part, real in zip(held, self.real, strict=True)]
        self.token = torch.cat([part.flatten() for part in token])  # of every slot; N for padding
        self.source = self.token.clamp(max=self.total - 1)
        slot = torch.empty(self.total + 1, dtype=torch.int64, device=device)
        self.slot = slot.index_copy(0, self.token, torch.arange(len(self.token), device=device))[:-1]  # of every token

    def cut(self, values: Tensor) -> list[Tensor]:
        """(N, ...) -> (lines, width, ...) of every rectangle; padding holds something finite."""
        parts = _Moved.apply(values, self.source, self.slot).split([real.numel() for real in self.real])
        return [part.unflatten(0, real.shape) for part, real in zip(parts, self.real, strict=True)]

    def joined(self, parts: list[Tensor]) -> Tensor:
        """(N, ...), the reverse."""
        flat = [part.flatten(0, 1) for part in parts]
        out: Tensor = _Moved.apply(torch.cat(flat) if len(flat) > 1 else flat[0], self.slot, self.token)
        return out

    def of_lines(self, values: Tensor) -> list[Tensor]:
        """(lines, ...) -> those of every rectangle."""
        return [values.index_select(0, chosen) for chosen, _ in self.groups]


class _Moved(torch.autograd.Function):
    """values[index], where each value goes to one place of its own, reverse[i], or past the end to none. What else `index`
    names is padding, and its gradient is left out.

    Torch's own gradient adds every row to where it came from, which takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (reverse,) = gradients, ctx.saved_tensors
        if len(reverse) > len(gradient):  # what went to none has none
            gradient = torch.cat([gradient, torch.zeros_like(gradient[:1])])
        return gradient.index_select(0, reverse), None, None


class PackedAttention:
    """What the tokens of one forward look at. Calls of a network's attention come here while `attending` lasts.

    Args:
        lines: which tokens look at each other.
        seen: of every rectangle, (lines or 1, 1, width or 1, width) bool: which tokens of its line a token sees. None: those
            before it and itself.
        before: keys and values (P, heads, X, width) of every layer that tokens see besides.
        owners: of lines, (lines,) which of the P they see.
        seen_before: (P, X) bool, which of the X are tokens.
        across: another attention of the network, to which `before` is all there is to see.
    """

    def __init__(
        self,
        lines: PaddedGroups,
        seen: list[Tensor] | None = None,
        before: Layers | None = None,
        owners: Tensor | None = None,
        seen_before: Tensor | None = None,
        across: PackedAttention | None = None,
    ) -> None:
        self.lines, self.seen, self.across, self.before = lines, seen, across, before or []
        self.kept: Layers = []  # keys and values (N, heads, width) of these tokens, layer by layer
        self.masks: list[Any] = []
        if before:
            assert owners is not None
            assert seen_before is not None
            self.owners = lines.of_lines(owners)
            self.seen_before = [seen_before[owner][:, None, None] for owner in self.owners]
            self.in_order = len(self.owners) == 1 and owners.tolist() == list(range(len(seen_before)))

    def attend(
        self, call: Attention, module: Any, query: Tensor, key: Tensor, value: Tensor, says_causal: bool
    ) -> Tensor:
        """(N, heads, width) of queries, keys and values (N, heads or kv heads, width).

        Args:
            says_causal: without a mask, `call` hides later tokens by itself.
        """
        pairs = [
            (keys.transpose(1, 2), values.transpose(1, 2))
            for keys, values in zip(self.lines.cut(key), self.lines.cut(value), strict=True)
        ]
        if self.before:
            earlier = self._owned(*self.before[len(self.kept)])
            pairs = [
                (torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2))
                for (old_keys, old_values), (keys, values) in zip(earlier, pairs, strict=True)
            ]
        self.kept.append((key, value))
        has_bias = getattr(module, "has_relative_attention_bias", False)  # layers of a T5 without one take the first's
        if not self.masks or has_bias:
            self.masks = self._masks(query.dtype, says_causal and not has_bias)
            if has_bias:
                widest = max(width for _, width in self.lines.groups)
                bias = module.compute_bias(widest, widest, device=query.device).to(query.dtype)
                self.masks = [mask + bias[..., : mask.size(-1), : mask.size(-1)] for mask in self.masks]
        return self._called(call, query, pairs)

    def attend_across(self, call: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same, of keys and values that are a pair of `before`."""
        if not self.masks:
            self.masks = [hide(~seen, query.dtype) for seen in self.seen_before]
        return self._called(call, query, self._owned(key, value))

    def _owned(self, keys: Tensor, values: Tensor) -> Layers:
        """Of a layer of `before`, what the lines of every rectangle see."""
        if self.in_order:
            return [(keys, values)]
        return [(keys.index_select(0, owner), values.index_select(0, owner)) for owner in self.owners]

    def _called(self, call: Attention, query: Tensor, pairs: Layers) -> Tensor:
        queries = [part.transpose(1, 2) for part in self.lines.cut(query)]
        return self.lines.joined([call(q, k, v, m)[0] for q, (k, v), m in zip(queries, pairs, self.masks, strict=True)])

    def _masks(self, dtype: torch.dtype, bare: bool) -> list[Any]:
        """What is added to the scores of every rectangle; None where `bare` and each token sees those before it alone."""
        if self.seen is None and bare and not self.before:
            return [None] * len(self.lines.groups)
        seen = self.seen or [torch.ones_like(real[0]).expand(1, 1, len(real[0]), -1).tril() for real in self.lines.real]
        if self.before:
            seen = [
                torch.cat([before.expand(-1, -1, own.size(2), -1), own], 3)
                for before, own in zip(self.seen_before, seen, strict=True)
            ]
        return [hide(~part, dtype) for part in seen]


@contextmanager
def attending(model: Any, packing: PackedAttention) -> Iterator[dict[str, Any]]:
    """Within it, calls of a network's attention go to `packing`. Yields what its forward has to be given for that."""
    configs = list(
        {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values()
    )
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield {"packing": packing, "implementation": before[0]}
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: PackedAttention,
    implementation: str,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What transformers calls, for tokens (1, N) or (N, 1), whatever suits the network.

    A T5 that believes it has one token gives the bias between that and itself; `packing` asks for that of all.
    """
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    call = partial(AttentionInterface().get_interface(implementation, eager), module, **rest)
    queries = query.transpose(1, 2).flatten(0, 1)
    if packing.across is not None and any(key is keys for keys, _ in packing.across.before):
        found = packing.across.attend_across(call, queries, key, value)
    else:
        keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
        found = packing.attend(call, module, queries, keys, values, says_causal=implementation == "sdpa")
    return found.view(query.transpose(1, 2).shape), None


def hide(unseen: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool tensor as what is added to attention scores: the lowest number where it is true, 0 elsewhere."""
    return torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill(unseen, torch.finfo(dtype).min)


AttentionInterface.register(NAME, _attend)
