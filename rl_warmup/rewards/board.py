"""All rewards of a recipe together: call each with what it asks for, check what comes back, add up.

Knows: a list of `Reward`, a batch and its log-probabilities. Must not know: objectives, the optimizer.
A function's mistake is never silently a zero: what `on_failure` asks for is done, and the function and the row are named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl_warmup.batch import WarmupBatch
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout
from rl_warmup.plugins import contained
from rl_warmup.rewards.arguments import Arguments
from rl_warmup.rewards.calling import Outcome, start
from rl_warmup.rewards.loading import load_reward
from rl_warmup.rewards.reward import Reward
from rl_warmup.rewards.target_logprob import TargetLogProb

logger = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]


@dataclass
class RewardScores:
    """What the rewards say about the M = B*G group rows of a batch, in the order of the rows. Without gradient."""

    total: Tensor  # (M,) float32: Σ_k weight_k · r_k
    by_name: dict[str, Tensor]  # (M,) float32 each, before the weight; nan = not scored
    failed: dict[str, int] = field(default_factory=dict)  # rows on which a function failed, for those that may


class RewardSet:
    """The rewards of a recipe, ready to be called on every micro-batch."""

    def __init__(self, rewards: list[Reward], tokenizer: Any, report: Report | None = None) -> None:
        names = [reward.name for reward in rewards]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"The reward {twice[0]!r} is listed {names.count(twice[0])} times. The log is sorted by name, so "
                f"each may occur once: remove one, or give it a `label`."
            )
        self.rewards = rewards
        self.report = report
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls, specs: list[Any], *, tokenizer: Any, layout: Layout, constraints: SamplingConstraints, device: torch.device | str,
        report: Report | None = None,
    ) -> RewardSet:  # fmt: skip
        """Look up every reward and prepare those that need it.

        Args:
            specs: see `load_reward`; [] means `target_logprob` alone.
            tokenizer, layout, law, device: of the policy; handed to `prepare` of the functions that have one.
            report: called with a warning for every failure that does not stop the run, as `guard` words its own.

        Raises:
            ValueError: naming the faulty reward and the remedy.
        """
        if not isinstance(specs, (list, tuple)):
            raise ValueError(
                f"`rewards` is {specs!r}; give a list of names, of mappings {{name, weight, kwargs}}, or of functions."
            )
        board = cls([load_reward(spec) for spec in specs or ["target_logprob"]], tokenizer, report)
        for reward in board.rewards:
            if callable(prepare := getattr(reward.function, "prepare", None)):
                try:
                    with contained():
                        prepare(tokenizer=tokenizer, layout=layout, constraints=constraints, device=device)
                except Exception as error:
                    raise ValueError(
                        f"Reward {reward.name!r} cannot be prepared: {type(error).__name__}: {error}"
                    ) from error
        return board

    def asked(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the arguments that some function takes by name."""
        return tuple(name for name in names if any(name in reward.asks_for for reward in self.rewards))

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
            ValueError: a function failed whose `on_failure` is raise; the original exception is chained.
            ValueError: nobody scored a row.
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
        outcomes = [(reward, start(reward, arguments, offered)) for reward, arguments in calls]
        rows, failed = [], {}
        for reward, get in outcomes:
            outcome = get()
            if outcome.fault is not None:
                self._settle(reward, outcome, offered)
            if reward.on_failure != "raise":
                failed[reward.name] = int(outcome.failed.sum())
            rows.append(outcome.values)
        values = torch.stack(rows)
        if (unscored := values.isnan().all(0)).any():
            row = offered.row(int(unscored.nonzero()[0]))
            raise ValueError(
                f"No reward scores {row}: {', '.join(r.name for r in self.rewards)} returned None for it, or failed and "
                f"was skipped. Let at least one return a number for every warmup, for instance by listing target_logprob."
            )
        weights = torch.tensor([reward.weight for reward in self.rewards], dtype=torch.float32)
        total = (weights[:, None] * values.nan_to_num(nan=0.0)).sum(0)
        device = target_logps.device
        return RewardScores(
            total.to(device),
            {reward.name: row.to(device) for reward, row in zip(self.rewards, values, strict=True)},
            failed,
        )

    def _settle(self, reward: Reward, outcome: Outcome, offered: Arguments) -> None:
        """Do with a failure what the recipe asks for, in the outcome's values."""
        assert outcome.fault is not None
        if reward.on_failure == "raise":
            raise ValueError(outcome.fault) from outcome.cause
        prompts = outcome.failed.view(offered.batch.num_prompts, -1).any(1)
        if reward.on_failure == "zero":
            outcome.values[outcome.failed] = 0.0
            done = f"it counts 0 for {int(outcome.failed.sum())} warmups, as on_failure: zero asks"
        else:
            outcome.values.view(len(prompts), -1)[prompts] = torch.nan
            done = f"it is left out for the warmups of {int(prompts.sum())} prompts, as on_failure: skip asks"
        logger.warning("%s %s.", outcome.fault, done[0].upper() + done[1:])
        if self.report is not None:
            self.report(
                {
                    "step": getattr(offered.trainer_state, "global_step", None),
                    "rule": f"reward {reward.name}",
                    "sees": outcome.fault.rstrip("."),
                    "means": "this part of the score is missing here",
                    "change": "repair the function; `rl-warmup score` tries it on a file",
                    "done": done,
                }
            )
