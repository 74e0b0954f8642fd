"""How rows go through a stock network: prompts once where that is possible, and little padding everywhere.

Knows: Hugging Face forwards, caches and masks. Must not know: the head's vocabulary, what a row is for.
Each way returns `States`: hidden states in the order in which they came out, and where to find the one that predicts a
token. Caches carry gradient here: a prompt's keys and values are computed once and every warmup of its group sends its
gradient back through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from rl_warmup.layouts.head import Head
from rl_warmup.layouts.packing import WORTH_A_LINE, Groups, buckets, first_slots, into_lines


class Rows(NamedTuple):
    """B prompts and N rows that continue them; see `batch.WarmupBatch`."""

    prompt_ids: Tensor  # (B, X), padded on the right
    prompt_mask: Tensor  # (B, X)
    prompt_index: Tensor  # (N,)
    seq_ids: Tensor  # (N, T), padded on the right
    seq_mask: Tensor  # (N, T)


class Reading(NamedTuple):
    """What a network has made of B prompts; carries gradient unless it was made without."""

    mask: Tensor  # (B, X): the prompts' tokens
    states: Tensor  # encoder-decoder: (B, X, d) of all tokens; decoder-only: (B, d) of the last ones
    layers: list[
        tuple[Tensor, Tensor]
    ]  # keys and values (B, heads, X, width) that later tokens look at; [] if not T5's

    def detach(self) -> Reading:
        """The same without the graph behind it."""
        pairs = [(keys.detach(), values.detach()) for keys, values in self.layers]
        return Reading(self.mask, self.states.detach(), pairs)


class States(NamedTuple):
    """Hidden states of rows."""

    hidden: Tensor  # (S, d)
    where: Tensor  # (N, T) int64: hidden[where[n, t]] predicts token t of row n; arbitrary in padding


def read_encoder_prompts(model: Any, prompt_ids: Tensor, prompt_mask: Tensor, one_pass: bool) -> Reading:
    """Encoder-decoder: the encoder's states, and for a T5 the keys and values its decoder makes of them.

    A T5's prompts of similar length share a pass, unless `one_pass` or where caches are dropped.
    """
    encoder = model.get_encoder()
    if drops_caches(model) or _cross_attentions(model) is None:
        encoded = encoder(input_ids=prompt_ids, attention_mask=prompt_mask).last_hidden_state
        return Reading(prompt_mask, encoded, [])
    groups = buckets(prompt_mask.sum(1).tolist(), one_pass)
    passes = []
    embedded = _embed(encoder.get_input_embeddings(), _of_groups(prompt_ids, groups))
    for inputs_embeds, mask in zip(embedded, _of_groups(prompt_mask, groups), strict=True):
        encoded = encoder(inputs_embeds=inputs_embeds, attention_mask=mask).last_hidden_state
        passes.append((encoded, _cross_projections(model, encoded)))
    return _as_reading(prompt_mask, groups, passes)


def read_causal_prompts(head: Head, embedding: Any, prompt_ids: Tensor, prompt_mask: Tensor, one_pass: bool) -> Reading:
    """Decoder-only: prompts, padded on the right, where no token of theirs looks; those of similar length share a pass."""
    groups = buckets(prompt_mask.sum(1).tolist(), one_pass)
    return _read_embedded(head, prompt_mask, groups, _embed(embedding, _of_groups(prompt_ids, groups)))


def _read_embedded(head: Head, prompt_mask: Tensor, groups: Groups, embedded: list[Tensor]) -> Reading:
    passes = []
    for (chosen, _), inputs_embeds in zip(groups, embedded, strict=True):
        cache = Cache(layer_class_to_replicate=_Prefix)
        read = head.capture(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True)
        ends = prompt_mask.sum(1)[torch.tensor(chosen, device=read.device)] - 1
        last = read[torch.arange(len(chosen), device=read.device), ends]
        passes.append((last, [(layer.keys, layer.values) for layer in cache.layers]))
    return _as_reading(prompt_mask, groups, passes)


def _of_groups(values: Tensor, groups: Groups) -> list[Tensor]:
    """Of (B, X), what each group of prompts needs."""
    return [values[torch.tensor(chosen, device=values.device), :width] for chosen, width in groups]


def _as_reading(
    prompt_mask: Tensor, groups: Groups, passes: list[tuple[Tensor, list[tuple[Tensor, Tensor]]]]
) -> Reading:
    """Put what several passes have read into the order of the prompts."""
    order = [row for chosen, _ in groups for row in chosen]
    places = sorted(range(len(order)), key=order.__getitem__)
    length = prompt_mask.size(1)

    def joined(parts: Sequence[Tensor]) -> Tensor:
        """Whose last dimension but one is that of the prompts' tokens, if there are more than two."""
        padded = [
            F.pad(part, (0, 0, 0, length - part.size(-2))) if part.dim() > 2 and part.size(-2) < length else part
            for part in parts
        ]
        if len(padded) == 1:
            return padded[0]
        rows = [row for part in padded for row in part.split(1)]  # whose gradient is cheaper than an index's
        return torch.cat([rows[place] for place in places])

    layers = [
        (joined([keys for keys, _ in pairs]), joined([values for _, values in pairs]))
        for pairs in zip(*(pairs for _, pairs in passes), strict=True)
    ]
    return Reading(prompt_mask, joined([states for states, _ in passes]), layers)


