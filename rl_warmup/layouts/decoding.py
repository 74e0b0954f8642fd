"""One decoding step of the networks whose inside is known: n warmups of one prompt are n queries of one row.

Knows: the modules of T5 and of Llama and its kin, called one by one, so that adapters and hooks stay in effect. Must not
know: how a token is drawn. A prompt's keys and values exist once and are never copied; every warmup's own live in a buffer
of their final size; warmups that have ended are left out. `generate` copies prompts n times, projects an encoder's output n
times, and goes on writing padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rl_warmup.layouts.passes import Reading, attention_window, prefix_cache

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
    """Keys and values of the warmups themselves: (layers, max_length, B*n, heads, width), filled step by step.

    One query looks at them at a time, so products with them are sums of elementwise ones: as matrices of one row each, which a
    processor multiplies one by one, they took several times as long.
    """

    def __init__(self, layers: int, rows: int, max_length: int, like: Tensor) -> None:
        self.keys = like.new_zeros(layers, max_length, rows, like.size(1), like.size(-1))
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
                place.index_copy_(0, grid.rows, new.to(place.dtype))  # autocast: a cache is float32, products are bf16
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
    """The decoder of T5 and mT5, token by token.

    Args:
        model: in eval mode.
        reading: of B prompts, without gradient.
        num_warmups: n.
        max_length: steps that will be taken.
    """

    def __init__(self, model: Any, reading: Reading, num_warmups: int, max_length: int) -> None:
        self.decoder, self.n, self.reading = model.get_decoder(), num_warmups, reading
        config, encoded = model.config, reading.states
        scales = getattr(config, "scale_decoder_outputs", False)  # an mT5 never scales
        self.scale = model.model_dim**-0.5 if scales else 1.0
        self.cross = [(k.transpose(2, 3).contiguous(), v.contiguous()) for k, v in reading.layers]
        self.hidden_prompt = _hide(reading.mask == 0, encoded.dtype)
        attention = self.decoder.block[0].layer[0].SelfAttention
        places = max_length + 1  # the start token has one too
        by_distance = attention.compute_bias(places, places, device=encoded.device)[0, :, -1]
        self.bias = by_distance.t()[:, None].to(encoded.dtype)  # (places, 1, heads): distances max_length to 0
        self.own = _Own(len(self.cross), len(encoded) * num_warmups, places, self.cross[0][1])
        self.start = torch.full_like(reading.mask[:, 0], config.decoder_start_token_id)

    def first(self) -> Tensor:
        """(B, d) states that predict the first token, the same for all warmups of a prompt."""
        prompts = len(self.start)
        everyone = torch.arange(prompts * self.n, device=self.start.device)
        return self._step(self.start, _Grid(everyone[:: self.n], prompts, 1), 0)

    def next(self, tokens: Tensor, rows: Tensor, step: int) -> Tensor:
        """(R, d) states that predict token `step` of these rows, after tokens (R,) were written at `step` - 1."""
        return self._step(tokens, _Grid(rows, len(self.start), self.n), step)

    def _step(self, tokens: Tensor, grid: _Grid, step: int) -> Tensor:
        hidden = self.decoder.embed_tokens(tokens)
        bias = self.bias[len(self.bias) - 1 - step :]
        for layer, block in enumerate(self.decoder.block):
            parts = block.layer
            attention, normed = parts[0].SelfAttention, parts[0].layer_norm(hidden)
            query, key, value = (
                project(normed).unflatten(1, (attention.n_heads, -1))
                for project in (attention.q, attention.k, attention.v)
            )
            keys, values = self.own.add(layer, step, grid, key, value)
            weights = ((grid.by_prompt(query).flatten(0, 1) * keys).sum(-1) + bias).softmax(0)
            hidden = hidden + attention.o(grid.by_row((weights[..., None] * values).sum(0)).flatten(1))
            attention = parts[1].EncDecAttention
            query = attention.q(parts[1].layer_norm(hidden)).unflatten(1, (attention.n_heads, -1))
            keys, values = self.cross[layer]
            weights = (grid.by_prompt(query).transpose(1, 2) @ keys + self.hidden_prompt).softmax(-1)
            hidden = hidden + attention.o(grid.by_row((weights @ values).transpose(1, 2).flatten(0, 1)).flatten(1))
            hidden = parts[-1](hidden)
        if step == 0:  # the start token is read once per prompt, and remembered by all its warmups
            for buffer in (self.own.keys, self.own.values):
                buffer[:, 0] = buffer[:, 0, grid.rows].repeat_interleave(self.n, 1)
        return self.decoder.final_layer_norm(hidden) * self.scale

    def continuation(self, rows: Tensor, lengths: Tensor, inputs: Tensor) -> dict[str, Any]:
        """Arguments of the stock forward that continues these rows (R,) with `inputs` (R, W).

        A T5 counts distances by columns, so what a row remembers is moved to the right, up against its continuation.
        """
        owner, longest = rows // self.n, int(lengths.max())
        source = torch.arange(longest + 1, device=rows.device) - (longest - lengths[:, None])  # (R, longest + 1)
        place = (source.clamp(min=0), rows[:, None])
        remembered = [
            (keys[place].transpose(1, 2), values[place].transpose(1, 2))
            for keys, values in zip(self.own.keys, self.own.values, strict=True)
        ]
        cross = [(keys[owner], values[owner]) for keys, values in self.reading.layers]
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=self.reading.states[:1].expand(len(rows), -1, -1)),
            "attention_mask": self.reading.mask[owner],
            "decoder_input_ids": inputs,
            "decoder_attention_mask": torch.cat([source >= 0, torch.ones_like(inputs, dtype=torch.bool)], 1).long(),
            "past_key_values": EncoderDecoderCache(prefix_cache(remembered), prefix_cache(cross)),
        }


class LlamaDecoding:
    """Llama, Mistral, Qwen2 and Qwen3, token by token. Arguments as for `T5Decoding`."""

    def __init__(self, model: Any, reading: Reading, num_warmups: int, max_length: int) -> None:
        self.body, self.n, self.reading = model.model, num_warmups, reading
        self.lengths, self.last = reading.mask.sum(1), reading.states
        self.prompt = [(k.transpose(2, 3).contiguous(), v.contiguous()) for k, v in reading.layers]
        self.hidden_prompt = _hide(reading.mask == 0, self.last.dtype)
        self.own = _Own(len(self.prompt), len(self.last) * num_warmups, max_length, self.prompt[0][1])

    def first(self) -> Tensor:
        """(B, d) states that predict the first token: those of the prompts' last tokens."""
        return self.last

    def next(self, tokens: Tensor, rows: Tensor, step: int) -> Tensor:
        """(R, d) states that predict token `step` of these rows, after tokens (R,) were written at `step` - 1."""
        grid = _Grid(rows, len(self.lengths), self.n)
        hidden = self.body.embed_tokens(tokens)
        places = self.lengths.repeat_interleave(self.n)[rows] + step - 1
        cos, sin = (x[:, 0] for x in self.body.rotary_emb(hidden, places[:, None]))
        for layer, block in enumerate(self.body.layers):
            attention, normed = block.self_attn, block.input_layernorm(hidden)
            query, key, value = (
                project(normed).unflatten(1, (-1, attention.head_dim))
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):  # Qwen3
                query, key = attention.q_norm(query), attention.k_norm(key)
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            keys, values = self.own.add(layer, step - 1, grid, key, value)
            read = self._attend(query * attention.scaling, keys, values, layer, grid)
            hidden = hidden + attention.o_proj(read)
            hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        return self.body.norm(hidden)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, layer: int, grid: _Grid) -> Tensor:
        """(R, heads*width): one softmax over the prompt's tokens, which a group shares, and the warmup's own.

        `heads` queries share `kv` keys, head h reading key h // (heads/kv).
        """
        prompt_keys, prompt_values = self.prompt[layer]  # (B, kv, width, X), (B, kv, X, width)
        query = grid.by_prompt(query.unflatten(1, (keys.size(2), -1)))  # (B, n, kv, heads/kv, width)
        seen = query.transpose(1, 2).flatten(2, 3) @ prompt_keys + self.hidden_prompt  # (B, kv, n*heads/kv, X)
        seen = seen.unflatten(2, query.shape[1:4:2]).transpose(1, 2).flatten(0, 1)
        own = (query.flatten(0, 1) * keys[:, :, :, None]).sum(-1)  # (step, B*n, kv, heads/kv)
        of_prompt, of_own = torch.cat([seen, own.movedim(0, 3)], 3).softmax(-1).split([seen.size(3), len(keys)], 3)
        of_prompt = of_prompt.unflatten(0, query.shape[:2]).transpose(1, 2).flatten(2, 3)
        read = (of_prompt @ prompt_values).unflatten(2, query.shape[1:4:2]).transpose(1, 2).flatten(0, 1)
        return grid.by_row(read + (of_own.movedim(3, 0)[..., None] * values[:, :, :, None]).sum(0)).flatten(1)

    def continuation(self, rows: Tensor, lengths: Tensor, inputs: Tensor) -> dict[str, Any]:
        """Arguments of the stock forward that continues these rows (R,) with `inputs` (R, W)."""
        owner, longest, width = rows // self.n, int(lengths.max()), inputs.size(1)
        remembered = [
            (
                torch.cat([prompt_keys[owner], keys[:longest, rows].permute(1, 2, 0, 3)], 2),
                torch.cat([prompt_values[owner], values[:longest, rows].permute(1, 2, 0, 3)], 2),
            )
            for (prompt_keys, prompt_values), keys, values in zip(
                self.reading.layers, self.own.keys, self.own.values, strict=True
            )
        ]
        own = torch.arange(longest, device=rows.device) < lengths[:, None]
        before = torch.cat([self.reading.mask[owner].bool(), own], 1)[:, None].expand(-1, width, -1)
        among = torch.ones(width, width, dtype=torch.bool, device=rows.device).tril().expand(len(rows), -1, -1)
        hidden = ~torch.cat([before, among], 2)[:, None]
        places = (self.lengths[owner] + lengths)[:, None] + torch.arange(width, device=rows.device)
        return {
            "input_ids": inputs,
            "attention_mask": torch.zeros(hidden.shape, dtype=self.last.dtype, device=rows.device).masked_fill(
                hidden, torch.finfo(self.last.dtype).min
            ),
            "position_ids": places,
            "past_key_values": prefix_cache(remembered),
            "use_cache": True,
        }


def _heads(projected: Tensor, attention: Any) -> Tensor:
    """(B, L, heads*width) -> (B, heads, L, width)."""
    return projected.view(*projected.shape[:2], attention.n_heads, -1).transpose(1, 2)


def _hide(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, X) bool -> (B, 1, 1, X), to be added to attention scores."""
    return torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill(padding, torch.finfo(dtype).min)[
        :, None, None
    ]
