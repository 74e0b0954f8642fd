"""How many positions a network has, and whether a row fits into them.

Knows: configs. Must not know: tokenizers, training. T5 and its relatives use relative positions and have no limit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHANGES_WITH_LENGTH = ("dynamic", "longrope")  # RoPE whose angles, hence scores, depend on a batch's longest row
TABLE = "max_position_embeddings"
RELATIVE = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano")


@dataclass(frozen=True)
class Positions:
    """The limits of a network, in tokens."""

    prompt: int | None  # positions of the encoder; None without an encoder, or without a limit
    sequence: int | None  # of the decoder, which in a decoder-only network reads the prompt too; None: no limit
    warmup: int  # the longest warmup
    name: str = TABLE  # of the setting with the limit
    encoder_decoder: bool = False
    # The longest target that the model may write. 0 if it writes none, and for RoPE with fixed angles, which works beyond the
    # limit without changing earlier positions.
    written: int = 0

    @classmethod
    def of(cls, model: Any, max_warmup_length: int, writes_warmups: bool = True, max_written: int = 0) -> Positions:
        """The limits of a network from its config; without warmups no room is needed for them. `max_written`: as `written`.

        Raises ValueError: memory cannot hold the distances of so long a warmup.
        """
        max_warmup_length = max_warmup_length if writes_warmups else 0
        config = model.config
        if config.model_type in RELATIVE:
            _check_distances(max_warmup_length, getattr(config, "num_heads", 1))
            return cls(None, None, max_warmup_length)
        both = bool(config.is_encoder_decoder)
        encoder = _limit(config.get_text_config(encoder=True))[0] if both else None
        decoder = config.get_text_config(decoder=True)
        sequence, name = _limit(decoder)
        goes_on = name == TABLE and bool(_ropes(decoder))
        return cls(encoder, sequence, max_warmup_length, name, both, 0 if goes_on else max_written)

    def check(self, prompt: int, target: int, where: str) -> None:
        """Refuse a row that does not fit together with the longest warmup and the separator.

        Args:
            prompt, target: numbers of tokens. If the model may write a longer target, that has to fit.

        Raises:
            ValueError: names the row, its parts and the limit.
        """
        if self.prompt is not None and prompt > self.prompt:
            raise ValueError(
                f"{where}: the prompt has {prompt} tokens, and the encoder has {self.prompt} positions. Set max_prompt_length to "
                f"{self.prompt} at most, and prompt_truncation to cut or drop such rows."
            )
        before = 1 if self.encoder_decoder else prompt  # the decoder's start token
        most = max(target, self.written)
        whose = f"target {target}" if most == target else f"a written target of up to {self.written}"
        total = before + self.warmup + 1 + most
        if self.sequence is not None and total > self.sequence:
            begin = "" if self.encoder_decoder else f"prompt {prompt} + "
            raise ValueError(
                f"{where}: {begin}max_warmup_length {self.warmup} + separator + {whose} tokens need {total} positions, "
                f"and the model has {self.sequence} ({self.name}). Lower max_warmup_length, or limit such rows by "
                f"max_prompt_length, max_target_length and the truncation policies."
            )


def _check_distances(warmup: int, heads: int) -> None:
    """Raises ValueError if the relative positions of a warmup would take more than a quarter of this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (needed := 4 * heads * warmup**2) > memory / 4:
        raise ValueError(
            f"max_warmup_length: {warmup} x {warmup} distances x {heads} heads x 4 bytes are {needed / 1e9:,.0f} GB, and this "
            f"machine has {memory / 1e9:,.0f} GB. Lower it to {math.isqrt(memory // (16 * heads))} at most."
        )


def _limit(config: Any) -> tuple[int | None, str]:
    """The positions of one network, and the setting with the limit."""
    limit, key = getattr(config, TABLE, None), f"original_{TABLE}"
    if not isinstance(limit, int) or limit < 1:
        return None, ""
    for rope in _ropes(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind in CHANGES_WITH_LENGTH:
            original = rope.get(key) or getattr(config, key, None) or limit
            return min(limit, original), f"beyond them its {kind} RoPE turns all positions by other angles"
    return limit, TABLE


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """The settings of RoPE; some networks have several, by type of layer."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, Mapping):
        return []
    inner = [value for value in parameters.values() if isinstance(value, Mapping)]
    return inner or [parameters]
