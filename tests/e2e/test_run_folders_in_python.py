"""A run folder belongs to one run, and a run goes on as it began: trainers that are made in Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, TrainingArguments

from rl_warmup import WarmupTrainer
from rl_warmup.runtime.documents import read_jsonl

from .conftest import ledger_rows, tiny_model


class Stream(IterableDataset):
    """Rows one after another."""

    shuffle_buffer = 1

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_in_python_too(make_trainer, tmp_path):
    first = make_trainer()
    first.train()
    first.train()  # the same trainer may begin again
    (tmp_path / "run" / "metrics.json").write_text("{}")  # as of a run on the command line
    with pytest.raises(ValueError, match="already holds a run"):
        make_trainer(learning_rate=0.1).train()
    make_trainer(overwrite=True).train()
    assert not (tmp_path / "run" / "metrics.json").exists()
    saving = {"folder": "saved", "save_strategy": "steps", "save_steps": 1}
    make_trainer(**saving).train()
    with pytest.raises(
        ValueError, match=r"num_warmups was 3, now 2.*learning_rate was 0.001, now 0.1|learning_rate.*num_warmups"
    ):
        make_trainer(**saving, learning_rate=0.1, num_warmups=2, max_steps=4).train(resume_from_checkpoint=True)
    rows = ledger_rows(32)
    rows[3]["target"] = "a=0"
    other = make_trainer(**saving, rows=rows, max_steps=4)
    with pytest.raises(ValueError, match="row 3 "):
        other.train(resume_from_checkpoint=True)
    again = make_trainer(**saving, max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


@pytest.mark.parametrize("beta", [None, 0.1])
def test_the_starting_model_is_compared(make_trainer, monkeypatch, beta):
    saving = {"save_strategy": "steps", "save_steps": 1, "beta": beta}
    trainer = make_trainer(**saving)
    trainer.train()
    trainer.args.max_steps = 3
    trainer.train(resume_from_checkpoint="auto")  # the same trainer, whose model has moved meanwhile
    make_trainer(**saving, max_steps=4).train(resume_from_checkpoint="auto")

    def other_model(kind):
        model, tokenizer = tiny_model(kind)
        model.get_input_embeddings().weight.data += 1.0
        return model, tokenizer

    monkeypatch.setattr("tests.e2e.conftest.tiny_model", other_model)
    with pytest.raises(ValueError, match="other weights"):
        make_trainer(**saving, max_steps=5).train(resume_from_checkpoint="auto")


def test_names_of_reward_functions_and_files_of_plugins_are_compared(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def f(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    saving = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(**saving).train()
    with pytest.raises(ValueError, match=r"reward_funcs was None, now \['own.py:f'\]"):
        make_trainer(**saving, max_steps=3, reward_funcs=["own.py:f"]).train(resume_from_checkpoint=True)
    own = {**saving, "folder": "own", "rewards": ["target_logprob", "own.py:f"]}
    make_trainer(**own).train()
    make_trainer(**own, max_steps=3).train(resume_from_checkpoint=True)
    Path("own.py").write_text("def f(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    with pytest.raises(ValueError, match="own.py has other contents"):
        make_trainer(**own, max_steps=4).train(resume_from_checkpoint=True)


def test_evaluating_and_saving_before_training_is_no_other_run(make_trainer, tmp_path):
    trainer = make_trainer(eval_dataset=ledger_rows(4, 1))
    trainer.evaluate()
    trainer.save_model()
    trainer.train()
    assert [log["step"] for log in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="metrics.jsonl"):
        make_trainer(folder="other").train()


def test_resume_from_checkpoint_among_the_settings_resumes_and_overwrites_nothing(make_trainer, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(**saving).train()
    first = (tmp_path / "run" / "checkpoint-1" / "model.safetensors").stat().st_mtime_ns
    again = make_trainer(**saving, max_steps=3, overwrite=True, resume_from_checkpoint="auto")
    again.train()
    assert again.state.global_step == 3
    assert (tmp_path / "run" / "checkpoint-1" / "model.safetensors").stat().st_mtime_ns == first


def test_settings_of_transformers_alone_are_refused(tiny, rows, tmp_path):
    model, tokenizer = tiny()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"TrainingArguments.*WarmupConfig"):
        WarmupTrainer(model=model, args=args, train_dataset=rows(4), processing_class=tokenizer)


@pytest.mark.parametrize("by", ["load_best_model_at_end", "lr_scheduler_type", "callbacks"])
def test_validation_that_decides_something_is_compared(make_trainer, by):
    """It selects the model, lowers the learning rate, or ends the run."""
    rows, extra = (
        ledger_rows(32),
        {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
    )
    decides = {"load_best_model_at_end": True, "lr_scheduler_type": "reduce_lr_on_plateau"}
    extra |= {by: decides[by]} if by in decides else {"metric_for_best_model": "loss", "greater_is_better": False}

    def trainer(dataset, **changes):
        made = make_trainer(**extra, **changes, eval_dataset=dataset)
        if by == "callbacks":
            made.add_callback(EarlyStoppingCallback(early_stopping_patience=9))
        return made

    trainer(rows[:4]).train()
    with pytest.raises(ValueError, match="validation rows"):
        trainer(rows[4:8], max_steps=3).train(resume_from_checkpoint="auto")
    with pytest.raises(ValueError, match="num_eval_warmups was "):
        trainer(rows[:4], max_steps=3, num_eval_warmups=3).train(resume_from_checkpoint="auto")
    trainer(rows[:4], max_steps=3).train(resume_from_checkpoint="auto")


def test_validation_that_decides_nothing_may_change(make_trainer):
    saving = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(**saving).train()
    make_trainer(**saving, max_steps=3, eval_dataset=ledger_rows(2)).train(resume_from_checkpoint="auto")


def test_the_file_of_metrics_that_choose_the_model_is_compared(make_trainer, tmp_path):
    (tmp_path / "mine.py").write_text("def score(predictions, targets):\n    return 1.0\n")
    saving = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
    }

    def trainer(metric, **changes):
        made = make_trainer(
            **saving,
            **changes,
            metric_for_best_model=metric,
            eval_dataset=ledger_rows(4),
            compute_metrics=lambda _: {"score": 1.0},
        )
        made.recipe |= {"metrics": [{"name": f"{tmp_path}/mine.py:score"}]}  # as a recipe's run has it
        return made

    for folder, metric, says in (("by-score", "score", "mine.py has other contents"), ("by-loss", "loss", None)):
        trainer(metric, folder=folder).train()
        (tmp_path / "mine.py").write_text(f"def score(predictions, targets):\n    return 2.0  # {folder}\n")
        if says:
            with pytest.raises(ValueError, match=says):
                trainer(metric, folder=folder, max_steps=3).train(resume_from_checkpoint="auto")
        else:
            trainer(metric, folder=folder, max_steps=3).train(resume_from_checkpoint="auto")


def test_stored_warmups_of_a_stream_are_compared(make_trainer, tmp_path):
    stored, rows = tmp_path / "stored.jsonl", ledger_rows(32)
    for row, warmup in enumerate(["a=1"] * 32):
        with stored.open("a") as file:
            file.write(json.dumps({"row": row, "warmup": warmup}) + "\n")
    settings = {"proposals": ["stored"], "stored_warmups": str(stored), "save_strategy": "steps", "save_steps": 1}
    make_trainer(**settings, rows=Stream(rows)).train()
    stored.write_text(stored.read_text().replace("a=1", "b=2"))
    with pytest.raises(ValueError, match="stored.jsonl has other contents"):
        make_trainer(**settings, max_steps=3, rows=Stream(rows)).train(resume_from_checkpoint="auto")
