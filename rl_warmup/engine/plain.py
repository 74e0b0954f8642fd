"""The plain path: a training step on stock Hugging Face calls. Slow, short, and the first thing to read.

`sample` draws warmups with `generate`, `score` reads log-probabilities off the logits of padded rows, `step` turns them into the
loss. The fast path (`engine/fast`) computes the same numbers without padding and without computing anything twice;
`engine/paths.py` decides which one a model takes, and the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rl_warmup.batch import Scores, Warmup, WarmupBatch
from rl_warmup.engine.finite import are_numbers, refuse_no_numbers
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout
from rl_warmup.models.layouts.splice import batch_of_groups


def step(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    rows: list[dict[str, Any]],
    num_warmups: int,
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """The loss of one update: what `WarmupTrainer.compute_loss` computes, without its options.

    Args:
        rows: B rows with `prompt_ids` and `target_ids`.
        objective: (B, n) rewards and log P(c|x), in nats -> two weights a and b of every warmup, both (B, n).

    Returns:
        A scalar, -Σ (a log P(c|x) + b log P(y|x,c)) in nats per target token.
    """
    warmups = sample(model, layout, constraints, [row["prompt_ids"] for row in rows], num_warmups)
    groups = [warmups[i : i + num_warmups] for i in range(0, len(warmups), num_warmups)]
    scores = score(model, batch_of_groups(layout, rows, groups).to(model.device), constraints)
    rewards, logprobs = (part.detach().view(len(rows), -1) for part in (scores.target_logprob, scores.warmup_logprob))
    a, b = (weights.flatten() for weights in objective(rewards, logprobs))
    loss = -(a * scores.warmup_logprob + b * scores.target_logprob).sum()
    return loss / sum(len(row["target_ids"]) for row in rows)


def score(model: Any, batch: WarmupBatch, constraints: SamplingConstraints) -> Scores:
    """log P(c|x) under the constraints and log P(y|x,c) under the model alone, of every row, with gradient.

    Args:
        model: as the engine that trains wraps it.
        batch: shapes in `rl_warmup/batch.py`.
    """
    logits, ids = stock_logits(model, batch), batch.seq_ids
    actions, targets = batch.warmup_mask.bool(), batch.target_mask.bool()
    steps = batch.warmup_mask.cumsum(1) - 1
    # tokens that a warmup may not hold have no probability; tokens that were chosen always do
    allowed = constraints.restrict(logits[actions].detach(), steps[actions], ids[actions]).isfinite()
    policy = (logits[actions].float() / constraints.temperature).masked_fill(~allowed, -torch.inf)
    logps = torch.zeros(ids.shape, device=ids.device)
    logps[actions] = _chosen(policy, ids[actions])
    logps[targets] = _chosen(logits[targets].float(), ids[targets])
    return Scores.of(batch, logps)


def _chosen(logits: Tensor, ids: Tensor) -> Tensor:
    """(M, V) logits, (M,) tokens -> (M,) log-probabilities of these tokens."""
    return logits.log_softmax(1).gather(1, ids[:, None])[:, 0]


def stock_logits(model: Any, batch: WarmupBatch) -> Tensor:
    """(N, T, V): the logits that predict `seq_ids`, from one stock forward over rows padded on the right."""
    index, width = batch.prompt_index, batch.seq_ids.size(1)
    config = next(module.config for module in model.modules() if hasattr(module, "config"))
    if config.is_encoder_decoder:
        start = torch.full_like(batch.seq_ids[:, :1], config.decoder_start_token_id)
        decoder_ids = torch.cat([start, batch.seq_ids[:, :-1]], 1)
        given = {"input_ids": batch.prompt_ids[index], "attention_mask": batch.prompt_mask[index]}
        return model(**given, decoder_input_ids=decoder_ids, use_cache=False).logits
    prompts = [ids[mask.bool()] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    rows = [
        torch.cat([prompts[i], ids[mask.bool()]])
        for i, ids, mask in zip(index.tolist(), batch.seq_ids, batch.seq_mask, strict=True)
    ]
    padded = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=padded, attention_mask=mask, use_cache=False).logits
    first = batch.prompt_mask.sum(1)[index] - 1  # a prompt's last token predicts the row's first
    places = (first[:, None] + torch.arange(width, device=first.device)).clamp(max=padded.size(1) - 1)
    return logits.gather(1, places[:, :, None].expand(-1, -1, logits.size(2)))


@torch.no_grad()
def sample(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    num_warmups: int,
    draws: Tensor | None = None,
) -> list[Warmup]:
    """Draw `num_warmups` warmups for every prompt with `generate`: B prompts -> B * num_warmups warmups, prompt by prompt.

    Args:
        model: in eval mode.
        draws: (B * num_warmups, constraints.max_length) float64 in [0, 1): the token is the first at which the cumulated
            probability exceeds the draw. None leaves it to torch's random state.
    """
    start = layout.written_from(max(map(len, prompts)))
    processor = _Constrained(constraints, start, draws)
    written = constrained_generate(
        model, layout, prompts, processor, max_new_tokens=constraints.max_length, do_sample=True,
        num_return_sequences=num_warmups, eos_token_id=constraints.separator_id,
    )  # fmt: skip
    return [read_warmup(row, constraints) for row in written[:, start:].tolist()]


@dataclass
class _Constrained(LogitsProcessor):
    """Applies the sampling constraints at every step."""

    constraints: SamplingConstraints
    start: int
    draws: Tensor | None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.size(1) - self.start
        refuse_no_numbers(are_numbers(scores), "no warmup can be sampled")
        allowed = self.constraints.restrict(scores, torch.full((len(scores),), step, device=scores.device))
        return allowed if self.draws is None else only_drawn(allowed, self.draws[:, step])


def read_warmup(row: list[int], constraints: SamplingConstraints) -> Warmup:
    """The warmup at the beginning of a written row: up to the separator, or cut by the limit."""
    if constraints.separator_id in row[: constraints.max_length]:
        return Warmup(row[: row.index(constraints.separator_id)], "separator")
    return Warmup(row[: constraints.max_length], "length")


def only(scores: Tensor, tokens: Tensor) -> Tensor:
    """Scores under which nothing but `tokens` (M,) can be chosen: 0 there, -inf elsewhere."""
    return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(1, tokens[:, None], 0.0)


def only_drawn(scores: Tensor, draws: Tensor) -> Tensor:
    """Scores (M, V) under which nothing but the tokens that `draws` (M,) select can be chosen."""
    ends = scores.softmax(1).double().cumsum(1)
    points = draws.to(scores.device)[:, None] * ends[:, -1:]
    below = torch.nextafter(ends[:, -1:], torch.zeros_like(points))  # rounding must not put a point at the very end
    return only(scores, torch.searchsorted(ends, points.minimum(below), right=True)[:, 0])


def constrained_generate(
    model: Any, layout: Layout, prompts: Sequence[list[int]], processor: LogitsProcessor, streamer: Any = None,
    **settings: Any,
) -> Tensor:  # fmt: skip
    """`generate` under nothing but `processor`: no top-k, no penalties, nothing of the checkpoint's generation_config."""
    base = inside(model)
    ids, mask = layout.prompt_inputs(list(prompts))
    # every weight is whole, so processes may stop at different lengths
    call: dict[str, Any] = {"synced_gpus": False, "streamer": streamer}
    if settings["do_sample"]:
        settings |= {"top_k": 0, "top_p": 1.0, "temperature": 1.0}
    start = getattr(base.config, "decoder_start_token_id", None)
    config = GenerationConfig(
        pad_token_id=layout.tokens.pad_id, use_cache=True, decoder_start_token_id=start, **settings
    )
    call |= {"generation_config": config, "logits_processor": LogitsProcessorList([processor])}
    # what a call leaves unset is filled from the checkpoint's own settings (repetition penalties, forced tokens)
    kept, base.generation_config = base.generation_config, GenerationConfig()
    try:
        return base.generate(input_ids=ids.to(base.device), attention_mask=mask.to(base.device), **call)
    finally:
        base.generation_config = kept


def inside(model: Any) -> Any:
    """The transformers model inside an adapter's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
