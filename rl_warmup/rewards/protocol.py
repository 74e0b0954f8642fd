"""The protocol of reward functions, as types: their arguments and results.

Knows: names and types. Must not know: how arguments are made (`arguments.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypedDict

from rl_warmup.batch import WarmupBatch

Message = dict[str, str]  # {"role": ..., "content": ...}
Rewards = Sequence[float | None]  # one per warmup; None = not scored


class RewardArguments(TypedDict, total=False):
    """Everything that a function may name, one entry per warmup; columns of the data may be named too.

    The first group costs nothing and is also in **kwargs. The second is made only for functions that name it.
    """

    prompts: list[str] | list[list[Message]]  # TRL's name; as in the data
    prompt_ids: list[list[int]]
    completions: list[str] | list[list[Message]]  # TRL's name for the warmups; messages if the prompt is messages
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
    """Called with keyword arguments only: those that it names, and all cheap ones if it has **kwargs."""

    def __call__(self, *, completions: Any, **kwargs: Any) -> Rewards | Awaitable[Rewards]: ...


class PreparedReward(Protocol):
    """An object that loads something first. `prepare` is called once, before training; it may omit unused parameters."""

    def prepare(self, *, tokenizer: Any, layout: Any, constraints: Any, device: Any) -> None: ...

    def __call__(self, **kwargs: Any) -> Rewards | Awaitable[Rewards]: ...
