"""`rl-warmup ceiling`: two arms of one recipe, the answer in words, and what it refuses before a run starts."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from rl_warmup.cli.ceiling import command
from rl_warmup.sweeps.answer import Line, _of_ceiling
from rl_warmup.sweeps.arms import Arm, Plan
from rl_warmup.sweeps.question import Question

RECIPE = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 1, "per_device_train_batch_size": 4, "max_warmup_length": 4, "save_strategy": "no", "use_cpu": True,
    "metric_for_best_model": "exact_match", "proposals": ["reference"],
}  # fmt: skip


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
    command(["--config", str(recipe), "--warmups", str(gold), "--seeds", "1", "--output", str(tmp_path / "out")])
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
    file.write_text("")
    with pytest.raises(ValueError, match=named):
        command(
            ["--config", str(recipe), *(part.format(file=file) for part in changes), "--output", str(tmp_path / "o")]
        )


def test_a_recipe_without_a_metric_has_to_be_told_one(recipe, tmp_path):
    recipe.write_text(yaml.safe_dump({**RECIPE, "metric_for_best_model": "loss"}))
    with pytest.raises(ValueError, match="--metric"):
        command(["--config", str(recipe), "--warmups", "x", "--output", str(tmp_path / "o")])


def test_the_answer_in_words(tmp_path):
    question = Question("ceiling", "?", tmp_path, "exact_match", [1], control="sft")
    imitated = Arm("gold", {"proposals": ["stored"], "proposal_only": True})
    plan = Plan(question, {}, tmp_path, [Arm("sft", {"objective": "sft"}), imitated])
    gold, sft, shuffled = Line("gold", "", {}, {}), Line("sft", "", {}, {}), Line("gold", "shuffled", {}, {})
    assert _of_ceiling(plan, sft, True) == _of_ceiling(plan, shuffled, True) == ""
    assert "pay here" in _of_ceiling(plan, gold, True)
    assert "nothing to find" in _of_ceiling(plan, gold, False)
