"""One of everything else that can be extended: an objective, a proposal, a task, a metric."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def best_of_group(rewards: Any, warmup_logprobs: Any, settings: Any) -> tuple[Any, Any]:
    """Imitate the best warmup of the group and train the target on it alone: a = [i is best] - 1/n, b = [i is best].

    Args:
        rewards: (B, G) tensor of scores R, nats.
        warmup_logprobs: (B, G) tensor of log P(c|x).
        settings: `ObjectiveSettings`: tau, uniform_target_share, tsallis_q.

    Returns:
        (a, b), both (B, G).
    """
    best = (rewards == rewards.max(1, keepdim=True).values).to(rewards.dtype)
    best = best / best.sum(1, keepdim=True)
    return best - 1 / rewards.size(1), best


def every_other(words: list[tuple[int, ...]], context: Any) -> list[tuple[int, ...]]:
    """Every second word of the target. A word is a tuple of token ids; `context.decode(word)` is its text."""
    return words[::2]


def short_ledger(length: int = 3, modulus: int = 3, size: int = 64, seed: int = 0) -> Any:
    """Running totals of a few amounts, newest first."""
    from rl_warmup.tasks import Task

    rng, rows = random.Random(seed), []
    for number in range(size):
        amounts = [rng.randrange(modulus) for _ in range(length)]
        totals = [sum(amounts[: i + 1]) % modulus for i in range(length)]
        names = "abcdefgh"[:length]
        prompt = " ".join(f"{name}+{amount}" for name, amount in zip(names, amounts, strict=True))
        target = " ".join(f"{name}={total}" for name, total in reversed(list(zip(names, totals, strict=True))))
        rows.append({"id": str(number), "prompt": prompt, "target": target})
    quarter = size // 4
    splits = {"train": rows[: 2 * quarter], "validation": rows[2 * quarter : 3 * quarter], "test": rows[3 * quarter :]}
    return Task("short_ledger", splits, ("first_word", "exact_match"))


def first_word(predictions: Sequence[str], targets: Sequence[str], rows: Any = None) -> float:
    """Share of predictions whose first word is right: the one that needs the whole sum."""
    pairs = zip(predictions, targets, strict=True)
    return sum(written.split()[:1] == wanted.split()[:1] for written, wanted in pairs) / len(targets)
