"""All rewards of a recipe: calls each with its arguments, checks the results, and adds them up.

Knows: a list of `Reward`, a batch and its log-probabilities. Must not know: objectives, the optimizer.
A failure is never silent: it is handled as `on_failure` sets, and the message names the function and the row.
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
    """Scores of the M = B*G group rows of a batch, in the order of the rows. Without gradient."""

    total: Tensor  # (M,) float32: Σ_k weight_k · r_k
    by_name: dict[str, Tensor]  # (M,) float32 each, before the weight; nan = not scored
    failed: dict[str, int] = field(default_factory=dict)  # number of failed rows, for rewards with skip or zero


class RewardSet:
    """The rewards of a recipe, called on every micro-batch."""

    def __init__(self, rewards: list[Reward], tokenizer: Any, report: Report | None = None) -> None:
        names = [reward.name for reward in rewards]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"The reward {twice[0]!r} is listed {names.count(twice[0])} times. Names must differ in the log: remove one, "
                f"or give it a `label`."
            )
        self.rewards, self.tokenizer, self.report = rewards, tokenizer, report

    @classmethod
    def load(
        cls, specs: list[Any], *, tokenizer: Any, layout: Layout, constraints: SamplingConstraints, device: torch.device | str,
        report: Report | None = None,
    ) -> RewardSet:  # fmt: skip
        """Load every reward and give those with `prepare` the policy's tokenizer, layout, constraints and device.

        Args:
            specs: see `load_reward`; [] means `target_logprob` alone.
            report: called with a warning, in the form of `guard`'s, for every failure that does not stop the run.

        Raises:
            ValueError: naming the faulty reward and the remedy.
        """
        if not isinstance(specs, (list, tuple)):
            raise ValueError(
                f"`rewards` is {specs!r}; give a list of names, mappings {{name, weight, kwargs}}, or functions."
            )
        rewards = cls([load_reward(spec) for spec in specs or ["target_logprob"]], tokenizer, report)
        if not any(reward.weight for reward in rewards.rewards):
            raise ValueError(
                "rewards: all have the weight 0, so nothing tells warmups apart. Give one of them another."
            )
        for reward in rewards.rewards:
            if callable(prepare := getattr(reward.function, "prepare", None)):
                try:
                    with contained():
                        prepare(tokenizer=tokenizer, layout=layout, constraints=constraints, device=device)
                except Exception as error:
                    cause = f"{type(error).__name__}: {error}"
                    raise ValueError(f"Reward {reward.name!r} cannot be prepared: {cause}") from error
        return rewards

    def asked(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The names that some function has as a parameter."""
        return tuple(name for name in names if any(name in reward.asks_for for reward in self.rewards))

    @torch.no_grad()
    def __call__(
        self, batch: WarmupBatch, *, target_logps: Tensor, target_token_logps: Tensor, warmup_logps: Tensor,
        baseline_target_logps: Callable[[], Tensor] | None = None, trainer_state: Any = None,
    ) -> RewardScores:  # fmt: skip
        """Score the group rows: the first M = B*G rows of the batch. Arguments as for `Arguments`.

        Returns:
            The scores, on the device of `target_logps`. A function adds nothing to a row it leaves unscored (None).

        Raises:
            ValueError: a function with `on_failure: raise` failed (the original exception is chained), or no function
                scored a row.
        """
        size = batch.num_prompts * batch.group_size
        for name, given, wanted in (
            ("target_logps", target_logps, (size,)),
            ("warmup_logps", warmup_logps, (size,)),
            ("target_token_logps", target_token_logps, (size, batch.seq_ids.size(1))),
        ):
            if given.shape != wanted:
                raise ValueError(f"{name} has the shape {tuple(given.shape)}; give {wanted}, one entry per group row.")
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
                self._handle(reward, outcome, offered)
            if reward.on_failure != "raise":
                failed[reward.name] = int(outcome.failed.sum())
            rows.append(outcome.values)
        values = torch.stack(rows)
        if (unscored := values.isnan().all(0)).any():
            row = offered.row(int(unscored.nonzero()[0]))
            raise ValueError(
                f"No reward scores {row}: {', '.join(r.name for r in self.rewards)} returned None for it, or failed and "
                f"was skipped. At least one must score every warmup: add target_logprob, for instance."
            )
        weights = torch.tensor([reward.weight for reward in self.rewards], dtype=torch.float32)
        total, device = (weights[:, None] * values.nan_to_num(nan=0.0)).sum(0), target_logps.device
        by_name = {reward.name: row.to(device) for reward, row in zip(self.rewards, values, strict=True)}
        return RewardScores(total.to(device), by_name, failed)

    def _handle(self, reward: Reward, outcome: Outcome, offered: Arguments) -> None:
        """Handle a failure as the recipe sets; changes the outcome's values."""
        assert outcome.fault is not None
        if reward.on_failure == "raise":
            raise ValueError(outcome.fault) from outcome.cause
        prompts = outcome.failed.view(offered.batch.num_prompts, -1).any(1)
        if reward.on_failure == "zero":
            outcome.values[outcome.failed] = 0.0
            done = f"it counts 0 for {int(outcome.failed.sum())} warmups (on_failure: zero)"
        else:
            outcome.values.view(len(prompts), -1)[prompts] = torch.nan
            done = f"it is left out for the warmups of {int(prompts.sum())} prompts (on_failure: skip)"
        logger.warning("%s %s.", outcome.fault, done[0].upper() + done[1:])
        if self.report is not None:
            self.report({
                "step": getattr(offered.trainer_state, "global_step", None), "rule": f"reward {reward.name}",
                "sees": outcome.fault.rstrip("."), "means": "this part of the score is missing here",
                "change": "repair the function; `rl-warmup score` tries it on a file", "done": done,
            })  # fmt: skip
