"""Layouts: how prompt x, warmup c and target y become the input of a network.

Encoder-decoder (T5, mT5, UMT5 ...): the encoder reads x once, the decoder reads `[start] c [sep] y [eos]`. Decoder-only (Llama,
Qwen, SmolLM ...): one row `x c [sep] y [eos]`, no loss on x. Token ids are concatenated; text is never tokenized again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rl_warmup.models.layouts.splice import pad_right
from rl_warmup.models.tokens import LayoutTokens

__all__ = ["Layout", "LayoutTokens", "make_layout"]


@dataclass(frozen=True)
class Layout:
    """The tokens of a layout, and what `generate` is given and gives back."""

    tokens: LayoutTokens
    encoder_decoder: bool

    def prompt_inputs(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """(B, X) ids and mask for `generate`. A decoder-only network continues its prompts: they are padded on the left."""
        if self.encoder_decoder:
            return pad_right(prompts, self.tokens.pad_id)
        ids, mask = pad_right([prompt[::-1] for prompt in prompts], self.tokens.pad_id)
        return ids.flip(1), mask.flip(1)

    def written_from(self, prompt_width: int) -> int:
        """The column at which `generate`'s output holds the first written token: after the start token, or after the prompt."""
        return 1 if self.encoder_decoder else prompt_width


def make_layout(model: Any, tokens: LayoutTokens) -> Layout:
    """The layout that fits a model's architecture; its config then sizes the cache of `generate` by the decoder."""
    _size_cache_by_decoder(model.config)
    return Layout(tokens, bool(model.config.is_encoder_decoder))


def _size_cache_by_decoder(config: Any) -> None:
    """Let a T5 config whose encoder has another number of layers say how many the decoder has.

    transformers sizes the cache of `generate` by `decoder_layers` where a config has it, else by the encoder's layers, and a
    deeper decoder ends in an IndexError.
    """
    layers = getattr(config, "num_decoder_layers", None)
    if layers not in (None, getattr(config, "num_layers", None)):
        config.decoder_layers = layers
