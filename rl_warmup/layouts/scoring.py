"""A second way through a stock model: `model.forward(warmup_scoring=True, ...)` returns log-probabilities of given tokens.

Knows: Hugging Face forward signatures, the head. Must not know: what a warmup is for, or any config of ours.
It is a patched *forward*, because DDP, ZeRO and FSDP act in hooks around it: computing the loss on the unwrapped model
would skip them. The stock forward runs unchanged up to its head, which is intercepted: hidden states of the counted
positions alone go through it, in float32, inside one call of the head module, so that ZeRO-3 gathers its weight once.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from rl_warmup.batch import Scores, WarmupBatch
from rl_warmup.layouts.law import WarmupLaw
from rl_warmup.objectives.logprobs import token_logps

HALF = (torch.bfloat16, torch.float16)


def enable_scoring(model: nn.Module) -> None:
    """Patch `forward` of a plain `transformers` model (in place, once) and check the result against the stock logits.

    Raises:
        ValueError: if the log-probabilities differ from the stock model's, i.e. the model transforms its logits after the
            head in a way that is not known here.
    """
    if hasattr(model, "_warmup_head"):
        return
    head = _Head(model)
    stock = inspect.signature(head.stock_model)

    def forward(self: Any, *args: Any, warmup_scoring: bool = False, **kwargs: Any) -> Any:
        head = self._warmup_head  # not the one above: a deep copy of the model has its own
        if not warmup_scoring:
            return head.stock_model(*args, **kwargs)
        given = {name: value for name, value in kwargs.items() if value is not None}  # PEFT adds `labels=None` and such
        return ModelOutput(token_logps=_score(self, head, **given))

    # `generate` reads the signature to learn whether to pass position_ids (left-padded prompts) and logits_to_keep.
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = stock.replace(parameters=[own, *stock.parameters.values()])  # type: ignore[attr-defined]
    model._warmup_head = head  # type: ignore[assignment]
    model.forward = types.MethodType(forward, model)
    head.module.forward = head.forward
    if all(p.numel() for p in model.parameters()):  # ZeRO-3 holds empty shards here
        try:
            _check_against_stock(model)
        except ValueError:
            model.forward, head.module.forward = head.stock_model, head.stock_head
            del model._warmup_head
            raise


def score(model: nn.Module, batch: WarmupBatch, law: WarmupLaw) -> Scores:
    """log P(c|x) and log P(y|x,c) of every row of a batch, from one forward that keeps the gradient.

    The encoder runs once per prompt, not once per row. Shapes: see `batch`.
    """
    out = model(
        input_ids=batch.prompt_ids,
        attention_mask=batch.prompt_mask,
        warmup_scoring=True,
        prompt_index=batch.prompt_index,
        seq_ids=batch.seq_ids,
        seq_mask=batch.seq_mask,
        warmup_mask=batch.warmup_mask,
        target_mask=batch.target_mask,
        law=law,
    )
    logps = out["token_logps"]
    return Scores(
        warmup_logprob=(logps * batch.warmup_mask).sum(1),
        target_logprob=(logps * batch.target_mask).sum(1),
        token_logps=logps,
        warmup_tokens=batch.warmup_mask.sum(1),
        target_tokens=batch.target_mask.sum(1),
    )


def _score(
    model: Any,
    head: _Head,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_index: Tensor,
    seq_ids: Tensor,
    seq_mask: Tensor,
    warmup_mask: Tensor,
    target_mask: Tensor,
    law: WarmupLaw,
) -> Tensor:
    """(N, T) log-probabilities: of warmup actions under the law, of target tokens under the plain model, 0 elsewhere."""
    if model.config.is_encoder_decoder:
        states = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        start = torch.full_like(seq_ids[:, :1], model.config.decoder_start_token_id)
        inputs = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states.index_select(0, prompt_index)),
            "attention_mask": attention_mask.index_select(0, prompt_index),
            "decoder_input_ids": torch.cat([start, seq_ids[:, :-1]], 1),
        }
        hidden = head.capture(**inputs)  # position t predicts token t
    else:
        hidden = head.capture(input_ids=seq_ids, attention_mask=seq_mask)
        hidden = F.pad(hidden[:, :-1], (0, 0, 1, 0))  # position t-1 predicts token t; token 0 is never counted
    steps = (warmup_mask.cumsum(1) - 1).clamp(min=0)
    is_action, is_target = warmup_mask.bool(), target_mask.bool()
    logps = torch.zeros(seq_ids.shape, dtype=torch.float32, device=seq_ids.device)
    # Both calls always happen, also without any counted position: under ZeRO-3 every rank must reach every gather.
    logps = logps.masked_scatter(is_action, head(hidden[is_action], seq_ids[is_action], law, steps[is_action]))
    return logps.masked_scatter(is_target, head(hidden[is_target], seq_ids[is_target]))


class _Head:
    """The model's output embeddings, able to hand out their input (`capture`) or to score tokens (call)."""

    def __init__(self, model: Any) -> None:
        self.model, self.stock_model = model, model.forward
        self.module = model.get_output_embeddings()
        self.stock_head = self.module.forward
        self.finish = _logits_after_head(model.config)
        self.captured: Tensor | None = None
        self.capturing = False

    def forward(self, hidden: Tensor, tokens: tuple | None = None) -> Tensor:
        """What the head's module runs in place of its own forward."""
        if self.capturing:
            self.captured = hidden
            return hidden[..., :1]
        if tokens is None:
            return self.stock_head(hidden)
        token_ids, law, steps = tokens
        restrict = law.restrict if law else None
        return token_logps(hidden, token_ids, self._logits, self.module.out_features, restrict, steps)

    def _logits(self, hidden: Tensor) -> Tensor:
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        if weight.dtype in HALF:
            return self.finish(F.linear(hidden, weight.float(), None if bias is None else bias.float()))
        return self.finish(self.stock_head(hidden))

    def capture(self, **inputs: Any) -> Tensor:
        """Hidden states right before the head, after whatever scaling the model applies to them."""
        if self.model.get_output_embeddings() is not self.module:
            raise ValueError(
                "The output head was replaced after scoring was enabled, so it would be left out of the log-probabilities. "
                "Leave it (lm_head) out of the adapter's target_modules and modules_to_save."
            )
        self.capturing = True
        try:
            self.stock_model(**inputs, use_cache=False)
        finally:
            self.capturing = False
        hidden, self.captured = self.captured, None
        assert hidden is not None, "the stock forward did not reach its head"
        return hidden

    def __call__(
        self, hidden: Tensor, ids: Tensor, law: WarmupLaw | None = None, steps: Tensor | None = None
    ) -> Tensor:
        return self.module(hidden, (ids, law, steps))


