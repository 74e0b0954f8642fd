"""Knows rows that are read in passes and never all held at once; must not know file formats, models or tokenizers."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from rl_warmup.tasks.rows import Row

SHUFFLE_BUFFER = 10_000


@dataclass
class Stream:
    """Training rows that are read as they are needed. Going through it is one pass: every row once.

    Args:
        name: how an error calls it.
        read: begins to read at the first row.
        shuffle_buffer: rows held at a time. Each time one is needed, one of them goes, drawn at random, and the next row read
            takes its place; 1 keeps the order.
        seed, epoch: decide the draws of a pass.

    Raises:
        ValueError: at construction, if there is no row at all, or a buffer without room; and whatever reading the first row
            raises.
    """

    name: str
    read: Callable[[], Iterator[Row]]
    shuffle_buffer: int = SHUFFLE_BUFFER
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 1:
            raise ValueError(
                f"{self.name}: shuffle_buffer={self.shuffle_buffer}; give the number of rows to shuffle among each other, or "
                "1 to keep their order"
            )
        if not self.first(1):
            raise ValueError(f"{self.name} has no rows; give at least one row")

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass, as `datasets.IterableDataset` does."""
        self.epoch = epoch

    def first(self, count: int | None) -> list[Row]:
        """The first rows in the order in which they are stored; None for all, however many that may be."""
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
