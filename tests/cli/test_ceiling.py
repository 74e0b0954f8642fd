"""`rl-warmup ceiling`: two arms of one recipe, the answer in words, and what it refuses before a run starts."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from rl_warmup.cli.ceiling import command
from rl_warmup.config import build_recipe
from rl_warmup.experiments.sweeps.answer import Answer, _of_ceiling
from rl_warmup.experiments.sweeps.jobs import Sweep, Variant
from rl_warmup.experiments.sweeps.question import Question

RECIPE = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 1, "per_device_train_batch_size": 4, "max_warmup_length": 4, "save_strategy": "no", "use_cpu": True,
    "metric_for_best_model": "exact_match", "proposals": ["reference"],
}  # fmt: skip
LINE = '{"row": 0, "warmup": "1"}\n'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_gold_warmups_beside_fine_tuning(recipe, tmp_path, capsys):
    from rl_warmup.tasks import load_task

    rows = load_task("ledger", **RECIPE["task_kwargs"]).splits["train"]
    gold = tmp_path / "gold.jsonl"
    lines = [{"row": n, "warmup": " ".join(row["target"].split()[::-1])} for n, row in enumerate(rows)]
    gold.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command(
        [
            "--config",
            str(recipe),
            "--warmups",
            str(gold),
            "--seeds",
            "1",
            "--output",
            str(tmp_path / "out"),
            "--max_steps=2",
        ]
    )
    assert yaml.safe_load((tmp_path / "out/gold/seed-1/recipe.yaml").read_text())["max_steps"] == 2
    with (tmp_path / "out/results.csv").open() as file:
        runs = {(row["arm"], row["control"]): row["metric"] for row in csv.DictReader(file)}
    assert runs[("sft", "")] == runs[("gold", "")] == "exact_match"
    warmups = [json.loads(line) for line in (tmp_path / "out/gold/seed-1/predictions.jsonl").read_text().splitlines()]
    assert len(warmups) == 4
    said = capsys.readouterr().out
    assert "gold" in said
    assert "sft" in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--warmups", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--warmups", "{file}", "{file}"], "gold"),
    ],
)
def test_what_is_refused(recipe, tmp_path, changes, named):
    file = tmp_path / "gold.jsonl"
    file.write_text(LINE)
    with pytest.raises(ValueError, match=named):
        command(
            ["--config", str(recipe), *(part.format(file=file) for part in changes), "--output", str(tmp_path / "o")]
        )


def test_files_of_falling_quality_are_arms_named_by_all_but_their_ending(recipe, tmp_path, monkeypatch):
    files = [tmp_path / f"drafts.{quality}.jsonl" for quality in (100, 50)]
    for file in files:
        file.write_text(LINE)
    asked = []
    monkeypatch.setattr(
        "rl_warmup.experiments.sweeps.run_sweep", lambda file, settings: asked.append(file) or Answer("", {}, [])
    )
    command(["--config", str(recipe), "--warmups", *map(str, files), "--output", str(tmp_path / "o")])
    assert list(json.loads(asked[0].read_text())["runs"]) == ["sft", "drafts.100", "drafts.50"]


@pytest.mark.parametrize(
    "given", [{"proposals": ["reference"]}, {"proposals": ["stored"], "stored_warmups": "own.jsonl"}]
)
def test_a_recipe_may_say_how_its_own_groups_are_trained(recipe, tmp_path, monkeypatch, given):
    """Both arms can be read whatever the recipe says of groups, and they alone differ from it."""
    groups = {"num_warmups": 4, "backward_samples": 2, "target_ess": 2.0, "anchor_weight": 0.1}
    recipe.write_text(yaml.safe_dump({**RECIPE, **given, **groups}))
    (tmp_path / "gold.jsonl").write_text(LINE)
    asked = []
    monkeypatch.setattr(
        "rl_warmup.experiments.sweeps.run_sweep", lambda file, settings: asked.append(file) or Answer("", {}, [])
    )
    command(["--config", str(recipe), "--warmups", str(tmp_path / "gold.jsonl"), "--output", str(tmp_path / "o")])
    arms = json.loads(asked[0].read_text())["runs"]
    read = {name: build_recipe({**yaml.safe_load(recipe.read_text()), **arm}).config for name, arm in arms.items()}
    assert (read["sft"].objective, read["sft"].proposals, read["sft"].stored_warmups) == ("sft", [], None)
    assert (read["gold"].num_warmups, read["gold"].proposal_only) == (1, True)
    assert read["gold"].stored_warmups == str(tmp_path / "gold.jsonl")


def test_nothing_is_written_into_a_run(recipe, tmp_path):
    gold, run = tmp_path / "gold.jsonl", tmp_path / "run"
    gold.write_text("")
    run.mkdir()
    (run / "recipe.yaml").write_text("")
    with pytest.raises(ValueError, match="--output: "):
        command(["--config", str(recipe), "--warmups", str(gold), "--output", str(run)])
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]


def test_a_recipe_without_a_metric_has_to_be_told_one(recipe, tmp_path):
    recipe.write_text(yaml.safe_dump({**RECIPE, "metric_for_best_model": "loss"}))
    with pytest.raises(ValueError, match="--metric"):
        command(["--config", str(recipe), "--warmups", "x", "--output", str(tmp_path / "o")])


def test_the_answer_in_words(tmp_path):
    question = Question("ceiling", "?", tmp_path, "exact_match", [1], control="sft")
    imitated = Variant("gold", {"proposals": ["stored"], "proposal_only": True})
    sweep = Sweep(question, {}, tmp_path, [Variant("sft", {"objective": "sft"}), imitated])
    assert _of_ceiling(sweep, "sft", "gains") == ""
    assert "pay here" in _of_ceiling(sweep, "gold", "gains")
    assert "not shown to beat sft: if no better warmups exist, there is nothing to find" in _of_ceiling(
        sweep, "gold", ""
    )
    assert "does worse than sft: if no better warmups exist, there is nothing to find" in _of_ceiling(
        sweep, "gold", "loses"
    )
