"""Knows what a puzzle is, and the names puzzles draw from; must not know any single family, nor letters and prompts."""

from dataclasses import dataclass

NUM_CHOICES = 4

WOMEN = (
    "Ada", "Bella", "Clara", "Dora", "Emma", "Fiona", "Greta", "Hanna", "Ida", "Julia", "Karla", "Lena",
    "Mona", "Nora", "Olga", "Paula", "Rosa", "Sara", "Tina", "Ursula", "Vera", "Wanda", "Yara", "Zoe",
)  # fmt: skip
MEN = (
    "Adam", "Ben", "Carl", "David", "Emil", "Felix", "Georg", "Hugo", "Ivan", "Jonas", "Kurt", "Leo",
    "Max", "Noah", "Oskar", "Paul", "Robert", "Simon", "Theo", "Ulrich", "Victor", "Walter", "Xaver", "Yusuf",
)  # fmt: skip
PEOPLE = WOMEN + MEN


@dataclass(frozen=True)
class Puzzle:
    """A question with exactly one right answer."""

    context: str  # the facts, in whole sentences; nothing outside it is needed
    question: str  # one sentence
    answer: str
    distractors: tuple[str, ...]  # NUM_CHOICES - 1 wrong choices, all different


def listing(words: list[str]) -> str:
    """The words in a sentence: `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
