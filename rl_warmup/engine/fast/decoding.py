"""Decoding loop for T5- and Llama-like models: n warmups per prompt token by token, then whole continuations of them.

Knows: the modules of T5 and of Llama and its relatives; it calls them one by one, so that adapters and hooks stay in effect.
Must not know: how a token is drawn.

The n warmups of a prompt are n queries on one copy of the prompt's keys and values; keys and values of the warmups are
written into a buffer of their final size; ended warmups are left out. `generate` copies prompts n times, projects an
encoder's output n times, and goes on writing padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rl_warmup.engine.fast.packed import PaddedBuckets, additive_mask
from rl_warmup.engine.fast.passes import PrefixCache, attention_window

T5_LIKE = ("t5", "mt5")
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


def decoding_for(model: Any, longest: int) -> type[T5Decoding] | type[LlamaDecoding] | None:
    """The class that can decode a (plain transformers) model, or None for an unknown architecture.

    Args:
        longest: tokens of the longest prompt, its warmup and what follows; attention windows must not be shorter.
    """
    kind = model.config.model_type
    if kind in T5_LIKE:
        return T5Decoding
    if kind in LLAMA_LIKE and longest <= attention_window(model.config):
        return LlamaDecoding
    return None


class _WarmupCache:
    """Keys and values of the warmups' own tokens: (layers, steps, B*n, heads, width), filled step by step.

    One query per warmup reads them at a time, so products with them are written as elementwise products and sums: as matrix
    products of one row each, which a CPU computes one by one, they took several times as long.
    """

    def __init__(self, layers: int, rows: int, steps: int, like: Tensor) -> None:
        self.keys = like.new_zeros(layers, steps, rows, like.size(1), like.size(-1))
        self.values = torch.zeros_like(self.keys)

    def add(self, layer: int, step: int, active: _ActiveRows, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (R, heads, width) of one step; returns all steps so far, (step + 1, B*n, heads, width), without a copy.

        Rows that have ended are returned too: their attention costs less than copying the others together.
        """
        for buffer, new in ((self.keys, keys), (self.values, values)):
            stored = buffer[layer, step]
            if len(new) == len(stored):
                stored.copy_(new)
            else:
                stored.index_copy_(0, active.rows, new.to(stored.dtype))  # dtypes may differ under autocast
        # the start token is written to a group's first row only
        every = self.keys.size(2) // (active.prompts * active.n)
        return self.keys[layer, : step + 1, ::every], self.values[layer, : step + 1, ::every]


class _ActiveRows:
    """R of the B*n warmups: all of them, or those that have not ended.

    Args:
        rows: (R,) their indices, prompt by prompt.
    """

    def __init__(self, rows: Tensor, prompts: int, n: int) -> None:
        self.rows, self.prompts, self.n = rows, prompts, n
        self.all = len(rows) == prompts * n

    def by_prompt(self, values: Tensor) -> Tensor:
        """(R, ...) -> (B, n, ...), with zeros for ended rows."""
        if not self.all:
            values = values.new_zeros(self.prompts * self.n, *values.shape[1:]).index_copy(0, self.rows, values)
        return values.view(self.prompts, self.n, *values.shape[1:])

    def by_row(self, values: Tensor) -> Tensor:
        """(B*n, ...) -> (R, ...)."""
        return values if self.all else values.index_select(0, self.rows)


