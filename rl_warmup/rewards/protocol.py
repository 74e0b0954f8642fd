"""The contract of reward functions, as types: what they may take, what they return. For people and type checkers.

Knows: names and types. Must not know: how any of it is made; `arguments.py` makes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypedDict

from rl_warmup.batch import WarmupBatch

Message = dict[str, str]  # {"role": ..., "content": ...}
Rewards = Sequence[float | None]  # one per warmup; None = not scored


class RewardArguments(TypedDict, total=False):
    """Everything a function may name, one entry per warmup; besides these, every further column of the data.

    The first group costs nothing and also comes through **kwargs. The second is made only for functions that name it.
    """

    prompts: list[str] | list[list[Message]]  # TRL's name; as it stands in the data
    prompt_ids: list[list[int]]
    completions: (
        list[str] | list[list[Message]]
    )  # TRL's name for the warmups; messages where the prompt is a list of them
    completion_ids: list[list[int]]  # TRL's name; without the separator
    target: list[str]
    target_ids: list[list[int]]  # with the end token
    target_logps: list[float]  # log P(y|x,c), summed, nats
    target_token_logps: list[list[float]]  # per target token, nats; as long as target_ids
    warmup_logps: list[float]  # log P(c|x), summed, nats
    warmup_finish: list[str]  # separator, length, proposal or empty
    trainer_state: Any  # TRL's name; transformers.TrainerState

    baseline_target_logps: list[float]  # log P(y|x,∅), summed, nats: one more forward
    predictions: list[str]  # the likeliest target after each warmup: a generation
    sampled_predictions: list[str]  # one drawn from P(y|x,c): a generation
    batch: WarmupBatch  # the rows as tensors


class RewardFunction(Protocol):
    """Called with keywords alone: those of `RewardArguments` that it names, and all cheap ones where it has **kwargs."""

    def __call__(self, *, completions: Any, **kwargs: Any) -> Rewards | Awaitable[Rewards]: ...


class PreparedReward(Protocol):
    """An object that loads something first. `prepare` is called once, before training; it may leave out what it ignores."""

    def prepare(self, *, tokenizer: Any, layout: Any, constraints: Any, device: Any) -> None: ...

    def __call__(self, **kwargs: Any) -> Rewards | Awaitable[Rewards]: ...
