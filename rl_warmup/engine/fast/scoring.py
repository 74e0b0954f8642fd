"""Patches a stock model so that `model.forward(warmup_scoring=True, ...)` returns log-probabilities of given tokens.

Knows: which forward pass (`passes`) suits a network, which tokens of a row count. Must not know: what a warmup is for, or any
config of ours. It patches *forward* because DDP, ZeRO and FSDP work by hooks around it: a loss computed on the unwrapped
model would skip them. The stock forward runs unchanged up to its head, which is replaced (`head`).
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from rl_warmup.batch import RowWeights, Scores, WarmupBatch
from rl_warmup.engine.fast import passes
from rl_warmup.engine.fast.decoding import LLAMA_LIKE, T5_LIKE, decoding_for
from rl_warmup.engine.fast.head import Head
from rl_warmup.engine.fast.logprobs import Tokens
from rl_warmup.engine.fast.packed import PaddedBuckets
from rl_warmup.engine.finite import are_numbers, refuse_no_numbers
from rl_warmup.models.constraints import SamplingConstraints

logger = logging.get_logger(__name__)


def enable(model: nn.Module) -> None:
    """Patch `forward` of a `transformers` model (in place, once) and compare its results with the stock logits.

    If an adapter wraps the model, the model inside is patched: sampling and scoring both go through it.

    Raises:
        ValueError: the log-probabilities differ from the stock model's, i.e. the model transforms its logits after the head
            in an unknown way.
    """
    if hasattr(model, "_warmup_head"):
        return
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    head = Head(model)
    stock = inspect.signature(head.stock_forward)

    def forward(self: Any, *args: Any, warmup_scoring: bool = False, **kwargs: Any) -> Any:
        head = self._warmup_head  # not the one above: a deep copy of the model has another
        if not warmup_scoring:
            return head.stock_forward(*args, **kwargs)
        given = {name: value for name, value in kwargs.items() if value is not None}  # PEFT adds `labels=None` and such
        return ModelOutput(**_score(self, head, **given))

    # `generate` reads the signature to learn whether to pass position_ids (left-padded prompts) and logits_to_keep.
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = stock.replace(parameters=[self_parameter, *stock.parameters.values()])  # type: ignore[attr-defined]
    model._warmup_head = head  # type: ignore[assignment]
    model.forward = types.MethodType(forward, model)
    head.module.forward = head.forward
    if not all(p.numel() for p in model.parameters()):  # ZeRO-3 holds empty shards here: nothing can be tried
        head.can_pack = head.model.config.model_type in (*LLAMA_LIKE, *T5_LIKE) and passes.can_pack(model)
    else:
        try:
            _check_against_stock(model)
        except (ValueError, FloatingPointError):
            model.forward, head.module.forward = head.stock_forward, head.stock_head_forward
            del model._warmup_head
            raise


def score(
    model: nn.Module, batch: WarmupBatch, constraints: SamplingConstraints, weights: RowWeights | None = None
) -> Scores:
    """log P(c|x) and log P(y|x,c) of every row of a batch, from one forward that keeps the gradient.

    If the network allows it, a prompt is read once, not once per row. Equal warmups of a prompt are computed once. Shapes: see
    `batch`.

    Args:
        weights: if they are known already; the forward then computes the gradient, and `Scores.objective` carries it. That
            costs less time and memory than a gradient through the log-probabilities.
    """
    chosen, repeats = batch.distinct()
    given = {"shared": batch.group_size > 1, "prefix_cache": batch.prefix_cache}
    for name in ("prompt_index", "seq_ids", "seq_mask", "warmup_mask", "target_mask"):
        given[name] = getattr(batch, name).index_select(0, chosen)
    if weights is not None:
        every = weights.policy[:, None] * batch.warmup_mask + weights.target[:, None] * batch.target_mask
        given["token_weights"] = torch.zeros_like(every[: len(chosen)]).index_add(0, repeats, every)
    given |= {"input_ids": batch.prompt_ids, "attention_mask": batch.prompt_mask, "constraints": constraints}
    out = model(warmup_scoring=True, **given)
    logps = out["token_logps"].index_select(0, repeats)
    return Scores.of(batch, logps, out.get("objective"))


def _score(
    model: Any,
    head: Head,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_index: Tensor,
    seq_ids: Tensor,
    seq_mask: Tensor,
    warmup_mask: Tensor,
    target_mask: Tensor,
    constraints: SamplingConstraints,
    shared: bool,
    prefix_cache: Any = None,
    token_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """`token_logps` (N, T): of warmup actions under the constraints, of target tokens under the plain model, 0 elsewhere.

    With `token_weights` (N, T) also `objective`, their weighted sum, which then carries the gradient.
    """
    rows = passes.ScoringRows(input_ids, attention_mask, prompt_index, seq_ids, seq_mask)
    states = _states(model, head, rows, shared, prefix_cache)
    is_action, is_target = warmup_mask.bool(), target_mask.bool()

    def counted(values: Tensor) -> Tensor:
        return torch.cat([values[is_action], values[is_target]])

    num_actions = int(is_action.sum())
    steps = (warmup_mask.cumsum(1) - 1)[is_action]
    weights = None if token_weights is None else counted(token_weights).float()
    tokens = Tokens(counted(seq_ids), num_actions, steps, constraints, weights)
    # Call the head once even if no token counts: under ZeRO-3 every process must reach every gather.
    out = head.score(states.hidden.index_select(0, counted(states.predicting)), tokens)
    objective, flat = (None, out) if weights is None else out
    logps = torch.zeros(seq_ids.shape, dtype=torch.float32, device=seq_ids.device)
    logps = logps.masked_scatter(is_action, flat[:num_actions]).masked_scatter(is_target, flat[num_actions:])
    return {"token_logps": logps} if objective is None else {"token_logps": logps, "objective": objective}


def _states(
    model: Any, head: Head, rows: passes.ScoringRows, shared: bool, prefix_cache: passes.PrefixCache | None
) -> passes.States:
    """Choose the forward pass that fits the network's architecture and state."""
    packed = head.can_pack
    if isinstance(head.module, FSDPModule):
        # it gathers weights again for the outputs of a layer, not for keys and values kept from inside it
        packed = False
    elif passes.ignores_caches(model):
        logger.warning_once(
            "rl_warmup: gradient checkpointing computes layers twice, so every warmup reads its prompt (a T5: projects it) "
            "again, and rows are padded. The numbers are the same, a step is slower; switch it off if memory allows."
        )
        packed = False
    if model.config.is_encoder_decoder:
        if packed:
            return passes.packed_decoder_states(model, head, rows, prefix_cache)
        return passes.padded_decoder_states(model, head, rows, head.sharded)
    width = rows.prompt_ids.size(1) + rows.seq_ids.size(1)
    if not packed or width > passes.attention_window(model.config):
        return passes.padded_concatenated_states(model, head, rows, head.sharded)
    if shared or prefix_cache is not None:
        return passes.packed_shared_states(model, head, rows, prefix_cache)
    return passes.packed_concatenated_states(model, head, rows)


