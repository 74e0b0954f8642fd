"""Shapes of networks, and how many numbers they hold: from a few well-known names, a folder's config.json, or a recipe's sizes.

Knows: how T5 and Llama and their kin are built. Must not know: weights, torch, transformers (importing their configurations
alone takes three seconds), recipes.
"""

from __future__ import annotations

import difflib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_warmup.runtime.settings import scratch_faults

T5_KINDS = ("t5", "mt5")
LLAMA_KINDS = ("llama", "mistral", "qwen2", "qwen3")
# What `layouts.tiny.TinySize` falls back on; a test keeps the two alike, as importing that one means importing transformers.
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
    def parameters(self) -> int:
        """Every number once; exact."""
        embeddings = self.head_size * (1 if self.tied else 2)
        attention = self.width * (2 * self.inner + 2 * self.kv_inner)
        feed_forward = (3 if self.gated else 2) * self.width * self.feed_forward
        if self.kind == "t5":
            encoder = self.encoder_layers * (attention + feed_forward + 2 * self.width)
            decoder = self.layers * (2 * attention + feed_forward + 3 * self.width)
            return embeddings + encoder + decoder + 2 * self.width + 2 * self.buckets * self.heads
        layer = attention + feed_forward + 2 * self.width
        layer += (self.inner + 2 * self.kv_inner if self.qkv_bias else 0) + (self.width if self.output_bias else 0)
        layer += 2 * self.head_width if self.qk_norm else 0
        return embeddings + self.layers * layer + self.width

    @property
    def decoder_parameters(self) -> int:
        """What one decoding step reads: the decoder's layers and the head (not a T5's encoder)."""
        if self.kind == "llama":
            return self.parameters - (0 if self.tied else self.head_size)
        layer = 6 * self.width * self.inner + (3 if self.gated else 2) * self.width * self.feed_forward
        return self.layers * layer + self.head_size


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
        return _scratch(name, scratch or {}, scratch_vocab)
    config = Path(name, "config.json")
    if config.is_file():
        return _from_config(name, json.loads(config.read_text(encoding="utf-8")), _has_own_head(Path(name)))
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


def _scratch(name: str, given: dict[str, Any], vocab: int | None) -> Shape:
    if faults := scratch_faults(given):
        raise ValueError(" ".join(faults))
    size: dict[str, Any] = {**SCRATCH, **given}
    heads, width, t5 = size["heads"], size["width"], name == "scratch-t5"
    return Shape(
        name, "t5" if t5 else "llama", vocab or size["vocab_size"], width, heads, heads, width // heads,
        size["feed_forward"] or 4 * width, size["layers"], (size["encoder_layers"] or size["layers"]) if t5 else 0,
        gated=not t5,
    )  # fmt: skip


def _from_config(name: str, config: dict[str, Any], own_head: bool) -> Shape:
    """A shape from the mapping in config.json; keys that are left out have transformers' defaults."""
    kind = config.get("model_type")

    def size(key: str, default: int) -> int:
        value = config.get(key)
        return int(default if value is None else value)

    if kind in T5_KINDS:
        small = (512, 1024, 8, 6, 250112) if kind == "mt5" else (512, 2048, 6, 8, 32128)
        layers, heads = size("num_layers", small[2]), size("num_heads", small[3])
        gated = str(config.get("feed_forward_proj") or ("gated-gelu" if kind == "mt5" else "relu")).startswith("gated")
        # transformers since 5.20 writes `true` here for every T5, also for one with a head of its own
        tied = bool(config.get("tie_word_embeddings", kind == "t5")) and not own_head
        return Shape(
            name, "t5", size("vocab_size", small[4]), size("d_model", small[0]), heads, heads, size("d_kv", 64),
            size("d_ff", small[1]), size("num_decoder_layers", layers), layers, gated, tied,
            size("relative_attention_num_buckets", 32),
        )  # fmt: skip
    if kind in LLAMA_KINDS:
        missing = [k for k in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers",
                               "intermediate_size") if k not in config]  # fmt: skip
        if missing:
            raise ValueError(f"model_name_or_path: {name}/config.json lacks {', '.join(missing)}.")
        heads, width = config["num_attention_heads"], config["hidden_size"]
        biased = bool(config.get("attention_bias", kind == "qwen2"))
        return Shape(
            name, "llama", config["vocab_size"], width, heads, size("num_key_value_heads", heads),
            size("head_dim", width // heads), config["intermediate_size"], config["num_hidden_layers"],
            tied=bool(config.get("tie_word_embeddings", False)), qkv_bias=biased,
            output_bias=biased and kind != "qwen2", qk_norm=kind == "qwen3",
        )  # fmt: skip
    raise ValueError(
        f"model_name_or_path: {name} is a {kind!r}. plan knows what a step of {', '.join((*T5_KINDS, *LLAMA_KINDS))} costs."
    )


def _has_own_head(folder: Path) -> bool:
    """Whether the weights' table of contents lists `lm_head.weight`; the weights themselves stay on disk."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return "lm_head.weight" in json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
    if not single.is_file():
        return False
    with single.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        return "lm_head.weight" in json.loads(file.read(length))
