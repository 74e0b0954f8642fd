"""How networks whose inside is known go on from a prompt: token by token for n warmups, then over what follows all of them.

Knows: the modules of T5 and of Llama and its kin, called one by one, so that adapters and hooks stay in effect. Must not
know: how a token is drawn. n warmups of one prompt are n queries of one row, so its keys and values are not copied for them;
every warmup's own live in a buffer of their final size; warmups that have ended are left out. `generate` copies prompts n
times, projects an encoder's output n times, and goes on writing padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rl_warmup.engine.fast.packed import PaddedGroups, hide
from rl_warmup.engine.fast.passes import PrefixCache, attention_window

T5_LIKE = ("t5", "mt5")
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


def decoding_for(model: Any, longest: int) -> type[T5Decoding] | type[LlamaDecoding] | None:
    """The class that decodes a (plain transformers) model, or None for an architecture whose inside is not known.

    Args:
        longest: tokens of the longest prompt, warmup and what follows it together; windows of attention must not be
            shorter.
    """
    kind = model.config.model_type
    if kind in T5_LIKE:
        return T5Decoding
    if kind in LLAMA_LIKE and longest <= attention_window(model.config):
        return LlamaDecoding
    return None


class _Own:
    """Keys and values of the warmups themselves: (layers, places, B*n, heads, width), filled step by step.

    One query looks at them at a time, so products with them are sums of elementwise ones: as matrices of one row each, which a
    processor multiplies one by one, they took several times as long.
    """

    def __init__(self, layers: int, rows: int, places: int, like: Tensor) -> None:
        self.keys = like.new_zeros(layers, places, rows, like.size(1), like.size(-1))
        self.values = torch.zeros_like(self.keys)

    def add(self, layer: int, step: int, grid: _Grid, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (R, heads, width) of one step; everything so far, (step + 1, B*n, heads, width), uncopied.

        Rows that have ended are read too: their attention costs less than copying the others together.
        """
        for buffer, new in ((self.keys, keys), (self.values, values)):
            place = buffer[layer, step]
            if len(new) == len(place):
                place.copy_(new)
            else:
                place.index_copy_(0, grid.rows, new.to(place.dtype))  # they may differ under autocast
        every = self.keys.size(2) // (grid.prompts * grid.n)  # the start token is written to a group's first row
        return self.keys[layer, : step + 1, ::every], self.values[layer, : step + 1, ::every]


class _Grid:
    """Which of the B*n places the rows at hand have: queries of a prompt stand beside each other, with gaps or without."""

    def __init__(self, rows: Tensor, prompts: int, n: int) -> None:
        self.rows, self.prompts, self.n = rows, prompts, n
        self.full = len(rows) == prompts * n

    def by_prompt(self, values: Tensor) -> Tensor:
        """(R, ...) -> (B, n, ...); gaps hold zeros."""
        if not self.full:
            values = values.new_zeros(self.prompts * self.n, *values.shape[1:]).index_copy(0, self.rows, values)
        return values.view(self.prompts, self.n, *values.shape[1:])

    def by_row(self, values: Tensor) -> Tensor:
        """(B*n, ...) -> (R, ...)."""
        return values if self.full else values.index_select(0, self.rows)


