"""Bytes on one device while a warmup step runs, part by part, under every way to split a model's state.

Knows: what DeepSpeed's stages keep where, and what the layers of T5 and Llama save for their backward. Must not know: how
large or fast a device is. Saved bytes are counted from the layers' code and held against torch's saved_tensors_hooks and the
allocator's peak in `tests/plan/test_memory.py`. They are those of torch's sdpa on a CPU: other attention kernels keep less.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl_warmup.experiments.plan.cost import (
    KEPT_LOGITS,
    LOGITS_PER_CHUNK,
    ROWS_PER_CHUNK,
    lines_of,
    reads_once,
    row_groups,
    shares_prompts,
)
from rl_warmup.experiments.plan.work import Work

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
MAX_LIVE = 1_000_000_000  # stage3_max_live_parameters of the shipped configurations
MAX_TOKENS_PER_PASS, MAX_SCORES_PER_PASS = 1 << 14, 1 << 26  # of layouts.passes and layouts.sampling
PLAIN_LOGIT_BYTES = 12.1  # measured for log_softmax(logits.float()).gather, forward and backward


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at its fullest moment; `host` is what a process keeps in main memory beside it."""

    parameters: float
    gradients: float
    optimizer: float
    gathered: float  # ZeRO-3: weights that are fetched while a pass needs them
    activations: float  # kept for the backward
    recomputed: float  # gradient checkpointing: one layer in full, after the head is done
    logits: float  # the head's working space in training
    cache: float  # while sampling: keys and values, the draw's working space, weights gathered for it
    context: float  # what the runtime itself takes
    host: float = 0.0

    @property
    def states(self) -> float:
        return self.parameters + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """Training and sampling do not happen at once, and there are no gradients yet while warmups are drawn."""
        training = self.gradients + self.gathered + self.activations + max(self.logits, self.recomputed)
        return self.parameters + self.optimizer + max(training, self.cache) + self.context


def count_memory(work: Work, strategy: str, devices: int, context: float = 0.0) -> Memory:
    """Memory of one micro-batch of the longest rows.

    Args:
        strategy: one of STRATEGIES; `ddp` on one device is plain training.
        devices: how many share the state.
        context: bytes of the runtime itself.
    """
    alone = strategy == "ddp" and devices == 1
    precision = device_precision(work, strategy)
    parameters, gradients, optimizer, gathered, host = _states(work, strategy, devices, precision)
    live = min(work.shape.parameters, MAX_LIVE) * _size(precision) if gathered else 0.0
    once = reads_once(work, alone)
    kept, recomputed = activations(work, precision, once)
    return Memory(
        parameters, gradients, optimizer, live, kept, recomputed, head_bytes(work, precision),
        sampling_bytes(work, precision, once) + gathered, context, host,
    )  # fmt: skip


def device_precision(work: Work, strategy: str) -> str:
    """DeepSpeed casts the weights themselves where `bf16` is set; otherwise products alone run in it."""
    return "bfloat16" if work.precision == "autocast" and strategy != "ddp" else work.precision


def _size(precision: str) -> int:
    """Bytes of a weight."""
    return 2 if precision == "bfloat16" else 4


def _states(work: Work, strategy: str, devices: int, precision: str) -> tuple[float, float, float, float, float]:
    """Bytes of parameters, gradients, optimizer, of all weights gathered (ZeRO-3), and on the host."""
    p, w, g = work.shape.parameters, _size(precision), devices
    adam = work.optimizer_bytes
    if strategy == "ddp":
        buckets = w * p if g > 1 else 0
        copies = 2 * p if precision == "autocast" else 0  # autocast's bf16 weights, until the end of a forward
        return w * p + copies, w * p + buckets, adam * p * w / 4, 0, 0
    master = 4 + adam  # float32 weights and the optimizer's numbers, whatever the working precision
    if strategy == "zero1":
        return w * p, w * p, master * p / g, 0, 0
    if strategy == "zero2":
        return w * p, w * p / g, master * p / g, 0, 0
    if strategy == "zero2_offload":
        return w * p, w * p / g, 0, 0, (master + 4) * p / g
    if strategy == "zero3":
        return w * p / g, w * p / g, master * p / g, w * p, 0
    return 0, 0, 0, w * p, (master + 4 + w) * p / g  # zero3_offload: weights too


