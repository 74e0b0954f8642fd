"""Knows puzzles that count days ("Yesterday was Friday. The fair is 12 days after tomorrow."); must not know prompts.

Days count as numbers modulo 7 from today, so one answer is right.
"""

import random

from rl_warmup.tasks.puzzles.puzzle import NUM_CHOICES, Puzzle

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
REFERENCES = {  # days from today -> (name, verb)
    -2: ("the day before yesterday", "was"),
    -1: ("yesterday", "was"),
    0: ("today", "is"),
    1: ("tomorrow", "is"),
    2: ("the day after tomorrow", "is"),
}
EVENTS = (
    "exam", "concert", "wedding", "match", "fair", "meeting", "workshop", "trip", "picnic", "race", "play", "sale",
)  # fmt: skip


def make(rng: random.Random) -> Puzzle:
    """A known weekday near today, then a chain of one to three events, each counted from the one before."""
    today = rng.randrange(7)
    known = rng.choice(list(REFERENCES))
    name, verb = REFERENCES[known]
    sentences = [f"{name.capitalize()} {verb} {WEEKDAYS[(today + known) % 7]}."]
    start = rng.choice(list(REFERENCES))
    anchor, offset = REFERENCES[start][0], start
    for event in rng.sample(EVENTS, rng.randint(1, 3)):
        days, after = rng.randint(2, 30), rng.random() < 0.5
        offset += days if after else -days
        sentences.append(f"The {event} is {days} days {'after' if after else 'before'} {anchor}.")
        anchor = f"the {event}"
    answer = WEEKDAYS[(today + offset) % 7]
    wrong = [day for day in WEEKDAYS if day != answer]
    question = f"On which day of the week is {anchor}?"
    return Puzzle(" ".join(sentences), question, answer, tuple(rng.sample(wrong, NUM_CHOICES - 1)))
