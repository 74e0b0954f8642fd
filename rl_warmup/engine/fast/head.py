"""The output head of a stock model, patched so that it can return its input, score tokens, or return float32 logits.

Knows: the module that `get_output_embeddings` names, and what known architectures do to logits after it. Must not know:
rows, warmups. All calls go through that module, because its hooks gather the weight under ZeRO-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from rl_warmup.engine.fast.logprobs import OutputHead, Tokens, token_logps, weighted_logps
from rl_warmup.engine.fast.packed import PackedAttention, packed_attention

LOGITS = "logits"


class Head:
    """Replaces the forward of a model's output embeddings: `capture` returns their input, `score` and `logits` their results."""

    def __init__(self, model: Any) -> None:
        self.model, self.stock_forward = model, model.forward
        self.module = model.get_output_embeddings()
        self.stock_head_forward = self.module.forward
        config = model.config.get_text_config(decoder=True)
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        # what known architectures do to logits after the head (Gemma's soft cap, Granite's and Cohere's scales)
        self.after: dict[str, Any] = {"scale": scale, "cap": getattr(config, "final_logit_softcapping", None)}
        self.captured: Tensor | None = None
        self.capturing = False
        self.can_pack = self.can_decode = True  # `scoring.enable` finds out: packed rows, our own sampler
        self.scores_padded = self.samples_by_generate = False  # `engine.paths` sets them
        self.float32_head: OutputHead | None = None

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded (ZeRO-3, FSDP2), so that every process has to make the same calls."""
        return isinstance(self.module, FSDPModule) or hasattr(self.module.weight, "ds_id")

    def forward(self, hidden: Tensor, tokens: Tokens | str | None = None) -> Any:
        """The head module runs this instead of its own forward."""
        if self.capturing:
            self.captured = hidden
            return hidden[..., :1]
        if tokens is None:
            return self.stock_head_forward(hidden)
        if isinstance(tokens, str):
            with torch.autocast(hidden.device.type, enabled=False):
                return (self.float32_head or self._weights()).logits(hidden)
        if tokens.weights is not None:
            return weighted_logps(hidden, tokens, self._weights())
        return token_logps(hidden, tokens, self._weights())

    def _weights(self) -> OutputHead:
        return OutputHead(self.module.weight, getattr(self.module, "bias", None), **self.after)

    def capture(self, packing: PackedAttention | None = None, **inputs: Any) -> Tensor:
        """Run the stock model and return the hidden states before the head, after any scaling the model applies to them.

        Args:
            packing: the attention of packed sequences; None for padded rows.

        Raises:
            ValueError: the output head was replaced after scoring was enabled.
        """
        if self.model.get_output_embeddings() is not self.module:
            raise ValueError(
                "The output head was replaced after scoring was enabled, so it would be left out of the log-probabilities. "
                "Leave it (lm_head) out of the adapter's target_modules and modules_to_save."
            )
        self.capturing = True
        try:
            if packing is None:
                self.stock_forward(**inputs)
            else:
                with packed_attention(self.model, packing) as extra:
                    self.stock_forward(**inputs, **extra)
        finally:
            self.capturing = False
        hidden, self.captured = self.captured, None
        assert hidden is not None, "the stock forward did not reach its head"
        return hidden

    def score(self, hidden: Tensor, tokens: Tokens) -> Any:
        """`token_logps`, or `weighted_logps` if `tokens` has weights."""
        return self._call(hidden, tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, d) -> (M, V) float32, without gradient."""
        return self._call(hidden, LOGITS)

    def _call(self, hidden: Tensor, tokens: Tokens | str) -> Any:
        """Call the module, so that its hooks run.

        Not under FSDP2: it shards the head together with the embeddings and the last norm and has gathered them since the
        stock forward. A second call would count as another forward of all of them, and reduced their gradient too early.
        """
        if isinstance(self.module, FSDPModule):
            return self.forward(hidden, tokens)
        return self.module(hidden, tokens)

    @contextmanager
    def float32_weights(self) -> Iterator[None]:
        """Cast a half-precision head once, for many calls of `logits`."""
        if self.module.weight.dtype != torch.float32:
            self.float32_head = self._weights().in_float32()
        try:
            yield
        finally:
            self.float32_head = None
