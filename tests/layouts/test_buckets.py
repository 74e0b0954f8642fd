"""Rows are split into buckets and packed sequences that one can check by hand."""

from __future__ import annotations

import math
import random

import pytest

from rl_warmup.engine.fast.buckets import MIN_SAVING_PER_BUCKET, MIN_SAVING_PER_PASS, buckets, pack_rows, split_evenly

# ---------------------------------------------------------------------- buckets


def slots(lengths, made) -> int:
    """Tokens of all buckets with padding; every row must be in one of them and fit."""
    assert sorted(row for rows, _ in made for row in rows) == list(range(len(lengths)))
    assert all(lengths[row] <= width for rows, width in made for row in rows)
    return sum(len(rows) * width for rows, width in made)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([7], [([0], 7)]),
        ([4, 4, 4], [([0, 1, 2], 4)]),
        ([3, 9, 3, 9], [([0, 1, 2, 3], 9)]),  # two rows of 6 saved: not enough for a pass
        ([1, 50, 1, 50, 2], [([0, 2, 4], 2), ([1, 3], 50)]),  # 3 x 48 saved; then 2 x 1, not enough for another
        ([10, 42, 10], [([0, 2], 10), ([1], 42)]),  # 2 x 32 = 64 is just enough
        ([11, 42, 11], [([0, 1, 2], 42)]),  # 2 x 31 = 62 is not
        ([90] * 10 + [99] * 10, [(list(range(20)), 99)]),  # 90 tokens, but less than a tenth of 1980
        ([10] * 10 + [100] * 10 + [300], [(list(range(10)), 10), (list(range(10, 20)), 100), ([20], 300)]),
    ],
)
def test_buckets_by_hand(lengths, expected, monkeypatch):
    """A pass must save 64 tokens and a tenth of all, whatever has been measured since."""
    monkeypatch.setattr("rl_warmup.engine.fast.buckets.MIN_TOKENS_SAVED", 64)
    assert buckets(lengths, 0.1) == expected
    assert buckets(lengths, math.inf) == [(list(range(len(lengths))), max(lengths))]


@pytest.mark.parametrize("min_saving", [MIN_SAVING_PER_PASS, MIN_SAVING_PER_BUCKET, 0])
def test_buckets_of_random_lengths(monkeypatch, min_saving):
    if not min_saving:
        monkeypatch.setattr("rl_warmup.engine.fast.buckets.MIN_TOKENS_SAVED", 0)
    generator = random.Random(0)
    for _ in range(200):
        lengths = [generator.choice([1, 3, 20, generator.randint(1, 200)]) for _ in range(generator.randint(1, 30))]
        made = buckets(lengths, min_saving)
        total = slots(lengths, made)
        assert total <= slots(lengths, buckets(lengths, math.inf))
        assert [width for _, width in made] == sorted({max(lengths[row] for row in rows) for rows, _ in made})
        if not min_saving:
            assert total == sum(lengths)


# ---------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
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
def test_ranges_by_hand(sizes, limit, expected):
    assert [[sizes[i] for i in part] for part in split_evenly(sizes, limit)] == expected


# ---------------------------------------------------------------------- packed rows


@pytest.mark.parametrize(
    ("lengths", "prompts", "max_length", "expected"),
    [
        ([3, 2, 4, 1], [0, 0, 1, 1], 100, ([0, 1], [5, 5], [(0, 0), (0, 3), (1, 0), (1, 4)])),
        ([2, 3], [0, 0], 5, ([0], [5], [(0, 3), (0, 0)])),  # the longest comes first
        ([2, 3], [0, 0], 4, ([0, 0], [3, 2], [(1, 0), (0, 0)])),
        # 6 alone exceeds the limit
        ([3, 2, 4, 1, 6], [0, 0, 1, 1, 1], 5, ([0, 1, 1], [5, 6, 5], [(0, 0), (0, 3), (2, 0), (2, 4), (1, 0)])),
    ],
)
def test_packing_by_hand(lengths, prompts, max_length, expected):
    assert pack_rows(lengths, prompts, max_length) == expected


def test_packing_random_rows():
    generator = random.Random(0)
    for _ in range(200):
        count, max_length = generator.randint(1, 20), generator.randint(1, 40)
        prompts = [generator.randrange(4) for _ in range(count)]
        lengths = [generator.randint(1, 15) for _ in range(count)]
        sequence_prompt, filled, places = pack_rows(lengths, prompts, max_length)
        taken: set[tuple[int, int]] = set()
        for length, prompt, (sequence, start) in zip(lengths, prompts, places, strict=True):
            mine = {(sequence, slot) for slot in range(start, start + length)}
            assert sequence_prompt[sequence] == prompt
            assert start + length <= filled[sequence]
            assert not taken & mine
            taken |= mine
        assert sum(filled) == sum(lengths) == len(taken)
        width = max(filled)
        # as even as rows allow: nothing is added to a sequence that has its share already
        assert width < max(max_length, *lengths) + max(lengths) or width == max(lengths)
        for prompt in set(prompts):
            total = sum(length for length, owner in zip(lengths, prompts, strict=True) if owner == prompt)
            if total <= max_length:
                assert sequence_prompt.count(prompt) == 1
