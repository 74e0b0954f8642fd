"""How rows go through a stock network: prompts once and without padding (`packed`) where that is possible.

Knows: Hugging Face forwards. Must not know: the head's vocabulary, what a row is for.
Each way returns `States`: hidden states in the order in which they came out, and where to find the one that predicts a
token. A prompt's keys and values are computed once and every warmup of its group sends its gradient back through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from rl_warmup.engine.fast.buckets import (
    WORTH_A_LINE,
    WORTH_A_PASS,
    Groups,
    buckets,
    consecutive,
    first_slots,
    into_lines,
)
from rl_warmup.engine.fast.head import Head
from rl_warmup.engine.fast.packed import IMPLEMENTATIONS, Layers, PackedAttention, PaddedGroups, attending

# Most that goes through a network in one pass. On a CPU, numbers of the widest tensor, 16 MiB of float32: the C library hands
# tensors above 32 MiB back after each use, and the system clears every page of the next one. On an accelerator, tokens; a guess.
NUMBERS_AT_ONCE, TOKENS_AT_ONCE = 1 << 22, 1 << 14


class ScoringRows(NamedTuple):
    """B prompts and N rows that continue them; see `batch.WarmupBatch`."""

    prompt_ids: Tensor  # (B, X), padded on the right
    prompt_mask: Tensor  # (B, X)
    prompt_index: Tensor  # (N,)
    seq_ids: Tensor  # (N, T), padded on the right
    seq_mask: Tensor  # (N, T)


class PrefixCache(NamedTuple):
    """What a network has made of B prompts; carries gradient unless it was made without."""

    mask: Tensor  # (B, X): the prompts' tokens
    states: Tensor  # encoder-decoder: (B, X, d) of all tokens; decoder-only: (B, d) of the last ones
    layers: Layers  # keys and values (B, heads, X, width) that later tokens look at

    def detach(self) -> PrefixCache:
        """The same without the graph behind it."""
        pairs = [(keys.detach(), values.detach()) for keys, values in self.layers]
        return PrefixCache(self.mask, self.states.detach(), pairs)

    def split(self, counts: list[int]) -> list[PrefixCache]:
        """Of so many prompts each."""
        if len(counts) == 1:
            return [self]
        layers = zip(*(zip(k.split(counts), v.split(counts), strict=True) for k, v in self.layers), strict=True)
        rest = self.mask.split(counts), self.states.split(counts)
        return [PrefixCache(*part) for part in zip(*rest, map(list, layers), strict=True)]


class States(NamedTuple):
    """Hidden states of rows."""

    hidden: Tensor  # (S, d)
    where: Tensor  # (N, T) int64: hidden[where[n, t]] predicts token t of row n; arbitrary in padding


def read_prompts(model: Any, head: Head, prompt_ids: Tensor, prompt_mask: Tensor) -> PrefixCache:
    """Every prompt (B, X), padded on the right, once, by a network that `packs`."""
    ids = prompt_ids[prompt_mask.bool()]
    if model.config.is_encoder_decoder:
        return _read(model, head, prompt_mask, model.get_encoder().get_input_embeddings()(ids[:, None]))
    return _read(model, head, prompt_mask, model.get_input_embeddings()(ids[None]))


def _read(model: Any, head: Head, prompt_mask: Tensor, embedded: Tensor) -> PrefixCache:
    """Prompts whose tokens' embeddings, (1, N, d) or for an encoder (N, 1, d), lie end to end.

    A T5's decoder makes keys and values of what the encoder says; a decoder-only network has them from reading.
    """
    lengths = prompt_mask.sum(1).tolist()
    lines = PaddedGroups(lengths, prompt_mask.device)
    whole = PaddedGroups(lengths, prompt_mask.device, prompt_mask.size(1))

    def padded(kept: Layers) -> Layers:
        return [(whole.cut(k)[0].transpose(1, 2), whole.cut(v)[0].transpose(1, 2)) for k, v in kept]

    if model.config.is_encoder_decoder:
        packing = PackedAttention(lines, [real[:, None, None] for real in lines.real])
        with attending(model, packing) as extra:
            encoded = model.get_encoder()(inputs_embeds=embedded, **extra).last_hidden_state[:, 0]
        return PrefixCache(prompt_mask, whole.cut(encoded)[0], padded(_cross_projections(model, encoded)))
    packing = PackedAttention(lines)
    read = head.capture(packing, inputs_embeds=embedded, position_ids=lines.place[None])[0]
    return PrefixCache(prompt_mask, read.index_select(0, lines.begin + prompt_mask.sum(1) - 1), padded(packing.kept))


def decoder_states(model: Any, head: Head, rows: ScoringRows, prefix_cache: PrefixCache | None = None) -> States:
    """T5: every prompt is read and projected once, whatever the number of its rows.

    Args:
        reading: of the prompts, where there is one already.
    """
    if prefix_cache is None:
        prefix_cache = read_prompts(model, head, rows.prompt_ids, rows.prompt_mask)
    device, prompts, lengths = rows.seq_ids.device, rows.prompt_index.tolist(), rows.seq_mask.sum(1).tolist()
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    index = torch.tensor(order, device=device)
    tokens_of = [0] * len(rows.prompt_ids)
    for prompt, length in zip(prompts, lengths, strict=True):
        tokens_of[prompt] += length
    ids = _decoder_inputs(model, rows)[index][rows.seq_mask[index].bool()]
    embedded = model.get_decoder().get_input_embeddings()(ids)[:, None]
    hidden = []
    for part, read, inputs in _parts(head, tokens_of, prefix_cache, embedded):
        owners = [prompt for prompt in part if tokens_of[prompt]]
        across = PackedAttention(
            PaddedGroups([tokens_of[prompt] for prompt in owners], device), None, read.layers,
            torch.tensor([prompt - part.start for prompt in owners], device=device), read.mask.bool(),
        )  # fmt: skip
        lines = PaddedGroups([lengths[row] for row in order if prompts[row] in part], device)
        states = head.capture(
            PackedAttention(lines, across=across),
            encoder_outputs=BaseModelOutput(last_hidden_state=read.states[:1]),  # not read: keys and values are there
            decoder_inputs_embeds=inputs,
            past_key_values=EncoderDecoderCache(Cache(layer_class_to_replicate=_Once), _filled(read.layers)),
        )
        hidden.append(states[:, 0])
    starts = torch.tensor([0, *accumulate(lengths[row] for row in order[:-1])], device=device)
    begin = torch.empty_like(index).index_copy(0, index, starts)
    where = begin[:, None] + torch.arange(rows.seq_ids.size(1), device=device)
    states = torch.cat(hidden)
    return States(states, where.clamp(max=len(states) - 1))


def shared_states(model: Any, head: Head, rows: ScoringRows, prefix_cache: PrefixCache | None = None) -> States:
    """Decoder-only, every prompt read once: its rows follow, several in a line where that is cheaper.

    A row's tokens see the prompt's keys and values and their own row, at the positions they would have alone.

    Args:
        reading: of the prompts, where there is one already.
    """
    device, embedding = rows.prompt_ids.device, model.get_input_embeddings()
    inputs = rows.seq_mask.sum(1) - 1  # nothing is predicted from a row's last token
    room = min(embedding.weight.size(-1), int(WORTH_A_LINE * rows.prompt_ids.size(1) ** 0.5))
    packed = into_lines(inputs.tolist(), rows.prompt_index.tolist(), room)
    starts = [0, *accumulate(packed.filled)]
    begin = torch.tensor([starts[line] + offset for line, offset in packed.row], device=device)
    step = torch.arange(rows.seq_ids.size(1), device=device)
    real = step < inputs[:, None]
    slots = (begin[:, None] + step)[real]

    def placed(values: Tensor) -> Tensor:
        """(N, T) or what expands to it -> of every token, in its line."""
        return torch.empty_like(slots).index_copy(0, slots, values.expand_as(real)[real])

    # one look-up of everything: each would cost a gradient as large as the whole embedding
    unread = rows.prompt_ids[rows.prompt_mask.bool()] if prefix_cache is None else slots[:0]
    before, of_lines = embedding(torch.cat([unread, placed(rows.seq_ids)])[None]).split([len(unread), len(slots)], 1)
    if prefix_cache is None:
        prefix_cache = _read(model, head, rows.prompt_mask, before)
    number, position = placed(torch.arange(len(begin), device=device)[:, None]), placed(step)
    place = prefix_cache.mask.sum(1)[rows.prompt_index][number] + position
    tokens_of = [0] * len(rows.prompt_ids)
    for prompt, filled in zip(packed.prompt, packed.filled, strict=True):
        tokens_of[prompt] += filled
    hidden = [prefix_cache.states]
    for part, read, inputs, numbers, spots, places in _parts(
        head, tokens_of, prefix_cache, of_lines[0], number, position, place
    ):
        chosen = [line for line, prompt in enumerate(packed.prompt) if prompt in part]
        owners = torch.tensor([packed.prompt[line] - part.start for line in chosen], device=device)
        lines = PaddedGroups([packed.filled[line] for line in chosen], device)
        seen = [
            ((row[:, :, None] == row[:, None]) & (spot[:, :, None] >= spot[:, None]) & real[:, None])[:, None]
            for row, spot, real in zip(lines.cut(numbers), lines.cut(spots), lines.real, strict=True)
        ]
        states = head.capture(
            PackedAttention(lines, seen, read.layers, owners, read.mask.bool()),
            inputs_embeds=inputs[None],
            position_ids=places[None],
        )
        hidden.append(states[0])
    where = torch.cat([rows.prompt_index[:, None], len(rows.prompt_ids) + begin[:, None] + step[:-1]], 1)
    states = torch.cat(hidden)
    return States(states, where.clamp(max=len(states) - 1))


def joined_states(model: Any, head: Head, rows: ScoringRows) -> States:
    """Decoder-only, prompt and row behind each other: for one row per prompt."""
    ids, lengths, before = _joined(rows)
    real = torch.arange(ids.size(1), device=ids.device) < lengths[:, None]
    lines = PaddedGroups(lengths.tolist(), ids.device)
    embedded = model.get_input_embeddings()(ids[real])
    hidden = head.capture(PackedAttention(lines), inputs_embeds=embedded[None], position_ids=lines.place[None])[0]
    where = (lines.begin + before)[:, None] - 1 + torch.arange(rows.seq_ids.size(1), device=ids.device)
    return States(hidden, where.clamp(max=len(hidden) - 1))


def _parts(head: Head, tokens_of: list[int], prefix_cache: PrefixCache, *values: Tensor) -> Iterator[tuple[Any, ...]]:
    """Prompts whose rows go through in one pass: their range, what was read of them, and their share of all `values`.

    Args:
        tokens_of: how many tokens the rows of each prompt have.
        values: (N, ...) of these tokens, prompt by prompt.
    """
    # for parameters that live in shards every process has to make the same calls
    parts = consecutive(tokens_of, sum(tokens_of) if head.sharded else tokens_at_once(head.model, values[0].device))
    counts = [sum(tokens_of[prompt] for prompt in part) for part in parts]
    readings = prefix_cache.split([len(part) for part in parts])
    yield from zip(parts, readings, *(every.split(counts) for every in values), strict=True)


def tokens_at_once(model: Any, device: torch.device) -> int:
    """Most tokens of one pass; its widest tensors are those of the feed-forward layers, some four times as wide as states."""
    width = model.config.get_text_config(decoder=True).hidden_size
    return max(1, NUMBERS_AT_ONCE // (4 * width)) if device.type == "cpu" else TOKENS_AT_ONCE


def padded_decoder_states(model: Any, head: Head, rows: ScoringRows, one_pass: bool) -> States:
    """Encoder-decoder as it comes, decoder rows of similar length in a pass.

    Args:
        one_pass: for parameters that live in shards: every process has to make the same calls.
    """
    encoded = model.get_encoder()(input_ids=rows.prompt_ids, attention_mask=rows.prompt_mask).last_hidden_state
    passes = []
    groups = buckets(rows.seq_mask.sum(1).tolist(), inf if one_pass else WORTH_A_PASS)
    inputs = _decoder_inputs(model, rows)
    parts = [torch.tensor(chosen, device=inputs.device) for chosen, _ in groups]
    ids = [inputs[index, :width] for index, (_, width) in zip(parts, groups, strict=True)]
    embedded = _embed(model.get_decoder().get_input_embeddings(), ids)
    for index, inputs_embeds in zip(parts, embedded, strict=True):
        prompts = rows.prompt_index[index]
        states = BaseModelOutput(last_hidden_state=encoded.index_select(0, prompts))
        passes.append(
            head.capture(
                encoder_outputs=states,
                attention_mask=rows.prompt_mask[prompts],
                decoder_inputs_embeds=inputs_embeds,
                use_cache=False,
            )
        )
    return _join(passes, groups, rows.seq_ids.size(1))


def padded_joined_states(model: Any, head: Head, rows: ScoringRows, one_pass: bool) -> States:
    """Decoder-only as it comes, prompt and row behind each other, those of similar length in a pass."""
    every, lengths, before = _joined(rows)
    groups = buckets(lengths.tolist(), inf if one_pass else WORTH_A_PASS)
    parts = [torch.tensor(chosen, device=every.device) for chosen, _ in groups]
    ids = [every[index, :width] for index, (_, width) in zip(parts, groups, strict=True)]
    embedded = _embed(model.get_input_embeddings(), ids)
    passes = []
    for index, inputs_embeds in zip(parts, embedded, strict=True):
        mask = torch.arange(inputs_embeds.size(1), device=every.device) < lengths[index, None]
        passes.append(head.capture(inputs_embeds=inputs_embeds, attention_mask=mask.long(), use_cache=False))
    hidden, where = _join(passes, groups, rows.seq_ids.size(1))
    where = where + before[:, None] - 1  # the token before a row's first is its prompt's last
    return States(hidden, where.clamp(max=len(hidden) - 1))


def _decoder_inputs(model: Any, rows: ScoringRows) -> Tensor:
    """(N, T): what a decoder reads to predict every row."""
    start = torch.full_like(rows.seq_ids[:, :1], model.config.decoder_start_token_id)
    return torch.cat([start, rows.seq_ids[:, :-1]], 1)


def _joined(rows: ScoringRows) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt and row behind each other (N, X+T), how long both are (N,), and the prompt alone (N,)."""
    before, lengths = rows.prompt_mask.sum(1)[rows.prompt_index], rows.seq_mask.sum(1)
    columns = torch.arange(int((before + lengths).max()), device=lengths.device).expand(len(lengths), -1)
    prompt = rows.prompt_ids[rows.prompt_index].gather(1, columns.clamp(max=rows.prompt_ids.size(1) - 1))
    row = rows.seq_ids.gather(1, (columns - before[:, None]).clamp(0, rows.seq_ids.size(1) - 1))
    return torch.where(columns < before[:, None], prompt, row), before + lengths, before