def _logits_after_head(config: Any) -> Any:
    """What known architectures do to logits after the head (Gemma's soft cap, Granite's and Cohere's scales)."""
    config = config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0

    def finish(logits: Tensor) -> Tensor:
        logits = logits * (scale / divisor) if scale != divisor else logits
        return torch.tanh(logits / cap) * cap if cap else logits

    return finish


@torch.no_grad()
def _check_against_stock(model: Any) -> None:
    """Two rows of four tokens that part after two, scored here and by the stock forward. Costs one small forward each."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids = torch.tensor([[3, 5, 4, 6], [3, 5, 7, 2]], device=device)
    ids = ids % model.config.get_text_config(decoder=True).vocab_size
    ones = torch.ones_like(ids)
    counted = ones.clone()
    kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": ones}
    if model.config.is_encoder_decoder:
        kwargs["input_ids"] = ids[:1].repeat(2, 1)
        start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
        logits = model(**kwargs, decoder_input_ids=torch.cat([start, ids[:, :-1]], 1)).logits
    else:
        counted[:, 0] = 0
        logits = F.pad(model(**kwargs).logits[:, :-1], (0, 0, 1, 0))
    expected = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0] * counted
    banned = torch.zeros(logits.size(-1), dtype=torch.bool, device=device)
    index = torch.arange(2, device=device)
    got = model(
        **kwargs, warmup_scoring=True, prompt_index=index, seq_ids=ids, seq_mask=ones,
        warmup_mask=torch.zeros_like(ids), target_mask=counted, law=WarmupLaw(0, banned),
    )["token_logps"]  # fmt: skip
    model.train(was_training)
    tolerance = 1e-3 if logits.dtype == torch.float32 else 0.25
    if not (logits[0, :3] - logits[1, :3]).abs().max() < tolerance:
        raise ValueError(
            f"The decoder of {type(model).__name__} sees tokens that come later, so nothing can be scored in one forward. "
            f"transformers 5.17 has this fault for UMT5; newer versions do not."
        )
    worst = (got - expected).abs().max().item()
    if not worst < tolerance:
        raise ValueError(
            f"{type(model).__name__} changes its logits after the head in a way rl_warmup does not know: log-probabilities "
            f"differ from the stock model's by {worst:.3g} nats. Use a T5, Llama, Qwen, Gemma, Granite or Cohere style model."
        )
