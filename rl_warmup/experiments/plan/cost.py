"""Floating point operations of one update, part by part: the matrix products and attentions that `rollout` and `layouts` run.

Knows: which rows a step samples, scores and trains on, and how `engine.fast.passes` sends them through a network. Must not know:
hardware, bytes. An addition and a multiplication are two operations; rows are taken as equally long, so without padding.
`tests/plan/test_cost.py` holds these sums against torch's FlopCounterMode on real updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl_warmup.experiments.plan.shapes import Shape
from rl_warmup.experiments.plan.work import Lengths, Work

# Of objectives.logprobs and layouts.buckets; a test keeps them alike.
KEPT_LOGITS, LOGITS_PER_CHUNK, ROWS_PER_CHUNK, PACKED_LENGTH_FACTOR = 1 << 26, 1 << 21, 256, 5


@dataclass(frozen=True)
class Flops:
    """Of one update, on one process."""

    sampling: float  # encoding prompts for it, drawing warmups
    scoring: float  # without gradient, where only some warmups get one
    forward: float  # of the rows with gradient
    backward: float
    head: float  # how many of all these are the head's, which always multiplies in float32

    @property
    def total(self) -> float:
        return self.sampling + self.scoring + self.forward + self.backward


@dataclass(frozen=True)
class RowGroup:
    """Rows of every prompt that are alike: `count` of them, with `actions` warmup tokens and a target behind each."""

    count: float
    actions: float
    target: float

    @property
    def tokens(self) -> float:
        """`c [sep] y [eos]`."""
        return self.actions + 1 + self.target

    @property
    def scored(self) -> float:
        return self.actions + self.target


def row_groups(work: Work, lengths: Lengths, sampled: float, worst: bool = False) -> list[RowGroup]:
    """The rows of one prompt: sampled warmups, the empty one, anchors.

    Args:
        worst: every prompt has an empty warmup, which a batch may draw.
    """
    if not work.warmups:
        return [RowGroup(1, 0, lengths.target)]
    empty = float(work.empty_share > 0) if worst else work.empty_share
    counts = ((sampled, lengths.warmup), (empty, 0.0), (work.anchors, lengths.warmup))
    return [RowGroup(count, actions, lengths.target) for count, actions in counts if count]


def reads_once(work: Work, alone: bool) -> bool:
    """Whether sampling and training share one reading of the prompts (`trainer._reads_once`)."""
    return (
        alone and work.warmups > 0 and work.micro_batches == 1 and work.reading_can_be_shared and not work.checkpointing
    )


def shares_prompts(work: Work, once: bool) -> bool:
    """Whether the rows with gradient follow one reading of their prompt; rows that were drawn from a group do so only
    where there is a reading already (`WarmupBatch.select`)."""
    return once or (work.trained == work.warmups and work.warmups > 1 and not work.checkpointing)


def count_flops(work: Work, alone: bool = True) -> Flops:
    """Operations of one update of one process.

    Args:
        alone: one process without DeepSpeed.
    """
    net, lengths = _Network(work.shape), work.mean
    x, c, y = lengths.prompt, lengths.warmup, lengths.target
    once, draws, t5 = reads_once(work, alone), work.trained < work.warmups, work.shape.kind == "t5"
    sampling = scoring = ahead = 0.0  # ahead: tokens whose logits are made without gradient
    if work.warmups:
        sampling = (0.0 if once else net.read(x)) + net.write(x, work.warmups, c, remember=draws)
        ahead = 1 + work.warmups * (c - 1)
    if draws:
        rest = row_groups(work, lengths, 0)
        scoring = work.warmups * net.go_on(x, c, y)
        if rest:
            scored = sum(g.count * g.scored for g in rest)
            scoring += sum(net.rows(x, rest, once)) + (net.read(x) if t5 and not once else 0.0) + scored * net.head
            ahead += scored
        ahead += work.warmups * y
    groups = row_groups(work, lengths, work.trained)
    shared = shares_prompts(work, once)
    linear, attention = net.rows(x, groups, shared)
    read_linear, read_attention = net.read_parts(x) if t5 or shared else (0.0, 0.0)
    if t5 and work.checkpointing:  # every row projects its prompt's keys and values again
        projected = net.cross * x
        read_linear, linear = read_linear - projected, linear + projected * sum(g.count for g in groups)
    head = sum(g.count * g.scored for g in groups) * net.head
    body = linear + read_linear + attention + read_attention
    backward = 2 * (linear + read_linear + head) + net.backward_of(attention, read_attention, x, groups)
    if work.checkpointing:
        backward += body - net.last_product(x, groups)
    again = 0.0
    if not draws and work.warmups > 1:  # weights are not known before the forward, and not all logits can wait for them
        logits = head * work.prompts / (2 * work.shape.width)
        again = max(0.0, 1 - KEPT_LOGITS / logits) * head
    many = work.prompts * work.micro_batches
    parts = (sampling, scoring, body + head, backward + again, 3 * head + again + ahead * net.head)
    return Flops(*(many * part for part in parts))


def tokens_per_update(work: Work) -> dict[str, float]:
    """Tokens that one process reads and writes in one update."""
    many = work.prompts * work.micro_batches
    groups = row_groups(work, work.mean, work.trained)
    trained = work.mean.prompt + sum(group.count * group.tokens for group in groups)
    return {
        "prompt": many * work.mean.prompt,
        "warmup": many * work.warmups * work.mean.warmup,
        "target": many * work.mean.target,
        "trained_on": many * trained,
    }


class _Network:
    """Operations of forwards through a shape, per prompt; `linear` parts are products with weights."""

    def __init__(self, shape: Shape) -> None:
        self.shape, d, inner = shape, shape.width, shape.inner
        feed_forward = (3 if shape.gated else 2) * d * shape.feed_forward
        self.head = 2.0 * d * shape.vocab
        self.cross = 4.0 * d * inner * shape.layers  # keys and values of one prompt token in a T5's decoder
        self.encode = 2.0 * (4 * d * inner + feed_forward) * shape.encoder_layers
        attention = 6 * d * inner if shape.kind == "t5" else 2 * d * inner + 2 * d * shape.kv_inner
        self.token = 2.0 * (attention + feed_forward) * shape.layers  # one token through the decoder's layers
        self.pair = 4.0 * inner * shape.layers  # one query looking at one key, in every layer

    def read_parts(self, x: float) -> tuple[float, float]:
        """Linear and attention operations of reading one prompt."""
        if self.shape.kind == "t5":
            return (self.encode + self.cross) * x, 4.0 * self.shape.inner * self.shape.encoder_layers * x * x
        return self.token * x, self.pair * x * x

    def read(self, x: float) -> float:
        return sum(self.read_parts(x))

    def write(self, x: float, n: float, c: float, remember: bool) -> float:
        """Drawing n warmups of c tokens; `remember`: their last tokens are read too."""
        steps = c if remember else c - 1  # of all n rows; the first draw takes one state for all of them
        if self.shape.kind == "t5":
            seen = self.pair * (n * (steps * (steps + 3) / 2 + steps * x) + 1 + x)
            return self.token * (1 + n * steps) + seen + self.head * (1 + n * (c - 1))
        seen = self.pair * n * (steps * x + steps * (steps + 1) / 2)
        return self.token * n * steps + seen + self.head * (1 + n * (c - 1))

    def go_on(self, x: float, c: float, y: float) -> float:
        """Scoring a target behind a warmup that the sampler has just written."""
        seen = c + 1 + y + x if self.shape.kind == "t5" else x + c + y
        return (self.token + self.head + self.pair * seen) * y

    def rows(self, x: float, groups: list[RowGroup], shared: bool) -> tuple[float, float]:
        """Linear and attention operations of rows behind a prompt, its own reading left out where it is shared."""
        if self.shape.kind == "t5":
            linear = sum(g.count * g.tokens for g in groups) * self.token
            return linear, sum(g.count * g.tokens * (g.tokens + x) for g in groups) * self.pair
        if shared:
            inputs = sum(g.count * (g.tokens - 1) for g in groups)
            pairs = sum(width * (x + width) for width in lines_of(self.shape, x, groups))
            return inputs * self.token, pairs * self.pair
        full = sum(g.count * (x + g.tokens) for g in groups) * self.token
        return full, sum(g.count * (x + g.tokens) ** 2 for g in groups) * self.pair

    def last_product(self, x: float, groups: list[RowGroup]) -> float:
        """The one product of every layer that checkpointing does not repeat: no gradient needs its result."""
        tokens = sum(g.count * (g.tokens if self.shape.kind == "t5" else x + g.tokens) for g in groups)
        per_layer = 2.0 * self.shape.width * self.shape.feed_forward
        return per_layer * (self.shape.layers * tokens + self.shape.encoder_layers * x)

    def backward_of(self, attention: float, reading: float, x: float, groups: list[RowGroup]) -> float:
        """A fused kernel's backward is 2.5 forwards, as it forms the scores again; T5's learned biases rule it out there,
        but for the decoder's look at the prompt."""
        if self.shape.kind == "llama":
            return 2.5 * (attention + reading)
        across = sum(g.count * g.tokens * x for g in groups) * self.pair
        return 2 * (attention - across + reading) + 2.5 * across


def lines_of(shape: Shape, x: float, groups: list[RowGroup]) -> list[float]:
    """Widths of the lines into which `engine.fast.buckets` puts the rows of a prompt of x tokens."""
    inputs = sum(g.count * (g.tokens - 1) for g in groups)
    longest = max(g.tokens - 1 for g in groups)
    rows = max(1.0, sum(g.count for g in groups))
    room = min(shape.width, int(PACKED_LENGTH_FACTOR * x**0.5))
    lines = max(1, math.ceil(inputs / max(room, longest)))
    if lines == 1:
        return [inputs]
    few, fuller = divmod(round(rows), lines)
    return [(few + (line < fuller)) * inputs / round(rows) for line in range(lines)]
