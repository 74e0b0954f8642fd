"""The demo's machinery on runs of two updates: every arm, the table, the CSV, the picture, and going on after a stop."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from rl_warmup.experiments import demo
from rl_warmup.experiments.demo import COLUMNS, GIVEN, PARTS, SEARCHING, Experiment, experiments, run_demo
from rl_warmup.tasks import load_task
from rl_warmup.tasks.legs import worked

LEDGER = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 2, "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 4, "proposals": ["reverse"],
    "save_strategy": "no", "use_cpu": True, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
}  # fmt: skip
LEGS = {
    "model_name_or_path": "start:legs-llama",
    "task": "legs",
    "task_kwargs": {"train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 3, "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 8, "proposals": ["reference"],
    "min_reading_updates": 1, "max_reading_updates": 2, "reading_threshold": 0.0, "save_strategy": "no", "use_cpu": True,
    "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "separator_init": "end_token",
}  # fmt: skip


def written(folder, name, settings):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def results(output):
    with (output / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_demo_runs_every_arm_and_keeps_what_is_done(tmp_path, monkeypatch):
    small = Experiment("ledger-t5", written(tmp_path, "ledger", LEDGER), dict.fromkeys(GIVEN, (1, 2)))
    monkeypatch.setattr(demo, "experiments", lambda recipes, parts: [small])
    page = run_demo(tmp_path, tmp_path / "out", processes=1, parts=["ledger"])
    for words in ("sft_equal_compute", "shuffled", "±", "What this shows", "prediction", "This took"):
        assert words in page
    assert (tmp_path / "out" / "RESULTS.md").read_text() in page
    assert (tmp_path / "out" / "ledger-t5.png").stat().st_size > 5000
    rows = results(tmp_path / "out")
    assert tuple(rows[0]) == COLUMNS
    assert {row["arm"] for row in rows} == set(GIVEN)
    assert {row["control"] for row in rows if row["arm"] == "warmup"} == {"", "shuffled", "empty_warmup"}
    assert {row["control"] for row in rows if row["arm"] == "sft"} == {""}
    assert {(row["task"], row["model"]) for row in rows} == {("ledger", "t5")}
    assert all(int(row["updates"]) >= 2 and float(row["train_seconds"]) > 0 for row in rows)

    finished = (tmp_path / "out" / "ledger-t5" / "sft-1" / "metrics.json").stat().st_mtime_ns
    monkeypatch.setattr(small, "arms", dict.fromkeys(("sft", "warmup"), (1, 2)))
    run_demo(tmp_path, tmp_path / "out", processes=1, parts=["ledger"])
    assert (tmp_path / "out" / "ledger-t5" / "sft-1" / "metrics.json").stat().st_mtime_ns == finished


def test_the_search_from_a_starting_model(tmp_path, monkeypatch):
    """Every arm once, more seeds of the main one; the switch is in the table, worked-out warmups in the picture."""
    arms = dict.fromkeys(SEARCHING, (1,)) | {"reading": (1, 2)}
    changes = {"model_name_or_path": "start:legs-llama"}
    gold = tmp_path / "gold.jsonl"
    rows = load_task("legs", **LEGS["task_kwargs"]).splits["train"]
    gold.write_text(
        "".join(json.dumps({"row": n, "warmup": worked(row["prompt"])}) + "\n" for n, row in enumerate(rows))
    )
    small = Experiment(
        "legs-llama",
        written(tmp_path, "legs", LEGS),
        arms,
        changes,
        {"disable_dropout": False},
        demo._worked_legs,
        gold,
    )
    monkeypatch.setattr(demo, "experiments", lambda recipes, parts: [small])
    page = run_demo(tmp_path, tmp_path / "out", processes=1, parts=["legs"])
    rows = results(tmp_path / "out")
    assert {(row["task"], row["model"]) for row in rows} == {("legs", "llama")}
    assert {row["arm"] for row in rows} == set(SEARCHING)
    assert {row["switched_at"] for row in rows if row["arm"] == "reading"} == {"1"}
    assert {row["switched_at"] for row in rows if row["arm"] != "reading"} == {""}
    assert (tmp_path / "out" / "legs-llama.png").stat().st_size > 5000
    assert "What it does not show" in page
    shares = demo._worked_out(small, tmp_path / "out" / "legs-llama" / "reading-1")
    assert [step for step, _ in shares] == [1, 2, 3]
    assert all(0 <= share <= 1 for _, share in shares)


def test_what_is_worked_out():
    legs, skills = (PARTS[part](Path())[0] for part in ("legs", "skills"))
    question = {"prompt": "how many legs are there in total if you have 4 beetles , 1 shrimp ?", "target": "34"}
    assert legs.gold(question) == "24 ; 24 ; 10 ; 34"
    assert skills.gold({"prompt": "a+1 b+2", "target": "b=3 a=1"}) == "a=1 b=3"


def test_equal_compute_gives_sft_at_least_the_main_arms_seconds(tmp_path):
    for main, arms in (("warmup", GIVEN), ("reading", SEARCHING)):
        small = Experiment("ledger-t5", tmp_path / "ledger.yaml", dict.fromkeys(arms, (1,)))
        (job,) = [job for job in demo._jobs(small) if job.arm == "sft_equal_compute"]
        assert job.after == ("ledger-t5/sft-1", f"ledger-t5/{main}-1")
        sft, other = ({"updates": 100, "train_seconds": s} for s in (10.0, 35.0))
        flags = demo._settings(job, tmp_path, dict(zip(job.after, (sft, other), strict=True)))
        assert "max_steps=385" in flags  # 100 updates in 10 s; 35 s and a tenth more


def test_the_parts_name_shipped_recipes_and_starts(tmp_path):
    from rl_warmup.models.starts import names

    with pytest.raises(ValueError, match="Run the demo from the root"):
        run_demo(tmp_path / "nowhere", tmp_path, 1, ["quick"])
    with pytest.raises(ValueError, match="'arms' is not a part of the demo. Allowed: quick, legs"):
        experiments(tmp_path, ["legs", "arms"])
    recipes = (
        next(parent for parent in type(tmp_path)(demo.__file__).parents if (parent / "recipes").is_dir())
        / "recipes/demo"
    )
    plan = experiments(recipes, list(PARTS))
    assert len({experiment.name for experiment in plan}) == len(plan)
    for experiment in plan:
        assert experiment.recipe.is_file()
        model = experiment.changes["model_name_or_path"]
        assert model in ("scratch-t5", "scratch-llama") or model.removeprefix("start:") in names()
