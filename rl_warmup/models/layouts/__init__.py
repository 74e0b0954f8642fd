"""Layouts: how prompt x, warmup c and target y become the input of a network.

Two layouts with the same methods: `Seq2SeqLayout` (the encoder reads x, the decoder `c [sep] y [eos]`) and
`CausalLayout` (one row `x c [sep] y [eos]`). Token ids are concatenated; text is never tokenized again.
"""

from __future__ import annotations

from typing import Any

from rl_warmup.models.layouts.causal import CausalLayout
from rl_warmup.models.layouts.seq2seq import Seq2SeqLayout
from rl_warmup.models.tokens import LayoutTokens

Layout = Seq2SeqLayout | CausalLayout


def make_layout(model: Any, tokens: LayoutTokens) -> Layout:
    """The layout that fits a model's architecture."""
    return Seq2SeqLayout(tokens) if model.config.is_encoder_decoder else CausalLayout(tokens)


__all__ = ["CausalLayout", "Layout", "LayoutTokens", "Seq2SeqLayout", "make_layout"]