class T5Decoding:
    """The decoder of T5 and mT5: `first` and `next` go token by token, `extend` reads whole continuations in one pass.

    Args:
        model: in eval mode.
        prefix_cache: of B prompts, without gradient.
        num_warmups: n.
        max_length: tokens of a warmup.
    """

    def __init__(self, model: Any, prefix_cache: PrefixCache, num_warmups: int, max_length: int) -> None:
        self.decoder, self.n = model.get_decoder(), num_warmups
        config, encoded = model.config, prefix_cache.states
        scales = getattr(config, "scale_decoder_outputs", False)  # an mT5 never scales
        self.scale = model.model_dim**-0.5 if scales else 1.0
        self.cross = [(k.transpose(2, 3).contiguous(), v.contiguous()) for k, v in prefix_cache.layers]
        self.prompt_bias = additive_mask(prefix_cache.mask == 0, encoded.dtype)[:, None, None]
        # The cache has a step for the start token and for all tokens but the last, after which nothing is drawn.
        self.bias = self._bias(max_length)[:, -1].t()[:, None]  # (max_length, 1, heads): distances max_length - 1 to 0
        self.cache = _WarmupCache(len(self.cross), len(encoded) * num_warmups, max_length, self.cross[0][1])
        self.start = torch.full_like(prefix_cache.mask[:, 0], config.decoder_start_token_id)

    def first(self) -> Tensor:
        """(B, d) states that predict the first token, the same for all warmups of a prompt."""
        prompts = len(self.start)
        rows = torch.arange(prompts * self.n, device=self.start.device)
        hidden = self._step(self.start, _ActiveRows(rows[:: self.n], prompts, 1), 0)
        for buffer in (self.cache.keys, self.cache.values):  # read once per prompt, copied to all its warmups
            buffer[:, 0] = buffer[:, 0, :: self.n].repeat_interleave(self.n, 1)
        return hidden

    def next(self, tokens: Tensor, rows: Tensor, step: int) -> Tensor:
        """(R, d) states that predict token `step` of these rows, after tokens (R,) were written at `step` - 1."""
        return self._step(tokens, _ActiveRows(rows, len(self.start), self.n), step)

    def _step(self, tokens: Tensor, active: _ActiveRows, step: int) -> Tensor:
        bias = self.bias[len(self.bias) - 1 - step :]

        def self_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.cache.add(layer, step, active, key, value)
            weights = ((active.by_prompt(query).flatten(0, 1) * keys).sum(-1) + bias).softmax(0)
            return active.by_row((weights[..., None] * values).sum(0))

        def cross_attend(layer: int, query: Tensor) -> Tensor:
            keys, values = self.cross[layer]
            weights = (active.by_prompt(query).transpose(1, 2) @ keys + self.prompt_bias).softmax(-1)
            return active.by_row((weights @ values).transpose(1, 2).flatten(0, 1))

        return self._layers(tokens, self_attend, cross_attend)

    def extend(self, prompts: Tensor, lengths: Tensor, inputs: Tensor, sequences: PaddedBuckets) -> Tensor:
        """(N, d) states that predict the token after each of `inputs` (N,), which continue the warmups of P prompts.

        Distances in a T5 are those of columns, so cached tokens are moved to the right, next to their continuation.

        Args:
            prompts: (P,) indices of the prompts.
            lengths: (P*n,) cached tokens of their warmups.
            sequences: P*n sequences in one bucket: the `inputs` that follow each warmup.
        """
        ((_, width),) = sequences.buckets
        rows, cached = _warmup_rows(prompts, self.n), int(lengths.max()) + 1
        source = torch.arange(cached, device=rows.device) - (cached - 1 - lengths[:, None])
        place = (source.clamp(min=0), rows[:, None])  # step and row in the cache
        total = cached + width
        bias = self._bias(total)[:, cached:] + _causal_bias(width, total, self.bias)
        bias = bias + additive_mask(F.pad(source < 0, (0, width)), bias.dtype)[:, None, None]  # (P*n, heads, W, total)

        def self_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = (
                torch.cat([past[layer][place].to(new.dtype), *sequences.pad(new)], 1).transpose(1, 2)
                for past, new in ((self.cache.keys, key), (self.cache.values, value))
            )
            weights = (sequences.pad(query)[0].transpose(1, 2) @ keys.transpose(2, 3) + bias).softmax(-1)
            return sequences.unpad([(weights @ values).transpose(1, 2)])

        def cross_attend(layer: int, query: Tensor) -> Tensor:
            keys, values = (x.index_select(0, prompts) for x in self.cross[layer])
            # (P, heads, n*W, d_kv)
            queries = sequences.pad(query)[0].unflatten(0, (-1, self.n)).flatten(1, 2).transpose(1, 2)
            weights = (queries @ keys + self.prompt_bias[prompts]).softmax(-1)
            return sequences.unpad([(weights @ values).transpose(1, 2).unflatten(1, (self.n, width)).flatten(0, 1)])

        return self._layers(inputs, self_attend, cross_attend)

    def scores_per_prompt(self, width: int) -> int:
        """Attention scores of one layer when `extend` reads `width` tokens after each of a prompt's warmups."""
        longest = max(self.prompt_bias.size(-1), self.cache.keys.size(1) + width)
        return self.n * self.cache.keys.size(3) * width * longest

    def _layers(
        self, tokens: Tensor, self_attend: Callable[..., Tensor], cross_attend: Callable[..., Tensor]
    ) -> Tensor:
        """(..., d) states of tokens (...,); both functions take a layer's number and projections (..., heads, d_kv)."""
        hidden = self.decoder.embed_tokens(tokens)
        for layer, block in enumerate(self.decoder.block):
            parts = block.layer
            attention, normed = parts[0].SelfAttention, parts[0].layer_norm(hidden)
            projected = [
                project(normed).unflatten(-1, (attention.n_heads, -1))
                for project in (attention.q, attention.k, attention.v)
            ]
            hidden = hidden + attention.o(self_attend(layer, *projected).flatten(-2))
            attention = parts[1].EncDecAttention
            query = attention.q(parts[1].layer_norm(hidden)).unflatten(-1, (attention.n_heads, -1))
            hidden = hidden + attention.o(cross_attend(layer, query).flatten(-2))
            hidden = parts[-1](hidden)
        return self.decoder.final_layer_norm(hidden) * self.scale

    def _bias(self, length: int) -> Tensor:
        """(heads, length, length): relative position bias, added to attention scores."""
        attention = self.decoder.block[0].layer[0].SelfAttention
        bias: Tensor = attention.compute_bias(length, length, device=self.prompt_bias.device)[0]
        return bias.to(self.prompt_bias.dtype)


