"""The output head of a stock model, able to hand out its input, to score tokens, and to give float32 logits.

Knows: the module that `get_output_embeddings` names, and what known architectures do to logits after it. Must not know:
rows, warmups. Everything goes through that module, whose hooks gather its weight under ZeRO-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from rl_warmup.engine.fast.logprobs import OutputHead, Tokens, token_logps, weighted_logps
from rl_warmup.engine.fast.packed import PackedAttention, attending

LOGITS = "logits"


class Head:
    """Stands in front of a model's output embeddings: `capture` returns their input, a call scores tokens."""

    def __init__(self, model: Any) -> None:
        self.model, self.stock_model = model, model.forward
        self.module = model.get_output_embeddings()
        self.stock_head = self.module.forward
        self.after = _after_head(model.config)
        self.captured: Tensor | None = None
        self.capturing = False
        # what `scoring.enable` finds out: whether rows may go without padding, and warmups be decoded by our own loop
        self.packs = self.decodes = True
        self.scores_padded = self.samples_by_generate = False  # `engine.paths` sets them
        self.at_hand: OutputHead | None = None

    @property
    def sharded(self) -> bool:
        """Whether weights live in shards (ZeRO-3, FSDP2), so that every process has to make the same calls."""
        return isinstance(self.module, FSDPModule) or hasattr(self.module.weight, "ds_id")

    def forward(self, hidden: Tensor, tokens: Tokens | str | None = None) -> Any:
        """What the head's module runs in place of its own forward."""
        if self.capturing:
            self.captured = hidden
            return hidden[..., :1]
        if tokens is None:
            return self.stock_head(hidden)
        head = OutputHead(self.module.weight, getattr(self.module, "bias", None), **self.after)
        if isinstance(tokens, str):
            with torch.autocast(hidden.device.type, enabled=False):
                return (self.at_hand or head).logits(hidden)
        if tokens.weights is not None:
            return weighted_logps(hidden, tokens, head)
        return token_logps(hidden, tokens, head)

    def capture(self, packing: PackedAttention | None = None, **inputs: Any) -> Tensor:
        """Hidden states right before the head, after whatever scaling the model applies to them.

        Args:
            packing: what tokens look at, where rows are not padded.
        """
        if self.model.get_output_embeddings() is not self.module:
            raise ValueError(
                "The output head was replaced after scoring was enabled, so it would be left out of the log-probabilities. "
                "Leave it (lm_head) out of the adapter's target_modules and modules_to_save."
            )
        self.capturing = True
        try:
            if packing is None:
                self.stock_model(**inputs)
            else:
                with attending(self.model, packing) as extra:
                    self.stock_model(**inputs, **extra)
        finally:
            self.capturing = False
        hidden, self.captured = self.captured, None
        assert hidden is not None, "the stock forward did not reach its head"
        return hidden

    def score(self, hidden: Tensor, tokens: Tokens) -> Any:
        """`token_logps`, or `weighted_logps` where the weights are known."""
        return self._module_call(hidden, tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, d) -> (M, V) float32, without gradient."""
        return self._module_call(hidden, LOGITS)

    def _module_call(self, hidden: Tensor, tokens: Tokens | str) -> Any:
        """Through the module, whose hooks gather its weight under ZeRO-3.

        FSDP2 keeps it in a group with the embeddings and the last norm, gathered since the stock forward reached them, and
        would take a second call of one of them for another forward of all: it reduced their gradient too early.
        """
        if isinstance(self.module, FSDPModule):
            return self.forward(hidden, tokens)
        return self.module(hidden, tokens)

    @contextmanager
    def float32_at_hand(self) -> Iterator[None]:
        """Cast a half-precision head once for many calls of `logits`."""
        half = self.module.weight.dtype != torch.float32
        if half:
            self.at_hand = OutputHead(self.module.weight, getattr(self.module, "bias", None), **self.after).in_float32()
        try:
            yield
        finally:
            self.at_hand = None


def _after_head(config: Any) -> dict[str, Any]:
    """What known architectures do to logits after the head (Gemma's soft cap, Granite's and Cohere's scales)."""
    config = config.get_text_config(decoder=True)
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return {"scale": scale / divisor, "cap": getattr(config, "final_logit_softcapping", None)}
