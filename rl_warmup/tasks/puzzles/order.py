"""Knows puzzles that order people by pairwise clues ("Ada is taller than Ben. ... Who is the second tallest?").

The clues hold every neighbouring pair of the true order, so they leave one order only. Must not know prompts or rows.
"""

import random

from rl_warmup.tasks.puzzles.puzzle import NUM_CHOICES, PEOPLE, Puzzle

SCALES = (  # more, less, most, least
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("heavier", "lighter", "heaviest", "lightest"),
)
RANKS = ("", "second ", "third ")


def make(rng: random.Random) -> Puzzle:
    """4 to 6 people, all neighbouring pairs as clues in random order and wording, and up to two clues more."""
    order = rng.sample(PEOPLE, rng.randint(4, 6))  # the first has the most of it
    more, less, most, least = rng.choice(SCALES)
    pairs = [(i, i + 1) for i in range(len(order) - 1)]
    distant = [(i, j) for i in range(len(order)) for j in range(i + 2, len(order))]
    pairs += rng.sample(distant, rng.randint(0, 2))
    rng.shuffle(pairs)
    clues = []
    for above, below in pairs:
        if rng.random() < 0.5:
            clues.append(f"{order[above]} is {more} than {order[below]}.")
        else:
            clues.append(f"{order[below]} is {less} than {order[above]}.")
    rank = rng.randrange(len(RANKS))
    from_top = rng.random() < 0.5
    answer = order[rank if from_top else -1 - rank]
    others = [name for name in order if name != answer]
    question = f"Who is the {RANKS[rank]}{most if from_top else least}?"
    return Puzzle(" ".join(clues), question, answer, tuple(rng.sample(others, NUM_CHOICES - 1)))
