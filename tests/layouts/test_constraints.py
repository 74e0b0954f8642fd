"""The sampling constraints on readable logits: temperature, nucleus, minimum, bans - in this order."""

from __future__ import annotations

import math

import pytest
import torch

from rl_warmup.models.constraints import SamplingConstraints

SEPARATOR = 1
BANNED = torch.tensor([True, False, False, False, False])
LOGITS = torch.tensor([[9.0, math.log(1), math.log(2), math.log(3), math.log(4)]])  # pad, separator, a, b, c


def probabilities(logits=LOGITS, step=0, chosen=None, **settings) -> list[float]:
    constraints = SamplingConstraints(SEPARATOR, BANNED, **settings)
    steps = torch.full((len(logits),), step)
    return constraints.restrict(logits, steps, chosen).softmax(1)[0].tolist()


def test_banned_tokens_have_no_probability():
    assert probabilities() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_temperature():
    roots = [1, math.sqrt(2), math.sqrt(3), 2]
    assert probabilities(temperature=2.0) == pytest.approx([0, *(r / sum(roots) for r in roots)])


def test_the_separator_waits_for_the_minimum_length():
    assert probabilities(min_length=2, step=0) == pytest.approx([0, 0, 2 / 9, 3 / 9, 4 / 9])
    assert probabilities(min_length=2, step=1)[SEPARATOR] == 0
    assert probabilities(min_length=2, step=2) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.05, [0, 0, 0, 0, 1]), (0.39, [0, 0, 0, 0, 1]), (0.5, [0, 0, 0, 3 / 7, 4 / 7]), (0.8, [0, 0, 2 / 9, 3 / 9, 4 / 9])],
)  # fmt: skip
def test_the_nucleus_is_the_smallest_likeliest_set(top_p, kept):
    assert probabilities(top_p=top_p) == pytest.approx(kept)


def test_the_nucleus_is_taken_after_bans_and_temperature():
    """The pad token is likeliest by far; counted in, it would be the whole nucleus."""
    assert probabilities(top_p=0.6, temperature=0.5) == pytest.approx([0, 0, 0, 9 / 25, 16 / 25])
    assert probabilities(top_p=0.5, min_length=1) == pytest.approx([0, 0, 0, 3 / 7, 4 / 7])


def test_a_chosen_token_is_never_masked():
    for token in range(5):
        chosen = torch.tensor([token])
        assert probabilities(chosen=chosen, top_p=0.3, min_length=3)[token] > 0
    assert probabilities(chosen=torch.tensor([2]), top_p=0.3) == pytest.approx([0, 0, 2 / 6, 0, 4 / 6])


def test_rows_have_their_own_steps_and_the_constraints_are_unchanged():
    constraints = SamplingConstraints(SEPARATOR, BANNED, min_length=1)
    out = constraints.restrict(LOGITS.expand(2, -1), torch.tensor([0, 1]))
    assert (out[:, SEPARATOR] == -torch.inf).tolist() == [True, False]
    assert constraints.banned.tolist() == BANNED.tolist()


def test_half_precision_logits_become_float32():
    constraints = SamplingConstraints(SEPARATOR, BANNED, temperature=3.0)
    assert constraints.restrict(LOGITS.bfloat16(), torch.tensor([0])).dtype == torch.float32
