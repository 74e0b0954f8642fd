"""Functions as people call them wrong in Python: (what is called, what the message says); one ValueError each, never another error."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_warmup import load_task, read_recipe
from rl_warmup.experiments.report.build import write_report
from rl_warmup.metrics import compute
from rl_warmup.metrics.significance import (
    compare_runs,
    compare_seeds,
    holm,
    interval_over_rows,
    over_seeds,
    paired_bootstrap,
)
from rl_warmup.tasks import Task
from rl_warmup.tasks.stream import Stream
from tests.robustness.conftest import ROWS, named, refused

EMPTY = {"validation": [], "test": []}
A, B, NUMBERS = ["alpha", "beta"], ["alpha", "gamma"], [1.0, 2.0]
PREDICTED = [{**row, "prediction": "x"} for row in ROWS[:4]]
FUNCTIONS: list[tuple[Any, str]] = [
    *((partial(compute, "exact_match", *given), said) for given, said in [
        ((None, B), "predictions are a NoneType"), ((A, 5), "targets are a int"), (("ab", "cd"), "predictions are a str"),
        (([None, "x"], B), "number 0 of the predictions is None"), ((A, ["x", 5]), "number 1 of the targets is 5"),
        (([b"x", "y"], B), "number 0"), (({"a": 1}, {"b": 1}), "are a dict"), (({"a"}, B), "are a set"),
        ((A, B, 5), "rows are 5"), ((A, B, [None, None]), "rows are [None"), ((A, B, "ab"), "rows are 'ab'"),
    ]),
    *((partial(compare_seeds, given, NUMBERS), "give a number for each seed") for given in [
        None, 5, "12", ["1", "2"], [None, 1.0], {"a": 1.0}, {1.0, 2.0}, [[1.0]], [1j, 2.0], [10**400, 1], [1e308, -1e308], [float("nan")], [],
    ]),
    *((partial(holm, given), "holm: ") for given in (None, [0.1], {"a": "0.5"}, {"a": [0.1]}, {"a": float("nan")}, {"a": 1j})),
    *((partial(call, [1.0, 2.0], *more, bounds=given), "bounds=") for call, more in ((over_seeds, ()), (compare_seeds, ([1.0, 3.0],)))
      for given in ("x", 5, [], (1,), (1, 0), ("a", "b"), {})),
    *((partial(paired_bootstrap, "s", [given], [1.0]), "no number") for given in (object(), 1j, 10**400, b"1", {1}, len)),
    *((partial(write_report, paths, "report"), "is no list of folders") for paths in (None, 5, "run", Path("x"), [], [5], {"a": 1})),
    *((partial(Task, "t", {**EMPTY, "train": ROWS, split: rows}, ("bleu",)), f"split '{split}' is a ") for split in ("train", "test")
      for rows in ({}, {"a": 1}, "x", (row for row in ROWS), None, 5, {1}, len)),
    (partial(Task, "t", {**EMPTY, "train": ROWS, "test": Stream("s", lambda: iter(ROWS))}, ("bleu",)), "split 'test' is a Stream"),
    *((partial(Task, "t", {**EMPTY, "train": [row]}, ("bleu",)), "give an object with prompt") for row in (5, "x", None, ("a", "b"))),
    *((partial(Task, "t", splits, ("bleu",)), "give a dict of exactly") for splits in (None, 5, [], ["train", "validation", "test"], {1: 2})),
    *((partial(Task, "t", {**EMPTY, "train": ROWS}, metrics), "has metrics=") for metrics in (None, 5, "bleu", (5,), {"bleu": 1}, len)),
    *((partial(Task, *given), said) for given, said in [
        ((5, {**EMPTY, "train": ROWS}, ("bleu",)), "has name=5"), (("t", {**EMPTY, "train": ROWS}, ("bleu",), 5), "has prompt_template=5"),
    ]),
    *((partial(paired_bootstrap, "s", one, other), said) for one, other, said in [
        (None, None, "NoneType and NoneType"), ("ab", "cd", "str and str"), (["a"], ["b"], "no number"), ([None], [None], "no number"),
        ([1.0, PREDICTED[0]], NUMBERS, "are mixed"), (PREDICTED, [1.0] * 4, "are mixed"), ({"a": 1}, {"a": 1}, "dict and dict"),
    ]),
    *((partial(call, "s", *[NUMBERS] * sides, **{name: value}), f"{name}={value!r}")
      for call, sides in ((paired_bootstrap, 2), (interval_over_rows, 1))
      for name, value in [("samples", 0), ("samples", None), ("samples", 1.5), ("seed", -1), ("seed", "x")]),
    (partial(paired_bootstrap, "exact_match", [{**row, "prediction": None} for row in PREDICTED], PREDICTED), "number 0 of the predictions"),
    (partial(compare_runs, None, "run"), "None is no folder"), (partial(compare_runs, 5, "run"), "5 is no folder"),
    *((partial(load_task, name), "A task is named by a text") for name in (None, 5, [], {}, b"ledger", Path("x"), len)),
    *((partial(read_recipe, path), "Give the path of a YAML file") for path in (5, [], b"x", {"task": "ledger"})),
    *((partial(read_recipe, None, flags), "give a list of texts") for flags in (None, 5, "--seed 1", [5], ["--seed", 5], {"seed": 1})),
]  # fmt: skip


@pytest.mark.parametrize(("call", "said"), FUNCTIONS, ids=named)
def test_a_function(call, said):
    refused(call, said)


def test_texts_of_numpy_can_be_measured():
    assert compute("exact_match", np.array(A), np.array(B)) == {"exact_match": 0.5}


RESULT = {"task": "t", "rows": 8, "rows_hash": "ab", "split": "test", "metrics": {"": {"exact_match": 1.0}}}
PREDICTIONS = [{**row, "prediction": row["target"]} for row in ROWS]
DAMAGED: list[tuple[Any, Any, str]] = [
    *((result, PREDICTIONS, said) for result, said in [
        ('{"rows_hash": "a', "is not valid JSON"), ([], "no JSON object"), ("", "is not valid JSON"), ({**RESULT, "rows_hash": 5}, "no text"),
        ({**RESULT, "rows_hash": ["a"]}, "no text"), ({**RESULT, "rows": "8"}, "no whole number"), ({**RESULT, "rows": 9}, "says 9 rows"),
        *(({**RESULT, "metrics": given}, "object of numbers") for given in ("x", [1], {"": "x"}, {"": 5}, {"": {"exact_match": "x"}})),
        ({**RESULT, "metrics": None}, "has no `metrics`"), ({**RESULT, "rows_hash": None}, "has no rows_hash"),
    ]),
    *((RESULT, predictions, said) for predictions, said in [
        (json.dumps(PREDICTIONS[0])[:-9], "is not valid JSON"), ([[]] * 8, "no JSON object"), (["x"] * 8, "no JSON object"),
        (ROWS, "has no `prediction`"), ([{**row, "prediction": 5} for row in ROWS], "`prediction` is 5, no text"),
        ([{**row, "target": ["a"]} for row in PREDICTIONS], "`target` is ['a'], no text"), (PREDICTIONS[:5], "holds 5 predictions"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("result", "predictions", "said"), DAMAGED, ids=named)
def test_damaged_results(result, predictions, said, tmp_path):
    """In the place of either run."""
    for name, found, rows in (("fine", RESULT, PREDICTIONS), ("damaged", result, predictions)):
        lines = rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(found if isinstance(found, str) else json.dumps(found))
        (tmp_path / name / "predictions.jsonl").write_text(lines)
    for pair in (("fine", "damaged"), ("damaged", "fine"), ("damaged", "damaged")):
        refused(partial(compare_runs, *(tmp_path / name for name in pair)), said)
