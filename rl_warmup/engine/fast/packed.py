"""Sequence packing: tokens of many sequences go through a stock network end to end; only attention sees padded batches.

Knows: transformers' table of attention functions, T5's relative position bias. Must not know: prompts, warmups, heads.
All other layers of a transformer treat tokens one by one, so they need no padding, and their matrix products are as large as
possible. Attention stays the network's own function: it is called on padded buckets of sequences of similar length.

Here a *sequence* is a run of tokens that may attend to each other: a prompt, a row, or several packed rows. N tokens lie end to
end, sequence by sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from rl_warmup.engine.fast.buckets import MIN_SAVING_PER_BUCKET, buckets
from rl_warmup.runtime import compat

NAME = "rl_warmup_packed"  # in transformers' table
IMPLEMENTATIONS = ("sdpa", "eager")  # they accept any mask

KeysValues = list[tuple[Tensor, Tensor]]  # keys and values of every layer
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Any]  # of transformers' table, for one module


class PaddedBuckets:
    """Moves N tokens between the packed form (N, ...) and padded buckets of sequences of similar length.

    Args:
        lengths: of the S sequences, in tokens.
        width: of a single bucket for all sequences; without it number and widths of the buckets follow from the lengths.
    """

    def __init__(self, lengths: list[int], device: torch.device, width: int | None = None) -> None:
        chosen = buckets(lengths, MIN_SAVING_PER_BUCKET) if width is None else [(list(range(len(lengths))), width)]
        self.buckets = [(torch.tensor(members, device=device), width) for members, width in chosen]
        total, count = sum(lengths), torch.tensor(lengths, device=device)
        self.start = torch.tensor([0, *accumulate(lengths[:-1])], device=device)  # (S,) first token of each sequence
        self.sequence = torch.arange(len(lengths), device=device).repeat_interleave(count)  # (N,) of each token
        # (N,) of a token in its sequence
        self.position = torch.arange(total, device=device) - self.start[self.sequence]
        self.real = [torch.arange(width, device=device) < count[members, None] for members, width in self.buckets]
        tokens = [
            (self.start[members, None] + torch.arange(width, device=device)).masked_fill(~real, total)
            for (members, width), real in zip(self.buckets, self.real, strict=True)
        ]
        self._token_of_slot = torch.cat([part.flatten() for part in tokens])  # N for padding
        self._source = self._token_of_slot.clamp(max=total - 1)
        slots = torch.arange(len(self._token_of_slot), device=device)
        self._slot_of_token = torch.empty(total + 1, dtype=torch.int64, device=device)
        self._slot_of_token = self._slot_of_token.index_copy(0, self._token_of_slot, slots)[:-1]

    def pad(self, values: Tensor) -> list[Tensor]:
        """(N, ...) -> (sequences, width, ...) of every bucket; padding holds arbitrary finite values."""
        parts = _Select.apply(values, self._source, self._slot_of_token).split([real.numel() for real in self.real])
        return [part.unflatten(0, real.shape) for part, real in zip(parts, self.real, strict=True)]

    def unpad(self, parts: list[Tensor]) -> Tensor:
        """The reverse: (sequences, width, ...) of every bucket -> (N, ...)."""
        flat = [part.flatten(0, 1) for part in parts]
        joined = torch.cat(flat) if len(flat) > 1 else flat[0]
        out: Tensor = _Select.apply(joined, self._slot_of_token, self._token_of_slot)
        return out

    def by_bucket(self, values: Tensor) -> list[Tensor]:
        """(S, ...) -> (sequences, ...) of every bucket."""
        return [values.index_select(0, members) for members, _ in self.buckets]


class _Select(torch.autograd.Function):
    """values[index] with a fast gradient: value i is used once, at `reverse[i]`, or nowhere if that is past the end.

    Other uses of a value are padding, and their gradient is dropped. Torch's own gradient of an index adds row by row, which
    takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(reverse)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (reverse,) = gradients, ctx.saved_tensors
        if len(reverse) > len(gradient):  # values that are used nowhere have the gradient 0
            gradient = torch.cat([gradient, torch.zeros_like(gradient[:1])])
        return gradient.index_select(0, reverse), None, None


