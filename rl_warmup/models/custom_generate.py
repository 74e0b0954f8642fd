"""`generate` for a model that writes a warmup, the separator and then the target, as its measured predictions were written.

This file stands alone: training copies it into the model's folder as custom_generate/generate.py, where transformers runs it
if you load the model with `trust_remote_code=True`. The limits come from `warmup` in generation_config.json.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class WarmupThenTarget(LogitsProcessor):
    """Up to the separator the rules of a warmup; after it no more than the tokens of a target."""

    def __init__(self, limits: dict[str, Any], eos_token_id: int) -> None:
        self.limits, self.eos_token_id = limits, eos_token_id
        self.start: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.start = input_ids.size(1) if self.start is None else self.start
        written, separator = input_ids[:, self.start :], self.limits["separator_id"]
        step, is_separator = written.size(1), written == separator
        warmup, target = scores.clone(), scores
        warmup[:, self.limits["not_in_warmups"]] = -torch.inf
        if step < self.limits["min_length"]:
            warmup[:, separator] = -torch.inf
        if step >= self.limits["max_length"]:
            warmup = _only(scores, separator)
        if not step:
            return warmup
        length = step - 1 - is_separator.int().argmax(1)  # of the target, where it has begun
        full = (length >= self.limits["max_target_length"])[:, None]
        target = torch.where(full, _only(scores, self.eos_token_id), target)
        return torch.where(is_separator.any(1)[:, None], target, warmup)


def _only(scores: Tensor, token: int) -> Tensor:
    """Scores under which nothing but one token can be chosen."""
    chosen = torch.full_like(scores, -torch.inf)
    chosen[:, token] = 0.0
    return chosen


def generate(model: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
    """What `model.generate` would do, under the limits of warmup and target."""
    settings = kwargs.get("generation_config") or model.generation_config
    rules = WarmupThenTarget(settings.warmup, settings.eos_token_id)
    processors = LogitsProcessorList([rules, *(logits_processor or [])])
    return type(model).generate(model, logits_processor=processors, **kwargs)