# ------------------------------------------------------------------ kept for the backward


def activations(work: Work, precision: str, once: bool) -> tuple[float, float]:
    """Bytes that wait for the backward of one micro-batch of the longest rows, and those of a layer that is computed again.

    With gradient checkpointing every layer's input waits; without, all that its operations save.
    """
    layers = _Layers(work, precision, shares_prompts(work, once))
    if work.checkpointing:
        return layers.inputs() + layers.around(), layers.largest()
    return layers.all() + layers.around(), 0.0


class _Layers:
    """Bytes per layer for the rows of one micro-batch. `d`, `inner`: widths of the network and of all its heads."""

    def __init__(self, work: Work, precision: str, shared: bool) -> None:
        self.work, self.shape, self.precision, self.shared = work, work.shape, precision, shared
        self.e = 4 if precision == "float32" else 2  # bytes of what products give
        self.residual = 2 if precision == "bfloat16" else 4
        self.groups = row_groups(work, work.longest, work.trained, worst=True)
        self.rows = work.prompts * sum(g.count for g in self.groups)
        self.x = work.longest.prompt
        self.read = work.prompts * self.x  # prompt tokens
        self.tokens = work.prompts * sum(g.count * g.tokens for g in self.groups)
        self.scored = work.prompts * sum(g.count * g.scored for g in self.groups)

    def norm(self, readers: int) -> float:
        """Per token: an RMS norm, and its result as the input of as many products; autocast casts it for each."""
        d = self.shape.width
        if self.precision == "float32":
            return 12 * d
        if self.precision == "autocast":
            return 8 * d + 2 * d * readers
        return (10 if self.shape.kind == "t5" else 8) * d

    def feed_forward(self) -> float:
        """Per token: gate, activation, value and product in a Llama; a T5's gated one has gelu's polynomial too."""
        wide = self.shape.feed_forward * self.e
        if self.shape.kind == "llama":
            return 4 * wide
        if self.shape.gated:
            return 7 * wide
        return wide * (2 if self.precision == "autocast" else 1)

    def all(self) -> float:
        if self.shape.kind == "t5":
            return self.shape.encoder_layers * self._encoder() + self.shape.layers * self._decoder()
        return self.shape.layers * self._causal()

    def reading(self) -> float:
        """Of the prompts alone, where one reading serves sampling and backward."""
        if self.shape.kind == "t5":
            return self.shape.encoder_layers * self._encoder()
        token = (
            self.norm(3) + self.norm(2) + self.feed_forward() + 2 * self.e * (self.shape.inner + self.shape.kv_inner)
        )
        return self.shape.layers * self.read * token

    def largest(self) -> float:
        return max(self._encoder(), self._decoder()) if self.shape.kind == "t5" else self._causal()

    def inputs(self) -> float:
        """Every layer's input, for checkpointing."""
        d = self.shape.width * self.residual
        if self.shape.kind == "t5":
            encoder = self.shape.encoder_layers * self.read + self.rows * self.x  # encoder's output, a copy per row
            return d * (encoder + self.shape.layers * self.tokens)
        return d * self.shape.layers * (self.tokens + self.rows * self.x)

    def around(self) -> float:
        """Final norms, the encoder's output, and the states that the head reads."""
        d = self.shape.width
        final = self.norm(1) - d * self.e
        chosen = self.scored * d * self.residual
        if self.shape.kind == "t5":
            return self.read * self.norm(1) + self.tokens * final + chosen
        return (self.tokens + (self.read if self.shared else self.rows * self.x)) * final + chosen

    def _encoder(self) -> float:
        inner, gates = self.shape.inner, 2 if self.shape.gated else 1
        token = self.norm(3) + self.norm(gates) + (12 + self.e) * inner + self.feed_forward() + 8
        return self.read * (token + 4 * self.shape.heads * self.x)  # probabilities stay in float32

    def _decoder(self) -> float:
        shape, inner, gates = self.shape, self.shape.inner, 2 if self.shape.gated else 1
        token = self.norm(3) + self.norm(1) + self.norm(gates) + (12 + 3 * self.e) * inner + self.feed_forward()
        token += 4 * (3 + shape.heads)
        own = sum(g.count * g.tokens**2 for g in self.groups) * self.work.prompts * 4 * shape.heads
        prompts = (
            self.rows * self.x * 2 * inner * self.e + self.read * 2 * inner * self.e
        )  # a row's copy, and the original
        prompts += self.read * 4 * shape.width if self.precision == "autocast" else 0
        return self.tokens * token + own + prompts

    def _causal(self) -> float:
        shape, e = self.shape, self.e
        token = self.norm(3) + self.norm(2) + self.feed_forward() + 2 * e * shape.inner + 4 * (2 + shape.heads)
        if not self.shared:
            every = self.rows * self.x + self.tokens
            return every * (token + 2 * e * shape.inner)
        widths = lines_of(shape, self.x, self.groups)
        slots = self.work.prompts * sum(widths)
        seen = self.work.prompts * sum(self.x + width for width in widths)  # a line keeps its prompt's keys and its own
        mask = self.work.prompts * sum(width * (self.x + width) for width in widths) * e
        mask /= 1 if self.precision == "autocast" else shape.layers
        return self.read * (token + 2 * e * shape.kv_inner) + slots * token + seen * 2 * e * shape.inner + mask