def decoder_states(model: Any, head: Head, rows: Rows, one_pass: bool, reading: Reading | None = None) -> States:
    """Encoder-decoder: the encoder reads every prompt once, decoder rows of similar length share a pass.

    T5 also projects a prompt's keys and values once, whatever the number of its rows.

    Args:
        one_pass: for parameters that live in shards: every process has to make the same calls.
        reading: of the prompts, where there is one already.
    """
    if reading is None:
        reading = read_encoder_prompts(model, rows.prompt_ids, rows.prompt_mask, one_pass)
    start = torch.full_like(rows.seq_ids[:, :1], model.config.decoder_start_token_id)
    inputs = torch.cat([start, rows.seq_ids[:, :-1]], 1)
    passes = []
    groups = buckets(rows.seq_mask.sum(1).tolist(), one_pass)
    parts = [torch.tensor(chosen, device=inputs.device) for chosen, _ in groups]
    ids = [inputs[index, :width] for index, (_, width) in zip(parts, groups, strict=True)]
    embedded = _embed(model.get_decoder().get_input_embeddings(), ids)
    for index, inputs_embeds in zip(parts, embedded, strict=True):
        prompts = rows.prompt_index[index]
        extra: dict[str, Any] = {"use_cache": False}
        if not reading.layers:
            states = reading.states.index_select(0, prompts)
        else:
            states = reading.states[:1].expand(len(index), -1, -1)  # its shape alone is read: keys and values are there
            filled = prefix_cache([(k.index_select(0, prompts), v.index_select(0, prompts)) for k, v in reading.layers])
            extra = {"past_key_values": EncoderDecoderCache(Cache(layer_class_to_replicate=_Once), filled)}
        passes.append(
            head.capture(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=rows.prompt_mask[prompts],
                decoder_inputs_embeds=inputs_embeds,
                **extra,
            )
        )
    return _join(passes, groups, rows.seq_ids.size(1))


def joined_states(model: Any, head: Head, rows: Rows, one_pass: bool) -> States:
    """Decoder-only, prompt and row behind each other: for one row per prompt, and where caches cannot be used."""
    prompt_lengths, lengths = rows.prompt_mask.sum(1)[rows.prompt_index], rows.seq_mask.sum(1)
    groups = buckets((prompt_lengths + lengths).tolist(), one_pass)
    ids, masks = [], []
    for chosen, width in groups:
        index = torch.tensor(chosen, device=lengths.device)
        before = prompt_lengths[index, None]
        columns = torch.arange(width, device=lengths.device).expand(len(chosen), -1)
        prompt = rows.prompt_ids[rows.prompt_index[index]]
        prompt = prompt.gather(1, columns.clamp(max=prompt.size(1) - 1))
        row = rows.seq_ids[index].gather(1, (columns - before).clamp(0, rows.seq_ids.size(1) - 1))
        ids.append(torch.where(columns < before, prompt, row))
        masks.append((columns < before + lengths[index, None]).long())
    passes = [
        head.capture(inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=False)
        for inputs_embeds, mask in zip(_embed(model.get_input_embeddings(), ids), masks, strict=True)
    ]
    hidden, where = _join(passes, groups, rows.seq_ids.size(1))
    where = where + prompt_lengths[:, None] - 1  # the token before a row's first is its prompt's last
    return States(hidden, where.clamp(max=len(hidden) - 1))


