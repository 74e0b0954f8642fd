"""The plugins by hand: rewards are plain functions of lists, so no network is needed to test them."""

import asyncio

import torch
from ledger_plugins.more import best_of_group, every_other, first_word, short_ledger
from ledger_plugins.rewards import Steady, right_totals


def test_right_totals():
    prompts = ["a+1 b+2", "a+1 b+2", "a+1 b+2", "hello"]
    assert right_totals(prompts, ["a=1 b=0", "a=1 b=3", "", "a=1"], modulus=3) == [1.0, 0.5, 0.0, None]


def test_steady():
    assert asyncio.run(Steady(floor=-2.0)([[-1.0, -1.5], [-0.1, -2.5]])) == [1.0, 0.0]


def test_best_of_group():
    a, b = best_of_group(torch.tensor([[-1.0, -3.0], [-2.0, -2.0]]), None, None)
    assert a.tolist() == [[0.5, -0.5], [0.0, 0.0]]
    assert b.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_every_other():
    assert every_other([(1,), (2, 3), (4,)], None) == [(1,), (4,)]


def test_short_ledger_and_first_word():
    task = short_ledger(length=2, modulus=3, size=8)
    row = task.splits["train"][0]
    assert right_totals([row["prompt"]], [row["target"]], modulus=3) == [1.0]
    assert first_word(["b=1 a=0", "a=0"], ["b=1 a=2", "b=0"]) == 0.5
