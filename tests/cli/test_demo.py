"""The demo's machinery on runs of two updates: every arm, the table, the CSV, the picture, and going on after a stop."""

from __future__ import annotations

import csv

import pytest
import yaml

from rl_warmup import demo
from rl_warmup.demo import COLUMNS, Experiment, experiments, run_demo

SMALL = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 2, "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 4, "proposals": ["reverse"],
    "save_strategy": "no", "use_cpu": True, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
}  # fmt: skip


def test_the_demo_runs_every_arm_and_keeps_what_is_done(tmp_path, monkeypatch):
    recipe = tmp_path / "ledger.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    small = Experiment("ledger-t5", recipe, tuple(demo.ARMS), (1, 2))
    monkeypatch.setattr(demo, "experiments", lambda recipes: [small])
    page = run_demo(tmp_path, tmp_path / "out", processes=1)
    for words in ("sft_equal_compute", "shuffled", "±", "What this proves", "prediction", "This took"):
        assert words in page
    assert (tmp_path / "out" / "RESULTS.md").read_text() in page
    assert (tmp_path / "out" / "ledger-t5.png").stat().st_size > 5000
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["arm"] for row in rows} == set(demo.ARMS)
    assert {row["control"] for row in rows if row["arm"] == "warmup"} == {"", "shuffled", "empty_warmup"}
    assert {row["control"] for row in rows if row["arm"] == "sft"} == {""}
    assert {row["model"] for row in rows} == {"t5"}
    assert all(int(row["updates"]) >= 2 and float(row["train_seconds"]) > 0 for row in rows)

    folder = tmp_path / "out" / "ledger-t5" / "sft-1"
    (folder / "mark").touch()
    finished = (tmp_path / "out" / "ledger-t5" / "sft-1" / "metrics.json").stat().st_mtime_ns
    monkeypatch.setattr(small, "arms", ("sft", "warmup"))
    run_demo(tmp_path, tmp_path / "out", processes=1)
    assert (folder / "metrics.json").stat().st_mtime_ns == finished


def test_equal_compute_gives_sft_at_least_the_warmup_arms_seconds(tmp_path):
    small = Experiment("ledger-t5", tmp_path / "ledger.yaml", ("sft", "sft_equal_compute", "warmup"), (1,))
    job = demo._jobs(small)[1]
    sft, warmup = ({"updates": 100, "train_seconds": s} for s in (10.0, 35.0))
    flags = demo._settings(job, tmp_path, dict(zip(job.after, (sft, warmup), strict=True)))
    assert "max_steps=420" in flags  # 100 updates in 10 s; 35 s and a fifth more


def test_the_shipped_recipes_are_there_and_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="Run the demo from the root"):
        run_demo(tmp_path / "nowhere", tmp_path, 1)
    assert [experiment.name for experiment in experiments(tmp_path)] == [
        "ledger-t5",
        "ledger-llama",
        "translation-llama",
    ]
