"""Knows how to have answers to reasoning-gym's questions scored by the generator that made them; must not know how rows are made.

A row says which generator (`generator`) and what its scoring reads (`metadata`, a Python literal; `question`, where the prompt is
only a part of it), so that saved predictions are enough.
"""

import ast
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from rl_warmup.metrics.registry import Rows, metric

COLUMNS = ("prompt", "generator", "metadata")
# Their `score_answer` in 0.1.25 runs the answer, or the row's target, as Python: by `eval` or by sympy's `parse_expr`.
BY_EVAL = (
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "number_sorting", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
)  # fmt: skip


def reasoning_gym_signature(allow_eval: bool = False) -> str:
    """The version of reasoning-gym. Raises ImportError: it is missing."""
    _scorers()
    return f"reasoning-gym:{version('reasoning-gym')}"


@metric("reasoning_gym_score", signature=reasoning_gym_signature, bounds=(0, 1))
def row_scores(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None, allow_eval: bool = False
) -> list[float]:
    """The generators' `score_answer`, 0 to 1; some give a part of 1 for a part of the answer, and 0 for what they cannot read.

    Args:
        allow_eval: also where scoring runs what the model wrote as Python (BY_EVAL).

    Raises:
        ImportError: reasoning-gym is missing.
        ValueError: rows that are not the task's, or a generator that does not take its own answers.
    """
    scores = []
    texts = zip(predictions, targets, rows or [{}] * len(targets), strict=True)
    for number, (prediction, target, row) in enumerate(texts):
        if missing := [column for column in COLUMNS if not isinstance(row.get(column), str)]:
            raise ValueError(
                f"reasoning_gym_score: row {number} has no text in the column {missing[0]!r}; it scores rows of "
                "`task: reasoning_gym` alone, so take another metric for other rows"
            )
        if row["generator"] in BY_EVAL and not allow_eval:
            raise ValueError(
                f"reasoning_gym_score: reasoning-gym scores answers to {row['generator']} by running them as Python, so a "
                "model could write a program; use exact_match, or give it `kwargs: {allow_eval: true}` where you trust the model "
                "and the rows"
            )
        score = _scorer(row["generator"])
        entry = {"question": row.get("question") or row["prompt"], "answer": target}
        entry["metadata"] = _metadata(row["metadata"], number)
        scores.append(_score(score, prediction, entry, row["generator"]))
    return scores


def _score(score: Callable[..., Any], prediction: str, entry: dict[str, Any], generator: str) -> float:
    try:
        return float(score(prediction, entry))
    except Exception:  # some read a number or a grid without looking whether it is one
        try:
            score(entry["answer"], entry)
        except Exception as error:
            raise ValueError(
                f"reasoning_gym_score: {generator} cannot score its own answer {entry['answer']!r} "
                f"({type(error).__name__}: {error}); were the rows made by another version of reasoning-gym? Make them again"
            ) from error
        return 0.0


def _metadata(text: str, number: int) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"reasoning_gym_score: the column 'metadata' of row {number} is {text!r:.80}, which is no Python literal; "
            "leave it as `task: reasoning_gym` made it"
        ) from error


@lru_cache
def _scorer(generator: str) -> Callable[..., Any]:
    try:
        return _scorers()(generator)
    except ValueError as error:
        raise ValueError(
            f"reasoning_gym_score: reasoning-gym has no generator {generator!r}, which the column 'generator' names; "
            "install the version that made the rows"
        ) from error


def _scorers() -> Callable[[str], Callable[..., Any]]:
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError as error:
        raise ImportError(
            f"reasoning_gym_score needs the package reasoning-gym ({error}); pip install 'rl_warmup[reasoning_gym]'"
        ) from error
    return get_score_answer_fn
