"""A run whose loss, weights or answers are no numbers any more: it ends with a sentence and its rows, or goes back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.cli.main import main
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_json, read_jsonl

ROWS = [{"prompt": f"a b w{i}", "target": f"w{i} b a"} for i in range(8)]
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


def trainer_of(folder: Path, kind: str = "t5", **settings) -> WarmupTrainer:
    model, tokenizer = load_model(f"scratch-{kind}", lambda: [text for row in ROWS for text in row.values()], SIZE)
    given = {"learning_rate": 1e-3, "max_steps": 2, "save_strategy": "no", **settings}
    args = WarmupConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_warmups=2, max_warmup_length=3, use_cpu=True, logging_steps=1,
        disable_tqdm=True, report_to="none", **given,
    )  # fmt: skip
    return WarmupTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=ROWS)


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
