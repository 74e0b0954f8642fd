"""How rows are arranged before they go through a network: into groups of similar length, and into lines.

Knows: lengths, and from when on a pass or a line pays. Must not know: tensors, models.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from math import inf
from typing import NamedTuple

import torch

# Another pass over a network pays when it leaves out this share of all tokens, and this many. Measured on a CPU; on an
# accelerator, which a single pass keeps busy, the share is a guess until one is at hand.
WORTH_A_PASS, TOKENS_WORTH_A_PASS = 0.1 if torch.cuda.is_available() else 0.005, 64
# The same of another rectangle, where only attention is padded. Measured on a CPU.
WORTH_A_GROUP = 0.2
# Rows of a prompt share a line (`shared_states`) of up to this many square roots of the prompt's length. A longer line costs
# attention among its rows, which is masked; another line costs a copy of the prompt's keys and values. Measured on a CPU.
WORTH_A_LINE = 5


Groups = list[tuple[list[int], int]]  # the rows of each pass or rectangle, and how wide it is


def buckets(lengths: list[int], worth: float) -> Groups:
    """Rows of similar length, shortest first, as (rows, width): cut where that saves the most padding, while it pays.

    A single bucket keeps the order of the rows.

    Args:
        worth: the share of all slots that a cut has to save; infinite for a single bucket.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ordered = [lengths[i] for i in order]
    cuts = [0, len(order)]
    enough = max(worth * len(order) * ordered[-1], TOKENS_WORTH_A_PASS, 1)
    while enough < inf:
        saved, cut = max(
            ((cut - low) * (ordered[high - 1] - ordered[cut - 1]), cut)
            for low, high in pairwise(cuts)
            for cut in range(low + 1, high + 1)
        )
        if saved < enough:
            break
        cuts = sorted([*cuts, cut])
    if len(cuts) == 2:
        order.sort()
    return [(order[low:high], ordered[high - 1]) for low, high in pairwise(cuts)]


def first_slots(groups: Groups) -> list[int]:
    """The slot at which each row begins when all groups stand one behind the other."""
    begin = [0] * sum(len(chosen) for chosen, _ in groups)
    total = 0
    for chosen, width in groups:
        for place, row in enumerate(chosen):
            begin[row] = total + place * width
        total += len(chosen) * width
    return begin


def consecutive(sizes: list[int], most: int) -> list[range]:
    """Cut into ranges of about equal sums, as few as about `most` of each allow. No range sums to 0, unless all do."""
    total = sum(sizes)
    share = total / max(1, -(-total // most))
    parts: list[range] = []
    begin = before = 0
    for i, size in enumerate(sizes):
        if size and any(sizes[begin:i]) and before + size / 2 > share * (len(parts) + 1):
            parts.append(range(begin, i))
            begin = i
        before += size
    return [*parts, range(begin, len(sizes))]


class PackedLines(NamedTuple):
    """Rows behind each other in lines."""

    prompt: list[int]  # of each line
    filled: list[int]  # slots that each line needs
    row: list[tuple[int, int]]  # line and first slot of each row


def into_lines(lengths: list[int], prompt_index: list[int], room: int) -> PackedLines:
    """Put the rows of a prompt into one line, or into several of about equal length where one would exceed `room`.

    Attention looks at a whole line and masks most of it, which costs as much as the rest of a layer when a line is some
    three times as long as the network is wide; hence `room`.
    """
    by_prompt: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompt_index):
        by_prompt[prompt].append(row)
    lines = PackedLines([], [], [(0, 0)] * len(lengths))
    for prompt in sorted(by_prompt):
        rows = by_prompt[prompt]
        count = -(-sum(lengths[row] for row in rows) // max(room, *(lengths[row] for row in rows)))
        filled = [0] * count
        for row in sorted(rows, key=lambda row: -lengths[row]):
            line = filled.index(min(filled))
            lines.row[row] = (len(lines.prompt) + line, filled[line])
            filled[line] += lengths[row]
        lines.prompt.extend([prompt] * count)
        lines.filled.extend(filled)
    return lines
