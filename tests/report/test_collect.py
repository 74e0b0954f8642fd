"""Which runs share a table, and what an arm is called."""

from __future__ import annotations

import json

import pytest

from rl_warmup.experiments.collect import find_runs, sections
from rl_warmup.runtime.run_files import read_result


def arms(path):
    return {arm.name: [run.seed for run in arm.runs] for arm in sections(find_runs([path])[0])[0].arms}


def test_seeds_of_one_recipe_are_one_arm(seeds):
    assert arms(seeds) == {"sft": [1, 2, 3], "warmup": [1, 2, 3]}


def test_seeds_may_differ_in_their_budget_but_in_nothing_else(tmp_path, run_folder):
    run_folder(tmp_path / "sft-1", recipe={"max_steps": 120})
    run_folder(tmp_path / "sft-2", seed=2, recipe={"max_steps": 150})
    (section,) = sections(find_runs([tmp_path])[0])
    assert [(arm.name, arm.varying()) for arm in section.arms] == [("sft", ["max_steps"])]
    run_folder(tmp_path / "sft-3", seed=3, recipe={"learning_rate": 1.0})
    assert arms(tmp_path) == {"sft-1": [1, 2], "sft-3": [3]}


def test_seeds_that_were_trained_on_other_rows_are_told(tmp_path, run_folder):
    """Files of one name, whose contents changed between two runs."""
    for seed, contents in ((1, "a"), (2, "a"), (3, "b")):
        folder = run_folder(tmp_path / f"sft-{seed}", seed=seed)
        found = json.loads((folder / "environment.json").read_text()) | {
            "training_rows": {"rows": 4, "sha256": contents * 64}
        }
        (folder / "environment.json").write_text(json.dumps(found))
    (section,) = sections(find_runs([tmp_path])[0])
    assert [(arm.name, arm.varying()) for arm in section.arms] == [("sft", ["training rows, hash"])]


def test_one_metric_with_other_settings_is_another_metric(tmp_path, run_folder):
    """Metrics of one's own have no signature: what metrics.json has beside their names counts."""

    def scored(place, k):
        place.mkdir(parents=True, exist_ok=True)
        before = read_result(tmp_path / "a-1") | {"metrics": {"filler": {"score": 1.0}}}
        file = place / "metrics.json"
        found = json.loads(file.read_text()) if file.is_file() else before
        file.write_text(json.dumps(found | {"metric_specs": [{"name": "m.py:score", "kwargs": {"k": k}}]}))

    for name, k in (("a", 1), ("b", 10)):
        scored(run_folder(tmp_path / f"{name}-1"), k)
    assert len(sections(find_runs([tmp_path])[0])) == 2
    for k, joined in ((10, False), (1, True)):
        scored(tmp_path / "a-1" / "evaluation" / "test", k)
        runs, said = find_runs([tmp_path / "a-1"])
        assert ("filler" in runs[0].metrics) == joined
        assert any("m.py:score with other settings" in one for one in said) != joined


def test_one_recipe_in_two_places_is_one_arm_and_a_repeated_seed_is_not_a_new_one(tmp_path, run_folder):
    run_folder(tmp_path / "here" / "warmup-1")
    run_folder(tmp_path / "there" / "warmup-2", seed=2)
    assert arms(tmp_path) == {"warmup": [1, 2]}
    run_folder(tmp_path / "again" / "warmup-1")
    assert sorted(map(tuple, arms(tmp_path).values())) == [(1,), (1, 2)] or sorted(arms(tmp_path).values()) == [
        [1, 2],
        [1],
    ]


def test_a_run_given_twice_counts_once(pair):
    assert len(find_runs([pair, pair / "sft-1"])[0]) == 2


def test_other_rows_are_another_section(tmp_path, run_folder):
    run_folder(tmp_path / "sft-1", "sft")
    run_folder(tmp_path / "warmup-1", rows_hash="b" * 64)
    assert [[arm.name for arm in s.arms] for s in sections(find_runs([tmp_path])[0])] == [["sft"], ["warmup"]]


def test_rows_without_a_hash_are_compared_with_nothing(tmp_path, run_folder):
    run_folder(tmp_path / "sft-1", "sft", rows_hash="")
    run_folder(tmp_path / "warmup-1", rows_hash="")
    assert len(sections(find_runs([tmp_path])[0])) == 2


def test_later_evaluations_of_the_same_rows_add_their_controls(pair, run_folder):
    later = run_folder(pair / "warmup-1" / "evaluation" / "test")
    (later / "recipe.yaml").unlink()
    result = json.loads((later / "metrics.json").read_text())
    result["metrics"] = {"": {"exact_match": 0.0}, "filler": {"exact_match": 0.5}}
    (later / "metrics.json").write_text(json.dumps(result))
    (later / "predictions.shuffled.jsonl").rename(later / "predictions.filler.jsonl")
    run = next(run for run in find_runs([pair])[0] if run.folder.name == "warmup-1")
    assert run.metrics == {"": {"exact_match": 0.75}, "shuffled": {"exact_match": 0.25}, "filler": {"exact_match": 0.5}}
    assert run.predictions["filler"][0]["warmup"] == "foreign"


