"""Tokens are put into rectangles and back, and a network's attention sees the same through them."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch

from rl_warmup.engine.fast import buckets, packed
from rl_warmup.engine.fast.packed import PackedAttention, PaddedGroups, attending


def many_rectangles(monkeypatch):
    monkeypatch.setattr(packed, "WORTH_A_RECTANGLE", 0)
    monkeypatch.setattr(buckets, "TOKENS_WORTH_A_PASS", 0)


def test_rectangles_by_hand(monkeypatch):
    """Lines of 2, 1 and 2 tokens: the shortest alone, the others beside each other."""
    many_rectangles(monkeypatch)
    lines = PaddedGroups([2, 1, 2], torch.device("cpu"))
    assert [part.tolist() for part in lines.cut(torch.arange(5) * 10)] == [[[20]], [[0, 10], [30, 40]]]
    assert lines.begin.tolist() == [0, 2, 3]
    assert lines.line.tolist() == [0, 0, 1, 2, 2]
    assert lines.place.tolist() == [0, 1, 0, 0, 1]
    assert [part.tolist() for part in lines.of_lines(torch.tensor([7, 8, 9]))] == [[8], [7, 9]]


@pytest.mark.parametrize("way", ["one", "many", "wider"])
def test_there_and_back(way, monkeypatch):
    """Every token comes back; of what is in padding neither value nor gradient does."""
    if way == "many":
        many_rectangles(monkeypatch)
    generator = random.Random(0)
    for _ in range(50):
        lengths = [generator.randint(1, 6) for _ in range(generator.randint(1, 6))]
        lines = PaddedGroups(lengths, torch.device("cpu"), 8 if way == "wider" else None)
        values = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
        parts = lines.cut(values)
        for part, real in zip(parts, lines.real, strict=True):
            assert part.shape[:2] == real.shape
        assert torch.equal(lines.joined(parts), values)
        slopes = [torch.randn_like(part) for part in parts]
        joined = lines.joined([part * slope for part, slope in zip(parts, slopes, strict=True)])
        (found,) = torch.autograd.grad(joined.sum(), values)
        assert torch.equal(found, lines.joined(slopes))
        (found,) = torch.autograd.grad(
            sum((p * s).sum() for p, s in zip(lines.cut(values), slopes, strict=True)), values
        )
        assert torch.equal(found, lines.joined(slopes))  # padding had slopes too


def test_a_network_is_left_as_it_was(build):
    model = build("t5")
    before = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    with contextlib.suppress(ValueError), attending(model, PackedAttention(PaddedGroups([1], torch.device("cpu")))):
        assert model.get_decoder().config._attn_implementation == packed.NAME
        raise ValueError
    assert [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")] == before
