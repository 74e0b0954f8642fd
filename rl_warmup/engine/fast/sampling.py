"""Warmups drawn from the policy by a loop of our own, their log-probabilities as a by-product.

Knows: a network's decoding steps, the head, the law. Must not know: text, rewards, objectives.
`generate` has no place where a draw could be put, and its draw alone (one exponential per word of the vocabulary) was a
third of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rl_warmup.batch import Warmup
from rl_warmup.engine.fast.buckets import WORTH_A_GROUP, buckets, consecutive
from rl_warmup.engine.fast.decoding import LlamaDecoding, T5Decoding
from rl_warmup.engine.fast.head import Head
from rl_warmup.engine.fast.logprobs import LOGITS_PER_CHUNK, ROWS_PER_CHUNK, Tokens
from rl_warmup.engine.fast.packed import PaddedGroups
from rl_warmup.engine.fast.passes import tokens_at_once
from rl_warmup.models.constraints import SamplingConstraints

BLOCK = 64
LOOK_EVERY = 8  # steps
# Of one pass of `score_targets_from_cache`: attention scores of one layer. The warmups of a prompt stay together.
SCORES_AT_ONCE = 1 << 26


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens by the inverse of the distribution function, exact, in two levels: first a block of 64 tokens, then one of it.

    Args:
        logits: (M, V) float32; -inf never comes out.
        uniforms: (M, n) float64 in [0, 1): the token is the first at which the cumulated probability exceeds it.

    Returns:
        (M, n) tokens and (M, n) float32 log-probabilities in nats.
    """
    weights = logits.softmax(1)
    weights = F.pad(weights, (0, -logits.size(1) % BLOCK)).unflatten(1, (-1, BLOCK))
    ends = weights.sum(2).double().cumsum(1)
    total = ends[:, -1:]
    point = uniforms * total
    block = _first_beyond(ends, point)
    start = F.pad(ends, (1, 0))
    share = (point - start.gather(1, block)) / (ends - start[:, :-1]).gather(1, block)
    inside = weights.gather(1, block[..., None].expand(-1, -1, BLOCK)).double().cumsum(2).flatten(0, 1)
    place = _first_beyond(inside, share.view(-1, 1) * inside[:, -1:]).view_as(block)
    tokens = block * BLOCK + place
    return tokens, (weights.flatten(1).gather(1, tokens) / total).log().float()


def _first_beyond(ends: Tensor, point: Tensor) -> Tensor:
    """The first index at which the rising `ends` (M, K) exceed `point` (M, n); it always has weight of its own."""
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
    """Draw n warmups for each of B prompts, until every one of them has ended: B*n, prompt by prompt.

    Args:
        decoding: made for these prompts.
        draws: (B*n, law.max_length) float64 in [0, 1), by which tokens are drawn; None takes them from torch's random state.

    Raises:
        FloatingPointError: the network computes no finite numbers, so there is nothing to draw from.
    """
    hidden = decoding.first()
    if not hidden.isfinite().all():
        raise FloatingPointError(
            "The model's hidden states are not finite, so no warmup can be drawn. Its training diverged (lower learning_rate), "
            "its weights are damaged, or float16 overflows (use bf16 or float32)."
        )
    device, rows = hidden.device, prompts * n
    ids = torch.zeros(rows, constraints.max_length, dtype=torch.int64, device=device)
    lengths = torch.zeros(rows, dtype=torch.int64, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    logprob = torch.zeros(rows, device=device)
    running = torch.arange(rows, device=device)  # the rows that `hidden` stands for, after the first step
    with head.float32_at_hand():
        for step in range(constraints.max_length):
            if draws is None:
                points = torch.rand(len(running), dtype=torch.float64, device=device)
            else:
                points = draws[running.to(draws.device), step].to(device)
            tokens, logps = _draw_step(head, constraints, hidden, step, points)
            logprob.index_add_(0, running, logps.masked_fill(ended[running], 0))
            ids[running, step] = tokens
            ended[running] |= tokens == constraints.separator_id
            lengths += ~ended
            if step + 1 == constraints.max_length:  # nothing is drawn after these tokens, so they are not read
                break
            if device.type == "cpu" or step % LOOK_EVERY == LOOK_EVERY - 1:  # looking makes a GPU wait
                running = (~ended).nonzero()[:, 0]
                if not len(running):
                    break
            hidden = decoding.next(ids[running, step], running, step + 1)
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
    """log P of every target token after each warmup of its prompt, from the keys and values the sampler has left behind.

    Neither prompt nor warmup is read again; the separator and the target are, and before them the last token of a warmup that
    was cut by the limit, as `sample` does not read that.

    Args:
        decoding: that of `sample`.
        warmups: B*n, what it returned.
        targets: B lists of ids, end token included.

    Returns:
        B*n lists, prompt by prompt, in nats.
    """
    logps_of: list[list[list[float]]] = [[] for _ in targets]
    device = decoding.hidden_prompt.device
    for chosen, width in buckets([len(target) for target in targets], WORTH_A_GROUP):
        most = min(
            tokens_at_once(head.model, device) // (n * width), SCORES_AT_ONCE // decoding.scores_per_prompt(width)
        )
        for share in consecutive([1] * len(chosen), max(1, most)):
            prompts = chosen[share.start : share.stop]
            group = [(w, targets[prompt]) for prompt in prompts for w in warmups[prompt * n : (prompt + 1) * n]]
            unread = [warmup.ids[-1:] if warmup.finish == "length" else [] for warmup, _ in group]
            rows = [[*last, separator_id, *target[:-1]] for last, (_, target) in zip(unread, group, strict=True)]
            read = [len(warmup.ids) - len(last) for last, (warmup, _) in zip(unread, group, strict=True)]
            lines = PaddedGroups([len(row) for row in rows], device, max(map(len, rows)))
            states = decoding.continued(
                torch.tensor(prompts, device=device), torch.tensor(read, device=device),
                torch.tensor([token for row in rows for token in row], device=device), lines,
            )  # fmt: skip
            first = torch.tensor([*map(len, unread)], device=device)  # place in a line whose state predicts the target
            states = states[lines.place >= first[lines.line]]
            found = head.score(states, Tokens(torch.tensor([i for _, target in group for i in target], device=device)))
            logps = [values.tolist() for values in found.split([len(target) for _, target in group])]
            for place, prompt in enumerate(prompts):
                logps_of[prompt] = logps[place * n : (place + 1) * n]
    return [values for rows in logps_of for values in rows]


def _draw_step(
    head: Head, constraints: SamplingConstraints, hidden: Tensor, step: int, points: Tensor
) -> tuple[Tensor, Tensor]:
    """(rows,) tokens and log-probabilities, one for each of `points`; `hidden` has a row for each, or one per prompt."""
    uniforms = points.view(len(hidden), -1 if len(hidden) else 1)
    size = max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // len(constraints.banned))
    drawn = []
    for part, points in zip(hidden.split(size), uniforms.split(size), strict=True):
        logits = head.logits(part)
        drawn.append(draw(constraints.restrict_(logits, torch.full((len(part),), step, device=part.device)), points))
    tokens, logps = (torch.cat(pieces).flatten() for pieces in zip(*drawn, strict=True))
    return tokens, logps