@dataclass(eq=False)
class PackedAttention:
    """The attention of one forward over packed sequences. `packed_attention` sends a network's attention calls here."""

    sequences: PaddedBuckets  # tokens of different sequences do not attend to each other
    # Of every bucket, (sequences or 1, 1, width or 1, width) bool: the tokens of its sequence that a token attends to. None: the
    # tokens before it and itself.
    masks: list[Tensor] | None = None
    prefix: KeysValues = field(default_factory=list)  # (P, heads, X, width) of every layer, attended to besides
    prefix_index: InitVar[Tensor | None] = None  # (S,) which of the P prefixes belongs to each sequence
    prefix_mask: InitVar[Tensor | None] = None  # (P, X) bool, real tokens of the prefixes
    cross: PackedAttention | None = None  # the cross-attention of the network, which attends to its `prefix` alone

    def __post_init__(self, prefix_index: Tensor | None, prefix_mask: Tensor | None) -> None:
        self.computed: KeysValues = []  # keys and values (N, heads, width) of these tokens, layer by layer
        self.biases: list[Any] = []  # added to the attention scores, per bucket
        if prefix_index is not None and prefix_mask is not None:
            self.index_by_bucket = self.sequences.by_bucket(prefix_index)
            self.prefix_masks = [prefix_mask[index][:, None, None] for index in self.index_by_bucket]
            self.in_order = len(self.index_by_bucket) == 1 and prefix_index.tolist() == list(range(len(prefix_mask)))

    def self_attend(
        self, attention: Attention, module: Any, query: Tensor, key: Tensor, value: Tensor, is_causal: bool
    ) -> Tensor:
        """(N, heads, width) outputs for queries, keys and values (N, heads or kv heads, width).

        Args:
            is_causal: without a mask, `attention` hides later tokens by itself.
        """
        pairs = [
            (keys.transpose(1, 2), values.transpose(1, 2))
            for keys, values in zip(self.sequences.pad(key), self.sequences.pad(value), strict=True)
        ]
        if self.prefix:
            earlier = self._prefix_by_bucket(*self.prefix[len(self.computed)])
            pairs = [
                (torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2))
                for (old_keys, old_values), (keys, values) in zip(earlier, pairs, strict=True)
            ]
        self.computed.append((key, value))
        has_bias = getattr(module, "has_relative_attention_bias", False)  # other layers of a T5 reuse the first one's
        if not self.biases or has_bias:
            self.biases = self._additive_masks(query.dtype, is_causal and not has_bias)
            if has_bias:
                widest = max(width for _, width in self.sequences.buckets)
                bias = module.compute_bias(widest, widest, device=query.device).to(query.dtype)
                self.biases = [mask + bias[..., : mask.size(-1), : mask.size(-1)] for mask in self.biases]
        return self._attend(attention, query, pairs)

    def cross_attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, heads, width) outputs for queries (N, heads, width); keys and values are a pair of `prefix`."""
        if not self.biases:
            self.biases = [additive_mask(~mask, query.dtype) for mask in self.prefix_masks]
        return self._attend(attention, query, self._prefix_by_bucket(key, value))

    def _prefix_by_bucket(self, keys: Tensor, values: Tensor) -> KeysValues:
        """The prefixes of one layer for the sequences of every bucket."""
        if self.in_order:
            return [(keys, values)]
        return [(keys.index_select(0, index), values.index_select(0, index)) for index in self.index_by_bucket]

    def _attend(self, attention: Attention, query: Tensor, pairs: KeysValues) -> Tensor:
        queries = [part.transpose(1, 2) for part in self.sequences.pad(query)]
        return self.sequences.unpad(
            [attention(q, k, v, b)[0] for q, (k, v), b in zip(queries, pairs, self.biases, strict=True)]
        )

    def _additive_masks(self, dtype: torch.dtype, is_causal: bool) -> list[Any]:
        """Additive mask of every bucket; None where the causal mask of the attention function is all that is needed."""
        if self.masks is None and is_causal and not self.prefix:
            return [None] * len(self.sequences.buckets)
        masks = self.masks or [
            torch.ones_like(real[0]).expand(1, 1, len(real[0]), -1).tril() for real in self.sequences.real
        ]
        if self.prefix:
            masks = [
                torch.cat([prefix.expand(-1, -1, mask.size(2), -1), mask], 3)
                for prefix, mask in zip(self.prefix_masks, masks, strict=True)
            ]
        return [additive_mask(~mask, dtype) for mask in masks]


@contextmanager
def packed_attention(model: Any, packing: PackedAttention) -> Iterator[dict[str, Any]]:
    """Send the attention calls of a network to `packing`. Yields keyword arguments that its forward needs for that."""
    implementation = compat.attention_implementation(model)
    with compat.attention_replaced(model, NAME):
        yield {"packing": packing, "implementation": implementation}


def _attention_function(
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
    """What transformers calls for attention. The network sees its tokens as (1, N) or (N, 1), depending on its kind.

    `position_bias` is ignored: a T5 with inputs (N, 1) computes it for a single token; `packing` computes the whole.
    """
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attention = partial(AttentionInterface().get_interface(implementation, eager), module, **rest)
    queries = query.transpose(1, 2).flatten(0, 1)
    if packing.cross is not None and any(key is keys for keys, _ in packing.cross.prefix):
        out = packing.cross.cross_attend(attention, queries, key, value)
    else:
        keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
        out = packing.self_attend(attention, module, queries, keys, values, is_causal=implementation == "sdpa")
    return out.view(query.transpose(1, 2).shape), None


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to attention scores: the lowest number of `dtype` where it is true, 0 elsewhere."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min)


AttentionInterface.register(NAME, _attention_function)
