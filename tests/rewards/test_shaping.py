"""The shaping rewards by hand: lengths, repetition, overlaps, formats."""

import pytest

from rl_warmup.rewards import load_reward
from rl_warmup.rewards.shaping import FormatRegex, LengthPenalty, Repetition, prompt_overlap, target_overlap


def test_length_penalty():
    penalty = LengthPenalty(target_length=4)
    assert penalty(completion_ids=[[1] * n for n in (4, 2, 0, 6)]) == [0.0, -0.5, -1.0, -0.5]


@pytest.mark.parametrize("length", [0, -1, 2.5, True, "4", None])
def test_length_penalty_says_what_it_takes(length):
    with pytest.raises(ValueError, match="target_length is .*; give the wanted warmup tokens, an integer of 1 or more"):
        LengthPenalty(length)


@pytest.mark.parametrize(
    ("warmup", "share"), [([1, 2, 3], 0.0), ([1, 1, 1, 1], 0.75), ([1, 2, 1, 2], 0.5), ([], 0.0), ([1] * 9, 8 / 9)]
)
def test_repetition_of_single_tokens(warmup, share):
    assert Repetition(ngram=1)([warmup]) == [share]


def test_repetition_of_pairs():
    # 12 21 12 21 12: two of five are new
    assert Repetition()([[1, 2, 1, 2, 1, 2], [1, 2], [7]]) == [1 - 2 / 5, 0.0, 0.0]


def test_prompt_overlap():
    prompts = [[5, 6, 7]] * 4
    warmups = [[5, 6, 7], [5, 5, 9], [8, 9], []]
    assert prompt_overlap(warmups, prompts) == [1.0, 0.5, 0.0, 0.0]


def test_target_overlap():
    assert target_overlap([[5, 6], [5, 9], []], [[5, 6, 1]] * 3) == [1.0, 0.5, 0.0]


def test_format_regex():
    steps = FormatRegex(r"(\w=\d\s*)+")
    assert steps(["a=1 b=2", "a=1 then", " c=3\n", "", [{"role": "assistant", "content": "a=1"}]]) == [1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"pattern is '\(', which is no regular expression"):
        FormatRegex("(")


def test_all_are_known_by_name(world):
    specs = [
        {"name": "repetition", "kwargs": {"ngram": 1}, "weight": -1.0},
        "target_overlap",
        {"name": "format_regex", "kwargs": {"pattern": "red.*"}},
    ]
    scores = world.judge(specs).by_name
    assert scores["repetition"].tolist() == pytest.approx([0, 1 / 3, 0, 0])
    assert scores["target_overlap"].tolist() == [0.5, 0.0, 0.0, 0.0]
    assert scores["format_regex"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert load_reward({"name": "repetition"}).function.ngram == 2
