"""What belongs to one update alone; the next update replaces it.

Knows: rows, batches, scores, what is said of warmups. Must not know: how they are made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rl_warmup.batch import RowWeights, Scores, Warmup, WarmupBatch
from rl_warmup.method.diagnostics import Sums, variety


@dataclass
class Update:
    """One update, from its rows to its part of the log."""

    parts: list[list[dict[str, Any]]]  # the rows of every micro-batch
    batches: deque[WarmupBatch] | None = None  # not trained on yet; None before the rollout
    shown: tuple[WarmupBatch, Scores, RowWeights, Any] | None = (
        None  # the last micro-batch and its `RewardScores`, without gradient
    )
    warmups: list[Warmup] = field(default_factory=list)  # of the groups of the micro-batches that were trained on
    fault: str | None = None  # why its loss is no number, as a sentence
    flops: float = 0.0  # of the last micro-batch

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all micro-batches."""
        return [row for part in self.parts for row in part]

    def variety(self, gather: Callable[[list[Any]], list[Any]], processes: int) -> Sums:
        """`diagnostics.variety` of all groups, when the last one was trained on; nothing when it is asked for again, as Trainer
        ends an update twice where an epoch ends."""
        warmups, self.warmups = self.warmups, []
        return variety(self.rows, warmups, len(warmups) // len(self.rows), gather, processes) if warmups else {}
