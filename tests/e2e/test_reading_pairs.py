"""Reading beside another feature of a run: samples that are kept, files that are read, a search that ends, a second `train`."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch

from rl_warmup.method import drawing
from rl_warmup.method.reference import FILE
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.tasks.stream import Stream

from .conftest import READS, ledger_rows
from .test_reading import FAILS, weights

SAVED = {"save_strategy": "steps", "save_steps": 2}


def same(one, other):
    return all(value.equal(other[name]) for name, value in one.items())


def explode(trainer, update):
    """Make the loss of this update no number."""
    record = trainer._record

    def broken(*args):
        policy, target = args[-1]
        factor = float("nan") if trainer.state.global_step == update - 1 else 1.0
        return record(*args[:-1], (policy * factor, target))

    trainer._record = broken


def test_drawing_goes_on_after_a_kill_and_ends_with_the_same_samples(make_trainer, tmp_path, monkeypatch):
    make_trainer(folder="whole", **READS).train()
    monkeypatch.setattr(drawing, "BATCHES_PER_WRITE", 1)
    draw, drawn = drawing.Drawing.draw, []

    def killed(self, prompts, batch):
        drawn.append(batch)
        if len(drawn) == 4:
            raise SystemExit("killed")
        return draw(self, prompts, batch)

    monkeypatch.setattr(drawing.Drawing, "draw", killed)
    with pytest.raises(SystemExit, match="killed"):
        make_trainer(**READS).train()
    monkeypatch.setattr(drawing.Drawing, "draw", lambda self, *args: drawn.append(args[1]) or draw(self, *args))
    make_trainer(**READS).train("auto")
    assert len(drawn) == 5  # the fourth batch again, and no other
    assert sorted(read_jsonl(tmp_path / "run" / FILE)[1:], key=str) == sorted(
        read_jsonl(tmp_path / "whole" / FILE)[1:], key=str
    )


def test_a_resume_may_evaluate_in_other_batches(make_trainer, tmp_path):
    whole = make_trainer(**READS, **SAVED)
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    again = make_trainer(**READS, **SAVED, per_device_eval_batch_size=3)
    again.train("auto")
    assert same(weights(whole), weights(again))


def test_one_trainer_goes_on_from_its_own_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(**READS, **SAVED)
    trainer.train()
    first = weights(trainer)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    trainer.train(resume_from_checkpoint=True)
    assert same(first, weights(trainer))


def test_a_second_run_draws_under_its_own_constraints(make_trainer, tmp_path):
    """The guard (act) raised the temperature while the policy of the first run wrote."""
    trainer = make_trainer(**READS, guard="act", overwrite=True)
    trainer.train()
    trainer._change_constraints(temperature=2.0)
    trainer.train()
    assert read_jsonl(tmp_path / "run" / FILE)[0]["temperature"] == trainer.constraints.temperature == 1.0


def test_from_before_it_gave_up_a_trainer_cannot_go_on_without_the_starting_model(make_trainer, tmp_path):
    trainer = make_trainer(**FAILS, **SAVED)
    trainer.train()
    assert trainer.schedule.gave_up_at == 4
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    trainer.train(resume_from_checkpoint=True)  # from update 4, after which it is plain
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ValueError, match="new trainer"):
        trainer.train(resume_from_checkpoint=True)


def test_a_stream_is_read_from_its_first_row_by_a_second_run(make_trainer, tmp_path):
    trainer = make_trainer(rows=Stream("train", lambda: iter(ledger_rows(32)), 1), **READS, **SAVED)
    trainer.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    trainer.train(resume_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=False)
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("more", [{"anchor_weight": 0.1}, {"max_reading_updates": 50}])
def test_a_longer_resume_of_a_stream_whose_rows_were_all_sampled_is_refused_before_anything_is_lost(
    make_trainer, tmp_path, more
):
    settings = {**READS, **SAVED, **more}
    make_trainer(rows=Stream("train", lambda: iter(ledger_rows(32)), 1), **settings).train()
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    longer = make_trainer(rows=Stream("train", lambda: iter(ledger_rows(32)), 1), **{**settings, "max_steps": 9})
    with pytest.raises(ValueError, match="max_steps was 6, now 9"):
        longer.train("auto")
    assert before
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}


@pytest.mark.parametrize("more", [{}, READS])
def test_a_streams_cut_rows_are_counted_once(make_trainer, more):
    cut = {"max_prompt_length": 2, "prompt_truncation": "right", "max_steps": 3}
    trainer = make_trainer(rows=Stream("train", lambda: iter(ledger_rows(24)), 1), **{**more, **cut})
    trainer.train()
    assert trainer.encoder.counts == {"prompts_truncated": 24}


def test_another_new_adapter_on_the_same_base_is_the_same_start(adapted, tmp_path):
    """Its random weights come from the checkpoint."""
    whole = adapted(adapter={}, **SAVED)
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    torch.manual_seed(9)
    again = adapted(adapter={}, **SAVED)
    assert not same(weights(whole), weights(again))
    again.train("auto")
    assert same(weights(whole), weights(again))


def test_stored_warmups_in_the_folder_that_would_be_replaced_are_kept(make_trainer, tmp_path):
    make_trainer().train()
    file = tmp_path / "run" / "warmups-of-mine.jsonl"
    file.write_text("".join(json.dumps({"row": n, "warmup": "a=1"}) + "\n" for n in range(32)))
    with pytest.raises(ValueError, match="stored_warmups"):
        make_trainer(proposals=["stored"], stored_warmups=str(file), overwrite=True).train()
    assert file.is_file()


@pytest.mark.parametrize("name", ["a", "a_hard"])
def test_the_metric_of_one_of_several_sets_gives_way_to_that_sets_loss(make_trainer, name):
    sets = {"a": ledger_rows(8, 1), "a_hard": ledger_rows(8, 2)}
    trainer = make_trainer(
        eval_dataset=sets, eval_strategy="steps", eval_steps=1, metric_for_best_model=f"{name}_gain", **FAILS
    )
    trainer.train()
    assert trainer.schedule.gave_up_at == 4
    loss = f"eval_{name}_loss"
    losses = {log["step"]: log[loss] for log in trainer.state.log_history if loss in log}
    assert trainer.state.best_metric == min(losses[step] for step in losses if step > 4 or step == 4)


def test_a_learning_rate_that_follows_the_gain_stays_where_a_run_gave_up(make_trainer):
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "gain"}
    trainer = make_trainer(eval_dataset=ledger_rows(8, 1), eval_strategy="steps", eval_steps=1, **plateau, **FAILS)
    trainer.train()
    assert trainer.schedule.gave_up_at == 4
    assert trainer.state.global_step == 6
    assert trainer.lr_scheduler.last_epoch == 3  # evaluations that had a gain


def test_going_back_to_before_the_switch_forgets_it(make_trainer):
    trainer = make_trainer(**READS, **SAVED, on_divergence="stop_before")
    explode(trainer, 4)
    trainer.train()
    assert (trainer.state.global_step, trainer.diverged_at, trainer.schedule.switched_at) == (2, 4, None)


def test_a_run_resumed_into_another_folder_goes_back_to_where_it_came_from(make_trainer, tmp_path):
    make_trainer(max_steps=6, save_strategy="steps", save_steps=4).train()
    trainer = make_trainer(
        folder="other", max_steps=6, save_strategy="steps", save_steps=4, on_divergence="stop_before"
    )
    explode(trainer, 5)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert trainer.went_back_to == tmp_path / "run" / "checkpoint-4"


def test_models_alone_are_not_removed_by_auto_and_a_signals_checkpoint_is_whole(make_trainer, tmp_path):
    alone = {**SAVED, "save_only_model": True, "max_steps": 6}
    trainer = make_trainer(**alone)
    explode(trainer, 5)
    with pytest.raises(FloatingPointError):
        trainer.train()
    with pytest.raises(ValueError, match="checkpoint-4 is the last"):
        make_trainer(**alone).train("auto")
    assert (tmp_path / "run" / "checkpoint-4").is_dir()

    stopped = make_trainer(**alone, overwrite=True)
    begin = stopped.interruption.on_step_end

    def signalled(args, state, control, **kwargs):
        stopped.interruption.received = signal.SIGTERM if state.global_step == 3 else 0
        begin(args, state, control, **kwargs)

    stopped.interruption.on_step_end = signalled
    with pytest.raises(SystemExit):
        stopped.train()
    resumed = make_trainer(**alone)
    resumed.train("auto")
    assert [log["step"] for log in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in log] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
