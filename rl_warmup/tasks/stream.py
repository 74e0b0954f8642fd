"""Knows rows that are read as a stream, never all in memory; must not know file formats, models or tokenizers."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from rl_warmup.tasks.rows import Row

SHUFFLE_BUFFER = 10_000


@dataclass
class Stream:
    """Training rows that are read on demand. An iteration is one pass: every row once.

    Raises ValueError at construction, if there is no row, or shuffle_buffer is below 1; and any error of reading the first row.
    """

    name: str  # in error messages
    read: Callable[[], Iterator[Row]]  # starts reading at the first row
    shuffle_buffer: int = SHUFFLE_BUFFER  # rows in memory: a random one comes next and is replaced; 1 keeps the order
    seed: int = 0  # with `epoch`, of the random choices in a pass
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 1:
            raise ValueError(
                f"{self.name}: shuffle_buffer={self.shuffle_buffer}; give a number of rows, 1 for no shuffle"
            )
        if not self.first(1):
            raise ValueError(f"{self.name} has no rows; give at least one row")

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass, as in `datasets.IterableDataset`."""
        self.epoch = epoch

    def first(self, count: int | None) -> list[Row]:
        """The first rows in stored order; None for all, however many."""
        return list(islice(self.read(), count))

    def __iter__(self) -> Iterator[Row]:
        draws, rows = random.Random(f"{self.seed}/{self.epoch}"), self.read()
        held = list(islice(rows, self.shuffle_buffer))
        for row in rows:
            place = draws.randrange(len(held))
            yield held[place]
            held[place] = row
        if self.shuffle_buffer > 1:
            draws.shuffle(held)
        yield from held
