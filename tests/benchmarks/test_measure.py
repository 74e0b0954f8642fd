"""Counters against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.measure import Cost, count_flops, measure, peak_bytes, rows


def test_a_matrix_product_costs_what_it_costs():
    a, b = torch.randn(64, 128), torch.randn(128, 32)
    assert count_flops(lambda: a @ b) == 2 * 64 * 128 * 32
    assert 0 <= peak_bytes(lambda: a @ b) - 64 * 32 * 4 < 1024  # oneDNN, where it multiplies, takes a scratch pad


def test_peak_is_the_largest_sum_and_not_the_total():
    a = torch.zeros(1000)

    def call() -> None:
        for _ in range(10):
            passing = a.neg()  # 4 kB, released again
            del passing
        a.neg().neg()  # twice 4 kB at a time

    assert peak_bytes(call) == 2 * 4000


def test_backward_costs_twice_the_forward():
    weight = torch.randn(32, 16, requires_grad=True)
    x = torch.randn(8, 16, requires_grad=True)
    forward = 2 * 8 * 16 * 32
    assert count_flops(lambda: F.linear(x, weight).sum().backward()) == 3 * forward


def test_attention_of_the_cpu_kernel_is_counted():
    q = torch.randn(2, 4, 8, 16)  # two products per head: q k' and its softmax times v
    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * 4 * 2 * (2 * 8 * 8 * 16)
    q.requires_grad_()
    forward_and_backward = count_flops(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert forward_and_backward > 2 * 2 * 4 * 2 * (2 * 8 * 8 * 16)


def test_products_that_add_in_place_are_counted():
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert count_flops(lambda: torch.zeros(8, 4).addmm_(a, b)) == 2 * 8 * 16 * 4
    assert (
        count_flops(lambda: torch.zeros(3, 8, 4).baddbmm_(a.expand(3, 8, 16), b.expand(3, 16, 4))) == 3 * 2 * 8 * 16 * 4
    )


def test_rounds_are_interleaved_and_seeded():
    seen = []
    calls = {name: (lambda name=name: seen.append((name, torch.rand(1).item()))) for name in "AB"}
    costs = measure(calls, repeats=2)
    assert [name for name, _ in seen] == list("AABB" + "ABAB")  # counted and weighed first, then timed in turn
    draws = [value for _, value in seen[4:]]
    assert draws[0] == draws[1]
    assert draws[2] == draws[3]
    assert draws[0] != draws[2]
    assert [len(cost.ms) for cost in costs.values()] == [2, 2]


def test_slow_calls_are_warmed_up_and_timed_once():
    seen = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "AB"}
    costs = measure(calls, repeats=3, slow="B")
    assert "".join(seen) == "AA" + "AB" + "A" + "AB"
    assert (costs["B"].flops, costs["B"].peak_bytes, len(costs["B"].ms)) == (None, None, 1)


def test_ratios_are_of_medians():
    costs = {"sft": Cost([1.0, 2.0, 9.0], 100, 10**6), "ours": Cost([7.0, 5.0, 6.0], 250, None)}
    base, row = rows("b", "s", 4, costs, "sft")
    assert (base.ratio, base.flop_ratio, base.cpu_ms, base.peak_mb) == (1.0, 1.0, 2.0, 1.0)
    assert (row.ratio, row.flop_ratio, row.cpu_ms, row.peak_mb) == pytest.approx((3.0, 2.5, 6.0, None))


def test_without_operations_there_is_no_flop_ratio():
    (row,) = rows("b", "s", None, {"x": Cost([1.0], 0, None)}, "x")
    assert row.flop_ratio is None
