"""Warmups and targets written by a model, under the same law that scores them.

Knows: our own sampler for warmups, `generate` and its logits processors for the rest. Must not know: rewards, objectives,
phases of training. With `generate`, everything random or forced happens in the processors, so it runs with neutral settings:
it would otherwise sample from its 50 likeliest tokens, and inherit whatever the checkpoint's generation_config says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from rl_warmup.batch import Warmup
from rl_warmup.engine.fast import passes
from rl_warmup.engine.fast.decoding import LLAMA_LIKE, T5_LIKE, LlamaDecoding, T5Decoding, decoding_for
from rl_warmup.engine.fast.passes import PrefixCache
from rl_warmup.engine.fast.sampling import draw, sample, score_targets_from_cache
from rl_warmup.engine.scoring import enable_scoring
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout
from rl_warmup.models.layouts.splice import pad_right

logger = logging.get_logger(__name__)


class Written(NamedTuple):
    """A warmup and the target that followed it (ids without the end token)."""

    warmup: Warmup
    target: list[int]


@torch.no_grad()
def sample_warmups(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    num_warmups: int,
    synced_gpus: bool = False,
    targets: Sequence[list[int]] | None = None,
    prefix_cache: PrefixCache | None = None,
    draws: Tensor | None = None,
) -> list[Warmup]:
    """Sample `num_warmups` warmups for every prompt: B prompts -> B * num_warmups warmups, prompt by prompt.

    Prompts are read once each. Architectures whose inside is not known go through `generate`, which is slower, draws from
    the same law, and leaves `Warmup.logprob` empty.

    Args:
        model: in eval mode, scoring enabled.
        synced_gpus: every process takes the same number of steps; needed where weights live in shards.
        targets: one per prompt, end token included; each warmup then also carries `target_logps`, for much less than
            scoring costs. `generate` cannot go on to them.
        reading: what `read_prompts` made of these prompts; they are not read again.
        draws: (B * num_warmups, law.max_length) float64 in [0, 1), by which tokens are drawn; None takes torch's random state.
    """
    base = _plain(model)
    enable_scoring(base)
    decoding = _decoding(base, constraints, prompts, targets)
    if decoding is None:
        logger.warning_once(
            f"rl_warmup: the inside of {type(base).__name__} is not known, or is not what it should be, or its attention window "
            f"is shorter than prompt, warmup and target. So warmups are sampled by `generate`: the same law, some two times "
            f"slower. Known are {', '.join((*T5_LIKE, *LLAMA_LIKE))}."
        )
        return sample_by_generate(model, layout, constraints, prompts, num_warmups, draws, synced_gpus=synced_gpus)
    if prefix_cache is None:
        prefix_cache = read_prompts(base, layout, prompts)
    started, head = decoding(base, prefix_cache.detach(), num_warmups, constraints.max_length), base._warmup_head
    warmups = sample(started, head, constraints, len(prompts), num_warmups, synced_gpus, draws)
    if targets is None:
        return warmups
    ahead = score_targets_from_cache(
        started, head, constraints.separator_id, warmups, targets, num_warmups, synced_gpus
    )
    return [warmup._replace(target_logps=logps) for warmup, logps in zip(warmups, ahead, strict=True)]


def cache_prompts(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    targets: Sequence[list[int]],
) -> PrefixCache | None:
    """One reading of the prompts, with gradient, for `sample_warmups` and then for `score`; None where not both can use it.

    Args:
        model: in eval mode, scoring enabled.
    """
    base = _plain(model)
    if _decoding(base, constraints, prompts, targets) is None:
        return None
    return read_prompts(base, layout, prompts)


def _decoding(
    base: Any, constraints: SamplingConstraints, prompts: Sequence[list[int]], targets: Sequence[list[int]] | None
) -> type[T5Decoding] | type[LlamaDecoding] | None:
    """The class that can decode these prompts and go on to their targets."""
    after = 0 if targets is None else 1 + max(map(len, targets))  # the separator too
    longest = max(map(len, prompts)) + constraints.max_length + after
    return decoding_for(base, longest) if base._warmup_head.decodes else None


def read_prompts(base: Any, layout: Layout, prompts: Sequence[list[int]]) -> PrefixCache:
    """What a plain transformers model makes of prompts, each read once; with gradient where gradients are on."""
    ids, mask = (tensor.to(base.device) for tensor in pad_right(list(prompts), layout.tokens.pad_id))
    return passes.read_prompts(base, base._warmup_head, ids, mask)


def _plain(model: Any) -> Any:
    """The transformers model inside an adapter's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@torch.no_grad()
