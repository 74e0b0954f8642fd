"""Several sweeps at once, arms at equal compute, seeds by arm, and results that were taken away."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from rl_warmup.experiments.demo import run_files
from rl_warmup.experiments.sweeps import SweepSettings, run_sweep
from rl_warmup.experiments.sweeps.jobs import read_sweep

TWO = {"runs": {"sft": {"objective": "sft"}, "warmup": {}}, "grid": None, "control": "sft"}
RESULT = {
    "task": "ledger",
    "model": "scratch-t5",
    "updates": 2,
    "train_seconds": 1.0,
    "metrics": {"": {"exact_match": 1.0}},
}
EQUAL = {**TWO, "equal_compute": {"longer": {"like": "sft", "seconds_of": "warmup"}}}


def test_an_arm_trains_for_at_least_the_seconds_of_another(stage):
    stage = stage()
    seeds = {"sft": 2, "longer": [1], "warmup": [2, 1]}
    answer = run_sweep(stage.write(**EQUAL, seeds=seeds), SweepSettings(stage.output, jobs=2))
    assert answer.failed == {}
    order = stage.lines("started")
    assert order.index("longer/seed-1") > max(map(order.index, ("sft/seed-1", "warmup/seed-1"))), "it waits for both"
    assert sorted(order) == [
        "longer/seed-1",
        "sft/seed-1",
        "sft/seed-2",
        "warmup/seed-1",
        "warmup/seed-2",
    ]
    asked = yaml.safe_load((stage.output / "longer" / "seed-1" / "asked.yaml").read_text())
    assert (asked["max_steps"], asked["objective"]) == (3, "sft")  # 2 updates and a tenth more
    assert "| longer | objective: sft, updates for the seconds of warmup |" in (stage.output / "results.md").read_text()


def test_how_many_updates_equal_compute_takes(stage):
    stage = stage()
    sweep = read_sweep(stage.write(**EQUAL, seeds=[1], settings={"eval_strategy": "steps"}), stage.output)
    assert [variant.name for variant in sweep.variants] == ["sft", "longer", "warmup"]
    assert [job.key for job in sweep.jobs() if not job.ready] == ["longer/seed-1"]
    for name, seconds in (("sft", 10.0), ("warmup", 35.0)):
        folder = sweep.folder(name, 1)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({**RESULT, "updates": 100, "train_seconds": seconds}))
    config = sweep.job(sweep.variants[1], 1).recipe.config
    assert (config.max_steps, config.eval_steps) == (385, 38)  # 100 updates in 10 s; 35 s and a tenth more


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"equal_compute": {"longer": {"like": "sft"}}}, "longer must be {like: ARM, seconds_of: ARM}"),
        ({"equal_compute": {"longer": {"like": "sft", "seconds_of": "longer"}}}, "with arms of runs or of the grid"),
        ({"equal_compute": {"longer": {"like": "sft", "seconds_of": "x"}}}, "equal_compute: longer: 'x' is no arm"),
        ({"equal_compute": {"longer": {"like": "x", "seconds_of": "sft"}}}, "equal_compute: longer: 'x' is no arm"),
        ({"equal_compute": {"sft": {"like": "warmup", "seconds_of": "warmup"}}}, "Two arms are called sft"),
        ({"equal_compute": {"a/b": {"like": "warmup", "seconds_of": "warmup"}}}, "equal_compute: 'a/b' names a folder"),
        ({"seeds": {"sft": 2}}, "seeds: warmup is missing; a mapping names the seeds of every arm."),
        ({"seeds": {"sft": 2, "warmup": 0}}, "or a mapping of such lists or numbers by arm"),
        ({"seeds": {"sft": 2, "warmup": 1, "x": 1}}, "seeds: 'x' is no arm of this sweep. Arms: sft, warmup"),
        ({**EQUAL, "seeds": {"sft": 2, "warmup": 1, "longer": 2}}, "equal_compute: longer needs the seed 2 of warmup too."),
    ],
)  # fmt: skip
def test_mistakes(stage, keys, sentence):
    stage = stage()
    with pytest.raises(ValueError, match="equal_compute|seeds|Two arms") as error:
        read_sweep(stage.write(**{**TWO, **keys}), stage.output)
    assert sentence in str(error.value)


def test_what_waits_for_a_failed_run_is_not_run(stage):
    stage = stage()
    runs = {"sft": {"objective": "sft"}, "warmup": {"num_warmups": 5}}
    answer = run_sweep(stage.write(**{**EQUAL, "runs": runs}, seeds=1), SweepSettings(stage.output))
    assert list(answer.failed) == ["warmup/seed-1"]
    assert "1 of 3 are not done" in answer.text
    assert stage.lines("ended") == ["sft/seed-1"]


def test_a_result_that_was_taken_away_is_made_again(stage):
    stage = stage()
    file = stage.write(**TWO, seeds=1)
    run_sweep(file, SweepSettings(stage.output))
    shutil.rmtree(stage.output / "sft" / "seed-1")
    for _ in range(2):
        run_sweep(file, SweepSettings(stage.output))
        assert stage.lines("ended") == ["sft/seed-1", "warmup/seed-1", "sft/seed-1"]


def test_two_sweeps_of_a_demo_and_a_run_that_fails(stage, monkeypatch):
    stage = stage(seconds=0.2)
    keys = {**TWO, "settings": {"num_warmups": 2}}
    one = stage.write(**keys, seeds=1).rename(stage.folder / "toy-a.yaml")
    other = stage.write(**{**keys, "runs": {"bad": {"num_warmups": 5}, "sft": {"objective": "sft"}}}, seeds=1)
    other = other.rename(stage.folder / "toy-b.yaml")
    with pytest.raises(
        ValueError, match=r"The run toy-b/bad/seed-1 failed: .*five are too many.* Its log: .*train.log"
    ):
        run_files([one, other], stage.output, 2)
    assert sorted(stage.lines("ended")) == ["sft/seed-1", "sft/seed-1", "warmup/seed-1"]
    monkeypatch.setenv("MENDED", "1")
    page = run_files([one, other], stage.output, 2)
    assert stage.lines("started")[4:] == ["bad/seed-1"], "the same command tries it again, and keeps the others"
    assert page.index("## toy-a (one seed; test rows)") < page.index("## toy-b")
