"""A warmup and the target after it, in one call of `generate`.

Everything forced or random happens in the logits processor, so `generate` itself runs greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rl_warmup.batch import Warmup
from rl_warmup.engine.finite import are_numbers, refuse_no_numbers
from rl_warmup.engine.plain import constrained_generate, only, only_drawn, read_warmup
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout


class Written(NamedTuple):
    """A warmup and the target that followed it (ids without the end token)."""

    warmup: Warmup
    target: list[int]


@torch.no_grad()
def generate_targets(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    max_target_length: int,
    forced: Sequence[list[int]] | None = None,
    draws: Tensor | None = None,
    sample_target: bool = False,
) -> list[Written]:
    """Write a warmup, the separator and a target for every prompt.

    Args:
        max_target_length: tokens of the target, its end token included.
        forced: warmups to use instead of the policy's own, one per prompt ([] is the empty warmup).
        draws: (B, constraints.max_length) float64 in [0, 1) that select the warmups' tokens; None takes the likeliest ones.
        sample_target: sample the target too.

    Raises:
        FloatingPointError: the model's logits are not finite.
    """
    start, eos_id = layout.written_from(max(map(len, prompts))), layout.tokens.eos_id
    processor = _WarmupThenTarget(constraints, start, forced, draws, sample_target)
    longest = max((len(ids) for ids in forced), default=0) if forced is not None else constraints.max_length
    out = constrained_generate(
        model, layout, prompts, processor, max_new_tokens=longest + 1 + max_target_length, do_sample=False,
        eos_token_id=eos_id,
    )  # fmt: skip
    refuse_no_numbers(processor.fine, "it can write nothing")
    given: Sequence[list[int] | None] = [None] * len(prompts) if forced is None else forced
    rows = zip(out[:, start:].tolist(), given, strict=True)
    both = []
    for row, ids in rows:
        warmup = read_warmup(row, constraints) if ids is None else Warmup(list(ids), "proposal" if ids else "empty")
        rest = row[len(warmup.ids) + 1 :][:max_target_length]
        both.append(Written(warmup, rest[: rest.index(eos_id)] if eos_id in rest else rest))
    return both


@dataclass
class _WarmupThenTarget(LogitsProcessor):
    """The constraints (or the given warmup) up to the separator, the plain model after it."""

    constraints: SamplingConstraints
    start: int
    forced: Sequence[list[int]] | None
    draws: Tensor | None
    sample_target: bool
    fine: Tensor | bool = True  # whether all logits so far were numbers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.fine = are_numbers(scores) & self.fine
        written = input_ids[:, self.start :]
        target = scores.float()
        if self.sample_target:
            target = only_drawn(target, torch.rand(len(target), dtype=torch.float64))
        if self.forced is None:
            in_target = (written == self.constraints.separator_id).any(1)
        else:  # after the separator
            in_target = torch.tensor([written.size(1) > len(ids) for ids in self.forced], device=written.device)
        return torch.where(in_target[:, None], target, self._warmup_scores(scores, written.size(1)))

    def _warmup_scores(self, scores: Tensor, step: int) -> Tensor:
        separator = self.constraints.separator_id
        if self.forced is not None:
            tokens = [ids[step] if step < len(ids) else separator for ids in self.forced]
            return only(scores, torch.tensor(tokens, device=scores.device))
        if step >= self.constraints.max_length:
            return only(scores, torch.full((len(scores),), separator, device=scores.device))
        allowed = self.constraints.restrict(scores, torch.full((len(scores),), step, device=scores.device))
        return allowed if self.draws is None else only_drawn(allowed, self.draws[:, step])
