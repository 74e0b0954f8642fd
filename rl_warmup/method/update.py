"""What belongs to one update alone; the next update replaces it.

Knows: rows, batches, scores. Must not know: how they are made.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from rl_warmup.batch import RowWeights, Scores, WarmupBatch


@dataclass
class Update:
    """One update, from its rows to its part of the log."""

    parts: list[list[dict[str, Any]]]  # the rows of every micro-batch
    batches: deque[WarmupBatch] | None = None  # not trained on yet; None before the rollout
    shown: tuple[WarmupBatch, Scores, RowWeights, Any] | None = (
        None  # the last micro-batch and its `RewardScores`, without gradient
    )
    fault: str | None = None  # why its loss is no number, as a sentence
    flops: float = 0.0  # of the last micro-batch

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all micro-batches."""
        return [row for part in self.parts for row in part]
