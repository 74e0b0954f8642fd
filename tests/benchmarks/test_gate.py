"""A step must not become dearer unseen: operations and peak memory beside an SFT step, on a small fixed shape.

Time is not tested: it would fail on a busy machine. Both counts depend on the warmups that are drawn, so the bounds are
what was measured and 5 % more.
"""

from __future__ import annotations

import pytest

from benchmarks.measure import Cost, measure
from benchmarks.ours import ours
from benchmarks.stock import adamw, sft

N = 4
VARIANTS = {"ours_all": {}, "ours_k1": {"backward_samples": 1}}
# (layout, variant): (operations, peak memory), both as multiples of an SFT step's.
# Measured by `python -m pytest tests/benchmarks/test_gate.py -s`, which prints what it finds.
BOUNDS = {
    ("t5", "ours_all"): (3.72, 3.64),  # measured 3.54 and 3.47
    ("t5", "ours_k1"): (2.08, 1.19),  # measured 1.98 and 1.13
    ("llama", "ours_all"): (3.00, 2.63),  # measured 2.86 and 2.50
    ("llama", "ours_k1"): (1.68, 0.81),  # measured 1.60 and 0.77
}


@pytest.fixture
def cost_of(workload, tmp_path):
    """Counts the SFT step and one of ours: variant -> costs by name."""

    def measured(variant: str) -> dict[str, Cost]:
        stock, patched = workload.model(), workload.model()
        steps = {
            "sft": sft(workload, stock, adamw(stock)),
            variant: ours(workload, patched, adamw(patched), str(tmp_path), N, **VARIANTS[variant]),
        }
        return measure(steps, repeats=0)

    return measured


@pytest.mark.parametrize("variant", sorted({variant for _, variant in BOUNDS}))
def test_a_step_costs_no_more_than_it_did(workload, cost_of, variant):
    costs = cost_of(variant)
    flops = costs[variant].flops / costs["sft"].flops
    memory = costs[variant].peak_bytes / costs["sft"].peak_bytes
    print(f"\n{workload.shape.kind} {variant}: operations {flops:.2f}, peak memory {memory:.2f}")
    most_flops, most_memory = BOUNDS[workload.shape.kind, variant]
    assert flops <= most_flops, f"operations are {flops:.2f} SFT steps, were at most {most_flops}"
    assert memory <= most_memory, f"peak memory is {memory:.2f} SFT steps', was at most {most_memory}"