class LlamaDecoding:
    """Llama, Mistral, Qwen2 and Qwen3, with the methods of `T5Decoding`. Query head h uses key head h // (heads/kv)."""

    def __init__(self, model: Any, prefix_cache: PrefixCache, num_warmups: int, max_length: int) -> None:
        self.body, self.n, self.heads = model.model, num_warmups, model.config.num_attention_heads
        self.lengths, self.last = prefix_cache.mask.sum(1), prefix_cache.states
        self.prompt = [(k.transpose(2, 3).contiguous(), v.contiguous()) for k, v in prefix_cache.layers]
        self.prompt_bias = additive_mask(prefix_cache.mask == 0, self.last.dtype)[:, None, None]
        self.cache = _WarmupCache(len(self.prompt), len(self.last) * num_warmups, max_length - 1, self.prompt[0][1])

    def first(self) -> Tensor:
        """(B, d) states that predict the first token: those of the prompts' last tokens."""
        return self.last

    def next(self, tokens: Tensor, rows: Tensor, step: int) -> Tensor:
        """(R, d) states that predict token `step` of these rows, after tokens (R,) were written at `step` - 1."""
        active = _ActiveRows(rows, len(self.lengths), self.n)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.cache.add(layer, step - 1, active, key, value)
            query = active.by_prompt(query.unflatten(1, (keys.size(2), -1)))  # (B, n, kv, heads/kv, width)
            shape = query.shape[1:4:2]
            prompt_scores = query.transpose(1, 2).flatten(2, 3) @ self.prompt[layer][0] + self.prompt_bias
            prompt_scores = prompt_scores.unflatten(2, shape).transpose(1, 2).flatten(0, 1)  # (B*n, kv, heads/kv, X)
            warmup_scores = (query.flatten(0, 1) * keys[:, :, :, None]).sum(-1)  # (step, B*n, kv, heads/kv)
            weights = torch.cat([prompt_scores, warmup_scores.movedim(0, 3)], 3).softmax(-1)
            prompt_weights, warmup_weights = weights.split([prompt_scores.size(3), len(keys)], 3)
            prompt_weights = prompt_weights.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(2, 3)
            out = (prompt_weights @ self.prompt[layer][1]).unflatten(2, shape).transpose(1, 2).flatten(0, 1)
            out = out + (warmup_weights.movedim(3, 0)[..., None] * values[:, :, :, None]).sum(0)
            return active.by_row(out).flatten(1, 2)

        return self._layers(tokens, self.lengths.repeat_interleave(self.n)[rows] + step - 1, attend)

    def extend(self, prompts: Tensor, lengths: Tensor, inputs: Tensor, sequences: PaddedBuckets) -> Tensor:
        """As `T5Decoding.extend`."""
        ((_, width),) = sequences.buckets
        rows, cached = _warmup_rows(prompts, self.n), int(lengths.max())
        total = cached + width
        empty = torch.arange(cached, device=rows.device) >= lengths[:, None]
        bias = additive_mask(F.pad(empty, (0, width)), self.last.dtype)[:, None] + _causal_bias(width, total, self.last)
        bias = bias.unflatten(0, (-1, 1, self.n))[..., None, :]  # (P, 1, n, W, 1, total)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            prompt_keys, prompt_values = (x.index_select(0, prompts) for x in self.prompt[layer])
            kv = prompt_keys.size(1)
            keys, values = (  # (P, kv, n, total, width)
                torch.cat([past[layer, :cached, rows].transpose(0, 1).to(new.dtype), *sequences.pad(new)], 1)
                .unflatten(0, (-1, self.n)).permute(0, 3, 1, 2, 4)
                for past, new in ((self.cache.keys, key), (self.cache.values, value))
            )  # fmt: skip
            (query,) = sequences.pad(query)
            # (P, kv, n, W*heads/kv, width)
            query = query.unflatten(2, (kv, -1)).unflatten(0, (-1, self.n)).permute(0, 3, 1, 2, 4, 5).flatten(3, 4)
            prompt_scores = query.flatten(2, 3) @ prompt_keys + self.prompt_bias[prompts]
            warmup_scores = ((query @ keys.transpose(3, 4)).unflatten(3, (width, -1)) + bias).flatten(3, 4)
            scores = torch.cat([prompt_scores.unflatten(2, warmup_scores.shape[2:4]), warmup_scores], 4)
            prompt_weights, warmup_weights = scores.softmax(-1).split([prompt_scores.size(3), total], 4)
            out = (prompt_weights.flatten(2, 3) @ prompt_values).unflatten(2, warmup_scores.shape[2:4])
            out = (out + warmup_weights @ values).unflatten(3, (width, -1)).permute(0, 2, 3, 1, 4, 5)
            return sequences.unpad([out.flatten(0, 1).flatten(2, 3)])

        before = self.lengths[prompts].repeat_interleave(self.n) + lengths
        return self._layers(inputs, sequences.position + before.index_select(0, sequences.sequence), attend)

    def scores_per_prompt(self, width: int) -> int:
        """As `T5Decoding.scores_per_prompt`."""
        longest = self.prompt_bias.size(-1) + self.cache.keys.size(1) + width
        return self.n * self.heads * width * longest

    def _layers(self, tokens: Tensor, positions: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """(..., d) states of tokens (...,) at `positions` (...,); `attend` takes a layer and projections (..., heads, width)."""
        hidden = self.body.embed_tokens(tokens)
        cos, sin = (x[0].unflatten(0, positions.shape) for x in self.body.rotary_emb(hidden, positions.view(1, -1)))
        for layer, block in enumerate(self.body.layers):
            attention, normed = block.self_attn, block.input_layernorm(hidden)
            query, key, value = (
                project(normed).unflatten(-1, (-1, attention.head_dim))
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):  # Qwen3
                query, key = attention.q_norm(query), attention.k_norm(key)
            query, key = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=-2)
            hidden = hidden + attention.o_proj(attend(layer, query * attention.scaling, key, value).flatten(-2))
            hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return self.body.norm(hidden)


def _warmup_rows(prompts: Tensor, n: int) -> Tensor:
    """(P*n,) rows of the warmups of P prompts."""
    return (prompts[:, None] * n + torch.arange(n, device=prompts.device)).flatten()


def _causal_bias(width: int, total: int, like: Tensor) -> Tensor:
    """(width, total) additive mask: each of the last `width` of `total` tokens attends to the ones before it and itself."""
    later = torch.ones(width, total, dtype=torch.bool, device=like.device).triu(total - width + 1)
    return additive_mask(later, like.dtype)
