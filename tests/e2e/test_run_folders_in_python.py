"""A run folder belongs to one run, and a run goes on as it began: trainers that are made in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainingArguments

from rl_warmup import WarmupTrainer
from rl_warmup.runtime.documents import read_jsonl

from .conftest import ledger_rows, tiny_model


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


def test_validation_rows_that_choose_the_model_are_compared(make_trainer):
    rows, best = ledger_rows(32), {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    saving = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(**saving, **best, eval_dataset=rows[:4]).train()
    with pytest.raises(ValueError, match="validation rows"):
        make_trainer(**saving, **best, eval_dataset=rows[4:8], max_steps=3).train(resume_from_checkpoint="auto")
    make_trainer(**saving, **best, eval_dataset=rows[:4], max_steps=3).train(resume_from_checkpoint="auto")
    make_trainer(**saving, folder="plain").train()
    make_trainer(**saving, folder="plain", max_steps=3, eval_dataset=rows[:2]).train(resume_from_checkpoint="auto")
