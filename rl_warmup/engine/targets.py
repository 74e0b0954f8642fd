"""A warmup and the target after it, in one call of `generate`.

Everything forced or random happens in the logits processor, so `generate` itself runs greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rl_warmup.batch import Warmup
from rl_warmup.engine.finite import extremes_are_numbers, refuse_no_numbers
from rl_warmup.engine.plain import constrained_generate, only, only_drawn, read_warmup
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout


class Written(NamedTuple):
    """A warmup and the target that followed it (ids without the end token), and whether the target ended by itself."""

    warmup: Warmup
    target: list[int]
    ended: bool = True


@torch.no_grad()
def generate_targets(
    model: Any,
    layout: Layout,
    constraints: SamplingConstraints,
    prompts: Sequence[list[int]],
    max_target_length: int,
    forced: Sequence[list[int]] | None = None,
    draws: Tensor | None = None,
    sample_target: bool | Tensor = False,
    suppressed: Sequence[int] = (),
    temperature: float = 1.0,
    num_beams: int = 1,
    streamer: Any = None,
) -> list[Written]:
    """Write a warmup, the separator and a target for every prompt.

    Args:
        max_target_length: tokens of the target, its end token included.
        forced: warmups to use instead of the policy's own, one per prompt ([] is the empty warmup).
        draws: (B, constraints.max_length) float64 in [0, 1) that select the warmups' tokens; None takes the likeliest ones.
        sample_target: sample the target too; a tensor (B, steps) of float64 in [0, 1) selects its tokens.
        suppressed: ids that a target may not hold.
        temperature: of a sampled target.
        num_beams: of the target after given warmups: the likeliest one found, by its summed log-probability.
        streamer: of transformers, for one prompt.

    Raises:
        FloatingPointError: the model's logits are not finite.
    """
    assert num_beams == 1 or forced is not None, "beams go on from given warmups"
    start, eos_id = layout.written_from(max(map(len, prompts))), layout.tokens.eos_id
    beams = None if forced is None else [ids for ids in forced for _ in range(num_beams)]
    limit, refused = (max_target_length, eos_id), torch.tensor(suppressed, dtype=torch.long, device=model.device)
    processor = _WarmupThenTarget(constraints, start, beams, draws, sample_target, limit, refused, temperature)
    search = {"num_beams": num_beams, "length_penalty": 0.0} if num_beams > 1 else {}
    longest = max((len(ids) for ids in forced), default=0) if forced is not None else constraints.max_length
    out = constrained_generate(
        model, layout, prompts, processor, max_new_tokens=longest + 1 + max_target_length, do_sample=False,
        eos_token_id=eos_id, streamer=streamer, **search,
    )  # fmt: skip
    low, high = (torch.stack(extremes) for extremes in zip(*processor.seen, strict=True))
    refuse_no_numbers(extremes_are_numbers(low, high), "it can write nothing")
    given: Sequence[list[int] | None] = [None] * len(prompts) if forced is None else forced
    rows = zip(out[:, start:].tolist(), given, strict=True)
    both = []
    for row, ids in rows:
        warmup = read_warmup(row, constraints) if ids is None else Warmup(list(ids), "proposal" if ids else "empty")
        rest = row[len(warmup.ids) + 1 :][:max_target_length]
        ended = eos_id in rest
        both.append(Written(warmup, rest[: rest.index(eos_id)] if ended else rest, ended))
    return both


@dataclass
class _WarmupThenTarget(LogitsProcessor):
    """The constraints (or the given warmup) up to the separator, the plain model after it."""

    constraints: SamplingConstraints
    start: int
    forced: Sequence[list[int]] | None
    draws: Tensor | None
    sample_target: bool | Tensor
    limit: tuple[int, int]  # tokens of a target, and the token that ends it there
    suppressed: Tensor
    temperature: float
    seen: list[tuple[Tensor, Tensor]] = field(
        default_factory=list
    )  # smallest and largest logit of each row, at each step
    begun: Tensor | None = None  # (M,) tokens of each row's target so far; negative in the warmup

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(scores.aminmax(dim=-1))
        step = input_ids.size(1) - self.start
        self.begun = begun = self._target_length(input_ids[:, -1], step)
        # in most steps every row is in its warmup, or every row in its target
        first, last = torch.stack(begun.aminmax()).tolist()
        if last < 0 and self.sample_target is not True:  # draws from torch's random state happen at every step
            return self._warmup_scores(scores, step)
        target = self._target_scores(scores, step)
        if last >= self.limit[0]:
            end = torch.full((len(scores),), self.limit[1], device=scores.device)
            target = torch.where((begun >= self.limit[0])[:, None], only(scores, end), target)
        if first >= 0:
            return target
        return torch.where((begun >= 0)[:, None], target, self._warmup_scores(scores, step))

    def _target_length(self, last: Tensor, step: int) -> Tensor:
        """`begun` at a step (tokens written so far), from the step before and the last token (M,)."""
        if self.forced is not None:  # the separator follows the given ids
            return step - 1 - torch.tensor([len(ids) for ids in self.forced], device=last.device)
        if self.begun is None:
            return torch.full_like(last, -1)
        begins = (last == self.constraints.separator_id).int() - 1
        return torch.where(self.begun >= 0, self.begun + 1, begins)

    def _target_scores(self, scores: Tensor, step: int) -> Tensor:
        target = scores.float()
        if len(self.suppressed):
            target = target.index_fill(1, self.suppressed, -torch.inf)
        if isinstance(self.sample_target, Tensor):
            return only_drawn(target / self.temperature, self.sample_target[:, step])
        if self.sample_target:
            return only_drawn(target, torch.rand(len(target), dtype=torch.float64))
        return target

    def _warmup_scores(self, scores: Tensor, step: int) -> Tensor:
        separator = self.constraints.separator_id
        if self.forced is not None:
            tokens = [ids[step] if step < len(ids) else separator for ids in self.forced]
            return only(scores, torch.tensor(tokens, device=scores.device))
        if step >= self.constraints.max_length:
            return only(scores, torch.full((len(scores),), separator, device=scores.device))
        allowed = self.constraints.restrict(scores, torch.full((len(scores),), step, device=scores.device))
        return allowed if self.draws is None else only_drawn(allowed, self.draws[:, step])
