"""The claim of the demo, on one seed: the shipped recipe learns, SFT does not, and the warmup is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_warmup.config import read_recipe
from rl_warmup.experiments.run import train_run

RECIPE = Path(__file__).parents[2] / "recipes" / "demo" / "ledger.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["scratch-t5", "scratch-llama"])
def test_the_ledger_recipe_learns_where_sft_does_not(tmp_path, model):
    flags = [f"model_name_or_path={model}", "eval_strategy=no", "show_progress=false", "seed=7"]
    warmup = train_run(read_recipe(RECIPE, [*flags, f"output_dir={tmp_path / 'warmup'}"]))
    sft = train_run(read_recipe(RECIPE, [*flags, f"output_dir={tmp_path / 'sft'}", "objective=sft"]))
    assert warmup["metrics"][""]["exact_match"] >= 0.95
    assert sft["metrics"][""]["exact_match"] <= 0.45
    assert warmup["metrics"]["shuffled"]["exact_match"] <= sft["metrics"][""]["exact_match"]
