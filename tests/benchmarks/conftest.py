"""`benchmarks` is no installed package: it is found from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.shapes import Shape
from benchmarks.workloads import Workload, make_workload


def tiny(kind: str) -> Shape:
    """A two-layer shape with the proportions of the measured ones."""
    return Shape(
        f"tiny-{kind}", kind, 16, 32, 24, vocab=1024, width=64, layers=2, heads=2, kv_heads=2, feed_forward=256
    )


@pytest.fixture(params=["t5", "llama"])
def workload(request: pytest.FixtureRequest) -> Workload:
    """One batch of a tiny shape, both layouts one after the other."""
    return make_workload(tiny(request.param))
