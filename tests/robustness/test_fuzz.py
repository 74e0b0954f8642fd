"""A few hundred random calls at every change; by hand `python -m tests.robustness.fuzz --calls 20000`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.robustness.fuzz import CALLS, fuzz


def test_nothing_unexpected(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ends, found = fuzz(300, seed=1)
    assert not found
    assert {end.split(":")[0] for end in ends} == set(CALLS)
