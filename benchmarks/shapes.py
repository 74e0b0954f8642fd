"""The shapes that are measured: how large a model, how long a batch.

Knows: numbers. Must not know: torch, so that every `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_WARMUP = 16  # tokens
STOP_RATE = 1 / 16  # P(separator) at every token: the mean warmup then has about 10 tokens
GROUP_SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Shape:
    """A model with random weights and one batch of random words for it. Lengths: 50-100 % of the maximum."""

    name: str
    kind: str  # t5 or llama
    rows: int  # B, prompts per step
    prompt_tokens: int  # at most, the token that ends (T5) or begins (Llama) it included
    target_tokens: int  # at most, the end token not included
    vocab: int
    width: int
    layers: int  # of a T5: in the encoder and in the decoder
    heads: int
    kv_heads: int
    feed_forward: int
    gated: bool = False  # a T5 as mT5 is: gated feed-forward, a head of its own


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("t5-d256", "t5", 16, 32, 32, vocab=8192, width=256, layers=4, heads=4, kv_heads=4, feed_forward=1024),
        Shape("t5-small", "t5", 8, 64, 48, vocab=32128, width=512, layers=6, heads=8, kv_heads=8, feed_forward=2048),
        Shape("llama-d256", "llama", 8, 64, 48, vocab=8192, width=256, layers=4, heads=4, kv_heads=4, feed_forward=768),
        Shape(
            "smollm2-135m", "llama", 4, 64, 48, vocab=49152, width=576, layers=30, heads=9, kv_heads=3, feed_forward=1536
        ),
    )
}  # fmt: skip

# The paper's models, for a machine with an accelerator: `benchmarks/accelerator.sh`.
DEVICE_SHAPES = {
    shape.name: shape
    for shape in (
        Shape("t5-base", "t5", 16, 128, 64, 32128, width=768, layers=12, heads=12, kv_heads=12, feed_forward=3072),
        Shape("mt5-base", "t5", 16, 128, 64, 250112, 768, 12, 12, 12, feed_forward=2048, gated=True),
        Shape("llama-3.2-1b", "llama", 8, 128, 64, 128256, width=2048, layers=16, heads=32, kv_heads=8, feed_forward=8192),
    )
}  # fmt: skip
TINY_SHAPES = {
    name: Shape(name, shape.kind, 4, 16, 12, 256, 32, layers=2, heads=2, kv_heads=2, feed_forward=64, gated=shape.gated)
    for name, shape in DEVICE_SHAPES.items()
}
