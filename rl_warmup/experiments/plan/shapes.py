"""Sizes of networks and how many parameters they have, from config.json alone."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_warmup.runtime.damage import size_fault
from rl_warmup.runtime.documents import read_json

# What `models.tiny.TinySize` falls back on; a test keeps the two alike, as importing that one means importing transformers.
SCRATCH = {"width": 128, "layers": 2, "encoder_layers": None, "heads": 4, "feed_forward": None, "vocab_size": 4000}


@dataclass(frozen=True)
class Shape:
    """Sizes of a T5 (encoder and decoder) or a Llama (decoder only); `inner` and `kv_inner`: all (key) heads together."""

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
        return self.heads * self.head_width

    @property
    def kv_inner(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def head_size(self) -> int:
        """Numbers in the matrix that makes logits."""
        return self.vocab * self.width

    @property
    def encoder_layer_weights(self) -> int:
        """Numbers that multiply a token in a layer that does not look at another network's output."""
        feed_forward = (3 if self.gated else 2) * self.width * self.feed_forward
        return 2 * self.width * (self.inner + self.kv_inner) + feed_forward

    @property
    def layer_weights(self) -> int:
        """The same in a layer of the decoder; of a T5 with the queries to the encoder's output, without its keys and values."""
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


def read_shape(name: str, scratch: dict[str, Any] | None = None, scratch_vocab: int | None = None) -> Shape:
    """The shape behind `model_name_or_path`, without network and without loading a weight.

    `name` is scratch-t5 or scratch-llama (of the sizes `scratch`, and `scratch_vocab` words or at most `vocab_size`), a folder
    with config.json, or a well-known name, also without its owner (`t5-base`) and with `-Instruct` or `-it` behind it.
    ValueError where it is none of these, or the architecture is not T5's or Llama's.
    """
    if name in ("scratch-t5", "scratch-llama"):
        return _from_config(name, _scratch_config(name, {**SCRATCH, **(scratch or {})}, scratch_vocab))
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


def _scratch_config(name: str, size: dict[str, Any], words: int | None) -> dict[str, Any]:
    """What the config.json of a scratch model would hold."""
    width, heads, layers = size["width"], size["heads"], size["layers"]
    vocab, feed_forward = min(words or size["vocab_size"], size["vocab_size"]), size["feed_forward"] or 4 * width
    if name == "scratch-t5":
        return {
            "model_type": "t5", "vocab_size": vocab, "d_model": width, "num_heads": heads, "d_kv": width // heads,
            "d_ff": feed_forward, "num_layers": size["encoder_layers"] or layers, "num_decoder_layers": layers,
        }  # fmt: skip
    return {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": width, "num_attention_heads": heads,
        "intermediate_size": feed_forward, "num_hidden_layers": layers, "tie_word_embeddings": True,
    }  # fmt: skip


T5 = {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128, "d_kv": 64,
      "relative_attention_num_buckets": 32, "feed_forward_proj": "relu"}  # fmt: skip
MT5 = {**T5, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "vocab_size": 250112, "feed_forward_proj": "gated-gelu"}
T5_DEFAULTS = {"t5": T5, "mt5": MT5}  # transformers'
LLAMA_KINDS = ("llama", "mistral", "qwen2", "qwen3")
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _from_config(name: str, config: dict[str, Any]) -> Shape:
    """A shape from the mapping in config.json; keys that are left out have transformers' defaults."""
    if fault := size_fault(config):
        raise ValueError(
            f"model_name_or_path: {name}/config.json: {fault}. Give the config.json that belongs to the weights."
        )
    kind, given = config.get("model_type"), {key: value for key, value in config.items() if value is not None}
    if kind in T5_DEFAULTS:
        size = {**T5_DEFAULTS[kind], **given}
        # published T5 that are gated have a head of their own, whatever config.json says (transformers since 5.20: tied)
        gated, heads = size["feed_forward_proj"].startswith("gated"), size["num_heads"]
        return Shape(
            name=name, kind="t5", vocab=size["vocab_size"], width=size["d_model"], heads=heads, kv_heads=heads,
            head_width=size["d_kv"], feed_forward=size["d_ff"], layers=size.get("num_decoder_layers", size["num_layers"]),
            encoder_layers=size["num_layers"], gated=gated, tied=not gated, buckets=size["relative_attention_num_buckets"],
        )  # fmt: skip
    if kind not in LLAMA_KINDS:
        known = ", ".join((*T5_DEFAULTS, *LLAMA_KINDS))
        raise ValueError(f"model_name_or_path: {name} is a {kind!r}. plan knows what a step of {known} costs.")
    if missing := [key for key in NEEDED if key not in given]:
        raise ValueError(f"model_name_or_path: {name}/config.json lacks {', '.join(missing)}.")
    width, heads = given["hidden_size"], given["num_attention_heads"]
    biased = bool(given.get("attention_bias", kind == "qwen2"))
    return Shape(
        name=name, kind="llama", vocab=given["vocab_size"], width=width, heads=heads,
        kv_heads=given.get("num_key_value_heads", heads), head_width=given.get("head_dim", width // heads),
        feed_forward=given["intermediate_size"], layers=given["num_hidden_layers"],
        tied=given.get("tie_word_embeddings", False), qkv_bias=biased, output_bias=biased and kind != "qwen2",
        qk_norm=kind == "qwen3",
    )  # fmt: skip


# Published configurations by these keys of config.json; `tests/plan/test_shapes.py` holds their parameter counts.
T5_KEYS = ("model_type", "feed_forward_proj", "d_model", "d_ff", "num_layers", "num_heads")
LLAMA_KEYS = ("model_type", *NEEDED, "num_key_value_heads", "head_dim", "tie_word_embeddings")
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "google-t5/t5-small": ("t5", "relu", 512, 2048, 6, 8),
    "google-t5/t5-base": ("t5", "relu", 768, 3072, 12, 12),
    "google-t5/t5-large": ("t5", "relu", 1024, 4096, 24, 16),
    "google/flan-t5-small": ("t5", "gated-gelu", 512, 1024, 8, 6),
    "google/flan-t5-base": ("t5", "gated-gelu", 768, 2048, 12, 12),
    "google/flan-t5-large": ("t5", "gated-gelu", 1024, 2816, 24, 16),
    "google/mt5-small": ("mt5", "gated-gelu", 512, 1024, 8, 6),
    "google/mt5-base": ("mt5", "gated-gelu", 768, 2048, 12, 12),
    "google/mt5-large": ("mt5", "gated-gelu", 1024, 2816, 24, 16),
    "meta-llama/Llama-3.2-1B": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "meta-llama/Llama-3.2-3B": ("llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "meta-llama/Llama-3.1-8B": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "HuggingFaceTB/SmolLM2-360M": ("llama", 49152, 960, 2560, 32, 15, 5, 64, True),
    "HuggingFaceTB/SmolLM2-1.7B": ("llama", 49152, 2048, 8192, 24, 32, 32, 64, True),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),
    "Qwen/Qwen3-0.6B": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
}
WELL_KNOWN = {
    name: _from_config(name, dict(zip(T5_KEYS if "t5" in row[0] else LLAMA_KEYS, row, strict=True)))
    for name, row in PUBLISHED.items()
}
