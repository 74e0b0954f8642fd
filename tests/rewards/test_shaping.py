"""Rewards on token ids alone."""

import pytest

from rl_warmup.rewards.shaping import LengthPenalty, prompt_overlap


def test_length_penalty():
    assert LengthPenalty(4)(completion_ids=[[], [1], [1] * 4, [1] * 6]) == [-1.0, -0.75, 0.0, -0.5]


@pytest.mark.parametrize("length", [0, -1, 2.5, True, "4"])
def test_length_penalty_needs_a_length(length):
    with pytest.raises(ValueError, match="target_length is .*an integer of 1 or more"):
        LengthPenalty(length)


def test_prompt_overlap():
    warmups, prompts = [[1, 2, 2, 9], [1, 2], [7], []], [[1, 2, 3]] * 4
    assert prompt_overlap(completion_ids=warmups, prompt_ids=prompts) == [2 / 3, 1.0, 0.0, 0.0]


def test_a_copying_penalty_is_a_negative_weight(world):
    specs = [
        {"name": "prompt_overlap", "weight": -2.0},
        {"name": "length_penalty", "kwargs": {"target_length": 2}},
    ]
    assert world.judge(specs).total.tolist() == pytest.approx([-1.0, -2.5, -1.5, -1.0])
