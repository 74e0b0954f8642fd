"""One process, killed anywhere: what a checkpoint holds, when it counts, and what the user is told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from rl_warmup.cli.main import main
from rl_warmup.runtime import checkpoints
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.interruptions import EXIT_SIGNALLED

from .conftest import ledger_rows

SETTINGS = {
    "max_steps": 7, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "logging_steps": 3,
    "proposals": ["reverse", "head"], "readiness": -4.0, "anchor_weight": 0.1, "target_ess": 2.0, "guard": "act",
}  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def whole(make_trainer):
    """A run left alone."""
    trainer = make_trainer(folder="whole", **SETTINGS)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("point", "step"), [("_save", 4), ("_save_rng_state", 6), ("seal", 4), ("publish", 6), ("discard", 6)]
)
def test_a_kill_anywhere_in_saving_loses_nothing(make_trainer, whole, monkeypatch, tmp_path, point, step):
    """The run dies before, between and after the parts of a save; `auto` goes on from what is whole."""
    stopped = make_trainer(folder="stopped", **SETTINGS)
    with monkeypatch.context() as patched:
        place = checkpoints if hasattr(checkpoints, point) else stopped
        original = getattr(place, point)

        def dies(*args, **kwargs):
            if stopped.state.global_step == step:
                Path(stopped.saving_in / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
                raise Killed
            return original(*args, **kwargs)

        patched.setattr(place, point, dies)
        patched.setattr(checkpoints, "clear_unfinished", lambda run: None)  # the dead clear up nothing
        with pytest.raises(Killed):
            stopped.train()
    found = checkpoints.newest(tmp_path / "stopped")
    assert checkpoints.step_of(found) == (step if point == "discard" else step - 2)
    again = make_trainer(folder="stopped", **SETTINGS)
    again.train(resume_from_checkpoint="auto")
    assert same(weights(whole), weights(again))
    assert read_jsonl(tmp_path / "whole" / "metrics.jsonl") == read_jsonl(tmp_path / "stopped" / "metrics.jsonl")
    assert not (tmp_path / "stopped" / "unfinished").exists()
    assert len(list((tmp_path / "stopped").glob("checkpoint-*"))) == 2


def test_a_run_killed_after_its_last_checkpoint_does_no_update_more(make_trainer, whole):
    """Trainer alone would do an eighth update, as 7 is not the end of an epoch."""
    again = make_trainer(folder="whole", **SETTINGS)
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 7
    assert same(weights(whole), weights(again))


def test_sums_between_checkpoint_and_log_are_kept(make_trainer, whole, tmp_path):
    """The log at update 6 is about 4 to 6, and the checkpoint lies at 4."""
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-7")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    reference = make_trainer(folder="long", **{**SETTINGS, "save_total_limit": None})
    reference.train()
    again = make_trainer(folder="again", **SETTINGS)
    again.train(resume_from_checkpoint=str(tmp_path / "long" / "checkpoint-4"))
    lines = [record for record in read_jsonl(tmp_path / "whole" / "metrics.jsonl") if record["step"] > 4]
    assert read_jsonl(tmp_path / "again" / "metrics.jsonl") == lines


def test_constraints_that_a_guard_changed_are_kept(make_trainer, tmp_path):
    trainer = make_trainer(folder="guarded", **{**SETTINGS, "max_steps": 2})
    guard = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "Guard")

    class Acts(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            guard.temperature, guard.min_length = 1.44, 2

    trainer.add_callback(Acts())
    trainer.train()
    again = make_trainer(folder="guarded", **{**SETTINGS, "max_steps": 4})
    again.train(resume_from_checkpoint="auto")
    assert (again.constraints.temperature, again.constraints.min_length) == (1.44, 2)


STOPS = {
    "max_steps": 7, "save_strategy": "steps", "save_steps": 100, "guard": "stop", "empty_share": 0.5, "max_warmup_length": 1,
    "min_warmup_length": 0,
}  # fmt: skip


def test_a_run_that_its_guard_stopped_trains_no_more(make_trainer, tmp_path, capsys):
    """Warmups of one token at most are `short` in the logs 1, 2 and 3; then the run was killed while it predicted."""
    stopped = make_trainer(folder="short", **STOPS)
    stopped.train()
    again = make_trainer(folder="short", **STOPS)
    again.train(resume_from_checkpoint="auto")
    assert (stopped.state.global_step, again.state.global_step) == (3, 3)
    assert same(weights(stopped), weights(again))
    assert "Nothing more is trained" in capsys.readouterr().out
    assert [warning["rule"] for warning in read_jsonl(tmp_path / "short" / "warnings.jsonl")] == ["short"]


def test_a_line_torn_by_a_kill_is_cut_off(make_trainer, whole, tmp_path):
    path = tmp_path / "whole" / "metrics.jsonl"
    before = path.read_text()
    path.write_text(before + '{"step": 7, "lo')
    make_trainer(folder="whole", **SETTINGS).train(resume_from_checkpoint="auto")
    assert path.read_text() == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5632 vs 5526"),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(make_trainer, whole, monkeypatch, tmp_path, error):
    trainer = make_trainer(folder="full", **SETTINGS)
    save = trainer._save_optimizer_and_scheduler

    def full(folder):
        if trainer.state.global_step == 4:
            raise error
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="full/checkpoint-2 is the last good checkpoint.*auto"):
        trainer.train()
    assert not (tmp_path / "full" / "unfinished").exists()  # what was half-written takes no room
    again = make_trainer(folder="full", **SETTINGS)
    again.train(resume_from_checkpoint="auto")
    assert same(weights(whole), weights(again))


def test_a_folder_that_vanishes_ends_the_run_with_a_sentence(make_trainer, tmp_path):
    def vandal(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 3:
            shutil.rmtree(tmp_path / "gone", ignore_errors=True)
        return [0.0] * len(completions)

    trainer = make_trainer(folder="gone", reward_funcs=["target_logprob", vandal], **SETTINGS)
    with pytest.raises(OSError, match="gone vanished during training"):
        trainer.train()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_its_code(make_trainer, whole, tmp_path, capsys, number):
    def scheduler(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 2 and not (tmp_path / "told").exists():
            (tmp_path / "told").touch()
            os.kill(os.getpid(), number)
        return [0.0] * len(completions)

    settings = {**SETTINGS, "reward_funcs": ["target_logprob", scheduler]}
    stopped = make_trainer(folder="stopped", **settings)
    with pytest.raises(SystemExit) as end:
        stopped.train()
    assert end.value.code == EXIT_SIGNALLED == 143
    assert stopped.state.global_step == 3  # the update it was told in is finished
    assert checkpoints.newest(tmp_path / "stopped").name == "checkpoint-3"
    out = capsys.readouterr()
    assert f"{number.name}: update 3 of 7 is finished and checkpoint-3 written" in out.out + out.err
    (tmp_path / "stopped" / "checkpoint-5").mkdir()  # a copy that was cut off
    again = make_trainer(folder="stopped", **settings)
    again.train(resume_from_checkpoint="auto")
    assert "passes over checkpoint-5" in capsys.readouterr().out
    alone = make_trainer(folder="alone", **settings)
    alone.train()
    assert same(weights(alone), weights(again))
    assert read_jsonl(tmp_path / "alone" / "metrics.jsonl") == read_jsonl(tmp_path / "stopped" / "metrics.jsonl")
    assert signal.getsignal(number) is signal.SIG_DFL  # after training, a signal ends the program at once


def told_at(update, tmp_path):
    """A reward that sends SIGTERM in an update, once."""

    def scheduler(completions, trainer_state, **kwargs):
        if trainer_state.global_step + 1 == update and not (tmp_path / "told").exists():
            (tmp_path / "told").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return [0.0] * len(completions)

    return ["target_logprob", scheduler]


@pytest.mark.parametrize("strategy", ["eval_strategy", "logging_strategy"])
def test_a_signal_in_an_epochs_last_update_loses_nothing_of_its_end(make_trainer, tmp_path, strategy):
    settings = {**SETTINGS, "max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch", strategy: "epoch"}
    if strategy == "eval_strategy":
        settings |= {"load_best_model_at_end": True, "eval_dataset": ledger_rows(8, seed=3)}
    alone = make_trainer(folder="alone", reward_funcs=told_at(-1, tmp_path), **settings)
    alone.train()
    assert alone.state.max_steps == 8
    with pytest.raises(SystemExit):
        make_trainer(folder="stopped", reward_funcs=told_at(4, tmp_path), **settings).train()
    again = make_trainer(folder="stopped", reward_funcs=told_at(4, tmp_path), **settings)
    again.train(resume_from_checkpoint="auto")
    assert same(weights(alone), weights(again))
    assert read_jsonl(tmp_path / "alone" / "metrics.jsonl") == read_jsonl(tmp_path / "stopped" / "metrics.jsonl")


def test_a_signal_saves_where_only_the_best_are_saved(make_trainer, tmp_path):
    settings = {**SETTINGS, "save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.05}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True}  # which the first validation has
    trainer = make_trainer(
        folder="stopped", reward_funcs=told_at(4, tmp_path), eval_dataset=ledger_rows(8, seed=3), **settings
    )
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == EXIT_SIGNALLED
    assert trainer.state.best_global_step < 4
    assert checkpoints.newest(tmp_path / "stopped").name == "checkpoint-4"


def test_another_batch_size_is_refused(make_trainer, whole):
    trainer = make_trainer(folder="whole", per_device_train_batch_size=4, **SETTINGS)
    with pytest.raises(ValueError, match="updates of 8 rows, and now they would have 4"):
        trainer.train(resume_from_checkpoint="auto")


def test_the_best_checkpoint_is_named_where_it_lies(make_trainer, tmp_path):
    settings = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "max_steps": 6}
    trainer = make_trainer(folder="best", eval_dataset=ledger_rows(8, seed=3), learning_rate=1e-2, **settings)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "best"
    saved = json.loads((best / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(best)


def test_a_checkpoint_that_was_renamed_goes_on(make_trainer, whole, tmp_path):
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "the best one")
    trainer = make_trainer(folder="other", **{**SETTINGS, "max_steps": 8})
    trainer.train(resume_from_checkpoint=str(tmp_path / "the best one"))
    [line] = read_jsonl(tmp_path / "other" / "resumes.jsonl")
    assert (line["step"], line["changes"]["max_steps"]) == (6, [7, 8])
    assert trainer.state.global_step == 8


def test_eval_on_start_evaluates_where_the_run_starts_alone(make_trainer, tmp_path):
    settings = {**SETTINGS, "save_total_limit": None, "eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}
    settings["eval_dataset"] = ledger_rows(4, seed=3)
    make_trainer(folder="evaluated", **settings).train()
    path = tmp_path / "evaluated" / "metrics.jsonl"
    before = read_jsonl(path)
    assert [line["step"] for line in before if "eval_loss" in line] == [0, 3, 6, 7]
    shutil.rmtree(tmp_path / "evaluated" / "checkpoint-7")
    shutil.rmtree(tmp_path / "evaluated" / "checkpoint-6")
    make_trainer(folder="evaluated", **settings).train(resume_from_checkpoint="auto")
    assert read_jsonl(path) == before


BEST = {
    **SETTINGS, "max_steps": 4, "save_total_limit": None, "guard": "off", "eval_strategy": "steps", "eval_steps": 2,
    "load_best_model_at_end": True, "metric_for_best_model": "mark", "greater_is_better": True,
}  # fmt: skip


def falling(marks):
    """A metric that only falls: the first model is the best. It is asked once before training."""
    return {"eval_dataset": ledger_rows(4, seed=3), "compute_metrics": lambda predictions: {"mark": next(marks)}}


@pytest.mark.parametrize("lost", [False, True])
def test_a_moved_run_ends_with_its_own_best_model(make_trainer, tmp_path, lost):
    make_trainer(folder="old", **falling(iter([0.0, 9.0, 8.0])), **BEST).train()
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "old" / "checkpoint-2").mkdir(parents=True)  # of somebody else
    if lost:
        shutil.rmtree(tmp_path / "new" / "checkpoint-2")
        shutil.rmtree(tmp_path / "old")
    trainer = make_trainer(folder="new", **falling(iter([0.0, 7.0, 6.0])), **{**BEST, "max_steps": 8})
    trainer.train(resume_from_checkpoint="auto")
    best = 6 if lost else 2
    assert trainer.best_at() == best
    stored = load_file(tmp_path / "new" / f"checkpoint-{best}" / "model.safetensors")
    assert torch.equal(stored["shared.weight"], trainer.model.shared.weight)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_copy_of_a_run_ends_with_no_other_runs_best_model(make_trainer, tmp_path, capsys, replaced):
    """The best checkpoint may lie in the folder that the run was copied from, and that folder may hold another run by now."""
    settings = {
        **SETTINGS,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 8,
        "eval_dataset": ledger_rows(8, seed=3),
    }
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    settings |= {"reward_funcs": told_at(9, tmp_path)}
    first = make_trainer(folder="first", **settings)
    first.train()
    assert first.state.best_global_step == 2  # the loss only falls
    kept, longer = weights(first), {**settings, "max_steps": 12}
    copy = make_trainer(folder="copy", **longer)
    with pytest.raises(SystemExit):
        copy.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-8"))
    if replaced:
        make_trainer(folder="first", **settings, seed=7, overwrite=True).train()
    again = make_trainer(folder="copy", **longer)
    again.train(resume_from_checkpoint="auto")
    assert same(kept, weights(again)) != replaced
    assert (again.state.best_global_step == 2) != replaced
    assert ("is gone: only later ones are compared" in capsys.readouterr().out) == replaced


@pytest.mark.parametrize("resumed_from", [3, 4])
def test_the_patience_of_early_stopping_is_counted_on(make_trainer, tmp_path, resumed_from):
    """The best model is that of update 1, so with a patience of 3 the run ends after update 4, and trains no more after it."""
    settings = {**BEST, "max_steps": 7, "save_steps": 1, "eval_steps": 1}

    def run(marks, **kwargs):
        trainer = make_trainer(folder="early", **falling(iter(marks)), **settings)
        trainer.add_callback(EarlyStoppingCallback(3))
        trainer.train(**kwargs)
        return trainer.state.global_step

    assert run([0.0, 9.0, 8.0, 7.0, 6.0, 5.0]) == 4  # the first one is asked for before training
    if resumed_from == 3:
        shutil.rmtree(tmp_path / "early" / "checkpoint-4")
    assert run([0.0, 6.0, 5.0, 4.0], resume_from_checkpoint="auto") == 4


RECIPE = {
    "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger", "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 4, "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 4, "save_steps": 2,
    "use_cpu": True, "show_progress": False, "logging_steps": 1,
    "proposals": ["reverse", "head"], "proposal_only": True,
}  # fmt: skip


def test_going_back_to_an_earlier_checkpoint_is_not_undone_by_auto(tmp_path, capsys):
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(run)}))
    assert main(["train", "--config", str(path)]) == 0
    assert main(["train", "--config", str(path), "--resume_from_checkpoint", str(run / "checkpoint-2")]) == 2
    assert "holds later checkpoints (checkpoint-4)" in capsys.readouterr().err
    flags = ["--resume_from_checkpoint", str(run / "checkpoint-2"), "--output_dir", str(tmp_path / "other")]
    assert main(["train", "--config", str(path), *flags]) == 0
    assert (tmp_path / "other" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
