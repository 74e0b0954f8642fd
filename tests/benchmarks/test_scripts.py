"""The scripts' own measuring functions, on tiny shapes: the rows they give, and that rivals run at all."""

from __future__ import annotations

import pytest

from benchmarks import head, step_cost
from benchmarks.shapes import SHAPES, Shape


@pytest.fixture
def tiny_llama(monkeypatch):
    """A two-layer Llama among the shapes."""
    shape = Shape("tiny", "llama", 4, 16, 12, vocab=256, width=32, layers=2, heads=2, kv_heads=2, feed_forward=64)
    monkeypatch.setitem(SHAPES, "tiny", shape)
    return "tiny"


def test_every_stock_variant_and_rival_gives_a_row(tiny_llama):
    variants = ["sft", "sft_ours", "naive", "ours_all", *step_cost.RIVALS]
    rows = step_cost.measure_steps("step_cost", tiny_llama, 2, variants, repeats=1, slow=step_cost.RIVALS)
    assert [row.variant for row in rows] == variants
    assert {(row.bench, row.shape, row.n) for row in rows} == {("step_cost", "tiny", 2)}
    assert all(row.ratio and row.cpu_ms for row in rows)
    assert [row.variant for row in rows if row.flop_ratio is None] == list(step_cost.RIVALS)
    by_variant = {row.variant: row for row in rows}
    assert by_variant["naive"].flop_ratio > by_variant["ours_all"].flop_ratio > by_variant["sft"].flop_ratio


def test_training_on_fewer_warmups_than_there_are_needs_more_than_one(tiny_llama, tmp_path):
    from benchmarks.workloads import make_workload

    steps = step_cost.make_steps(make_workload(SHAPES[tiny_llama]), str(tmp_path), 1, step_cost.VARIANTS)
    assert list(steps) == ["sft", "sft_ours", "naive", "ours_all"]


def test_heads_agree_and_give_rows():
    import torch

    hidden, weight, ids, of_token = torch.randn(6, 4), torch.randn(10, 4), torch.randint(10, (6,)), torch.rand(6)
    values = [function(hidden, weight, ids, of_token) for function in head.HEADS.values()]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])
    rows = head.measure_heads("V=64", 64, repeats=1, tokens=8, width=4)
    assert [row.variant for row in rows] == list(head.HEADS)
    assert all(row.peak_mb for row in rows)
