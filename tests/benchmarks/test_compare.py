"""The loop over arms and seeds: which arms, in what order, at what budget, and that nothing runs twice."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.compare import compare, equal_compute, in_order, read_arms

LEDGER = """
model_name_or_path: scratch-t5
scratch: {width: 16, layers: 1, heads: 2, tokenizer: words}
task: ledger
task_kwargs: {length: 3, train_size: 40, validation_size: 4, test_size: 12}
objective: marginal
num_warmups: 2
max_warmup_length: 4
proposals: [reverse]
max_steps: 2
per_device_train_batch_size: 4
save_strategy: "no"
use_cpu: true
output_dir: runs/unused
"""


def test_the_five_arms_and_a_choice_of_them():
    assert list(read_arms(None, [])) == ["sft", "sft_equal_compute", "filler", "proposal", "warmup"]
    assert list(read_arms(None, ["warmup", "sft"])) == ["warmup", "sft"]
    with pytest.raises(ValueError, match="unknown arm sfr; known: sft"):
        read_arms(None, ["sfr"])


def test_arms_of_a_file(tmp_path):
    file = tmp_path / "arms.yaml"
    file.write_text("warm: {tau: 4.0}\nplain: {}\n")
    assert read_arms(file, []) == {"warm": {"tau": 4.0}, "plain": {}}
    file.write_text("warm: 4.0\n")
    with pytest.raises(ValueError, match="must map every arm to settings"):
        read_arms(file, [])


def test_equal_compute_comes_last_and_gives_sft_the_other_arms_seconds():
    assert in_order(["sft", "sft_equal_compute", "warmup"]) == ["sft", "warmup", "sft_equal_compute"]
    sft = {"updates": 100, "train_seconds": 10.0}
    assert equal_compute(sft, {"updates": 100, "train_seconds": 30.0}, margin=1.2) == 360
    assert equal_compute(sft, {"updates": 100, "train_seconds": 5.0}, margin=1.2) == 100


def test_a_comparison_runs_every_arm_reports_and_goes_on_where_it_stopped(tmp_path, capsys):
    recipe = tmp_path / "ledger.yaml"
    recipe.write_text(LEDGER)
    options = argparse.Namespace(
        recipe=recipe, flags=["learning_rate=1e-3"], output=tmp_path / "runs", seeds=[1], control=None,
        arms=["sft", "sft_equal_compute", "warmup"], arms_file=None,
    )  # fmt: skip
    compare(options)
    printed = capsys.readouterr().out
    assert "sft_equal_compute (1 seed)" in printed
    results = {path.parent.name: json.loads(path.read_text()) for path in options.output.glob("*/metrics.json")}
    assert set(results) == {f"{arm}-1" for arm in options.arms}
    assert results["sft_equal_compute-1"]["updates"] > results["sft-1"]["updates"] == 2
    assert len({result["rows_hash"] for result in results.values()}) == 1
    before = {path: path.stat().st_mtime_ns for path in options.output.glob("*/metrics.json")}
    compare(options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (Path(options.output) / "report" / "summary.md").is_file()


def test_the_shipped_ideas_are_settings_a_recipe_knows():
    from rl_warmup.config import build_recipe

    arms = read_arms(Path(__file__).parents[2] / "benchmarks" / "arms" / "ideas.yaml", [])
    assert {"sft", "warmup"} < set(arms)
    for changes in arms.values():
        build_recipe({"output_dir": "runs/unused", "use_cpu": True, "proposals": ["keywords"], **changes})


def test_equal_compute_alone_says_what_it_needs(tmp_path):
    options = argparse.Namespace(
        recipe=tmp_path / "no.yaml", flags=[], output=tmp_path / "runs", seeds=[1], control=None,
        arms=["sft_equal_compute"], arms_file=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs the seconds of sft and warmup"):
        compare(options)
