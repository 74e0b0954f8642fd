"""Forward passes that turn rows into hidden states: packed without padding (`packed`) if the network allows it, else padded.

Knows: Hugging Face forwards. Must not know: the head's vocabulary, what a row is for.
Every function returns `States`: hidden states in the order of the passes, and for each token the index of the state that
predicts it. A prompt's keys and values are computed once, and every warmup of its group sends its gradient back through them.
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
    MIN_SAVING_PER_PASS,
    PACKED_LENGTH_FACTOR,
    Buckets,
    buckets,
    first_slots,
    pack_rows,
    split_evenly,
)
from rl_warmup.engine.fast.head import Head
from rl_warmup.engine.fast.packed import IMPLEMENTATIONS, KeysValues, PackedAttention, PaddedBuckets, packed_attention
from rl_warmup.runtime import compat

# Limits of one pass. On a CPU: numbers of the widest tensor, 16 MiB of float32; malloc returns blocks above 32 MiB to the
# system, so each new one costs page faults. On an accelerator: tokens, a guess.
MAX_NUMBERS_PER_PASS, MAX_TOKENS_PER_PASS = 1 << 22, 1 << 14


class ScoringRows(NamedTuple):
    """B prompts and N rows that continue them; see `batch.WarmupBatch`."""

    prompt_ids: Tensor  # (B, X), padded on the right
    prompt_mask: Tensor  # (B, X)
    prompt_index: Tensor  # (N,)
    seq_ids: Tensor  # (N, T), padded on the right
    seq_mask: Tensor  # (N, T)


class PrefixCache(NamedTuple):
    """Hidden states, keys and values of B prompts; with gradient if gradients were on."""

    mask: Tensor  # (B, X): the prompts' tokens
    states: Tensor  # encoder-decoder: (B, X, d) of all tokens; decoder-only: (B, d) of the last ones
    layers: KeysValues  # keys and values (B, heads, X, width) to which later tokens attend

    def detach(self) -> PrefixCache:
        """The same numbers without gradient."""
        pairs = [(keys.detach(), values.detach()) for keys, values in self.layers]
        return PrefixCache(self.mask, self.states.detach(), pairs)

    def split(self, counts: list[int]) -> list[PrefixCache]:
        """One cache for each count: the next so many prompts."""
        if len(counts) == 1:
            return [self]
        layers = zip(*(zip(k.split(counts), v.split(counts), strict=True) for k, v in self.layers), strict=True)
        rest = self.mask.split(counts), self.states.split(counts)
        return [PrefixCache(*part) for part in zip(*rest, map(list, layers), strict=True)]


class States(NamedTuple):
    """Hidden states of rows."""

    hidden: Tensor  # (S, d)
    predicting: Tensor  # (N, T) int64: hidden[predicting[n, t]] predicts token t of row n; arbitrary in padding


def read_prompts(model: Any, head: Head, prompt_ids: Tensor, prompt_mask: Tensor) -> PrefixCache:
    """Run a network for which `can_pack` is true over prompts (B, X), padded on the right, each once."""
    ids = prompt_ids[prompt_mask.bool()]
    if model.config.is_encoder_decoder:
        return _read_embedded(model, head, prompt_mask, model.get_encoder().get_input_embeddings()(ids[:, None]))
    return _read_embedded(model, head, prompt_mask, model.get_input_embeddings()(ids[None]))


def _read_embedded(model: Any, head: Head, prompt_mask: Tensor, embedded: Tensor) -> PrefixCache:
    """`read_prompts` from the embeddings of the N prompt tokens: (1, N, d), or (N, 1, d) for an encoder.

    Keys and values are those of the T5 decoder's cross-attention, or of a decoder-only network's self-attention.
    """
    lengths = prompt_mask.sum(1).tolist()
    sequences = PaddedBuckets(lengths, prompt_mask.device)
    one_bucket = PaddedBuckets(lengths, prompt_mask.device, prompt_mask.size(1))

    def padded(pairs: KeysValues) -> KeysValues:
        return [(one_bucket.pad(k)[0].transpose(1, 2), one_bucket.pad(v)[0].transpose(1, 2)) for k, v in pairs]

    if model.config.is_encoder_decoder:
        packing = PackedAttention(sequences, [real[:, None, None] for real in sequences.real])
        with packed_attention(model, packing) as extra:
            encoded = model.get_encoder()(inputs_embeds=embedded, **extra).last_hidden_state[:, 0]
        return PrefixCache(prompt_mask, one_bucket.pad(encoded)[0], padded(_cross_projections(model, encoded)))
    packing = PackedAttention(sequences)
    states = head.capture(packing, inputs_embeds=embedded, position_ids=sequences.position[None])[0]
    last = sequences.start + prompt_mask.sum(1) - 1
    return PrefixCache(prompt_mask, states.index_select(0, last), padded(packing.computed))


def packed_decoder_states(model: Any, head: Head, rows: ScoringRows, prefix_cache: PrefixCache | None = None) -> States:
    """T5: every prompt is read and projected once (unless `prefix_cache` is given), whatever the number of its rows."""
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
    for part, prefix, inputs in _passes(head, tokens_of, prefix_cache, embedded):
        with_rows = [prompt for prompt in part if tokens_of[prompt]]
        cross = PackedAttention(
            PaddedBuckets([tokens_of[prompt] for prompt in with_rows], device), None, prefix.layers,
            torch.tensor([prompt - part.start for prompt in with_rows], device=device), prefix.mask.bool(),
        )  # fmt: skip
        sequences = PaddedBuckets([lengths[row] for row in order if prompts[row] in part], device)
        cache = EncoderDecoderCache(Cache(layer_class_to_replicate=_LastOnly), _cache_of(prefix.layers))
        states = head.capture(
            PackedAttention(sequences, cross=cross),
            encoder_outputs=BaseModelOutput(prefix.states[:1]),  # unused: the cache has its projections
            decoder_inputs_embeds=inputs,
            **{compat.cache_argument(head.stock_forward): cache},
        )
        hidden.append(states[:, 0])
    starts = torch.tensor([0, *accumulate(lengths[row] for row in order[:-1])], device=device)
    first = torch.empty_like(index).index_copy(0, index, starts)
    return _states_from(hidden, first, rows)


def packed_shared_states(model: Any, head: Head, rows: ScoringRows, prefix_cache: PrefixCache | None = None) -> States:
    """Decoder-only: every prompt is read once and its rows follow, several packed into one sequence where that is cheaper.

    A row's tokens attend to the prompt's keys and values and to their own row, at the positions they would have alone.
    `prefix_cache`: of the prompts, if they have been read already.
    """
    device, embedding = rows.prompt_ids.device, model.get_input_embeddings()
    inputs = rows.seq_mask.sum(1) - 1  # nothing is predicted from a row's last token
    max_length = min(embedding.weight.size(-1), int(PACKED_LENGTH_FACTOR * rows.prompt_ids.size(1) ** 0.5))
    packed = pack_rows(inputs.tolist(), rows.prompt_index.tolist(), max_length)
    starts = [0, *accumulate(packed.length)]
    first = torch.tensor([starts[sequence] + offset for sequence, offset in packed.place], device=device)
    step = torch.arange(rows.seq_ids.size(1), device=device)
    real = step < inputs[:, None]
    slots = (first[:, None] + step)[real]

    def packed_values(values: Tensor) -> Tensor:
        """(N, T), or what expands to it -> (tokens,) in packed order."""
        return torch.empty_like(slots).index_copy(0, slots, values.expand_as(real)[real])

    # one look-up for everything: the gradient of each is as large as the whole embedding
    unread = rows.prompt_ids[rows.prompt_mask.bool()] if prefix_cache is None else slots[:0]
    ids = torch.cat([unread, packed_values(rows.seq_ids)])
    prompt_embedded, row_embedded = embedding(ids[None]).split([len(unread), len(slots)], 1)
    if prefix_cache is None:
        prefix_cache = _read_embedded(model, head, rows.prompt_mask, prompt_embedded)
    row_of, step_of = packed_values(torch.arange(len(first), device=device)[:, None]), packed_values(step)
    position = prefix_cache.mask.sum(1)[rows.prompt_index][row_of] + step_of
    tokens_of = [0] * len(rows.prompt_ids)
    for prompt, length in zip(packed.prompt, packed.length, strict=True):
        tokens_of[prompt] += length
    hidden = [prefix_cache.states]
    for part, prefix, inputs, part_rows, part_steps, part_positions in _passes(
        head, tokens_of, prefix_cache, row_embedded[0], row_of, step_of, position
    ):
        chosen = [sequence for sequence, prompt in enumerate(packed.prompt) if prompt in part]
        prefix_index = torch.tensor([packed.prompt[sequence] - part.start for sequence in chosen], device=device)
        sequences = PaddedBuckets([packed.length[sequence] for sequence in chosen], device)
        masks = [
            ((row[:, :, None] == row[:, None]) & (step[:, :, None] >= step[:, None]) & real[:, None])[:, None]
            for row, step, real in zip(sequences.pad(part_rows), sequences.pad(part_steps), sequences.real, strict=True)
        ]
        states = head.capture(
            PackedAttention(sequences, masks, prefix.layers, prefix_index, prefix.mask.bool()),
            inputs_embeds=inputs[None],
            position_ids=part_positions[None],
        )
        hidden.append(states[0])
    # a row's first token is predicted by the last state of its prompt
    index = torch.cat([rows.prompt_index[:, None], len(rows.prompt_ids) + first[:, None] + step[:-1]], 1)
    states = torch.cat(hidden)
    return States(states, index.clamp(max=len(states) - 1))


def packed_concatenated_states(model: Any, head: Head, rows: ScoringRows) -> States:
    """Decoder-only, prompt and row in one sequence: for one row per prompt."""
    ids, lengths, prompt_lengths = _concatenated(rows)
    real = torch.arange(ids.size(1), device=ids.device) < lengths[:, None]
    sequences = PaddedBuckets(lengths.tolist(), ids.device)
    embedded = model.get_input_embeddings()(ids[real])[None]
    hidden = head.capture(PackedAttention(sequences), inputs_embeds=embedded, position_ids=sequences.position[None])
    return _states_from([hidden[0]], sequences.start + prompt_lengths - 1, rows)


def _states_from(passes: list[Tensor], first: Tensor, rows: ScoringRows) -> States:
    """The states (M, d) of all passes; `first` (N,) is the index of the state that predicts a row's first token."""
    states = torch.cat(passes) if len(passes) > 1 else passes[0]
    index = first[:, None] + torch.arange(rows.seq_ids.size(1), device=first.device)
    return States(states, index.clamp(max=len(states) - 1))  # in padding an index may point beyond the states


