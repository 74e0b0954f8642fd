"""Rows are cut into passes and lines one can check by hand."""

from __future__ import annotations

import math
import random

import pytest

from rl_warmup.engine.fast.buckets import WORTH_A_GROUP, WORTH_A_PASS, buckets, consecutive, into_lines

# ---------------------------------------------------------------------- buckets


def slots(lengths, groups) -> int:
    """How many positions the passes have, padding included; every row must be in one of them and fit."""
    assert sorted(row for rows, _ in groups for row in rows) == list(range(len(lengths)))
    assert all(lengths[row] <= width for rows, width in groups for row in rows)
    return sum(len(rows) * width for rows, width in groups)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([7], [([0], 7)]),
        ([4, 4, 4], [([0, 1, 2], 4)]),
        ([3, 9, 3, 9], [([0, 1, 2, 3], 9)]),  # two rows of 6 saved: not worth a pass
        ([1, 50, 1, 50, 2], [([0, 2, 4], 2), ([1, 3], 50)]),  # 3 x 48 saved; then 2 x 1, not worth another
        ([10, 42, 10], [([0, 2], 10), ([1], 42)]),  # 2 x 32 = 64 is just enough
        ([11, 42, 11], [([0, 1, 2], 42)]),  # 2 x 31 = 62 is not
        ([90] * 10 + [99] * 10, [(list(range(20)), 99)]),  # 90 tokens, but less than a tenth of 1980
        ([10] * 10 + [100] * 10 + [300], [(list(range(10)), 10), (list(range(10, 20)), 100), ([20], 300)]),
    ],
)
def test_buckets_by_hand(lengths, expected, monkeypatch):
    """A pass must save 64 tokens and a tenth of all, whatever has been measured since."""
    monkeypatch.setattr("rl_warmup.engine.fast.buckets.TOKENS_WORTH_A_PASS", 64)
    assert buckets(lengths, 0.1) == expected
    assert buckets(lengths, math.inf) == [(list(range(len(lengths))), max(lengths))]


@pytest.mark.parametrize("worth", [WORTH_A_PASS, WORTH_A_GROUP, 0])
def test_buckets_of_random_lengths(monkeypatch, worth):
    if not worth:
        monkeypatch.setattr("rl_warmup.engine.fast.buckets.TOKENS_WORTH_A_PASS", 0)
    generator = random.Random(0)
    for _ in range(200):
        lengths = [generator.choice([1, 3, 20, generator.randint(1, 200)]) for _ in range(generator.randint(1, 30))]
        groups = buckets(lengths, worth)
        total = slots(lengths, groups)
        assert total <= slots(lengths, buckets(lengths, math.inf))
        assert [width for _, width in groups] == sorted({max(lengths[row] for row in rows) for rows, _ in groups})
        if not worth:
            assert total == sum(lengths)


# ---------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([3, 3, 3, 3], 12, [[3, 3, 3, 3]]),
        ([3, 3, 3, 3], 11, [[3, 3], [3, 3]]),  # two are enough, and then of equal size
        ([3, 3, 3, 3], 3, [[3], [3], [3], [3]]),
        ([1, 9, 1], 4, [[1], [9], [1]]),  # what is too large stands alone
        ([0, 4, 0, 4, 0], 4, [[0, 4, 0], [4, 0]]),
        ([0, 0], 4, [[0, 0]]),
        ([1] * 7, 3, [[1, 1], [1, 1, 1], [1, 1]]),
    ],
)
def test_ranges_by_hand(sizes, most, expected):
    assert [[sizes[i] for i in part] for part in consecutive(sizes, most)] == expected


# ---------------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("lengths", "prompts", "room", "expected"),
    [
        ([3, 2, 4, 1], [0, 0, 1, 1], 100, ([0, 1], [5, 5], [(0, 0), (0, 3), (1, 0), (1, 4)])),
        ([2, 3], [0, 0], 5, ([0], [5], [(0, 3), (0, 0)])),  # the longest comes first
        ([2, 3], [0, 0], 4, ([0, 0], [3, 2], [(1, 0), (0, 0)])),
        # 6 exceeds the room all alone
        ([3, 2, 4, 1, 6], [0, 0, 1, 1, 1], 5, ([0, 1, 1], [5, 6, 5], [(0, 0), (0, 3), (2, 0), (2, 4), (1, 0)])),
    ],
)
def test_lines_by_hand(lengths, prompts, room, expected):
    assert into_lines(lengths, prompts, room) == expected


def test_lines_of_random_rows():
    generator = random.Random(0)
    for _ in range(200):
        count, room = generator.randint(1, 20), generator.randint(1, 40)
        prompts = [generator.randrange(4) for _ in range(count)]
        lengths = [generator.randint(1, 15) for _ in range(count)]
        line_prompt, filled, places = into_lines(lengths, prompts, room)
        taken: set[tuple[int, int]] = set()
        for length, prompt, (line, start) in zip(lengths, prompts, places, strict=True):
            mine = {(line, slot) for slot in range(start, start + length)}
            assert line_prompt[line] == prompt
            assert start + length <= filled[line]
            assert not taken & mine
            taken |= mine
        assert sum(filled) == sum(lengths) == len(taken)
        width = max(filled)
        # as even as rows allow: nothing is put onto a line that has its share already
        assert width < max(room, *lengths) + max(lengths) or width == max(lengths)
        for prompt in set(prompts):
            total = sum(length for length, owner in zip(lengths, prompts, strict=True) if owner == prompt)
            if total <= room:
                assert line_prompt.count(prompt) == 1
