"""Tokens are put into padded buckets and back, and attention over buckets gives the same results."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch

from rl_warmup.engine.fast import buckets, packed
from rl_warmup.engine.fast.packed import PackedAttention, PaddedBuckets, packed_attention


def many_buckets(monkeypatch):
    monkeypatch.setattr(packed, "MIN_SAVING_PER_BUCKET", 0)
    monkeypatch.setattr(buckets, "MIN_TOKENS_SAVED", 0)


def test_buckets_by_hand(monkeypatch):
    """Sequences of 2, 1 and 2 tokens: the shortest in one bucket, the others in another."""
    many_buckets(monkeypatch)
    sequences = PaddedBuckets([2, 1, 2], torch.device("cpu"))
    assert [part.tolist() for part in sequences.pad(torch.arange(5) * 10)] == [[[20]], [[0, 10], [30, 40]]]
    assert sequences.start.tolist() == [0, 2, 3]
    assert sequences.sequence.tolist() == [0, 0, 1, 2, 2]
    assert sequences.position.tolist() == [0, 1, 0, 0, 1]
    assert [part.tolist() for part in sequences.by_bucket(torch.tensor([7, 8, 9]))] == [[8], [7, 9]]


@pytest.mark.parametrize("buckets_made", ["one", "many", "wider"])
def test_unpad_reverses_pad(buckets_made, monkeypatch):
    """Every token comes back; values and gradients of padding do not."""
    if buckets_made == "many":
        many_buckets(monkeypatch)
    generator = random.Random(0)
    for _ in range(50):
        lengths = [generator.randint(1, 6) for _ in range(generator.randint(1, 6))]
        sequences = PaddedBuckets(lengths, torch.device("cpu"), 8 if buckets_made == "wider" else None)
        values = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
        parts = sequences.pad(values)
        for part, real in zip(parts, sequences.real, strict=True):
            assert part.shape[:2] == real.shape
        assert torch.equal(sequences.unpad(parts), values)
        slopes = [torch.randn_like(part) for part in parts]
        joined = sequences.unpad([part * slope for part, slope in zip(parts, slopes, strict=True)])
        (found,) = torch.autograd.grad(joined.sum(), values)
        assert torch.equal(found, sequences.unpad(slopes))
        (found,) = torch.autograd.grad(
            sum((p * s).sum() for p, s in zip(sequences.pad(values), slopes, strict=True)), values
        )
        assert torch.equal(found, sequences.unpad(slopes))  # padding had slopes too


def test_a_network_is_left_as_it_was(build):
    model = build("t5")
    before = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    with (
        contextlib.suppress(ValueError),
        packed_attention(model, PackedAttention(PaddedBuckets([1], torch.device("cpu")))),
    ):
        assert model.get_decoder().config._attn_implementation == packed.NAME
        raise ValueError
    assert [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")] == before
