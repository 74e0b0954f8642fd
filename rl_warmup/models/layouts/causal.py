"""Decoder-only layout (Llama, Qwen, SmolLM ...): one row `x c [sep] y [eos]`; no loss on x."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rl_warmup.models.layouts.splice import pad_right
from rl_warmup.models.tokens import LayoutTokens


@dataclass(frozen=True)
class CausalLayout:
    """Rows continue their prompts; for `generate`, prompts are padded on the left."""

    tokens: LayoutTokens

    def prompt_inputs(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """(B, X) ids and mask for `generate`, padded on the left so that every row ends with its prompt's last token."""
        ids, mask = pad_right([prompt[::-1] for prompt in prompts], self.tokens.pad_id)
        return ids.flip(1), mask.flip(1)

    def written_from(self, prompt_width: int) -> int:
        """The column at which `generate`'s output holds the first written token: after the prompt."""
        return prompt_width
