"""Rewards: weighted functions that score warmups, in TRL's calling convention.

A reward function takes lists as keyword arguments, one entry per warmup, and returns as many numbers, or None for a
warmup that it does not score:

    def brevity(completion_ids, **kwargs):
        return [-len(ids) / 10 for ids in completion_ids]

`arguments.py` lists what a function can name; `loading.py` finds the function that a recipe names. Only listed functions
count: a list without `target_logprob` ignores the target's likelihood.
"""

from __future__ import annotations

from rl_warmup.rewards.arguments import PREDICTIONS
from rl_warmup.rewards.board import RewardScores, RewardSet
from rl_warmup.rewards.loading import load_reward
from rl_warmup.rewards.reward import Reward

__all__ = ["PREDICTIONS", "Reward", "RewardScores", "RewardSet", "load_reward"]
