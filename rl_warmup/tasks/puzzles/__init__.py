"""Knows the families of puzzles by name: each makes, from a random generator, a `Puzzle` with one right answer.

One family, one file; the tests solve each by brute force from its text alone. Must not know letters, prompts or rows.
"""

import random
from collections.abc import Callable

from rl_warmup.tasks.puzzles import classes, kinship, knights, order, weekdays
from rl_warmup.tasks.puzzles.puzzle import NUM_CHOICES, Puzzle

FAMILIES: dict[str, Callable[[random.Random], Puzzle]] = {
    "order": order.make,
    "kinship": kinship.make,
    "weekdays": weekdays.make,
    "classes": classes.make,
    "knights": knights.make,
}

__all__ = ["FAMILIES", "NUM_CHOICES", "Puzzle"]
