"""Samples warmups from the policy with a decoding loop of our own; their log-probabilities are a by-product.

Knows: a network's decoding steps, the head, the sampling constraints. Must not know: text, rewards, objectives.
`generate` has no hook for a custom sampler, and its own (one exponential per word of the vocabulary) took a third of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rl_warmup.batch import Warmup
from rl_warmup.engine.fast.buckets import MIN_SAVING_PER_BUCKET, buckets, split_evenly
from rl_warmup.engine.fast.decoding import LlamaDecoding, T5Decoding
from rl_warmup.engine.fast.head import Head
from rl_warmup.engine.fast.logprobs import LOGITS_PER_CHUNK, ROWS_PER_CHUNK, Tokens
from rl_warmup.engine.fast.packed import PaddedBuckets
from rl_warmup.engine.fast.passes import max_tokens_per_pass
from rl_warmup.engine.finite import are_numbers, refuse_no_numbers
from rl_warmup.models.constraints import SamplingConstraints

BLOCK = 64
CHECK_EVERY = 8  # steps between two checks on a GPU which rows have ended
# Attention scores of one layer in one pass of `score_targets_from_cache`. The warmups of a prompt stay together.
MAX_SCORES_PER_PASS = 1 << 26


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample tokens exactly by inverse transform sampling, in two levels: a block of 64 tokens, then a token of the block.

    Args:
        logits: (M, V) float32; a token at -inf is never drawn.
        uniforms: (M, n) float64 in [0, 1): the token is the first at which the cumulated probability exceeds it.

    Returns:
        (M, n) tokens and (M, n) float32 log-probabilities in nats.
    """
    probs = logits.softmax(1)
    probs = F.pad(probs, (0, -logits.size(1) % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = probs.sum(2).double().cumsum(1)
    total = ends[:, -1:]
    point = uniforms * total
    block = _first_above(ends, point)
    start = F.pad(ends, (1, 0))
    share = (point - start.gather(1, block)) / (ends - start[:, :-1]).gather(1, block)
    inside = probs.gather(1, block[..., None].expand(-1, -1, BLOCK)).double().cumsum(2).flatten(0, 1)
    place = _first_above(inside, share.view(-1, 1) * inside[:, -1:]).view_as(block)
    tokens = block * BLOCK + place
    return tokens, (probs.flatten(1).gather(1, tokens) / total).log().float()


def _first_above(ends: Tensor, point: Tensor) -> Tensor:
    """The first index at which the rising `ends` (M, K) exceed `point` (M, n); its own probability is never 0."""
    total = ends[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not put a point at the very end
    return torch.searchsorted(ends, point.clamp(min=0).minimum(below), right=True)


@torch.no_grad()
def sample(
    decoding: T5Decoding | LlamaDecoding,
    head: Head,
    constraints: SamplingConstraints,
    prompts: int,
    n: int,
    draws: Tensor | None = None,
) -> list[Warmup]:
    """Sample n warmups for each of B prompts, until all have ended: B*n warmups, prompt by prompt.

    Args:
        decoding: made for these prompts.
        draws: (B*n, constraints.max_length) float64 in [0, 1) that select the tokens; None takes torch's random state.

    Raises:
        FloatingPointError: the network's logits are not finite, so there is nothing to sample from.
    """
    hidden = decoding.first()
    device, rows = hidden.device, prompts * n
    ids = torch.zeros(rows, constraints.max_length, dtype=torch.int64, device=device)
    lengths = torch.zeros(rows, dtype=torch.int64, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    logprob = torch.zeros(rows, device=device)
    active = torch.arange(rows, device=device)  # the rows of `hidden`, after the first step
    with head.float32_weights():
        fine = hidden.isfinite().all() and are_numbers(head.logits(hidden[:1]))
        refuse_no_numbers(fine, "no warmup can be sampled")
        for step in range(constraints.max_length):
            if draws is None:
                points = torch.rand(len(active), dtype=torch.float64, device=device)
            else:
                points = draws[active.to(draws.device), step].to(device)
            tokens, logps = _draw_step(head, constraints, hidden, step, points)
            logprob.index_add_(0, active, logps.masked_fill(ended[active], 0))
            ids[active, step] = tokens
            ended[active] |= tokens == constraints.separator_id
            lengths += ~ended
            if step + 1 == constraints.max_length:  # nothing is drawn after these tokens, so they are not read
                break
            if device.type == "cpu" or step % CHECK_EVERY == CHECK_EVERY - 1:  # the check makes a GPU wait
                active = (~ended).nonzero()[:, 0]
                if not len(active):
                    break
            hidden = decoding.next(ids[active, step], active, step + 1)
    columns: Sequence[list[Any]] = [t.tolist() for t in (ids, lengths, ended, logprob)]
    return [
        Warmup(row[:length], "separator" if by_separator else "length", logp)
        for row, length, by_separator, logp in zip(*columns, strict=True)
    ]


@torch.no_grad()
def score_targets_from_cache(
    decoding: T5Decoding | LlamaDecoding,
    head: Head,
    separator_id: int,
    warmups: list[Warmup],
    targets: Sequence[list[int]],
    n: int,
) -> list[list[float]]:
    """log P of every target token after each warmup of its prompt, from the keys and values that the sampler has cached.

    Prompts and warmups are not read again. The separator and the target are, and before them the last token of a warmup
    that was cut by the limit, which `sample` does not read.

    Args:
        decoding: the one that `sample` used.
        warmups: B*n, as `sample` returned them.
        targets: B lists of ids, end token included.

    Returns:
        B*n lists, prompt by prompt, in nats.
    """
    logps_of: list[list[list[float]]] = [[] for _ in targets]
    device = decoding.prompt_bias.device
    for members, width in buckets([len(target) for target in targets], MIN_SAVING_PER_BUCKET):
        limit = min(
            max_tokens_per_pass(head.model, device) // (n * width),
            MAX_SCORES_PER_PASS // decoding.scores_per_prompt(width),
        )
        for part in split_evenly([1] * len(members), max(1, limit)):
            prompts = members[part.start : part.stop]
            group = [(w, targets[prompt]) for prompt in prompts for w in warmups[prompt * n : (prompt + 1) * n]]
            unread = [warmup.ids[-1:] if warmup.finish == "length" else [] for warmup, _ in group]
            rows = [[*last, separator_id, *target[:-1]] for last, (_, target) in zip(unread, group, strict=True)]
            cached = [len(warmup.ids) - len(last) for last, (warmup, _) in zip(unread, group, strict=True)]
            sequences = PaddedBuckets([len(row) for row in rows], device, max(map(len, rows)))
            states = decoding.extend(
                torch.tensor(prompts, device=device), torch.tensor(cached, device=device),
                torch.tensor([token for row in rows for token in row], device=device), sequences,
            )  # fmt: skip
            first = torch.tensor([*map(len, unread)], device=device)  # its state predicts the target's first token
            states = states[sequences.position >= first[sequences.sequence]]
            ids = torch.tensor([i for _, target in group for i in target], device=device)
            found = head.score(states, Tokens(ids)).split([len(target) for _, target in group])
            logps = [values.tolist() for values in found]
            for place, prompt in enumerate(prompts):
                logps_of[prompt] = logps[place * n : (place + 1) * n]
    return [values for rows in logps_of for values in rows]


def _draw_step(
    head: Head, constraints: SamplingConstraints, hidden: Tensor, step: int, points: Tensor
) -> tuple[Tensor, Tensor]:
    """(R,) tokens and log-probabilities, one for each of `points` (R,); `hidden` has R rows, or one per prompt."""
    uniforms = points.view(len(hidden), -1 if len(hidden) else 1)
    size = max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // len(constraints.banned))
    drawn = []
    for states, points in zip(hidden.split(size), uniforms.split(size), strict=True):
        steps = torch.full((len(states),), step, device=states.device)
        drawn.append(draw(constraints.restrict_(head.logits(states), steps), points))
    tokens, logps = (torch.cat(parts).flatten() for parts in zip(*drawn, strict=True))
    return tokens, logps