def shared_states(model: Any, head: Head, rows: Rows, one_pass: bool = False, reading: Reading | None = None) -> States:
    """Decoder-only, every prompt read once: its rows follow, several in a line under a block mask where that is cheaper.

    A row's tokens see the prompt's cached keys and values and their own row, at the positions they would have alone. Lines
    of similar length share a pass.

    Args:
        one_pass: for parameters that live in shards: every process has to make the same calls.
        reading: of the prompts, where there is one already.
    """
    device, embedding = rows.prompt_ids.device, model.get_input_embeddings()
    inputs = rows.seq_mask.sum(1) - 1  # nothing is predicted from a row's last token
    room = min(embedding.weight.size(-1), int(WORTH_A_LINE * rows.prompt_ids.size(1) ** 0.5))
    lines = into_lines(inputs.tolist(), rows.prompt_index.tolist(), room)
    groups = buckets(lines.filled, one_pass)
    starts, total = first_slots(groups)
    begin = torch.tensor([starts[line] + offset for line, offset in lines.row], device=device)
    step = torch.arange(rows.seq_ids.size(1), device=device)
    real = step < inputs[:, None]
    slots = (begin[:, None] + step)[real]

    def placed(values: Tensor, fill: int) -> list[Tensor]:
        flat = torch.full((total,), fill, device=device).index_copy(0, slots, values.expand_as(real)[real])
        parts = flat.split([len(chosen) * width for chosen, width in groups])
        return [part.view(-1, width) for part, (_, width) in zip(parts, groups, strict=True)]

    filler = int(rows.seq_ids[0, 0])  # any token: nothing looks at it
    unread = [] if reading is not None else buckets(rows.prompt_mask.sum(1).tolist(), one_pass)
    embedded = _embed(embedding, [*_of_groups(rows.prompt_ids, unread), *placed(rows.seq_ids, filler)])
    if reading is None:
        reading = _read_embedded(head, rows.prompt_mask, unread, embedded[: len(unread)])
    numbers = placed(torch.arange(len(begin), device=device)[:, None], -1)
    passes = []
    of_lines = embedded[len(unread) :]
    for (chosen, _), of_line, row, position in zip(groups, of_lines, numbers, placed(step, 0), strict=True):
        owner = torch.tensor([lines.prompt[line] for line in chosen], device=device)
        passes.append(_line_states(head, reading, owner, of_line, row, position))
    where = torch.cat([rows.prompt_index[:, None], len(rows.prompt_ids) + begin[:, None] + step[:-1]], 1)
    states = torch.cat([reading.states, *(packed.flatten(0, 1) for packed in passes)])
    return States(states, where.clamp(max=len(states) - 1))


def _line_states(
    head: Head, reading: Reading, owner: Tensor, embedded: Tensor, row: Tensor, position: Tensor
) -> Tensor:
    """(L, width, d) states of L lines behind the prompts `owner`; `row` (L, width) says whose a slot is, -1 nobody's."""
    layers = reading.layers
    if owner.tolist() != list(range(len(reading.mask))):
        layers = [(keys.index_select(0, owner), values.index_select(0, owner)) for keys, values in layers]
    own = (row[:, :, None] == row[:, None, :]) & (position[:, :, None] >= position[:, None, :]) & (row >= 0)[:, :, None]
    prompt = reading.mask[owner].bool()
    seen = torch.cat([prompt[:, None].expand(-1, row.size(1), -1), own], 2)[:, None]
    dtype = layers[0][0].dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=row.device).masked_fill(~seen, torch.finfo(dtype).min)
    return head.capture(
        inputs_embeds=embedded, attention_mask=mask, position_ids=prompt.sum(1, keepdim=True) + position,
        past_key_values=prefix_cache(layers), use_cache=True,
    )  # fmt: skip


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
    """Keeps nothing: one forward reads its own keys and values and is done."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class _Prefix(DynamicLayer):
    """Keeps what the first forward gives it, as it is; later ones see it before their own, and leave it alone."""

    keys: Any
    values: Any
    is_initialized: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = key_states, value_states
        return key_states, value_states


def prefix_cache(pairs: list[tuple[Tensor, Tensor]]) -> Cache:
    """A cache that starts with these keys and values of every layer, uncopied."""
    cache = Cache(layer_class_to_replicate=_Prefix)
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


def _cross_attentions(model: Any) -> list[Any] | None:
    """Those of every decoder layer, or None for a decoder that is not T5's."""
    try:
        return [block.layer[1].EncDecAttention for block in model.get_decoder().block]
    except AttributeError:
        return None


def _cross_projections(model: Any, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (B, heads, X, d_kv) of every layer of a T5's decoder."""

    def heads(projected: Tensor, attention: Any) -> Tensor:
        return projected.view(*projected.shape[:2], -1, attention.key_value_proj_dim).transpose(1, 2)

    return [(heads(a.k(encoded), a), heads(a.v(encoded), a)) for a in _cross_attentions(model) or ()]


def _join(passes: list[Tensor], groups: Groups, length: int) -> States:
    """(n, width, d) of every group of rows, one behind the other, and where row n's position t is."""
    hidden = torch.cat([states.flatten(0, 1) for states in passes]) if len(passes) > 1 else passes[0].flatten(0, 1)
    begin = torch.tensor(first_slots(groups)[0], device=hidden.device)
    where = begin[:, None] + torch.arange(length, device=hidden.device)
    return States(hidden, where.clamp(max=len(hidden) - 1))
