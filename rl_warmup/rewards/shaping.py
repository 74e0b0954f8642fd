"""Rewards from the tokens or the text of a warmup: length, repetition, overlap with prompt or target, format.

Knows: token ids, text. Must not know: networks. Shares are in [0, 1]; a negative weight makes a share a penalty.
"""

from __future__ import annotations

import re
from typing import Any


class LengthPenalty:
    """-|length - target_length| / target_length: 0 at that number of warmup tokens, -1 for an empty warmup. No unit."""

    def __init__(self, target_length: int) -> None:
        self.target_length = _count("target_length", target_length, "the wanted warmup tokens")

    def __call__(self, completion_ids: list[list[int]]) -> list[float]:
        return [-abs(len(ids) - self.target_length) / self.target_length for ids in completion_ids]


class Repetition:
    """Share of a warmup's n-grams (of `ngram` tokens) that repeat an earlier one; 0 for a warmup shorter than n.

    Source: appendix C.2 of arXiv 2502.03373, as a share.
    """

    def __init__(self, ngram: int = 2) -> None:
        self.ngram = _count("ngram", ngram, "the tokens of a piece")

    def __call__(self, completion_ids: list[list[int]]) -> list[float]:
        shares = []
        for ids in completion_ids:
            pieces = [tuple(ids[i : i + self.ngram]) for i in range(len(ids) - self.ngram + 1)]
            shares.append(1 - len(set(pieces)) / len(pieces) if pieces else 0.0)
        return shares


class FormatRegex:
    """1 where the whole warmup, as text, matches a pattern of Python's `re` (`.` matches line ends too), else 0."""

    def __init__(self, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except (re.error, TypeError) as error:
            raise ValueError(f"pattern is {pattern!r}, which is no regular expression ({error}).") from error

    def __call__(self, completions: list[Any]) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [float(self.pattern.fullmatch(text.strip()) is not None) for text in texts]


def prompt_overlap(completion_ids: list[list[int]], prompt_ids: list[list[int]]) -> list[float]:
    """Share of the distinct tokens of a warmup that occur in its prompt; 1 for a copy, 0 for an empty warmup."""
    return _overlaps(completion_ids, prompt_ids)


def target_overlap(completion_ids: list[list[int]], target_ids: list[list[int]]) -> list[float]:
    """Share of the distinct tokens of a warmup that occur in its target; 1 if all do."""
    return _overlaps(completion_ids, target_ids)


def _overlaps(warmups: list[list[int]], others: list[list[int]]) -> list[float]:
    pairs = zip(map(set, warmups), map(set, others), strict=True)
    return [len(warmup & other) / len(warmup) if warmup else 0.0 for warmup, other in pairs]


def _count(name: str, value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give {what}, an integer of 1 or more.")
    return value