def sample_by_generate(
    model: Any, layout: Layout, constraints: SamplingConstraints, prompts: Sequence[list[int]], num_warmups: int,
    draws: Tensor | None = None, **generate: Any,
) -> list[Warmup]:  # fmt: skip
    """What `sample_warmups` does, by `generate`, which gets further keyword arguments."""
    start = layout.written_from(max(map(len, prompts)))
    out = _generate(
        model, layout, prompts, _WarmupOnly(constraints, start, draws), max_new_tokens=constraints.max_length, do_sample=True,
        num_return_sequences=num_warmups, eos_token_id=constraints.separator_id, **generate,
    )  # fmt: skip
    return [_read_warmup(row, constraints) for row in out[:, start:].tolist()]


@torch.no_grad()
def generate_targets(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    max_target_length: int,
    forced: Sequence[list[int]] | None = None,
    draws: Tensor | None = None,
    sample_target: bool = False,
    **generate: Any,
) -> list[Written]:
    """Write a warmup, the separator and a target for every prompt, in one call of `generate`.

    Args:
        max_target_length: tokens of the target, its end token included.
        forced: warmups to use instead of the policy's own, one per prompt ([] is the empty warmup).
        draws: (B, law.max_length) float64 in [0, 1), by which the warmups are drawn; None takes their likeliest tokens.
        sample_target: draw the target too.
    """
    start = layout.written_from(max(map(len, prompts)))
    processor = _WarmupThenTarget(constraints, start, forced, draws, sample_target)
    longest = max((len(ids) for ids in forced), default=0) if forced is not None else constraints.max_length
    out = _generate(
        model, layout, prompts, processor, max_new_tokens=longest + 1 + max_target_length, do_sample=False,
        eos_token_id=layout.tokens.eos_id, **generate,
    )  # fmt: skip
    return [
        _read_both(
            row, constraints, layout.tokens.eos_id, None if forced is None else list(forced[i]), max_target_length
        )
        for i, row in enumerate(out[:, start:].tolist())
    ]


