"""Knows how reasoning-gym's generators score answers to their questions; must not know how rows are made.

A row names its generator (`generator`) and holds what scoring needs (`metadata`, a Python literal; `question`, if the prompt is
only a part of it), so that saved predictions are enough.
"""

import ast
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from rl_warmup.metrics.segments import Segments, mean_segments

COLUMNS = ("prompt", "generator", "metadata")
# Their `score_answer` in 0.1.25 runs the answer, or the target, as Python: by `eval` or by sympy's `parse_expr`.
BY_EVAL = (
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "number_sorting", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
)  # fmt: skip

Rows = Sequence[dict[str, Any]]


def reasoning_gym_segments(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None, *, allow_eval: bool = False
) -> dict[str, Segments]:
    """`reasoning_gym_score`: mean of the generators' `score_answer`, 0 to 1; some generators give partial scores.

    Args:
        allow_eval: also score generators that run the prediction as Python (BY_EVAL).

    Raises:
        ImportError: reasoning-gym is missing.
        ValueError: rows of another task, or a generator that fails on its own answers.
    """
    return {"reasoning_gym_score": mean_segments(row_scores(predictions, targets, rows, allow_eval))}


def reasoning_gym_signature(allow_eval: bool = False) -> str:
    """The version of reasoning-gym.

    Raises:
        ImportError: it is missing.
    """
    _scorers()
    return f"reasoning-gym:{version('reasoning-gym')}"


def row_scores(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None, allow_eval: bool = False
) -> list[float]:
    """One number per prediction; 0 if its generator cannot parse it."""
    scores = []
    triples = zip(predictions, targets, rows or [{}] * len(targets), strict=True)
    for number, (prediction, target, row) in enumerate(triples):
        if missing := [column for column in COLUMNS if not isinstance(row.get(column), str)]:
            raise ValueError(
                f"reasoning_gym_score: row {number} has no text in the column {missing[0]!r}; it scores only rows of "
                "`task: reasoning_gym`, so take another metric"
            )
        if row["generator"] in BY_EVAL and not allow_eval:
            raise ValueError(
                f"reasoning_gym_score: reasoning-gym scores answers to {row['generator']} by running them as Python; use "
                "exact_match, or give `kwargs: {allow_eval: true}` if you trust the model and the rows"
            )
        entry = {"question": row.get("question") or row["prompt"], "answer": target}
        entry["metadata"] = _metadata(row["metadata"], number)
        scores.append(_score(_scorer(row["generator"]), prediction, entry, row["generator"]))
    return scores


def _score(score: Callable[..., Any], prediction: str, entry: dict[str, Any], generator: str) -> float:
    try:
        return float(score(prediction, entry))
    except Exception:  # some parse a number or a grid without a check
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
        install = "pip install 'rl_warmup[reasoning_gym]'"
        raise ImportError(f"reasoning_gym_score needs the package reasoning-gym ({error}); {install}") from error
    return get_score_answer_fn
