"""What prediction and scoring need is known before the first update; no test set is a normal case."""

from __future__ import annotations

import datetime
import decimal
import importlib.util
import json
from pathlib import Path

import pytest
import transformers
import yaml

from rl_warmup.cli.main import main
from rl_warmup.experiments.demo import run_demo
from rl_warmup.inference.rehearsal import _check_json
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import json_line, write_json, write_jsonl

ROWS = [{"prompt": f"a b c w{i}", "target": f"w{i} c b a"} for i in range(6)]
VALIDATES = {
    "eval_strategy": "steps", "eval_steps": 1,
    "task_kwargs": {"train": "rows.jsonl", "validation": "rows.jsonl", "test": "test.jsonl"},
}  # fmt: skip
PLUGINS = """
import datetime
from rl_warmup.tasks import Task
def broken(predictions, targets, rows): raise KeyError("gone")
def needs_text(predictions, targets, rows): return sum(1 / len(p) for p in predictions)
def words(predictions, targets, rows): return {"x": "y"}
def nothing(predictions, targets, rows): return {}
def digits(predictions, targets, rows): return "0.5"
def not_a_number(predictions, targets, rows): return float("nan")
def endless(predictions, targets, rows): return {"x": 1.0, "y": 1e999 if "" in predictions else 0.0}
def numbered(predictions, targets, rows): return {1: 2}
def only_validation(predictions, targets, rows): return 1 / (0 if "v" in rows[0]["prompt"] else 1)
ROWS = [{"id": str(i), "prompt": f"a b w{i}", "target": f"w{i} b"} for i in range(4)]
def task(kind):
    extra = {"date": datetime.date(2020, 1, 1), "set": {1}, "keys": {(1, 2): 3}, "bytes": b"x"}[kind]
    return Task("own", {"train": ROWS, "validation": [], "test": [{**row, "extra": extra} for row in ROWS]}, ("exact_match",))
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.Trainer, "init_hf_repo", lambda self: 1 / 0)  # no test asks the hub
    (tmp_path / "own.py").write_text(PLUGINS)
    paths = {"train": "rows.jsonl", "test": "rows.jsonl"}

    def start(rows=ROWS, test=None, **values):
        for name, part in (("rows", rows), ("test", test if test is not None else rows)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        recipe = {
            "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
            "task": "file", "task_kwargs": {**paths, "test": "test.jsonl"}, "num_warmups": 2, "max_warmup_length": 3,
            "max_target_length": 12, "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "controls": [],
            "use_cpu": True, "show_progress": False, "output_dir": "run", **values,
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        code = main(["train", "--config", "recipe.yaml"])
        said = capsys.readouterr()
        if code:
            assert len(said.err.strip().splitlines()) == 1
            assert not (tmp_path / "run" / "metrics.jsonl").exists()  # nothing was trained
        return code, said.out, said.err

    return start


def test_no_test_set_is_a_normal_case(run, tmp_path, capsys):
    code, out, _ = run(task_kwargs={"train": "rows.jsonl"})
    assert code == 0
    assert "test" in out
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (result["updates"], result["rows"], result["metrics"]) == (1, 0, {})
    assert not (tmp_path / "run" / "predictions.jsonl").exists()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert main(["report", "run", "--output", "report"]) == 0
    assert main(["evaluate", "run"]) == 2
    assert "test" in capsys.readouterr().err


@pytest.mark.parametrize("test", [ROWS[:1], [ROWS[0], {**ROWS[0], "target": "a"}]], ids=["a row", "a prompt twice"])
def test_a_single_prompt_cannot_be_shuffled(run, tmp_path, test):
    code, out, _ = run(test=test, controls=["shuffled", "empty_warmup"])
    assert code == 0
    assert "The control shuffled is not measured: it needs rows of two prompts or more" in out
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]) == {"", "empty_warmup"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"test": [*ROWS, {"prompt": "a " * 9, "target": "b"}], "max_prompt_length": 8}, ["test row 6", "max_prompt_length"]),
        ({"test": [*ROWS, {"prompt": "cut \ud83d", "target": "b"}]}, ["row 6", "prompt"]),
        ({"test": [*ROWS, {"prompt": "a", "target": "cut \ud83d"}]}, ["row 6", "target"]),
        ({"rows": [*ROWS, {"prompt": "cut \ud83d", "target": "b"}]}, ["train", "row 6", "prompt"]),
        ({"metrics": ["own.py:broken"]}, ["own.py:broken", "KeyError"]),
        ({"metrics": ["own.py:needs_text"]}, ["own.py:needs_text", "ZeroDivisionError"]),
        ({"metrics": ["own.py:words"]}, ["own.py:words"]),
        ({"metrics": ["own.py:nothing"]}, ["own.py:nothing"]),
        ({"metrics": ["own.py:digits"]}, ["own.py:digits", "str"]),
        ({"metrics": ["own.py:not_a_number"]}, ["own.py:not_a_number", "nan"]),
        ({"metrics": ["own.py:endless"]}, ["own.py:endless", "inf"]),
        ({"report_to": "clearml"}, ["report_to", "clearml"]),
        ({"push_to_hub": True}, ["push_to_hub", "ZeroDivisionError"]),
        ({"metrics": ["own.py:numbered"]}, ["own.py:numbered", "1"]),
        ({"metric_for_best_model": "bogus", **VALIDATES}, ["metric_for_best_model", "bogus", "exact_match", "gain"]),
        (
            {"metric_for_best_model": "eval_bleu", "lr_scheduler_type": "reduce_lr_on_plateau", **VALIDATES},
            ["metric_for_best_model", "bleu"],
        ),
        ({"metric_for_best_model": "bogus", "save_strategy": "best", **VALIDATES}, ["metric_for_best_model", "bogus"]),
        ({"test": [{**row, "prediction": "x"} for row in ROWS]}, ["test row 0", "prediction"]),
        ({"test": [*ROWS, {**ROWS[0], "warmup": "x"}]}, ["test row 6", "warmup"]),
        ({"metrics": [{"name": "bleu", "kwargs": {"tokenise": "13a"}}]}, ["bleu"]),
        ({"task": "own.py:task", "task_kwargs": {"kind": "keys"}}, ["test row 0", "extra"]),
        (
            {
                "rows": [{"prompt": f"a b v{i}", "target": "c b"} for i in range(4)], "test": ROWS, "eval_strategy": "steps",
                "task_kwargs": {"train": "test.jsonl", "validation": "rows.jsonl", "test": "test.jsonl"},
                "metrics": ["own.py:only_validation"],
            },
            ["own.py:only_validation", "ZeroDivisionError"],
        ),
    ],
)  # fmt: skip
def test_it_is_known_before_the_first_update(run, given, named):
    code, _, said = run(**given)
    assert code == 2
    assert all(word in said for word in named), said


@pytest.mark.parametrize("kind", ["date", "set", "bytes"])
def test_what_json_lacks_is_written_as_text(run, tmp_path, kind):
    assert run(task="own.py:task", task_kwargs={"kind": kind})[0] == 0
    extra = {row["extra"] for row in read_jsonl(tmp_path / "run" / "predictions.jsonl")}
    assert extra == {str({"date": datetime.date(2020, 1, 1), "set": {1}, "bytes": b"x"}[kind])}


def test_half_characters_in_unused_columns_come_back(run, tmp_path):
    assert run(rows=[{**row, "note": "cut \ud83d", "id": f"\ud83d{i}"} for i, row in enumerate(ROWS)])[0] == 0
    written = read_jsonl(tmp_path / "run" / "predictions.jsonl")
    assert {row["note"] for row in written} == {"cut \ud83d"}
    assert main(["evaluate", "run", "--controls", "empty_warmup"]) == 0
    assert main(["report", "run"]) == 0


def test_what_a_tokenizer_cannot_write_is_said_before_training(run, tmp_path):
    unread = {"prompt": "\u0436\u0443\u043a", "target": "w1"}
    assert "test row 6" in run(test=[*ROWS, unread], output_dir="other")[1]
    code, out, _ = run(test=[{"prompt": "a b", "target": "unheard of"}, *ROWS], max_steps=1, logging_steps=1)
    assert code == 0
    assert "knows nothing" not in out
    assert "1 of 7 targets" in out
    assert out.count("1 of 7 targets") == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["ceiling"]["exact_match"] == pytest.approx(6 / 7)


def test_evaluate_tries_its_metrics_before_it_predicts(run, tmp_path, capsys):
    assert run()[0] == 0
    assert main(["evaluate", "run", "--metrics", "own.py:broken"]) == 2
    assert "own.py:broken" in capsys.readouterr().err
    assert not (tmp_path / "run" / "evaluation" / "test" / "predictions.jsonl").exists()


def test_what_is_no_number_is_null_in_json(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), {"b": float("-inf")}], "c": 1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, {"b": None}], "c": 1.5}


def test_lines_of_json(tmp_path):
    row = {"text": "\u2028 \ud83d é", "price": decimal.Decimal("1.5"), "when": datetime.datetime(2020, 1, 2)}
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert read_jsonl(tmp_path / "a.jsonl") == [{**row, "price": "1.5", "when": "2020-01-02 00:00:00"}]
    with pytest.raises(TypeError):
        json_line({(1, 2): 3})


def test_extras_are_asked_for_before_a_demo_runs(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jinja2" else found(name, *a))
    monkeypatch.setattr("rl_warmup.experiments.demo.run_jobs", lambda *a: pytest.fail("runs were started"))
    with pytest.raises(ImportError, match="jinja2"):
        run_demo(Path(__file__).parents[1] / "recipes" / "demo", tmp_path, 1, ["ledger"])


@pytest.mark.parametrize("column", ["prompt_ids", "target_ids", "word_lengths", "prediction"])
def test_a_column_with_the_name_of_one_that_is_made_here_is_named(column):
    with pytest.raises(ValueError, match=f"^test row 3.*'{column}'"):
        _check_json({"prompt": "a", "target": "b", column: [1]}, "test row 3")
