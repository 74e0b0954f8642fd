"""Arranges rows before a forward: buckets of similar length, and several rows of one prompt packed into one sequence.

Knows: lengths. Must not know: tensors, models.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from math import inf
from typing import NamedTuple

import torch

# Another forward pass is worth its cost if it saves this share of all tokens, and this many tokens. Measured on a CPU; the
# share for an accelerator, which a single pass keeps busy, is a guess.
MIN_SAVING_PER_PASS, MIN_TOKENS_SAVED = 0.1 if torch.cuda.is_available() else 0.005, 64
# The same share for another bucket where only attention is padded. Measured on a CPU.
MIN_SAVING_PER_BUCKET = 0.2
# Rows of a prompt are packed into sequences of at most this factor times the square root of the prompt's length. Longer
# sequences cost masked attention among their rows; more sequences cost copies of the prompt's keys and values. Measured on a CPU.
PACKED_LENGTH_FACTOR = 5


Buckets = list[tuple[list[int], int]]  # (indices of the rows, padded width) of every bucket


def buckets(lengths: list[int], min_saving: float) -> Buckets:
    """Split rows into buckets of similar length, shortest first: cut where that saves most padding, as long as it pays.

    A single bucket keeps the order of the rows.

    Args:
        min_saving: share of all padded tokens that a cut has to save; infinite gives a single bucket.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    ordered = [lengths[i] for i in order]
    cuts = [0, len(order)]
    enough = max(min_saving * len(order) * ordered[-1], MIN_TOKENS_SAVED, 1)
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


def first_slots(buckets: Buckets) -> list[int]:
    """Index of the first token of every row when all padded buckets are flattened and concatenated."""
    starts = [0] * sum(len(rows) for rows, _ in buckets)
    total = 0
    for rows, width in buckets:
        for number, row in enumerate(rows):
            starts[row] = total + number * width
        total += len(rows) * width
    return starts


def split_evenly(sizes: list[int], limit: int) -> list[range]:
    """Split into the fewest ranges with sums of about `limit` at most, of about equal sums. No range sums to 0 unless all do."""
    total = sum(sizes)
    share = total / max(1, -(-total // limit))
    ranges: list[range] = []
    start = before = 0
    for i, size in enumerate(sizes):
        if size and any(sizes[start:i]) and before + size / 2 > share * (len(ranges) + 1):
            ranges.append(range(start, i))
            start = i
        before += size
    return [*ranges, range(start, len(sizes))]


class PackedRows(NamedTuple):
    """Rows packed into sequences; all rows of a sequence continue the same prompt."""

    prompt: list[int]  # of each sequence
    length: list[int]  # tokens of each sequence
    place: list[tuple[int, int]]  # (sequence, offset of the first token in it) of each row


def pack_rows(lengths: list[int], prompt_index: list[int], max_length: int) -> PackedRows:
    """Pack the rows of every prompt into one sequence, or into several of about equal length where one would be too long.

    Attention computes scores for a whole sequence and masks most of them. In a sequence some three times as long as the
    network is wide that costs as much as the rest of a layer; hence `max_length`. A longer row gets a sequence to itself.
    """
    by_prompt: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompt_index):
        by_prompt[prompt].append(row)
    packed = PackedRows([], [], [(0, 0)] * len(lengths))
    for prompt in sorted(by_prompt):
        rows = by_prompt[prompt]
        count = -(-sum(lengths[row] for row in rows) // max(max_length, *(lengths[row] for row in rows)))
        filled = [0] * count
        for row in sorted(rows, key=lambda row: -lengths[row]):
            shortest = filled.index(min(filled))
            packed.place[row] = (len(packed.prompt) + shortest, filled[shortest])
            filled[shortest] += lengths[row]
        packed.prompt.extend([prompt] * count)
        packed.length.extend(filled)
    return packed
