"""Encoder-decoder layout (T5, mT5, UMT5 ...): the encoder reads x once, the decoder reads `[start] c [sep] y [eos]`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rl_warmup.models.layouts.splice import pad_right
from rl_warmup.models.tokens import LayoutTokens


@dataclass(frozen=True)
class Seq2SeqLayout:
    """The encoder reads prompts, rows are what the decoder writes."""

    tokens: LayoutTokens

    def prompt_inputs(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """(B, X) ids and mask for `generate`, padded on the right."""
        return pad_right(prompts, self.tokens.pad_id)

    def written_from(self, prompt_width: int) -> int:
        """The column at which `generate`'s output holds the first written token: after the start token."""
        return 1