def _passes(head: Head, tokens_of: list[int], prefix_cache: PrefixCache, *values: Tensor) -> Iterator[tuple[Any, ...]]:
    """For every pass: the range of its prompts, their part of the cache, and their part of all `values`.

    Args:
        tokens_of: number of tokens that the rows of each prompt have.
        values: (N, ...) of these tokens, prompt by prompt.
    """
    # with sharded parameters every process has to make the same calls, hence one pass
    limit = sum(tokens_of) if head.sharded else max_tokens_per_pass(head.model, values[0].device)
    parts = split_evenly(tokens_of, limit)
    counts = [sum(tokens_of[prompt] for prompt in part) for part in parts]
    caches = prefix_cache.split([len(part) for part in parts])
    yield from zip(parts, caches, *(every.split(counts) for every in values), strict=True)


def max_tokens_per_pass(model: Any, device: torch.device) -> int:
    """Limit of one pass. Its widest tensors are those of the feed-forward layers, some four times as wide as the states."""
    width = model.config.get_text_config(decoder=True).hidden_size
    return max(1, MAX_NUMBERS_PER_PASS // (4 * width)) if device.type == "cpu" else MAX_TOKENS_PER_PASS


def padded_decoder_states(model: Any, head: Head, rows: ScoringRows, one_pass: bool) -> States:
    """Encoder-decoder with its stock attention; decoder rows of similar length share a pass.

    Args:
        one_pass: for sharded parameters, with which every process has to make the same calls.
    """
    encoded = model.get_encoder()(input_ids=rows.prompt_ids, attention_mask=rows.prompt_mask).last_hidden_state
    passes = []
    embedding = model.get_decoder().get_input_embeddings()
    chosen, inputs = _bucketed(_decoder_inputs(model, rows), rows.seq_mask.sum(1), embedding, one_pass)
    for (members, _), inputs_embeds in zip(chosen, inputs, strict=True):
        prompts = rows.prompt_index[members]
        given = {"encoder_outputs": BaseModelOutput(encoded.index_select(0, prompts)), "use_cache": False}
        hidden = head.capture(**given, attention_mask=rows.prompt_mask[prompts], decoder_inputs_embeds=inputs_embeds)
        passes.append(hidden.flatten(0, 1))
    return _states_from(passes, torch.tensor(first_slots(chosen), device=encoded.device), rows)


def padded_concatenated_states(model: Any, head: Head, rows: ScoringRows, one_pass: bool) -> States:
    """Decoder-only with its stock attention, prompt and row in one sequence; those of similar length share a pass."""
    ids, lengths, prompt_lengths = _concatenated(rows)
    chosen, inputs = _bucketed(ids, lengths, model.get_input_embeddings(), one_pass)
    passes = []
    for (members, _), inputs_embeds in zip(chosen, inputs, strict=True):
        mask = torch.arange(inputs_embeds.size(1), device=ids.device) < lengths[members, None]
        hidden = head.capture(inputs_embeds=inputs_embeds, attention_mask=mask.long(), use_cache=False)
        passes.append(hidden.flatten(0, 1))
    first = torch.tensor(first_slots(chosen), device=ids.device)
    return _states_from(passes, first + prompt_lengths - 1, rows)  # a prompt's last token predicts the row's first


def _bucketed(ids: Tensor, lengths: Tensor, embedding: Any, one_pass: bool) -> tuple[Buckets, list[Tensor]]:
    """Buckets of padded rows (N, W), and the embedded ids (rows, width, d) of each."""
    chosen = buckets(lengths.tolist(), inf if one_pass else MIN_SAVING_PER_PASS)
    parts = [ids[members, :width] for members, width in chosen]
    # one look-up for everything: the gradient of each is as large as the whole embedding
    embedded = embedding(torch.cat([part.flatten() for part in parts])).split([part.numel() for part in parts])
    return chosen, [flat.unflatten(0, part.shape) for flat, part in zip(embedded, parts, strict=True)]


def _decoder_inputs(model: Any, rows: ScoringRows) -> Tensor:
    """(N, T): the tokens a decoder reads to predict every row: the rows, shifted to the right by its start token."""
    start = torch.full_like(rows.seq_ids[:, :1], model.config.decoder_start_token_id)
    return torch.cat([start, rows.seq_ids[:, :-1]], 1)


def _concatenated(rows: ScoringRows) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt and row concatenated (N, X+T), the length of both (N,), and of the prompt alone (N,)."""
    before, lengths = rows.prompt_mask.sum(1)[rows.prompt_index], rows.seq_mask.sum(1)
    columns = torch.arange(int((before + lengths).max()), device=lengths.device).expand(len(lengths), -1)
    prompt = rows.prompt_ids[rows.prompt_index].gather(1, columns.clamp(max=rows.prompt_ids.size(1) - 1))
    row = rows.seq_ids.gather(1, (columns - before[:, None]).clamp(0, rows.seq_ids.size(1) - 1))
    return torch.where(columns < before[:, None], prompt, row), before + lengths, before


def ignores_caches(model: Any) -> bool:
    """Whether layers will ignore caches: with gradient checkpointing they do so in training mode, even without gradient."""
    return model.training and checkpoints_layers(model)


def checkpoints_layers(model: Any) -> bool:
    """Whether gradient checkpointing is on; the model's own attribute for it changes its name in transformers 6."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def attention_window(config: Any) -> float:
    """Tokens to which every layer can attend. Packed masks would replace the sliding windows of some layers."""
    config = config.get_text_config(decoder=True)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None)
    return window if slides and window else float("inf")


