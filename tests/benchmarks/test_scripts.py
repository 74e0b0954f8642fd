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


def test_every_stock_variant_and_rival_gives_a_row(tiny_llama, capsys):
    variants = ["sft", "sft_ours", "naive", "ours_all", *step_cost.RIVALS]
    slow = {(2, name) for name in step_cost.RIVALS}
    rows = step_cost.measure_steps("step_cost", tiny_llama, {2: variants, 4: ["sft", "ours_all"]}, 1, slow=slow)
    assert [(row.n, row.variant) for row in rows] == [*((2, name) for name in variants), (4, "sft"), (4, "ours_all")]
    assert {(row.bench, row.shape) for row in rows} == {("step_cost", "tiny")}
    assert all(row.ratio and row.cpu_ms for row in rows)
    assert [row.variant for row in rows if row.flop_ratio is None] == list(step_cost.RIVALS)
    flops = {(row.n, row.variant): row.flop_ratio for row in rows}
    assert flops[2, "naive"] > flops[2, "ours_all"] > flops[2, "sft"] == 1
    assert flops[4, "ours_all"] > flops[2, "ours_all"]
    assert "n=4: sft 1.00  ours_all " in capsys.readouterr().out


def test_training_on_fewer_warmups_than_there_are_needs_more_than_one(tiny_llama, tmp_path):
    from benchmarks.workloads import make_workload

    wanted = dict.fromkeys((1, 2), step_cost.VARIANTS)
    steps = step_cost.make_steps(make_workload(SHAPES[tiny_llama]), str(tmp_path), wanted)
    assert [name for n, name in steps if n == 1] == ["sft", "sft_ours", "naive", "ours_all"]
    assert [name for n, name in steps if n == 2] == ["sft", "sft_ours", "naive", "ours_all", "ours_k1"]


def test_heads_agree_and_give_rows():
    import torch

    hidden, weight, ids, of_token = torch.randn(6, 4), torch.randn(10, 4), torch.randint(10, (6,)), torch.rand(6)
    values = [function(hidden, weight, ids, of_token) for function in head.HEADS.values()]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])
    rows = head.measure_heads("V=64", 64, repeats=1, tokens=8, width=4)
    assert [row.variant for row in rows] == list(head.HEADS)
    assert all(row.peak_mb for row in rows)
