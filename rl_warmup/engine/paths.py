"""Entry to the engine: chooses for each model between the plain path and the fast one.

Knows: both paths, and what `fast.scoring.enable` found out about a model. Must not know: rewards, objectives, phases of training.
`scoring: padded` and `sampling: generate` choose the plain path; `auto` takes the fast one if the network allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from rl_warmup.batch import RowWeights, Scores, Warmup, WarmupBatch
from rl_warmup.engine import plain
from rl_warmup.engine.fast import passes, scoring
from rl_warmup.engine.fast.decoding import LLAMA_LIKE, T5_LIKE, LlamaDecoding, T5Decoding, decoding_for
from rl_warmup.engine.fast.head import Head
from rl_warmup.engine.fast.passes import PrefixCache
from rl_warmup.engine.fast.sampling import sample, score_targets_from_cache
from rl_warmup.engine.fast.scoring import enable as enable_scoring
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout
from rl_warmup.models.layouts.splice import pad_right

logger = logging.get_logger(__name__)


def choose_path(model: Any, scoring: str, sampling: str) -> None:
    """Choose the path of a model whose scoring is enabled.

    Args:
        scoring: `auto`, or `padded` for the stock forward over padded rows.
        sampling: `auto`, or `generate`.
    """
    head = _head(model)
    head.scores_padded, head.samples_by_generate = scoring == "padded", sampling == "generate"


def score(
    model: Any, batch: WarmupBatch, constraints: SamplingConstraints, weights: RowWeights | None = None
) -> Scores:
    """log P(c|x) and log P(y|x,c) of every row of a batch, with gradient. Shapes: see `batch`.

    Args:
        model: scoring enabled; as the engine that trains wraps it.
        weights: if they are known already; the fast path then computes the gradient in the forward, for `Scores.objective`.
    """
    if _head(model).scores_padded:
        return plain.score(model, batch, constraints)
    return scoring.score(model, batch, constraints, weights)


@torch.no_grad()
def score_sampled(model: Any, batch: WarmupBatch, constraints: SamplingConstraints) -> Scores:
    """`score` without gradient, for warmups that this model has just sampled under these constraints.

    Log-probabilities that the sampler already computed are reused. For c that is only the sum, so `token_logps` are 0 on its
    actions. Rows without them (proposals, empty warmups, `generate`) are scored.
    """
    done = [row for row, w in enumerate(batch.warmups) if w.logprob is not None and w.target_logps is not None]
    rest = [row for row in range(len(batch.warmups)) if row not in set(done)]
    device = batch.seq_ids.device
    warmup_logprob = torch.zeros(len(batch.warmups), device=device)
    logps = torch.zeros(batch.seq_ids.shape, device=device)
    if done:
        mask = batch.target_mask[done].bool()
        flat = [logp for row in done for logp in batch.warmups[row].target_logps or ()]
        logps[done] = logps[done].masked_scatter(mask, torch.tensor(flat, device=device))
        warmup_logprob[done] = torch.tensor([batch.warmups[row].logprob for row in done], device=device)
    if rest:
        scores = score(model, batch.select(rest) if done else batch, constraints)
        logps[rest, : scores.token_logps.size(1)] = scores.token_logps
        warmup_logprob[rest] = scores.warmup_logprob
    return replace(Scores.of(batch, logps), warmup_logprob=warmup_logprob)


@torch.no_grad()
def sample_warmups(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    num_warmups: int,
    targets: Sequence[list[int]] | None = None,
    prefix_cache: PrefixCache | None = None,
    draws: Tensor | None = None,
) -> list[Warmup]:
    """Sample `num_warmups` warmups for every prompt: B prompts -> B * num_warmups warmups, prompt by prompt.

    The plain path draws from the same distribution, is slower, and leaves `Warmup.logprob` empty.

    Args:
        model: in eval mode.
        targets: one per prompt, end token included; each warmup then also gets `target_logps`, which costs much less than
            scoring. Not on the plain path.
        prefix_cache: the result of `cache_prompts` for these prompts, which are then not read again.
        draws: (B * num_warmups, constraints.max_length) float64 in [0, 1) that select the tokens; None takes torch's random
            state.
    """
    base = plain.inside(model)
    enable_scoring(base)
    decoding = _decoding(base, constraints, prompts, targets)
    if decoding is None:
        if not base._warmup_head.samples_by_generate:
            logger.warning_once(
                f"rl_warmup: our own sampler does not support {type(base).__name__}, or its attention window is shorter than "
                f"prompt, warmup and target. Warmups are sampled by `generate`: the same distribution, about two times slower. "
                f"Supported are {', '.join((*T5_LIKE, *LLAMA_LIKE))}."
            )
        return plain.sample(model, layout, constraints, prompts, num_warmups, draws)
    if prefix_cache is None:
        prefix_cache = read_prompts(base, layout, prompts)
    started, head = decoding(base, prefix_cache.detach(), num_warmups, constraints.max_length), base._warmup_head
    warmups = sample(started, head, constraints, len(prompts), num_warmups, draws)
    if targets is None:
        return warmups
    scored = score_targets_from_cache(started, head, constraints.separator_id, warmups, targets, num_warmups)
    return [warmup._replace(target_logps=logps) for warmup, logps in zip(warmups, scored, strict=True)]


def cache_prompts(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    targets: Sequence[list[int]],
) -> PrefixCache | None:
    """Read the prompts once, with gradient, for `sample_warmups` and then for `score`; None if not both can use the result.

    Args:
        model: in eval mode, scoring enabled.
    """
    base = plain.inside(model)
    if base._warmup_head.scores_padded or _decoding(base, constraints, prompts, targets) is None:
        return None
    return read_prompts(base, layout, prompts)


def read_prompts(base: Any, layout: Layout, prompts: Sequence[list[int]]) -> PrefixCache:
    """Run a plain transformers model over prompts, each once; with gradient where gradients are on."""
    ids, mask = (tensor.to(base.device) for tensor in pad_right(list(prompts), layout.tokens.pad_id))
    return passes.read_prompts(base, base._warmup_head, ids, mask)


def _decoding(
    base: Any, constraints: SamplingConstraints, prompts: Sequence[list[int]], targets: Sequence[list[int]] | None
) -> type[T5Decoding] | type[LlamaDecoding] | None:
    """The class that can decode these prompts and their targets; None for the plain path."""
    head = base._warmup_head
    if head.samples_by_generate or not head.can_decode:
        return None
    after = 0 if targets is None else 1 + max(map(len, targets))  # the separator too
    return decoding_for(base, max(map(len, prompts)) + constraints.max_length + after)


def _head(model: Any) -> Head:
    """The head of a model, whatever wraps it."""
    return next(module._warmup_head for module in model.modules() if "_warmup_head" in vars(module))
