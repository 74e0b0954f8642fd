"""Controls: the model's warmups replaced by others, to see what they are good for.

Knows: predictions as plain rows. Must not know: models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

FORCED = ("shuffled", "empty_warmup", "filler")  # by `control_warmups`
CONTROLS = (*FORCED, "other_run", "sampled", "rerank")


def control_warmups(control: str, own: Sequence[dict[str, Any]], filler: Sequence[int] = ()) -> list[list[int]]:
    """The warmups that a control forces, one per row.

    - `shuffled`: another prompt's warmup: is the warmup used at all?
    - `empty_warmup`: none: is the model better without?
    - `filler`: the given meaningless ids: does only the extra depth help?

    Args:
        own: predictions with the policy's warmups, in the order of the rows.

    Raises:
        ValueError: unknown control, or `shuffled` where all rows have one prompt.
    """
    if control == "empty_warmup":
        return [[] for _ in own]
    if control == "filler":
        return [list(filler) for _ in own]
    if control != "shuffled":
        raise ValueError(f"Unknown control {control!r}. Allowed: {', '.join(FORCED)}.")
    return [own[i]["warmup_ids"] for i in _rows_of_other_prompts(own)]


def several_prompts(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether warmups can be shuffled across the prompts of these rows."""
    return len({str(row["prompt"]) for row in rows}) > 1


def _rows_of_other_prompts(rows: Sequence[dict[str, Any]]) -> list[int]:
    """For every row one of another prompt, by a fixed shuffle: a permutation, unless one prompt has most of the rows.

    Rows of one prompt stand side by side, and each takes the row that stands as far behind as the largest of these groups is
    long: beyond its own group.
    """
    if not several_prompts(rows):
        raise ValueError("Shuffling warmups across prompts needs rows of two prompts or more.")
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    groups: dict[str, list[int]] = {}
    for i in order:
        groups.setdefault(str(rows[i]["prompt"]), []).append(i)
    ranked = [i for group in groups.values() for i in group]
    largest, end, source = max(map(len, groups.values())), 0, {}
    for group in groups.values():
        end += len(group)
        for turn, i in enumerate(group, largest - len(group)):
            # a group of more than half the rows goes around the others again
            source[i] = ranked[(end + turn % (len(rows) - len(group))) % len(rows)]
    return [source[i] for i in range(len(rows))]
