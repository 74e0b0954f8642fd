"""The demo on runs of two updates: the table, the CSV, the picture, going on after a stop, and the sweep files of its parts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from rl_warmup.experiments.collect import Run
from rl_warmup.experiments.demo import COLUMNS, GOLD, PARTS, run_demo, run_files, worked_out
from rl_warmup.experiments.sweeps.jobs import read_sweep

RECIPES = Path(__file__).parents[2] / "recipes" / "demo"
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


def written(folder, part, name, recipe):
    """A shipped sweep file on a small recipe."""
    sweep = yaml.safe_load((RECIPES / part / f"{name}.yaml").read_text("utf-8"))
    (folder / part).mkdir(parents=True)
    (folder / sweep["base"].removeprefix("../")).write_text(yaml.safe_dump(recipe))
    path = folder / part / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def changed(path, **keys):
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))
    return path


def results(output):
    with (output / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_demo_compares_arms_and_keeps_what_is_done(tmp_path):
    file = written(tmp_path, "ledger", "ledger-t5", LEDGER)
    runs = {"sft": {"objective": "sft"}, "warmup": {}}
    changed(file, runs=runs, seeds={"sft": 1, "sft_equal_compute": 1, "warmup": 2})
    page = run_files([file], tmp_path / "out", processes=1)
    for words in ("sft_equal_compute", "shuffled", "±", "What this shows", "prediction", "This took", "(2 seeds, mean"):
        assert words in page
    assert (tmp_path / "out" / "RESULTS.md").read_text() in page
    assert (tmp_path / "out" / "ledger-t5.png").stat().st_size > 5000
    rows = results(tmp_path / "out")
    assert tuple(rows[0]) == COLUMNS
    assert list(dict.fromkeys(row["arm"] for row in rows)) == ["sft", "sft_equal_compute", "warmup"]
    assert {row["control"] for row in rows if row["arm"] == "warmup"} == {"", "shuffled", "empty_warmup"}
    assert {row["control"] for row in rows if row["arm"] == "sft"} == {""}
    assert {(row["task"], row["model"]) for row in rows} == {("ledger", "t5")}
    assert all(int(row["updates"]) >= 2 and float(row["train_seconds"]) > 0 for row in rows)
    updates, seconds = ({row["arm"]: float(row[key]) for row in rows if row["seed"] == "1"} for key in COLUMNS[7:9])
    asked = 1.1 * seconds["warmup"] / seconds["sft"] * updates["sft"]
    assert updates["sft_equal_compute"] == pytest.approx(max(2, asked), abs=1)

    finished = (tmp_path / "out" / "ledger-t5" / "sft" / "seed-1" / "metrics.json").stat().st_mtime_ns
    run_files([changed(file, seeds={"sft": 1, "sft_equal_compute": 1, "warmup": 1})], tmp_path / "out", processes=1)
    assert (tmp_path / "out" / "ledger-t5" / "sft" / "seed-1" / "metrics.json").stat().st_mtime_ns == finished
    assert {row["seed"] for row in results(tmp_path / "out")} == {"1"}


def test_the_search_from_a_starting_model(tmp_path):
    """The switch is in the table, worked-out warmups in the picture."""
    file = changed(
        written(tmp_path, "legs", "legs-llama", LEGS), runs={"sft": {"objective": "sft"}, "reading": {}}, seeds=1
    )
    page = run_files([changed(file, equal_compute={})], tmp_path / "out", processes=2)
    rows = results(tmp_path / "out")
    assert {(row["task"], row["model"]) for row in rows} == {("legs", "llama")}
    assert {row["switched_at"] for row in rows if row["arm"] == "reading"} == {"1"}
    assert {row["switched_at"] for row in rows if row["arm"] != "reading"} == {""}
    assert (tmp_path / "out" / "legs-llama.png").stat().st_size > 5000
    assert "What it does not show" in page
    run = Run(tmp_path / "out" / "legs-llama" / "reading" / "seed-1", {}, {}, {})
    shares = worked_out(run, GOLD["legs"])
    assert [step for step, _ in shares] == [1, 2, 3]
    assert all(0 <= share <= 1 for _, share in shares)


def test_what_is_worked_out():
    question = {"prompt": "how many legs are there in total if you have 4 beetles , 1 shrimp ?", "target": "34"}
    assert GOLD["legs"](question) == "24 ; 24 ; 10 ; 34"
    assert GOLD["skills"]({"prompt": "a+1 b+2", "target": "b=3 a=1"}) == "a=1 b=3"


def test_what_is_refused_before_a_run(tmp_path):
    with pytest.raises(ValueError, match="does not exist. .*--recipes"):
        run_demo(tmp_path / "nowhere", tmp_path, 1, ["quick"])
    with pytest.raises(ValueError, match="'arms' is not a part of the demo. Allowed: quick, legs"):
        run_demo(tmp_path, tmp_path, 1, ["legs", "arms"])


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_its_sweep_files_with_starts_and_controls(part, tmp_path):
    assert {file.stem for file in (RECIPES / part).glob("*.yaml")} == set(PARTS[part])
    for name in PARTS[part]:
        sweep = read_sweep(RECIPES / part / f"{name}.yaml", tmp_path)
        task, model = name.rsplit("-", 1)
        assert sweep.jobs()[0].recipe.model.model_name_or_path == (
            f"scratch-{model}" if task == "ledger" else f"start:{name}"
        )
        arms = [variant.name for variant in sweep.variants]
        assert {"sft", "warmup" if task == "ledger" else "reading"} <= set(arms)
        assert sweep.question.equal_compute in ({}, {"sft_equal_compute": {"like": "sft", "seconds_of": arms[-1]}}) or (
            part == "quick"
        )
