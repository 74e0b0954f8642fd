"""The generators' scores as rewards: by hand, and in a run of two updates with everything after it."""

from __future__ import annotations

import json

import pytest

from rl_warmup.cli.evaluate import command as evaluate
from rl_warmup.config import build_recipe
from rl_warmup.experiments.run import train_run
from rl_warmup.rewards import load_reward

pytest.importorskip("reasoning_gym", reason="needs pip install 'rl_warmup[reasoning_gym]'")


@pytest.mark.parametrize(
    ("name", "argument"),
    [("reasoning_gym_score", "predictions"), ("sampled_reasoning_gym_score", "sampled_predictions")],
)
def test_it_scores_what_is_written_after_each_warmup(name, argument):
    reward = load_reward(name)
    assert argument in reward.asks_for
    given = {argument: ["12", "12 legs", "7"], "target": ["12"] * 3, "prompts": ["3 dogs?"] * 3}
    columns = {"generator": ["leg_counting"] * 3, "metadata": ["{}"] * 3}
    assert reward(**given, **columns) == pytest.approx([1, 2 / 7, 0])
    assert reward(**given, **columns, question=["whole"] * 3) == pytest.approx([1, 2 / 7, 0])


def test_a_reward_runs_what_a_model_wrote_only_where_that_is_asked_for():
    row = {
        "target": ["2 + 3"],
        "prompts": ["?"],
        "generator": ["countdown"],
        "metadata": ["{'numbers': [2, 3], 'target': 5}"],
    }
    with pytest.raises(ValueError, match="allow_eval: true"):
        load_reward("reasoning_gym_score")(predictions=["3 + 2"], **row)
    allowed = load_reward({"name": "reasoning_gym_score", "kwargs": {"allow_eval": True}})
    assert allowed(predictions=["3 + 2"], **row) == [1]


@pytest.mark.parametrize("style", ["full", "last_line"])
def test_a_run_with_it_and_its_evaluation(style, tmp_path, capsys):
    run = tmp_path / "run"
    result = train_run(
        build_recipe(
            {
                "model_name_or_path": "scratch-llama", "scratch": {"width": 16, "layers": 1, "heads": 2, "vocab_size": 300},
                "task": "reasoning_gym",
                "task_kwargs": {
                    "name": "leg_counting", "max_animals": 3, "train_size": 8, "validation_size": 2, "test_size": 3,
                    "prompt_style": style,
                },
                "rewards": ["target_logprob", "reasoning_gym_score", "sampled_reasoning_gym_score"],
                "num_warmups": 2, "max_warmup_length": 4, "max_target_length": 8, "output_dir": str(run), "max_steps": 2,
                "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", "show_progress": False,
                "logging_steps": 1, "save_strategy": "no", "log_warmups": 0,
            }
        )
    )  # fmt: skip
    assert result["updates"] == 2
    assert set(result["metrics"][""]) == {"reasoning_gym_score", "exact_match"}
    assert result["signatures"]["reasoning_gym_score"] == "reasoning-gym:0.1.25"
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("rewards/reasoning_gym_score/mean" in entry for entry in log)
    row = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])
    assert row["generator"] == "leg_counting"
    assert ("question" in row) == (style == "last_line")

    evaluate([str(run), "--metrics", "reasoning_gym_score", "--controls", "shuffled", "--batch-size", "3"])
    again = json.loads((run / "evaluation/test/metrics.json").read_text())["metrics"]
    assert again[""]["reasoning_gym_score"] == result["metrics"][""]["reasoning_gym_score"]
    assert "reasoning_gym_score" in capsys.readouterr().out
