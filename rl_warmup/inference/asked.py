"""What a call of `WarmupGenerator.generate` asks for: its inputs as rows, its settings checked.

Knows: plain values. Must not know: models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rl_warmup.inference.selection import SELECTIONS

MOST = 10_000  # warmups or beams of one prompt


def as_rows(inputs: Any, first: int = 0) -> list[dict[str, Any]]:
    """Rows with `prompt`: of a text, a conversation, a row, or several of these (a list, a data set, any iterable).

    Args:
        first: the number of the first input, for errors.

    Raises:
        ValueError: an input that is none of them.
    """
    one = isinstance(inputs, str | Mapping) or _is_conversation(inputs) or not isinstance(inputs, Iterable)
    rows: list[dict[str, Any]] = []
    for number, given in enumerate([inputs] if one else inputs, first):
        if isinstance(given, Mapping) and "prompt" in given:
            rows.append(dict(given))
        elif isinstance(given, str) or _is_conversation(given):
            rows.append({"prompt": given})
        else:
            raise ValueError(
                f"input {number}: {str(given)[:60]!r} is no text, no conversation (a list of messages) and no row with a prompt."
            )
    return rows


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def check_count(name: str, value: int) -> None:
    """Raises ValueError unless so many warmups or beams of one prompt can be asked for."""
    if not 1 <= value <= MOST:
        raise ValueError(f"{name}: is {value:,}, and each prompt is read that often. Give 1 to {MOST:,}.")


def check_settings(
    mode: str, warmup: Any, num_warmups: int, select: str, sample_target: bool, num_beams: int, gate: Any, temperature: float
) -> None:  # fmt: skip
    """Raises ValueError for settings of `generate` that are out of range or exclude each other."""
    if select not in SELECTIONS:
        raise ValueError(f"select: {select!r} is none of {', '.join(SELECTIONS)}.")
    check_count("num_warmups", num_warmups)
    check_count("num_beams", num_beams)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: is {temperature}. Give a number above 0.")
    if sample_target and num_beams > 1:
        raise ValueError(
            "num_beams: beams search for the likeliest target, so they exclude sample_target. Leave one of the two out."
        )
    if warmup is not None and (num_warmups > 1 or gate is not None):
        raise ValueError(
            "warmup: a given warmup excludes num_warmups and gate, which use the model's own. Leave one of them out."
        )
    if mode == "empty" and (num_warmups > 1 or gate is not None):
        raise ValueError("num_warmups, gate: this model was trained without warmups, so it has none to choose from.")
