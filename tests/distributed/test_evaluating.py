"""Validation figures of 1, 2 and 3 processes, where neither rows nor batches divide; and what a pass over such rows is."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.distributed.conftest import run_to_end, some_rows
from tests.distributed.evaluating_worker import evaluate

pytestmark = pytest.mark.distributed
CLOCK = ("runtime", "per_second", "epoch")


def figures(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not any(clock in name for clock in CLOCK)}


@pytest.mark.parametrize(("kind", "processes"), [("t5", 2), ("llama", 3)])
def test_validation_figures_do_not_depend_on_the_number_of_processes(checkpoints, tmp_path, kind, processes):
    rows = some_rows(16)
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "several").mkdir()
    worker = str(Path(__file__).with_name("evaluating_worker.py"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    code, output = run_to_end(
        [*launch, worker, checkpoints[kind], str(tmp_path / "rows.json"), str(tmp_path / "several")], 240
    )
    assert code == 0, output[-3000:]
    several = [json.loads((tmp_path / "several" / f"rank{rank}.json").read_text()) for rank in range(processes)]
    one = evaluate(checkpoints[kind], rows, tmp_path / "one")
    for found in several:
        assert figures(found["before"]) == figures(one["before"])
        assert figures(found["test"]) == figures(one["test"])
        assert found["predicted"] == one["predicted"]
        assert figures(found["after"]) == figures(several[0]["after"])
        assert found["after"]["eval_rows"] == 1
    assert one["before"]["eval_rows"] == 5
    # A pass over 7 rows: each once, and those that begin the pass again where the last round of batches has room left.
    updates = [[row for found in several for row in found["ids"][update]] for update in range(len(several[0]["ids"]))]
    each = len(updates) // 2
    for part in (updates[:each], updates[each:]):
        used = Counter(row for update in part for row in update)
        assert set(used) == {row["id"] for row in rows[:7]}
        assert sum(used.values()) == -(-7 // (2 * processes)) * 2 * processes
        assert max(used.values()) <= 2
