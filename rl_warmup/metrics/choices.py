"""Knows how to read which choice a text picks, and scores such picks; must not know how puzzles are made or prompted.

Reading, in this order, case and outer whitespace aside: a letter alone or followed by `)`, `.` or `:` ("B", "(b)",
"B) Ada", "The answer is B."); with `choices` in the row, the text of one of them. Where a letter and a text disagree,
the letter counts. Anything else is unparsed: it counts as wrong, and `unparsed` says how often that happened.
"""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from string import ascii_uppercase
from typing import Any

from rl_warmup.metrics.registry import METRICS, Metric, Rows, Segments, mean_segments, values_of

PREAMBLE = re.compile(r"^(the )?(correct |right )?answer( is)?:? ")
LETTER = re.compile(r"\(?([a-z])([).:].*)?")


def accuracy(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, Segments]:
    """`accuracy`: share of right picks, 0 to 1. Raises ValueError if a target picks none of its row's choices."""
    picked, wanted = _picks(predictions, targets, rows)
    return {"accuracy": mean_segments(pick == want for pick, want in zip(picked, wanted, strict=True))}


def macro_f1(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, Segments]:
    """`macro_f1`: F1 of each pick, averaged with equal weight, 0 to 1, from counts of how often each was hit, said and wanted.

    A class is a letter (or a label) that occurs among targets or predictions, as in scikit-learn. Where letters are asked for,
    all predictions without one are one class more; where labels are, any other text is one of its own. Their F1 is 0. Raises
    as `accuracy`.
    """
    picked, wanted = _picks(predictions, targets, rows)
    said = ["" if pick is None else pick for pick in picked]
    labels = sorted({*wanted, *said})
    counts: list[Sequence[float]] = [
        [float(count) for label in labels for count in (pick == want == label, pick == label, want == label)]
        for pick, want in zip(said, wanted, strict=True)
    ]
    columns = tuple(f"{label}\n{kind}" for label in labels for kind in range(3))
    return {"macro_f1": Segments(counts, _macro_f1_of_counts, columns)}


def _macro_f1_of_counts(sums: Sequence[float]) -> float:
    """The mean F1 of the labels that occur; rows drawn again may lack some."""
    labels = zip(sums[::3], sums[1::3], sums[2::3], strict=True)
    scores = [2 * hits / (said + want) for hits, said, want in labels if said + want]
    return sum(scores) / len(scores)


def _picks(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None) -> tuple[list[str | None], list[str]]:
    """What predictions pick (None: nothing) and what targets pick: letters, or labels where targets are not letters."""
    choices = [_listed(row.get("choices")) for row in rows] if rows is not None else [None] * len(targets)
    if any(choices):
        wanted = []
        for number, (target, row_choices) in enumerate(zip(targets, choices, strict=True)):
            letter = _letter(target, row_choices)
            if letter is None:
                raise ValueError(
                    f"metrics: target {target!r} of row {number} is neither a letter nor the text of one of its "
                    f"choices {row_choices!r}; mend the row"
                )
            wanted.append(letter)
        return [_letter(text, row_choices) for text, row_choices in zip(predictions, choices, strict=True)], wanted
    letters = [letter for letter in (_letter(target, None) for target in targets) if letter is not None]
    if len(letters) == len(targets):
        return [_letter(text, None) for text in predictions], letters
    return [_normal(text) for text in predictions], [_normal(target) for target in targets]


def _listed(choices: Any) -> Sequence[str] | None:
    """The choices of a row; nothing where a foreign column of that name holds something else."""
    fine = isinstance(choices, list | tuple) and all(isinstance(choice, str) for choice in choices)
    return choices if fine else None


def _and_unparsed(segments: Callable[..., dict[str, Segments]]) -> Callable[..., dict[str, float]]:
    """The metric, and `unparsed`: predictions that pick no letter, or none of the labels that occur among the targets."""

    @wraps(segments)
    def function(*texts: Any) -> dict[str, float]:
        picked, wanted = _picks(*texts)
        labels = set(wanted)
        letters = all(len(label) == 1 and label in ascii_uppercase for label in labels)
        unparsed = sum(pick is None or (not letters and pick not in labels) for pick in picked)
        return {**values_of(segments)(*texts), "unparsed": float(unparsed)}

    return function


def pick(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that a text picks, or None."""
    return _letter(text, choices)


def _letter(text: str, choices: Sequence[str] | None) -> str | None:
    """The letter that `text` picks among `choices` (None: any letter is one), or None."""
    text = PREAMBLE.sub("", _normal(text), count=1)
    match = LETTER.fullmatch(text)
    if match:
        letter = match.group(1).upper()
        if choices is None or letter in ascii_uppercase[: len(choices)]:
            return letter
    normal = [_normal(choice) for choice in choices or ()]
    return ascii_uppercase[normal.index(text)] if text in normal else None


def _normal(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").strip().casefold()


METRICS |= {one.__name__: Metric(_and_unparsed(one), segments=one, bounds=(0, 1)) for one in (accuracy, macro_f1)}
