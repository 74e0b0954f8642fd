"""All rewards of a recipe together: call each with what it asks for, check what comes back, add up.

Knows: a list of `Reward`, a batch and its log-probabilities. Must not know: objectives, the optimizer.
A function's mistake is never turned into a zero: it stops the run and names the function and the row.
"""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rl_warmup.batch import WarmupBatch
from rl_warmup.layouts import Layout
from rl_warmup.layouts.law import WarmupLaw
from rl_warmup.rewards.arguments import Arguments
from rl_warmup.rewards.loading import load_reward
from rl_warmup.rewards.reward import Reward
from rl_warmup.rewards.target_logprob import TargetLogProb


@dataclass
class RewardScores:
    """What the rewards say about the M = B*G group rows of a batch, in the order of the rows. Without gradient."""

    total: Tensor  # (M,) float32: Σ_k weight_k · r_k
    by_name: dict[str, Tensor]  # (M,) float32 each, before the weight; nan = not scored


class RewardBoard:
    """The rewards of a recipe, ready to be called on every micro-batch."""

    def __init__(self, rewards: list[Reward], tokenizer: Any) -> None:
        names = [reward.name for reward in rewards]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"The reward {twice[0]!r} is listed {names.count(twice[0])} times. The log is sorted by name, so "
                f"each may occur once: remove one, or give its function another name."
            )
        self.rewards = rewards
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls, specs: list[Any], *, tokenizer: Any, layout: Layout, law: WarmupLaw, device: torch.device | str
    ) -> RewardBoard:
        """Look up every reward and prepare those that need it.

        Args:
            specs: see `load_reward`; [] means `target_logprob` alone.
            tokenizer, layout, law, device: of the policy; handed to `prepare` of the functions that have one.

        Raises:
            ValueError: naming the faulty reward and the remedy.
        """
        if not isinstance(specs, (list, tuple)):
            raise ValueError(
                f"`rewards` is {specs!r}; give a list of names, of mappings {{name, weight, kwargs}}, or of functions."
            )
        board = cls([load_reward(spec) for spec in specs or ["target_logprob"]], tokenizer)
        for reward in board.rewards:
            if callable(prepare := getattr(reward.function, "prepare", None)):
                try:
                    prepare(tokenizer=tokenizer, layout=layout, law=law, device=device)
                except Exception as error:
                    raise ValueError(
                        f"Reward {reward.name!r} cannot be prepared: {type(error).__name__}: {error}"
                    ) from error
        return board

    @torch.no_grad()
    def __call__(
        self,
        batch: WarmupBatch,
        *,
        target_logps: Tensor,
        target_token_logps: Tensor,
        warmup_logps: Tensor,
        baseline_target_logps: Callable[[], Tensor] | None = None,
        trainer_state: Any = None,
    ) -> RewardScores:
        """Score the group rows: the first M = B*G rows of the batch.

        Args:
            target_logps: (M,) log P(y|x,c) summed, nats.
            target_token_logps: (M, T) per token; read only where `batch.target_mask` counts.
            warmup_logps: (M,) log P(c|x) summed, nats.
            baseline_target_logps: returns (M,) log P(y|x,∅); called only if some function names it.
            trainer_state: handed on, as TRL does.

        Returns:
            The scores, on the device of `target_logps`. A function adds nothing to a row it leaves unscored (None).

        Raises:
            ValueError: a function failed; the original exception is chained.
            ValueError: a function returned something other than M finite numbers or None, or nobody scored a row.
        """
        size = batch.num_prompts * batch.group_size
        for name, given in {"target_logps": target_logps, "warmup_logps": warmup_logps}.items():
            if given.shape != (size,):
                raise ValueError(
                    f"{name} has the shape {tuple(given.shape)}; give one number per group row, ({size},)."
                )
        if target_token_logps.shape != (size, batch.seq_ids.size(1)):
            shapes = f"{tuple(target_token_logps.shape)}; give ({size}, {batch.seq_ids.size(1)})"
            raise ValueError(f"target_token_logps has the shape {shapes}, the group rows of the batch.")
        target_logps = target_logps.detach().float()
        only = self.rewards[0]
        if len(self.rewards) == 1 and isinstance(only.function, TargetLogProb) and only.function.tied:
            return RewardScores(target_logps * only.weight, {only.name: target_logps})
        if not size:
            return RewardScores(target_logps, {reward.name: target_logps for reward in self.rewards})
        offered = Arguments(
            batch, self.tokenizer, target_logps, target_token_logps.detach().float(), warmup_logps.detach().float(),
            baseline_target_logps, trainer_state,
        )  # fmt: skip
        calls = [(reward, reward.arguments(offered)) for reward in self.rewards]
        outcomes = [(reward, _started(reward, arguments)) for reward, arguments in calls]
        values = torch.stack([_checked(reward, _outcome(reward, get), offered) for reward, get in outcomes])
        if (unscored := values.isnan().all(0)).any():
            row = offered.row(int(unscored.nonzero()[0]))
            raise ValueError(
                f"No reward scores {row}: {', '.join(r.name for r in self.rewards)} returned None for it. Let at least "
                f"one return a number for every warmup, for instance by listing target_logprob."
            )
        weights = torch.tensor([reward.weight for reward in self.rewards], dtype=torch.float32)
        total = (weights[:, None] * values.nan_to_num(nan=0.0)).sum(0)
        device = target_logps.device
        return RewardScores(
            total.to(device), {reward.name: row.to(device) for reward, row in zip(self.rewards, values, strict=True)}
        )


def _started(reward: Reward, arguments: dict[str, Any]) -> Callable[[], Any]:
    """A way to get the result. Coroutines start at once and run beside each other and beside plain functions."""
    if reward.is_async:
        return asyncio.run_coroutine_threadsafe(reward.function(**arguments), _event_loop()).result
    return functools.partial(reward.function, **arguments)


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop in one thread for the life of the process.

    Connections survive from call to call, and the caller may have a running loop of its own (a notebook).
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rl_warmup-rewards", daemon=True).start()
    return loop


def _outcome(reward: Reward, get: Callable[[], Any]) -> Any:
    try:
        return get()
    except Exception as error:
        raise ValueError(f"Reward {reward.name!r} failed with {type(error).__name__}: {error}") from error


def _checked(reward: Reward, result: Any, offered: Arguments) -> Tensor:
    """(M,) float32, nan where the function returned None."""
    size = len(offered.batch.warmups)
    wanted = f"return a list of {size}, one finite number or None per warmup"
    if not isinstance(result, (list, tuple)):
        raise ValueError(f"Reward {reward.name!r} returned {type(result).__name__} {result!r:.80}; {wanted}.")
    if len(result) != size:
        raise ValueError(f"Reward {reward.name!r} returned {len(result)} values; {wanted}.")
    numbers = []
    for index, value in enumerate(result):
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        number = math.nan if value is None else _float32(value)
        if value is not None and not math.isfinite(number):
            raise ValueError(f"Reward {reward.name!r} returned {value!r} for {offered.row(index)}; {wanted}.")
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.float32)


def _float32(value: Any) -> float:
    """The number as float32 holds it; nan for what is no number."""
    return torch.tensor(float(value), dtype=torch.float32).item() if isinstance(value, Real) else math.nan
