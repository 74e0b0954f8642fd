"""Two rewards: a plain function, and an object with settings and a network-like part that is loaded once."""

from __future__ import annotations

import asyncio
from typing import Any


def right_totals(prompts: list[str], completions: list[str], modulus: int = 10, **kwargs: Any) -> list[float | None]:
    """Share of a warmup's words that state a right running total ("c=4"); None for a prompt that is no ledger.

    All it needs are texts, so TRL's trainers can use it as well.
    """
    scores: list[float | None] = []
    for prompt, warmup in zip(prompts, completions, strict=True):
        totals, total = set(), 0
        for item in prompt.split():
            name, plus, amount = item.partition("+")
            if plus and amount.isdigit():
                total = (total + int(amount)) % modulus
                totals.add(f"{name}={total}")
        words = warmup.split()
        scores.append(None if not totals else sum(word in totals for word in words) / max(1, len(words)))
    return scores


class Steady:
    """1 where the target's worst token is likelier than `floor` nats, else 0: no step of the target comes as a surprise.

    Naming `target_token_logps` is what makes rl_warmup hand them over. Being asynchronous, it runs beside other rewards,
    as one would that asks a judge over the network.
    """

    def __init__(self, floor: float = -3.0) -> None:
        self.floor = floor
        self.separator: str | None = None

    def prepare(self, tokenizer: Any, layout: Any, **kwargs: Any) -> None:
        """Called once before training; the place to load things."""
        self.separator = layout.tokens.separator

    async def __call__(self, target_token_logps: list[list[float]]) -> list[float]:
        await asyncio.sleep(0)
        return [float(min(logps) > self.floor) for logps in target_token_logps]