class T5Decoding:
    """The decoder of T5 and mT5, token by token, and then over all tokens of a continuation at once.

    Args:
        model: in eval mode.
        reading: of B prompts, without gradient.
        num_warmups: n.
        max_length: tokens that will be drawn.
    """

    def __init__(self, model: Any, prefix_cache: PrefixCache, num_warmups: int, max_length: int) -> None:
        self.decoder, self.n = model.get_decoder(), num_warmups
        config, encoded = model.config, prefix_cache.states
        scales = getattr(config, "scale_decoder_outputs", False)  # an mT5 never scales
        self.scale = model.model_dim**-0.5 if scales else 1.0
        self.cross = [(k.transpose(2, 3).contiguous(), v.contiguous()) for k, v in prefix_cache.layers]
        self.hidden_prompt = hide(prefix_cache.mask == 0, encoded.dtype)[:, None, None]
        # places of the start token and of all tokens but the last one, which nothing is drawn after
        self.bias = self._bias(max_length)[:, -1].t()[:, None]  # (max_length, 1, heads): distances max_length - 1 to 0
        self.own = _Own(len(self.cross), len(encoded) * num_warmups, max_length, self.cross[0][1])
        self.start = torch.full_like(prefix_cache.mask[:, 0], config.decoder_start_token_id)

    def first(self) -> Tensor:
        """(B, d) states that predict the first token, the same for all warmups of a prompt."""
        prompts = len(self.start)
        everyone = torch.arange(prompts * self.n, device=self.start.device)
        hidden = self._step(self.start, _Grid(everyone[:: self.n], prompts, 1), 0)
        for buffer in (self.own.keys, self.own.values):  # the start token was read once per prompt: all remember it
            buffer[:, 0] = buffer[:, 0, :: self.n].repeat_interleave(self.n, 1)
        return hidden

    def next(self, tokens: Tensor, rows: Tensor, step: int) -> Tensor:
        """(R, d) states that predict token `step` of these rows, after tokens (R,) were written at `step` - 1."""
        return self._step(tokens, _Grid(rows, len(self.start), self.n), step)

    def _step(self, tokens: Tensor, grid: _Grid, step: int) -> Tensor:
        bias = self.bias[len(self.bias) - 1 - step :]

        def look_back(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.own.add(layer, step, grid, key, value)
            weights = ((grid.by_prompt(query).flatten(0, 1) * keys).sum(-1) + bias).softmax(0)
            return grid.by_row((weights[..., None] * values).sum(0))

        def look_at_prompt(layer: int, query: Tensor) -> Tensor:
            keys, values = self.cross[layer]
            weights = (grid.by_prompt(query).transpose(1, 2) @ keys + self.hidden_prompt).softmax(-1)
            return grid.by_row((weights @ values).transpose(1, 2).flatten(0, 1))

        return self._layers(tokens, look_back, look_at_prompt)

    def continued(self, prompts: Tensor, lengths: Tensor, inputs: Tensor, lines: PaddedGroups) -> Tensor:
        """(N, d) states that predict the token after each of `inputs` (N,), which continue the warmups of P prompts.

        A T5 counts distances by columns, so what a row remembers is moved to the right, up against its continuation.

        Args:
            prompts: (P,) which ones.
            lengths: (P*n,) of their warmups.
            lines: a single rectangle: which of `inputs` follow each of them.
        """
        ((_, width),) = lines.groups
        rows, remembered = _rows_of(prompts, self.n), int(lengths.max()) + 1
        source = torch.arange(remembered, device=rows.device) - (remembered - 1 - lengths[:, None])
        place = (source.clamp(min=0), rows[:, None])
        total = remembered + width
        bias = self._bias(total)[:, remembered:] + _hide_later(width, total, self.bias)
        bias = bias + hide(F.pad(source < 0, (0, width)), bias.dtype)[:, None, None]  # (P*n, heads, W, total)

        def look_back(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = (
                torch.cat([past[layer][place].to(new.dtype), *lines.cut(new)], 1).transpose(1, 2)
                for past, new in ((self.own.keys, key), (self.own.values, value))
            )
            weights = (lines.cut(query)[0].transpose(1, 2) @ keys.transpose(2, 3) + bias).softmax(-1)
            return lines.joined([(weights @ values).transpose(1, 2)])

        def look_at_prompt(layer: int, query: Tensor) -> Tensor:
            keys, values = (x.index_select(0, prompts) for x in self.cross[layer])
            # (P, heads, n*W, d_kv)
            queries = lines.cut(query)[0].unflatten(0, (-1, self.n)).flatten(1, 2).transpose(1, 2)
            weights = (queries @ keys + self.hidden_prompt[prompts]).softmax(-1)
            return lines.joined([(weights @ values).transpose(1, 2).unflatten(1, (self.n, width)).flatten(0, 1)])

        return self._layers(inputs, look_back, look_at_prompt)

    def scores_per_prompt(self, width: int) -> int:
        """Attention scores of one layer when `continued` reads `width` tokens behind each of a prompt's warmups."""
        return self.n * self.own.keys.size(3) * width * max(self.hidden_prompt.size(-1), self.own.keys.size(1) + width)

    def _layers(
        self, tokens: Tensor, look_back: Callable[..., Tensor], look_at_prompt: Callable[..., Tensor]
    ) -> Tensor:
        """(..., d) states over tokens (...,); the two ways to look get a layer and projections (..., heads, d_kv)."""
        hidden = self.decoder.embed_tokens(tokens)
        for layer, block in enumerate(self.decoder.block):
            parts = block.layer
            attention, normed = parts[0].SelfAttention, parts[0].layer_norm(hidden)
            projected = [
                project(normed).unflatten(-1, (attention.n_heads, -1))
                for project in (attention.q, attention.k, attention.v)
            ]
            hidden = hidden + attention.o(look_back(layer, *projected).flatten(-2))
            attention = parts[1].EncDecAttention
            query = attention.q(parts[1].layer_norm(hidden)).unflatten(-1, (attention.n_heads, -1))
            hidden = hidden + attention.o(look_at_prompt(layer, query).flatten(-2))
            hidden = parts[-1](hidden)
        return self.decoder.final_layer_norm(hidden) * self.scale

    def _bias(self, places: int) -> Tensor:
        """(heads, places, places) what the decoder adds to a score by the distance of query and key."""
        attention = self.decoder.block[0].layer[0].SelfAttention
        bias: Tensor = attention.compute_bias(places, places, device=self.hidden_prompt.device)[0]
        return bias.to(self.hidden_prompt.dtype)


class LlamaDecoding:
    """Llama, Mistral, Qwen2 and Qwen3, as `T5Decoding`. `heads` queries share `kv` keys, head h reading key h // (heads/kv)."""

    def __init__(self, model: Any, prefix_cache: PrefixCache, num_warmups: int, max_length: int) -> None:
        self.body, self.n, self.heads = model.model, num_warmups, model.config.num_attention_heads
        self.lengths, self.last = prefix_cache.mask.sum(1), prefix_cache.states
        self.prompt = [(k.transpose(2, 3).contiguous(), v.contiguous()) for k, v in prefix_cache.layers]
        self.hidden_prompt = hide(prefix_cache.mask == 0, self.last.dtype)[:, None, None]
        self.own = _Own(len(self.prompt), len(self.last) * num_warmups, max_length - 1, self.prompt[0][1])

    def first(self) -> Tensor:
        """(B, d) states that predict the first token: those of the prompts' last tokens."""
        return self.last

    def next(self, tokens: Tensor, rows: Tensor, step: int) -> Tensor:
        """(R, d) states that predict token `step` of these rows, after tokens (R,) were written at `step` - 1."""
        grid = _Grid(rows, len(self.lengths), self.n)

        def look(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.own.add(layer, step - 1, grid, key, value)
            query = grid.by_prompt(query.unflatten(1, (keys.size(2), -1)))  # (B, n, kv, heads/kv, width)
            shape = query.shape[1:4:2]
            seen = query.transpose(1, 2).flatten(2, 3) @ self.prompt[layer][0] + self.hidden_prompt
            seen = seen.unflatten(2, shape).transpose(1, 2).flatten(0, 1)  # (B*n, kv, heads/kv, X)
            own = (query.flatten(0, 1) * keys[:, :, :, None]).sum(-1)  # (step, B*n, kv, heads/kv)
            weights = torch.cat([seen, own.movedim(0, 3)], 3).softmax(-1)
            of_prompt, of_own = weights.split([seen.size(3), len(keys)], 3)
            of_prompt = of_prompt.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(2, 3)
            read = (of_prompt @ self.prompt[layer][1]).unflatten(2, shape).transpose(1, 2).flatten(0, 1)
            read = read + (of_own.movedim(3, 0)[..., None] * values[:, :, :, None]).sum(0)
            return grid.by_row(read).flatten(1, 2)

        return self._layers(tokens, self.lengths.repeat_interleave(self.n)[rows] + step - 1, look)

    def continued(self, prompts: Tensor, lengths: Tensor, inputs: Tensor, lines: PaddedGroups) -> Tensor:
        """As `T5Decoding.continued`."""
        ((_, width),) = lines.groups
        rows, remembered = _rows_of(prompts, self.n), int(lengths.max())
        total = remembered + width
        unseen = torch.arange(remembered, device=rows.device) >= lengths[:, None]
        own = hide(F.pad(unseen, (0, width)), self.last.dtype)[:, None] + _hide_later(width, total, self.last)
        own = own.unflatten(0, (-1, 1, self.n))[..., None, :]  # (P, 1, n, W, 1, total)

        def look(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            prompt_keys, prompt_values = (x.index_select(0, prompts) for x in self.prompt[layer])
            kv = prompt_keys.size(1)
            keys, values = (  # (P, kv, n, total, width)
                torch.cat([past[layer, :remembered, rows].transpose(0, 1).to(new.dtype), *lines.cut(new)], 1)
                .unflatten(0, (-1, self.n)).permute(0, 3, 1, 2, 4)
                for past, new in ((self.own.keys, key), (self.own.values, value))
            )  # fmt: skip
            (query,) = lines.cut(query)
            # (P, kv, n, W*heads/kv, width)
            query = query.unflatten(2, (kv, -1)).unflatten(0, (-1, self.n)).permute(0, 3, 1, 2, 4, 5).flatten(3, 4)
            at_prompt = query.flatten(2, 3) @ prompt_keys + self.hidden_prompt[prompts]
            at_own = ((query @ keys.transpose(3, 4)).unflatten(3, (width, -1)) + own).flatten(3, 4)
            scores = torch.cat([at_prompt.unflatten(2, at_own.shape[2:4]), at_own], 4)
            of_prompt, of_own = scores.softmax(-1).split([at_prompt.size(3), total], 4)
            read = (of_prompt.flatten(2, 3) @ prompt_values).unflatten(2, at_own.shape[2:4]) + of_own @ values
            return lines.joined([read.unflatten(3, (width, -1)).permute(0, 2, 3, 1, 4, 5).flatten(0, 1).flatten(2, 3)])

        before = self.lengths[prompts].repeat_interleave(self.n) + lengths
        return self._layers(inputs, lines.place + before.index_select(0, lines.line), look)

    def scores_per_prompt(self, width: int) -> int:
        """As `T5Decoding.scores_per_prompt`."""
        seen = self.hidden_prompt.size(-1) + self.own.keys.size(1) + width
        return self.n * self.heads * width * seen

    def _layers(self, tokens: Tensor, places: Tensor, look: Callable[..., Tensor]) -> Tensor:
        """(..., d) states over tokens (...,) at `places` (...,); `look` gets a layer and projections (..., heads, width)."""
        hidden = self.body.embed_tokens(tokens)
        cos, sin = (x[0].unflatten(0, places.shape) for x in self.body.rotary_emb(hidden, places.view(1, -1)))
        for layer, block in enumerate(self.body.layers):
            attention, normed = block.self_attn, block.input_layernorm(hidden)
            query, key, value = (
                project(normed).unflatten(-1, (-1, attention.head_dim))
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):  # Qwen3
                query, key = attention.q_norm(query), attention.k_norm(key)
            query, key = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=-2)
            hidden = hidden + attention.o_proj(look(layer, query * attention.scaling, key, value).flatten(-2))
            hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return self.body.norm(hidden)


def _rows_of(prompts: Tensor, n: int) -> Tensor:
    """(P*n,) places of the warmups of P prompts."""
    return (prompts[:, None] * n + torch.arange(n, device=prompts.device)).flatten()


def _hide_later(width: int, total: int, like: Tensor) -> Tensor:
    """(width, total): each of the last `width` of `total` places sees those before it and itself."""
    later = torch.ones(width, total, dtype=torch.bool, device=like.device).triu(total - width + 1)
    return hide(later, like.dtype)