def test_unfinished_runs_are_left_out_and_named(pair):
    (pair / "warmup-1" / "metrics.json").unlink()
    runs, skipped = find_runs([pair])
    assert [run.folder.name for run in runs] == ["sft-1"]
    assert "warmup-1 is not finished" in skipped[0]


@pytest.mark.parametrize(("make", "sentence"), [(False, "is no folder"), (True, "holds no finished run: none")])
def test_a_place_without_runs_is_a_sentence(tmp_path, make, sentence):
    place = tmp_path / "empty"
    if make:
        place.mkdir()
    with pytest.raises(ValueError, match=sentence):
        find_runs([place])


def test_a_folder_of_unfinished_runs_says_so(pair):
    for run in pair.iterdir():
        (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"2 unfinished.* \(no metrics.json\)"):
        find_runs([pair])


def test_exported_weights_are_a_run_once_they_are_evaluated(pair):
    exported = pair / "warmup-1"
    result = (exported / "metrics.json").read_text()
    for name in ("metrics.json", "timing.jsonl"):
        (exported / name).unlink()
    assert [run.folder.name for run in find_runs([pair])[0]] == ["sft-1"]
    later = exported / "evaluation" / "test" / "metrics.json"
    later.parent.mkdir(parents=True)
    later.write_text(result)
    assert find_runs([exported])[0][0].metrics[""] == {"exact_match": 0.75}
    (exported / "timing.jsonl").write_text("")  # a log: a run that has not ended, whatever was evaluated meanwhile
    with pytest.raises(ValueError, match="holds no finished run"):
        find_runs([exported])


def test_runs_made_in_python_are_compared_by_the_model_they_started_from(tmp_path, run_folder):
    for seed in (1, 2):
        run = run_folder(tmp_path / f"mine-{seed}", seed=seed)
        (run / "recipe.yaml").unlink()
        settings = {"objective": "marginal", "seed": seed, "model_name_or_path": "my/start"}
        (run / "environment.json").write_text(json.dumps({"settings": settings}))
        later = run / "evaluation" / "test" / "metrics.json"
        later.parent.mkdir(parents=True)
        (run / "metrics.json").rename(later)
        later.write_text(json.dumps({**json.loads(later.read_text()), "model": str(run)}))
    (section,) = sections(find_runs([tmp_path])[0])
    assert (section.model, arms(tmp_path)) == ("my/start", {"mine": [1, 2]})


def started_from(run, start: str):
    """A run that names its start, as recipe.yaml and metrics.json do."""
    recipe = (run / "recipe.yaml").read_text() + f"model_name_or_path: {start}\n"
    (run / "recipe.yaml").write_text(recipe)
    result = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**result, "model": start}))


def models(path):
    return {s.model: [run.seed for run in s.runs] for s in sections(find_runs([path])[0])}


def test_the_number_in_a_models_name_is_no_seed(tmp_path, run_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2, 3):
        started_from(run_folder(tmp_path / "phi" / f"a-{seed}", seed=seed), "microsoft/phi-2")
    for seed in (2, 3):
        started_from(run_folder(tmp_path / "gemma" / f"a-{seed}", seed=seed), f"google/gemma-{seed}")
    assert models("phi") == {"microsoft/phi-2": [1, 2, 3]}
    assert arms("phi") == {"a": [1, 2, 3]}
    assert models("gemma") == {"google/gemma-2": [2], "google/gemma-3": [3]}


def test_starts_that_are_runs_of_the_same_seeds_are_one_model(tmp_path, run_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        run_folder(tmp_path / "first" / f"x-{seed}", seed=seed)
        started_from(run_folder(tmp_path / "second" / f"y-{seed}", seed=seed), f"first/x-{seed}")
    assert models("second") == {"first/x": [1, 2]}
    assert arms("second") == {"y": [1, 2]}
    started_from(run_folder(tmp_path / "third" / "y-2", seed=2), "first/x-1")  # another seed's: another start
    assert models("third") == {"first/x-1": [2]}


def test_null_for_settings_is_none(pair):
    (pair / "warmup-1" / "environment.json").write_text('{"settings": null}')
    assert len(find_runs([pair])[0]) == 2


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe.yaml or environment.json anywhere in it"):
        find_runs([tmp_path])


def test_a_folder_without_a_result_is_a_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no metrics.json: the run is not finished, or this is not a run folder"
    ):
        read_result(str(tmp_path))
