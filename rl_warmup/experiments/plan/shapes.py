"""Shapes of networks, and how many numbers they hold: from a few well-known names, a folder's config.json, or a recipe's sizes.

Knows: how T5 and Llama and their kin are built. Must not know: weights, torch, transformers (importing their configurations
alone takes three seconds), recipes.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_warmup.runtime.damage import size_fault
from rl_warmup.runtime.documents import read_json

T5_KINDS = ("t5", "mt5")
LLAMA_KINDS = ("llama", "mistral", "qwen2", "qwen3")
# What `models.tiny.TinySize` falls back on; a test keeps the two alike, as importing that one means importing transformers.
SCRATCH = {"width": 128, "layers": 2, "encoder_layers": None, "heads": 4, "feed_forward": None, "vocab_size": 4000,
           "tokenizer": "subwords", "max_positions": 1024}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Sizes of a T5 (encoder and decoder) or a Llama (decoder only)."""

    name: str
    kind: str  # t5 or llama: which way a step takes through it
    vocab: int
    width: int  # d
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    layers: int  # of the decoder
    encoder_layers: int = 0
    gated: bool = True  # feed-forward: three matrices rather than two
    tied: bool = True  # the head is the embedding
    buckets: int = 32  # T5: relative positions
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_width

    @property
    def kv_inner(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_width

    @property
    def head_size(self) -> int:
        """Numbers in the matrix that makes logits."""
        return self.vocab * self.width

    @property
    def encoder_layer_weights(self) -> int:
        """Numbers that multiply a token in a layer without a look at another network's output."""
        feed_forward = (3 if self.gated else 2) * self.width * self.feed_forward
        return 2 * self.width * (self.inner + self.kv_inner) + feed_forward

    @property
    def layer_weights(self) -> int:
        """The same in a layer of the decoder; a T5's asks the encoder's output too, whose keys and values are not in it."""
        return self.encoder_layer_weights + (2 * self.width * self.inner if self.kind == "t5" else 0)

    @property
    def parameters(self) -> int:
        """Every number once; exact."""
        embeddings = self.head_size * (1 if self.tied else 2)
        if self.kind == "t5":
            encoder = self.encoder_layers * (self.encoder_layer_weights + 2 * self.width)
            decoder = self.layers * (self.layer_weights + 2 * self.width * self.inner + 3 * self.width)
            return embeddings + encoder + decoder + 2 * self.width + 2 * self.buckets * self.heads
        layer = self.layer_weights + 2 * self.width + 2 * self.head_width * self.qk_norm
        layer += (self.inner + 2 * self.kv_inner) * self.qkv_bias + self.width * self.output_bias
        return embeddings + self.layers * layer + self.width


def _t5(name: str, d: int, ff: int, layers: int, heads: int, v: int = 32128, *, v1_1: bool = False) -> Shape:
    return Shape(name, "t5", v, d, heads, heads, 64, ff, layers, layers, gated=v1_1, tied=not v1_1)


def _llama(name: str, v: int, d: int, ff: int, layers: int, heads: int, kv: int, width: int, **more: bool) -> Shape:
    return Shape(name, "llama", v, d, heads, kv, width, ff, layers, **more)


MT5_VOCAB = 250112
# Published configurations; `tests/plan/test_shapes.py` holds their parameter counts.
WELL_KNOWN = {
    shape.name: shape
    for shape in (
        _t5("google-t5/t5-small", 512, 2048, 6, 8),
        _t5("google-t5/t5-base", 768, 3072, 12, 12),
        _t5("google-t5/t5-large", 1024, 4096, 24, 16),
        _t5("google/flan-t5-small", 512, 1024, 8, 6, v1_1=True),
        _t5("google/flan-t5-base", 768, 2048, 12, 12, v1_1=True),
        _t5("google/flan-t5-large", 1024, 2816, 24, 16, v1_1=True),
        _t5("google/mt5-small", 512, 1024, 8, 6, MT5_VOCAB, v1_1=True),
        _t5("google/mt5-base", 768, 2048, 12, 12, MT5_VOCAB, v1_1=True),
        _t5("google/mt5-large", 1024, 2816, 24, 16, MT5_VOCAB, v1_1=True),
        _llama("meta-llama/Llama-3.2-1B", 128256, 2048, 8192, 16, 32, 8, 64),
        _llama("meta-llama/Llama-3.2-3B", 128256, 3072, 8192, 28, 24, 8, 128),
        _llama("meta-llama/Llama-3.1-8B", 128256, 4096, 14336, 32, 32, 8, 128, tied=False),
        _llama("HuggingFaceTB/SmolLM2-135M", 49152, 576, 1536, 30, 9, 3, 64),
        _llama("HuggingFaceTB/SmolLM2-360M", 49152, 960, 2560, 32, 15, 5, 64),
        _llama("HuggingFaceTB/SmolLM2-1.7B", 49152, 2048, 8192, 24, 32, 32, 64),
        _llama("Qwen/Qwen2.5-0.5B", 151936, 896, 4864, 24, 14, 2, 64, qkv_bias=True),
        _llama("Qwen/Qwen3-0.6B", 151936, 1024, 3072, 28, 16, 8, 128, qk_norm=True),
    )
}


def read_shape(name: str, scratch: dict[str, Any] | None = None, scratch_vocab: int | None = None) -> Shape:
    """The shape behind `model_name_or_path`, without network and without loading a weight.

    Args:
        name: scratch-t5, scratch-llama, a folder with config.json, or a well-known name, also without its owner
            (`t5-base`) and with `-Instruct` or `-it` behind it.
        scratch: the recipe's sizes of a scratch model.
        scratch_vocab: words of its tokenizer where they are known; else `vocab_size`, the most there can be.

    Raises:
        ValueError: the name is none of these, or the architecture is not T5's or Llama's.
    """
    if name in ("scratch-t5", "scratch-llama"):
        return _scratch(name, {**SCRATCH, **(scratch or {})}, scratch_vocab)
    if Path(name, "config.json").is_file():
        return _from_config(name, read_json(Path(name, "config.json")))
    wanted = name.lower().removesuffix("-instruct").removesuffix("-it")
    for known, shape in WELL_KNOWN.items():
        if wanted in (known.lower(), known.lower().partition("/")[2]):
            return shape
    near = difflib.get_close_matches(name, WELL_KNOWN, n=1, cutoff=0.6)
    raise ValueError(
        f"model_name_or_path: the shape of {name!r} is not known here, and plan asks no network."
        f"{f' Did you mean {near[0]!r}?' if near else ''} Give a folder that holds its config.json, scratch-t5, "
        f"scratch-llama, or one of {', '.join(WELL_KNOWN)}."
    )


def _scratch(name: str, size: dict[str, Any], words: int | None) -> Shape:
    heads, width, layers, t5 = size["heads"], size["width"], size["layers"], name == "scratch-t5"
    return Shape(
        name, "t5" if t5 else "llama", min(words or size["vocab_size"], size["vocab_size"]), width, heads, heads,
        width // heads, size["feed_forward"] or 4 * width, layers, (size["encoder_layers"] or layers) * t5, gated=not t5,
    )  # fmt: skip


def _from_config(name: str, config: dict[str, Any]) -> Shape:
    """A shape from the mapping in config.json; keys that are left out have transformers' defaults."""
    if fault := size_fault(config):
        raise ValueError(
            f"model_name_or_path: {name}/config.json: {fault}. Give the config.json that belongs to the weights."
        )
    kind, given = config.get("model_type"), {key: value for key, value in config.items() if value is not None}
    if kind in T5_KINDS:
        mt5 = kind == "mt5"
        size = {"d_model": 512, "d_ff": 1024 if mt5 else 2048, "num_layers": 8 if mt5 else 6, "num_heads": 6 if mt5 else 8,
                "vocab_size": MT5_VOCAB if mt5 else 32128, "d_kv": 64, "relative_attention_num_buckets": 32,
                "feed_forward_proj": "gated-gelu" if mt5 else "relu", **given}  # fmt: skip
        # published T5 that are gated have a head of their own, whatever config.json says (transformers since 5.20: tied)
        gated = size["feed_forward_proj"].startswith("gated")
        layers, heads = size["num_layers"], size["num_heads"]
        return Shape(
            name, "t5", size["vocab_size"], size["d_model"], heads, heads, size["d_kv"], size["d_ff"],
            given.get("num_decoder_layers", layers), layers, gated, not gated, size["relative_attention_num_buckets"],
        )  # fmt: skip
    if kind in LLAMA_KINDS:
        needed = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
        if missing := [key for key in needed if key not in given]:
            raise ValueError(f"model_name_or_path: {name}/config.json lacks {', '.join(missing)}.")
        vocab, width, heads, feed_forward, layers = (given[key] for key in needed)
        biased = bool(given.get("attention_bias", kind == "qwen2"))
        return Shape(
            name, "llama", vocab, width, heads, given.get("num_key_value_heads", heads),
            given.get("head_dim", width // heads), feed_forward, layers, tied=given.get("tie_word_embeddings", False),
            qkv_bias=biased, output_bias=biased and kind != "qwen2", qk_norm=kind == "qwen3",
        )  # fmt: skip
    known = ", ".join((*T5_KINDS, *LLAMA_KINDS))
    raise ValueError(f"model_name_or_path: {name} is a {kind!r}. plan knows what a step of {known} costs.")
