"""Rewards that look at the warmup alone, to keep it from becoming empty, endless or a copy of its prompt.

Knows: token ids. Must not know: networks, text. No built-in here needs any text decoded.
"""

from __future__ import annotations


class LengthPenalty:
    """-|length - target_length| / target_length: 0 at the wanted length, -1 for an empty warmup. No unit.

    Args:
        target_length: the wanted length of a warmup (not of the target y), in tokens.
    """

    def __init__(self, target_length: int) -> None:
        if isinstance(target_length, bool) or not isinstance(target_length, int) or target_length < 1:
            raise ValueError(
                f"target_length is {target_length!r}; give the wanted warmup tokens, an integer of 1 or more."
            )
        self.target_length = target_length

    def __call__(self, completion_ids: list[list[int]]) -> list[float]:
        return [-abs(len(ids) - self.target_length) / self.target_length for ids in completion_ids]


def prompt_overlap(completion_ids: list[list[int]], prompt_ids: list[list[int]]) -> list[float]:
    """Share of the distinct tokens of a warmup that occur in its prompt, in [0, 1]; 0 for an empty one.

    A warmup that copies its prompt has 1, so a penalty is a negative weight.
    """
    pairs = zip(map(set, completion_ids), map(set, prompt_ids), strict=True)
    return [len(warmup & prompt) / len(warmup) if warmup else 0.0 for warmup, prompt in pairs]
