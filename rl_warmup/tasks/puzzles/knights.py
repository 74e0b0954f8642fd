"""Knows puzzles about knights, who only tell the truth, and knaves, who only lie; must not know prompts or rows.

Each of three people says one sentence. Statements are drawn until exactly one of the eight assignments makes every
knight's sentence true and every knave's false.
"""

import random
from collections.abc import Callable
from itertools import product

from rl_warmup.tasks.puzzles.puzzle import NUM_CHOICES, PEOPLE, Puzzle, listing

Assignment = tuple[bool, ...]  # True: knight
Claim = Callable[[Assignment], bool]
ASSIGNMENTS: list[Assignment] = list(product((True, False), repeat=3))
KIND = {True: "knight", False: "knave"}


def _draw_claim(speaker: int, names: list[str], rng: random.Random) -> tuple[str, Claim]:
    """A sentence and whether an assignment makes it true."""
    i, j = rng.sample([k for k in range(3) if k != speaker], 2)
    a, b = rng.random() < 0.5, rng.random() < 0.5
    one, other = names[i], names[j]
    number = rng.randint(1, 2)
    claims: list[tuple[str, Claim]] = [
        (f"{one} is a {KIND[a]}", lambda who: who[i] == a),
        (f"{one} is a {KIND[a]} and {other} is a {KIND[b]}", lambda who: who[i] == a and who[j] == b),
        (f"{one} is a {KIND[a]} or {other} is a {KIND[b]}", lambda who: who[i] == a or who[j] == b),
        (f"{one} and {other} are of the same kind", lambda who: who[i] == who[j]),
        (f"{one} and {other} are of different kinds", lambda who: who[i] != who[j]),
        (
            f"exactly {number} of us three {'are knights' if number > 1 else 'is a knight'}",
            lambda who: sum(who) == number,
        ),
        ("at least one of us three is a knave", lambda who: not all(who)),
    ]
    return rng.choice(claims)


def make(rng: random.Random) -> Puzzle:
    """Three people and their sentences; the choices are full assignments, of which one is possible."""
    names = rng.sample(PEOPLE, 3)
    while True:
        said = [_draw_claim(speaker, names, rng) for speaker in range(3)]
        possible = [who for who in ASSIGNMENTS if all(claim(who) == who[k] for k, (_, claim) in enumerate(said))]
        if len(possible) == 1 and len({sentence for sentence, _ in said}) == 3:
            break
    rules = "Knights always tell the truth and knaves always lie."
    quotes = [f'{name} says: "{text[0].upper()}{text[1:]}."' for name, (text, _) in zip(names, said, strict=True)]
    wrong = rng.sample([who for who in ASSIGNMENTS if who != possible[0]], NUM_CHOICES - 1)
    return Puzzle(
        context=" ".join([rules, f"{listing(names)} are each a knight or a knave.", *quotes]),
        question="Who is what?",
        answer=_describe(possible[0], names),
        distractors=tuple(_describe(who, names) for who in wrong),
    )


def _describe(who: Assignment, names: list[str]) -> str:
    return listing([f"{name} is a {KIND[kind]}" for name, kind in zip(names, who, strict=True)])