def _generate(
    model: Any, layout: Layout, prompts: Sequence[list[int]], processor: LogitsProcessor, **settings: Any
) -> Tensor:
    base = _plain(model)
    ids, mask = layout.prompt_inputs(list(prompts))
    call = {key: settings.pop(key) for key in ("synced_gpus",) if key in settings}
    if settings["do_sample"]:
        settings |= {"top_k": 0, "top_p": 1.0, "temperature": 1.0}
    config = GenerationConfig(
        pad_token_id=layout.tokens.pad_id, use_cache=True,
        decoder_start_token_id=getattr(base.config, "decoder_start_token_id", None), **settings,
    )  # fmt: skip
    shapes = base.config
    if getattr(shapes, "num_decoder_layers", None) not in (None, getattr(shapes, "num_layers", None)):
        # transformers sizes a T5's decoder cache by its number of *encoder* layers; an unsized cache grows as needed
        call["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with _neutral_generation_config(base):
        return base.generate(
            input_ids=ids.to(base.device),
            attention_mask=mask.to(base.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
            **call,
        )


@contextmanager
def _neutral_generation_config(model: Any) -> Iterator[None]:
    """`generate` fills what a call leaves unset from the checkpoint's own settings (repetition penalties, forced tokens)."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


class _WarmupOnly(LogitsProcessor):
    """The policy's law at every step; `generate` draws, unless what to draw by is given."""

    def __init__(self, constraints: SamplingConstraints, start: int, draws: Tensor | None) -> None:
        self.constraints, self.start, self.draws = constraints, start, draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.size(1) - self.start
        allowed = self.constraints.restrict(scores, torch.full((len(scores),), step, device=scores.device))
        return allowed if self.draws is None else _drawn(allowed, self.draws[:, step])


class _WarmupThenTarget(LogitsProcessor):
    """The law until the separator (or the plan, where one is forced), the plain model after it.

    Draws are made here and handed to a greedy `generate` as the only possible token, so that a warmup can be sampled and
    its target still be the likeliest.
    """

    def __init__(
        self,
        constraints: SamplingConstraints,
        start: int,
        forced: Sequence[list[int]] | None,
        draws: Tensor | None,
        sample_target: bool,
    ) -> None:
        self.constraints, self.start = constraints, start
        self.plans = None if forced is None else [[*ids, constraints.separator_id] for ids in forced]
        self.draws, self.sample_target = draws, sample_target

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written = input_ids[:, self.start :]
        step = written.size(1)
        in_target = self._in_target(written)
        target = scores.float()
        if self.sample_target:
            target = _drawn(target, torch.rand(len(target), dtype=torch.float64))
        return torch.where(in_target[:, None], target, self._warmup_scores(scores, step))

    def _in_target(self, written: Tensor) -> Tensor:
        if self.plans is None:
            return (written == self.constraints.separator_id).any(1)
        ends = torch.tensor([len(plan) for plan in self.plans], device=written.device)
        return written.size(1) >= ends.repeat_interleave(len(written) // len(ends))  # beams stay beside each other

    def _warmup_scores(self, scores: Tensor, step: int) -> Tensor:
        if self.plans is not None:
            per_prompt = len(scores) // len(self.plans)
            tokens = [plan[step] if step < len(plan) else self.constraints.separator_id for plan in self.plans]
            return _only(scores, torch.tensor(tokens, device=scores.device).repeat_interleave(per_prompt))
        if step >= self.constraints.max_length:
            return _only(scores, torch.full((len(scores),), self.constraints.separator_id, device=scores.device))
        allowed = self.constraints.restrict(scores, torch.full((len(scores),), step, device=scores.device))
        return allowed if self.draws is None else _drawn(allowed, self.draws[:, step])


def _only(scores: Tensor, tokens: Tensor) -> Tensor:
    """Scores under which nothing but `tokens` can be chosen: 0 there, -inf elsewhere."""
    return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(1, tokens[:, None], 0.0)


def _drawn(scores: Tensor, points: Tensor) -> Tensor:
    """Only the token that stands at each of (M,) points of the distribution function can be chosen."""
    return _only(scores, draw(scores, points.to(scores.device)[:, None])[0][:, 0])


def _read_warmup(row: list[int], constraints: SamplingConstraints) -> Warmup:
    """A warmup off a row of `generate`: up to the separator, or cut by the limit."""
    if constraints.separator_id in row[: constraints.max_length]:
        return Warmup(row[: row.index(constraints.separator_id)], "separator")
    return Warmup(row[: constraints.max_length], "length")


def _read_both(
    row: list[int], constraints: SamplingConstraints, eos_id: int, forced: list[int] | None, max_target_length: int
) -> Written:
    if forced is not None:
        warmup = Warmup(forced, "proposal" if forced else "empty")
        rest = row[len(forced) + 1 :]
    else:
        warmup = _read_warmup(row, constraints)
        rest = row[len(warmup.ids) + 1 :]
    rest = rest[:max_target_length]
    return Written(warmup, rest[: rest.index(eos_id)] if eos_id in rest else rest)