@torch.no_grad()
def _check_against_stock(model: Any) -> None:
    """Score two rows of four tokens, of which the first two are equal, here and by the stock forward: a few small forwards.

    Raises ValueError: the decoder is not causal, or the log-probabilities differ. FloatingPointError: they are no numbers.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids = torch.tensor([[3, 5, 4, 6], [3, 5, 7, 2]], device=device)
    ids = ids % model.config.get_text_config(decoder=True).vocab_size
    if model.config.is_encoder_decoder:
        start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
        logits = model(input_ids=ids[:1].repeat(2, 1), decoder_input_ids=torch.cat([start, ids[:, :-1]], 1)).logits
    else:
        logits = F.pad(model(input_ids=ids).logits[:, :-1], (0, 0, 1, 0))
    refuse_no_numbers(are_numbers(logits[:, 1:]), "nothing can be scored")
    tolerance = 1e-3 if logits.dtype == torch.float32 else 0.25
    if not (logits[0, :3] - logits[1, :3]).abs().max() < tolerance:
        raise ValueError(
            f"The decoder of {type(model).__name__} attends to later tokens, so nothing can be scored in one forward. "
            f"transformers 5.17 has this fault for UMT5; newer versions do not."
        )
    expected = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    head, nats = model._warmup_head, {}
    for packed in (False, True) if passes.can_pack(model) else (False,):
        head.can_pack = packed
        choices = {False, packed and not model.config.is_encoder_decoder}
        nats[packed] = max(_scoring_error(model, ids, expected, shared) for shared in choices)
    model.train(was_training)
    if not nats[False] < tolerance:
        raise ValueError(
            f"{type(model).__name__} changes its logits after the head in a way that rl_warmup does not know: log-probabilities "
            f"differ from the stock model's by {nats[False]:.3g} nats. Use a T5, Llama, Qwen, Gemma, Granite or Cohere style "
            f"model."
        )
    if not nats[head.can_pack] < tolerance:
        head.can_pack = False
        logger.warning_once(
            f"rl_warmup: {type(model).__name__} cannot read rows without padding and continue a prompt several times "
            f"(log-probabilities differ by {nats[True]:.3g} nats), so every warmup reads its prompt again: the same numbers, "
            f"but slower."
        )
    head.can_decode = head.can_pack and _decoding_error(model, ids, logits) < tolerance  # `paths.sample_warmups` warns


def _decoding_error(model: Any, ids: Tensor, logits: Tensor) -> float:
    """Largest error of logits from step-by-step decoding of two rows, relative to the largest logit if that exceeds 1.

    Also of logits from `extend` for the first row, after none and after one of its tokens. 0 for an unknown architecture,
    for which nothing is tried; inf if decoding fails.
    """
    first = 0 if model.config.is_encoder_decoder else 1  # a decoder-only row begins with its prompt of one token
    rows, prompt = ids[:, first:], ids[:1] if first == 0 else ids[:1, :1]
    decoding = decoding_for(model, ids.size(1))
    if decoding is None:
        return 0.0
    head, both, ones = model._warmup_head, torch.arange(2, device=ids.device), torch.ones_like(ids[:, 0])
    try:
        started = decoding(model, passes.read_prompts(model, head, prompt, torch.ones_like(prompt)), 2, rows.size(1))
        states = [started.first().expand(2, -1)]
        states += [started.next(rows[:, step - 1], both, step) for step in range(1, rows.size(1))]
        at_once = []
        for past in (0, 1):
            after = rows[:1, past:-1].expand(2, -1)
            sequences = PaddedBuckets([after.size(1)] * 2, ids.device, after.size(1))
            at_once.append(started.extend(both[:1], past * ones, after.flatten(), sequences).view(*after.shape, -1))
        got = head.logits(torch.cat([torch.stack(states, 1), *at_once], 1).flatten(0, 1)).unflatten(0, (2, -1))
    except Exception:
        return float("inf")  # `generate` serves every architecture
    expected = logits[:, ids.size(1) - rows.size(1) :].float()
    expected = torch.cat([expected, *(expected[:1, 1 + past :].expand(2, -1, -1) for past in (0, 1))], 1)
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def _scoring_error(model: Any, ids: Tensor, expected: Tensor, shared: bool) -> float:
    """Largest error of `token_logps`, in nats; inf if the packed forward fails."""
    first = 0 if model.config.is_encoder_decoder else 1  # a decoder-only row begins with its prompt of one token
    rows, prompts = ids[:, first:], ids[:1] if first == 0 else ids[:1, :1]
    ones = torch.ones_like(rows)
    constraints = SamplingConstraints(0, torch.zeros(1, dtype=torch.bool))  # unused: no token is an action
    try:
        got = model(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), warmup_scoring=True, shared=shared,
            prompt_index=torch.zeros_like(ids[:, 0]), seq_ids=rows, seq_mask=ones,
            warmup_mask=torch.zeros_like(rows), target_mask=ones, constraints=constraints,
        )["token_logps"]  # fmt: skip
    except Exception:
        if not model._warmup_head.can_pack:
            raise
        return float("inf")  # an unusual attention; padded rows work for every architecture
    return (got - expected[:, first:]).abs().max().item()