class _LastOnly(DynamicLayer):
    """A cache layer that keeps the keys and values of the last call only, and returns them unchanged."""

    keys: Any
    values: Any
    is_initialized: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


def _cache_of(layers: KeysValues) -> Cache:
    """A cache that holds these keys and values."""
    cache = Cache(layer_class_to_replicate=_LastOnly)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def _cross_attentions(model: Any) -> list[Any] | None:
    """The cross-attention of every decoder layer, or None for a decoder that is not T5's."""
    try:
        return [block.layer[1].EncDecAttention for block in model.get_decoder().block]
    except AttributeError:
        return None


def _cross_projections(model: Any, encoded: Tensor) -> KeysValues:
    """Keys and values (N, heads, d_kv) that every layer of a T5's decoder computes from N encoded tokens."""

    def heads(projected: Tensor, attention: Any) -> Tensor:
        return projected.unflatten(-1, (-1, attention.key_value_proj_dim))

    return [(heads(a.k(encoded), a), heads(a.v(encoded), a)) for a in _cross_attentions(model) or ()]


def can_pack(model: Any) -> bool:
    """Whether the network may be able to run on packed rows; `scoring.enable` then tries it."""
    known = not model.config.is_encoder_decoder or _cross_attentions(model) is not None
    return known and compat.attention_implementation(model) in IMPLEMENTATIONS