# ------------------------------------------------------------------ logits and sampling


def head_bytes(work: Work, precision: str) -> float:
    """The head's working space: two chunks of logits, kept probabilities, its float32 copy and gradients in float32."""
    vocab, d = work.shape.vocab, work.shape.width
    groups = row_groups(work, work.longest, work.trained, worst=True)
    scored = work.prompts * sum(g.count * g.scored for g in groups)
    chunk = min(scored, max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // vocab)) * vocab
    known = work.trained < work.warmups or work.warmups <= 1
    kept = 0.0 if known else min(scored * vocab, KEPT_LOGITS)
    cast = 2 * 4 * work.shape.head_size if precision == "bfloat16" else 0  # its copy, and its gradient before the cast
    return 4 * (2 * chunk + kept + scored * d) + cast


def plain_logits_bytes(work: Work) -> float:
    """What a usual log-softmax over the same positions would take: no chunks, no gradient written by hand."""
    groups = row_groups(work, work.longest, work.trained, worst=True)
    return PLAIN_LOGIT_BYTES * work.prompts * sum(g.count * g.scored for g in groups) * work.shape.vocab


def sampling_bytes(work: Work, precision: str, once: bool = False) -> float:
    """While warmups are drawn, and scored where only some of them will be trained on: for the prompts of all micro-batches
    at once, keys and values, one draw's working space or that of the head, and what a reading for the backward keeps."""
    if not work.warmups:
        return 0.0
    shape, e, longest = work.shape, 4 if precision == "float32" else 2, work.longest
    prompts, x, c, y = work.prompts * work.micro_batches, longest.prompt, longest.warmup, longest.target
    rows, room = prompts * work.warmups, max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // shape.vocab)
    per_token = 2 * shape.layers * (shape.inner if shape.kind == "t5" else shape.kv_inner) * e
    copies = 2 if shape.kind == "t5" else 1.5  # the reading, and what is laid out anew for decoding
    kept = prompts * per_token * (copies * x + work.warmups * (c + 1)) + prompts * x * shape.width * e * 2
    logits: float = 4 * 4 * min(rows, room) * shape.vocab
    if work.trained < work.warmups:
        scores = work.warmups * shape.heads * y * (max(x, c + 1 + y) if shape.kind == "t5" else x + c + y)
        part = min(prompts, max(1.0, min(MAX_TOKENS_PER_PASS / (work.warmups * y), MAX_SCORES_PER_PASS / scores)))
        kept += part * (3 * e * scores + work.warmups * y * e * (3 * shape.inner + 3 * shape.feed_forward))
        logits = max(logits, 2 * 4 * min(rows * y, room) * shape.vocab)
    reading = _Layers(work, precision, True).reading() if once else 0.0
    half = 4 * shape.head_size if precision == "bfloat16" else 0
    return kept + logits + reading + half
