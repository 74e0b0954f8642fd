"""A run whose loss, weights or answers are no numbers any more: it ends with a sentence and its rows, or goes back."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup import trainer as warmup_trainer
from rl_warmup.cli.main import main
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_json, read_jsonl

ROWS = [{"prompt": f"a b w{i}", "target": f"w{i} b a"} for i in range(8)]
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


def trainer_of(folder: Path, kind: str = "t5", objects: dict | None = None, **settings) -> WarmupTrainer:
    model, tokenizer = load_model(f"scratch-{kind}", lambda: [text for row in ROWS for text in row.values()], SIZE)
    given = {"learning_rate": 1e-3, "max_steps": 2, "save_strategy": "no", **settings}
    args = WarmupConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_warmups=2, max_warmup_length=3, use_cpu=True, logging_steps=1,
        disable_tqdm=True, report_to="none", **given,
    )  # fmt: skip
    return WarmupTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=ROWS, **(objects or {}))


def ruined_after(trainer: WarmupTrainer, update: int) -> WarmupTrainer:
    """The trainer, whose next loss after this many updates is no number."""
    whole = trainer.is_number
    trainer.is_number = lambda policy, target: whole(
        math.nan if trainer.state.global_step == update else policy, target
    )
    return trainer


@pytest.mark.parametrize("objective", ["marginal", "sft"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("rate", [1e6, 1e9, 1e30])
def test_a_last_update_that_ruins_the_model_ends_with_its_rows(tmp_path, kind, rate, objective):
    trainer = trainer_of(tmp_path / "run", kind, learning_rate=rate, max_steps=1, objective=objective)
    with pytest.raises(FloatingPointError, match=r"update.* 1.*learning_rate.*The rows of update 1: .*diverged.jsonl"):
        trainer.train()
    rows = read_jsonl(tmp_path / "run" / "diverged.jsonl")
    assert len(rows) == 4
    assert {"update", "prompt", "target", "prompt_ids", "target_ids"} <= rows[0].keys()
    assert {(row["prompt"], row["target"]) for row in rows} <= {(row["prompt"], row["target"]) for row in ROWS}


def test_a_loss_that_is_no_number_keeps_the_rows_of_its_update(tmp_path):
    trainer = ruined_after(trainer_of(tmp_path / "run", max_steps=4), 1)
    with pytest.raises(FloatingPointError, match=r"not a number any more at update 2 .*The rows of update 2"):
        trainer.train()
    assert {row["update"] for row in read_jsonl(tmp_path / "run" / "diverged.jsonl")} == {2}


def test_stop_before_ends_with_the_last_sound_checkpoint(tmp_path, capsys):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "on_divergence": "stop_before"}
    trainer = ruined_after(trainer_of(tmp_path / "run", **settings), 2)
    trainer.train()
    assert (trainer.state.global_step, trainer.diverged_at) == (2, 3)
    assert "The run ends with" in (said := capsys.readouterr().out)
    assert "checkpoint-2, as on_divergence is stop_before" in said
    kept, _ = load_model(str(tmp_path / "run" / "checkpoint-2"))
    assert all(
        torch.equal(a, b) for a, b in zip(trainer.model.state_dict().values(), kept.state_dict().values(), strict=True)
    )


def test_stop_before_passes_over_checkpoints_that_are_ruined_already(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "on_divergence": "stop_before"}
    trainer = trainer_of(tmp_path / "run", **settings, lr_scheduler_type="constant_with_warmup", warmup_steps=1,
                         learning_rate=1e9)  # fmt: skip
    trainer.train()  # the first update has a learning rate of 0
    assert trainer.state.global_step == 1
    assert trainer.diverged_at > 1


SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "on_divergence": "stop_before"}


def test_stop_before_ends_with_the_settings_of_its_checkpoint_too(tmp_path):
    """During the update that diverges the guard changes the constraints and the run gives up; the checkpoint is older."""
    trainer = trainer_of(tmp_path / "run", **SAVES)
    whole = trainer.is_number

    def ruin(policy, target):
        if trainer.state.global_step == 2:
            trainer._change_constraints(temperature=2.0, min_length=1)
            trainer._train_plainly()
            policy = math.nan
        return whole(policy, target)

    law, trainer.is_number = trainer.constraints, ruin
    trainer.train()
    assert trainer.diverged_at == 3
    assert (trainer.constraints.temperature, trainer.constraints.min_length) == (law.temperature, law.min_length)
    assert (trainer.rollout.objective, trainer.warmup_generator().mode) == ("marginal", "policy")


@pytest.mark.parametrize(("best", "ends_with"), [(1, 1), (3, 2), (2, 2)])
def test_one_sentence_says_the_model_of_the_end_which_is_never_one_that_was_passed_over(
    tmp_path, capsys, best, ends_with
):
    """Checkpoint 3 gives its rows no numbers, and is the best by its metric or not."""
    objects = {"eval_dataset": ROWS[:2], "compute_metrics": lambda found: {"worth": float(at() == best)}}
    more = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "worth"}
    trainer = ruined_after(trainer_of(tmp_path / "run", objects=objects, **SAVES, **more), 3)
    at = lambda: trainer.state.global_step  # noqa: E731
    load, loaded = trainer._load_best_model, []
    trainer._load_best_model = lambda: (loaded.append(trainer.state.best_model_checkpoint), load())
    trainer._is_sound = lambda: "checkpoint-3" not in loaded[-1]
    trainer.train()
    assert (trainer.state.global_step, trainer.diverged_at) == (2, 4)
    assert (trainer.best_at() or trainer.state.global_step) == ends_with
    assert capsys.readouterr().out.count("The run ends with") == 1
    kept, _ = load_model(str(tmp_path / "run" / f"checkpoint-{ends_with}"))
    for name, weight in kept.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], weight)


def test_a_second_training_has_not_diverged(tmp_path):
    trainer = ruined_after(trainer_of(tmp_path / "run", **SAVES), 2)
    trainer.train()
    del trainer.is_number
    trainer.train()
    assert (trainer.state.global_step, trainer.diverged_at, trainer.went_back_to) == (4, None, None)


def test_the_models_answers_are_looked_at_once_after_the_last_update(tmp_path):
    """Two updates are an epoch of these rows, and Trainer looks at the weights after both."""
    trainer, looked = trainer_of(tmp_path / "run", max_steps=2), []
    trainer._is_sound = lambda: looked.append(trainer.state.global_step) or True
    trainer.train()
    trainer.train()
    assert looked == [2, 2]


@pytest.mark.parametrize("samples", [None, 1])
def test_scores_that_are_no_numbers_are_no_fault_of_a_reward_or_a_rule(tmp_path, monkeypatch, samples):
    """Two rewards, one of them the target's log-probability, and an objective of one's own, which are checked."""
    (tmp_path / "own.py").write_text(
        "def rule(rewards, warmup_logprobs, settings):\n    p = rewards.softmax(1)\n    return p - p.mean(), p\n"
    )
    ruined = {
        "rewards": ["target_logprob", {"name": "length_penalty", "weight": 0.1, "kwargs": {"target_length": 2}}],
        "objective": f"{tmp_path}/own.py:rule",
    }
    trainer = trainer_of(tmp_path / "run", **ruined, backward_samples=samples, max_steps=3)
    for name in ("score", "score_sampled"):
        whole = getattr(warmup_trainer, name)

        def broken(*args, whole=whole, **kwargs):
            got, factor = whole(*args, **kwargs), math.nan if trainer.state.global_step == 1 else 1.0
            return dataclasses.replace(got, target_logprob=got.target_logprob * factor)

        monkeypatch.setattr(warmup_trainer, name, broken)
    with pytest.raises(FloatingPointError, match=r"not numbers any more at update 2\..*The rows of update 2"):
        trainer.train()


def test_an_update_without_numbers_is_not_measured(tmp_path):
    trainer, measured = ruined_after(trainer_of(tmp_path / "run", max_steps=3), 1), []
    trainer.schedule.measures_reading = lambda step: True
    trainer._measure_reading = lambda *args: measured.append(trainer.state.global_step)
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert measured == [0]


def test_stop_before_without_a_checkpoint_is_refused_early_or_ends_with_the_error(tmp_path):
    with pytest.raises(ValueError, match="on_divergence: stop_before .*save_strategy is no"):
        trainer_of(tmp_path / "run", on_divergence="stop_before")
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 4, "on_divergence": "stop_before"}
    with pytest.raises(FloatingPointError, match="found no checkpoint to go back to"):
        ruined_after(trainer_of(tmp_path / "run", **settings), 1).train()


def test_a_whole_run_that_goes_back_says_so_in_its_metrics(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "a b w{i}", "target": "w{i} b a"}}\n' for i in range(8)))
    flags = {"model_name_or_path": "scratch-t5", "scratch": str(SIZE), "task": "file", "output_dir": "run", "use_cpu": "true",
             "task_kwargs": "{train: rows.jsonl, test: rows.jsonl}", "max_steps": "4", "controls": "[]",
             "num_warmups": "2", "max_warmup_length": "3", "show_progress": "false", "save_strategy": "steps", "save_steps": "1",
             "on_divergence": "stop_before", "learning_rate": "1e9", "lr_scheduler_type": "constant_with_warmup",
             "warmup_steps": "1"}  # fmt: skip
    assert main(["train", *(word for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    assert "on_divergence is stop_before" in "".join(capfd.readouterr())
    result = read_json("run/metrics.json")
    assert result["updates"] == 1
    assert result["diverged_at"] > 1
    assert Path("run/diverged.jsonl").is_file()