def drops_caches(model: Any) -> bool:
    """Whether layers will ignore caches: those that checkpoint do so in training mode, with gradient or without."""
    return model.training and checkpoints_layers(model)


def checkpoints_layers(model: Any) -> bool:
    """Whether gradient checkpointing is on; the model's own word for it changes its name in transformers 6."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def attention_window(config: Any) -> float:
    """How far back every layer looks: a block mask replaces the windows of layers that look less far."""
    config = config.get_text_config(decoder=True)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None)
    return window if slides and window else float("inf")


def _embed(embedding: Any, ids: list[Tensor]) -> list[Tensor]:
    """Embed several (n, width) at once: every look-up would cost a gradient as large as the whole embedding."""
    if len(ids) == 1:
        return [embedding(ids[0])]
    flat = embedding(torch.cat([part.flatten() for part in ids]))
    return [part.view(*like.shape, -1) for part, like in zip(flat.split([i.numel() for i in ids]), ids, strict=True)]


class _Once(DynamicLayer):
    """Holds what it was given last, as it is."""

    keys: Any
    values: Any
    is_initialized: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


def _filled(layers: Layers) -> Cache:
    """A cache that holds these keys and values."""
    cache = Cache(layer_class_to_replicate=_Once)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def _cross_attentions(model: Any) -> list[Any] | None:
    """Those of every decoder layer, or None for a decoder that is not T5's."""
    try:
        return [block.layer[1].EncDecAttention for block in model.get_decoder().block]
    except AttributeError:
        return None


def _cross_projections(model: Any, encoded: Tensor) -> Layers:
    """Keys and values (N, heads, d_kv) that every layer of a T5's decoder makes of N encoded tokens."""

    def heads(projected: Tensor, attention: Any) -> Tensor:
        return projected.unflatten(-1, (-1, attention.key_value_proj_dim))

    return [(heads(a.k(encoded), a), heads(a.v(encoded), a)) for a in _cross_attentions(model) or ()]


def packs(model: Any) -> bool:
    """Whether there is a way through this network without padding, as far as can be told before it is tried."""
    known = not model.config.is_encoder_decoder or _cross_attentions(model) is not None
    return known and model.config._attn_implementation in IMPLEMENTATIONS


def _join(passes: list[Tensor], groups: Groups, length: int) -> States:
    """(n, width, d) of every group of rows, one behind the other, and where row n's position t is."""
    hidden = torch.cat([states.flatten(0, 1) for states in passes]) if len(passes) > 1 else passes[0].flatten(0, 1)
    begin = torch.tensor(first_slots(groups), device=hidden.device)
    where = begin[:, None] + torch.arange(length, device=hidden.device)
    return States(hidden, where.clamp(max=len(hidden) - 1))
