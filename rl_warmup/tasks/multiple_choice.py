"""Knows how puzzles become multiple-choice rows: letters, balanced positions, splits; must not know how a puzzle is made.

The puzzles are generated from a seed (`rl_warmup.tasks.puzzles`) and their labels are proved: tests solve every family from its
text by brute force. Chance is 0.25.
"""

import random
from collections.abc import Iterable
from string import ascii_uppercase

from rl_warmup.tasks.columns import CHOICES_STYLE, TARGET_STYLES, Template, lettered, nearest
from rl_warmup.tasks.puzzles import FAMILIES, NUM_CHOICES, Puzzle
from rl_warmup.tasks.rows import Row, Task

MAX_REPEATS = 1000  # known puzzles in a row, until a family counts as exhausted


def load(
    families: str | Iterable[str] | None = None, target_style: str = "letter", train_size: int = 5000,
    validation_size: int = 500, test_size: int = 500, prompt_template: str = "{context}\n{question}\n{options}",
    seed: int = 0,
) -> Task:  # fmt: skip
    """The multiple-choice task; families take turns; the right answer is A, B, C and D equally often.

    No context with its question occurs twice, in one split or across splits. Test rows are drawn first, then validation, then
    training, so they do not depend on `train_size`. Extras of a row: `choices`, `answer` (index), `family`.

    Args:
        families: some of order, kinship, weekdays, classes, knights; None for all.
        target_style: "letter" for "B", "text" for "B) Ada".
        prompt_template: fields context, question, options ("A) ... B) ...").

    Raises:
        ValueError: for an unknown family or style, a negative size, a bad template, more rows than a family can make.
    """
    chosen = _check_families(families)
    if target_style not in TARGET_STYLES:
        raise ValueError(f"multiple_choice: target_style={target_style!r}; give one of {', '.join(TARGET_STYLES)}")
    sizes = {"test": test_size, "validation": validation_size, "train": train_size}
    if min(sizes.values()) < 0:
        raise ValueError(f"multiple_choice: sizes {sizes} must not be negative")
    template = Template.parse(prompt_template, allowed=["context", "question", "options"])
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for split, size in sizes.items():
        rng = random.Random(f"multiple_choice/{seed}/{split}")
        rows = []
        for number in range(size):
            family, position = chosen[number % len(chosen)], number // len(chosen) % NUM_CHOICES
            puzzle = _unseen_puzzle(family, rng, seen)
            rows.append(_row(puzzle, family, position, target_style, template, rng))
        rng.shuffle(rows)
        splits[split] = [{"id": f"{split}-{number}", **row} for number, row in enumerate(rows)]
    return Task("multiple_choice", splits, ("accuracy", "macro_f1"), template.of_text())


def _check_families(families: str | Iterable[str] | None) -> list[str]:
    chosen = list(FAMILIES) if families is None else [families] if isinstance(families, str) else list(families)
    for family in chosen:
        if family not in FAMILIES:
            known = f"{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}"
            raise ValueError(f"multiple_choice: unknown family '{family}'{known}")
    if not chosen:
        raise ValueError(f"multiple_choice: families is empty; give some of {', '.join(FAMILIES)}, or null for all")
    return chosen


def _unseen_puzzle(family: str, rng: random.Random, seen: set[str]) -> Puzzle:
    for _ in range(MAX_REPEATS):
        puzzle = FAMILIES[family](rng)
        key = f"{puzzle.context} {puzzle.question}"
        if key not in seen:
            seen.add(key)
            return puzzle
    raise ValueError(f"multiple_choice: family '{family}' makes no new puzzle after {len(seen)} rows; lower the sizes")


def _row(puzzle: Puzzle, family: str, position: int, style: str, template: Template, rng: random.Random) -> Row:
    choices = rng.sample(puzzle.distractors, len(puzzle.distractors))
    choices.insert(position, puzzle.answer)
    named = lettered(choices)
    values = {"context": puzzle.context, "question": puzzle.question, "options": " ".join(named)}
    return {
        "prompt": template.fill(values, f"multiple_choice, family {family}"),
        "target": named[position] if style == "text" else ascii_uppercase[position],
        "choices": choices,
        "answer": position,
        CHOICES_STYLE: style,
        "family": family,
    }
