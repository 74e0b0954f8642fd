"""Knows which choice a text picks, and scores such picks; must not know how puzzles are made or prompted.

A pick is, in this order, ignoring case and outer white space: a letter alone or followed by `)`, `.` or `:` ("B", "(b)",
"B) Ada", "The answer is B."); with `choices` in the row, the text of one of them. If a letter and a text disagree, the letter
counts. Anything else is unparsed: it counts as wrong, and `unparsed` counts these predictions.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from rl_warmup.metrics.segments import Segments, mean_segments

PREAMBLE = re.compile(r"^(the )?(correct |right )?answer( is)?:? ")
LETTER = re.compile(r"\(?([a-z])([).:].*)?")

Rows = Sequence[dict[str, Any]]


def accuracy(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, float]:
    """`accuracy`: share of right picks, 0 to 1; `unparsed`: number of predictions that pick nothing.

    Raises:
        ValueError: if a target picks none of its row's choices.
    """
    value = accuracy_segments(predictions, targets, rows)["accuracy"].value()
    return {"accuracy": value, "unparsed": _unparsed(predictions, targets, rows)}


def macro_f1(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, float]:
    """`macro_f1`: F1 of each pick, averaged with equal weight, 0 to 1; `unparsed` as for `accuracy`.

    A class is a letter (or a label) among targets or predictions, as in scikit-learn. If targets are letters, a prediction
    without one has no class, and is a miss for the class of its target; if they are labels, any other text is a class of its
    own, with F1 0.

    Raises:
        ValueError: if a target picks none of its row's choices.
    """
    value = macro_f1_segments(predictions, targets, rows)["macro_f1"].value()
    return {"macro_f1": value, "unparsed": _unparsed(predictions, targets, rows)}


def accuracy_segments(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, Segments]:
    """`accuracy` as the mean of 1 (right pick) and 0 over rows."""
    picked, wanted = _picks(predictions, targets, rows)
    return {"accuracy": mean_segments(pick == want for pick, want in zip(picked, wanted, strict=True))}


def macro_f1_segments(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, Segments]:
    """`macro_f1` from counts: for each label, how often it was hit, predicted and wanted."""
    picked, wanted = _picks(predictions, targets, rows)
    # every letter gets columns, so that two lists of predictions have the same ones; labels that no target has come last,
    # where `significance` pads the shorter list
    known = {*wanted, *ascii_uppercase}
    labels = [*sorted(known), *sorted({pick for pick in picked if pick is not None} - known)]
    counts: list[Sequence[float]] = [
        [float(count) for label in labels for count in (pick == want == label, pick == label, want == label)]
        for pick, want in zip(picked, wanted, strict=True)
    ]
    return {"macro_f1": Segments(counts, _macro_f1_of_counts)}


def _macro_f1_of_counts(sums: Sequence[float]) -> float:
    """The mean F1 of the labels that occur; resampled rows may lack some."""
    labels = zip(sums[::3], sums[1::3], sums[2::3], strict=True)
    scores = [2 * hits / (predicted + want) for hits, predicted, want in labels if predicted + want]
    return sum(scores) / len(scores)


def _picks(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None) -> tuple[list[str | None], list[str]]:
    """The picks of predictions (None: nothing) and of targets: letters, or labels if targets are not letters."""
    choices = [_texts(row.get("choices")) for row in rows] if rows is not None else [None] * len(targets)
    if any(choices):
        wanted = []
        for number, (target, row_choices) in enumerate(zip(targets, choices, strict=True)):
            letter = _letter(target, row_choices)
            if letter is None:
                raise ValueError(
                    f"metrics: target {target!r} of row {number} is neither a letter nor the text of one of its "
                    f"choices {row_choices!r}; repair the row"
                )
            wanted.append(letter)
        return [_letter(text, row_choices) for text, row_choices in zip(predictions, choices, strict=True)], wanted
    letters = [letter for letter in (_letter(target, None) for target in targets) if letter is not None]
    if len(letters) == len(targets):
        return [_letter(text, None) for text in predictions], letters
    return [_normal(text) for text in predictions], [_normal(target) for target in targets]


def _texts(choices: Any) -> Sequence[str] | None:
    """The choices of a row; None if a column of that name holds something else."""
    fine = isinstance(choices, list | tuple) and all(isinstance(choice, str) for choice in choices)
    return choices if fine else None


def _unparsed(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None) -> float:
    """Number of predictions that pick nothing: no letter, or none of the targets' labels."""
    picked, wanted = _picks(predictions, targets, rows)
    labels = set(wanted)
    letters = all(len(label) == 1 and label in ascii_uppercase for label in labels)
    return float(sum(pick is None or (not letters and pick not in labels) for pick in picked))


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
