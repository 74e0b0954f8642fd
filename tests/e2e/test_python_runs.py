"""What is trained in Python is a run like any other: measured, reported and used by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from rl_warmup import WarmupConfig, WarmupGenerator, WarmupTrainer
from rl_warmup.cli.main import main
from rl_warmup.models.loading import load_model
from rl_warmup.rewards import Reward
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_jsonl

WORDS = ["alpha", "beta", "gamma", "delta"]
ROWS = [{"id": str(i), "prompt": " ".join(WORDS[i % 4 :]), "target": WORDS[(i * 3) % 4]} for i in range(8)]


def brevity(completion_ids, **kwargs):
    return [-float(len(ids)) for ids in completion_ids]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A saved model with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = load_model(
        "scratch-t5", lambda: [" ".join(WORDS)] * 3, {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trainer_of(base: Path, folder: Path, **changes) -> WarmupTrainer:
    own = {"reward_funcs", "processing_class"}
    settings = {
        "max_steps": 3, "num_warmups": 2, "max_warmup_length": 3, "max_target_length": 3, "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "report_to": "none", "per_device_train_batch_size": 4,
        "output_dir": str(folder), **{k: v for k, v in changes.items() if k not in own},
    }  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    return WarmupTrainer(model, WarmupConfig(**settings), ROWS, **{k: v for k, v in changes.items() if k in own})


def test_train_save_evaluate_report_generate(base, tmp_path, capsys):
    trainer = trainer_of(base, tmp_path / "run", seed=5)
    trainer.train()
    trainer.save_model()
    write_jsonl(tmp_path / "test.jsonl", ROWS)
    data = ["--task", "file", "--task_kwargs", f"{{test: {tmp_path / 'test.jsonl'}}}"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--controls", "shuffled", "filler"]) == 2
    assert "--task" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--controls", "shuffled", "filler", *data]) == 0
    known = json.loads((tmp_path / "run/environment.json").read_text("utf-8"))
    assert known["settings"]["model_name_or_path"] == str(base)
    by_command = json.loads((tmp_path / "run/evaluation/test/metrics.json").read_text("utf-8"))
    assert set(by_command["metrics"]) == {"", "shuffled", "filler"}

    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page")]) == 0
    assert "filler" in (tmp_path / "page/summary.md").read_text("utf-8")

    own = trainer.evaluate_controls(ROWS, metrics=["exact_match", "chrf++"], controls=["shuffled"])
    assert own == json.loads((tmp_path / "run/metrics.json").read_text("utf-8"))
    assert (own["objective"], own["seed"], own["updates"]) == ("marginal", 5, 3)
    assert own["metrics"]["shuffled"]["exact_match"] == by_command["metrics"]["shuffled"]["exact_match"]
    assert own["rows_hash"] == by_command["rows_hash"]
    written = read_jsonl(tmp_path / "run/predictions.jsonl")
    assert [row["id"] for row in written] == [row["id"] for row in ROWS]

    trainer_of(base, tmp_path / "other", seed=6, objective="sft").train()
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page2")]) == 0
    text = (tmp_path / "page2/summary.md").read_text("utf-8")
    assert "filler" in text  # joined from the evaluation, as the weights are the same
    assert main(["generate", str(tmp_path / "run"), ROWS[0]["prompt"], "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["prediction"] == written[0]["prediction"]
    assert (
        WarmupGenerator.from_pretrained(tmp_path / "run").generate(ROWS[0]["prompt"])[0]["warmup"]
        == written[0]["warmup"]
    )


def test_results_never_stand_beside_other_weights_runs_or_controls(base, tmp_path):
    trainer = trainer_of(base, tmp_path / "run")
    trainer.train()
    trainer.save_model()
    first = trainer.evaluate_controls(ROWS, controls=["shuffled", "filler"])
    again = trainer.evaluate_controls(ROWS[:4], controls=[])
    assert again["weights"] == first["weights"]
    assert [path.name for path in (tmp_path / "run").glob("predictions*")] == ["predictions.jsonl"]

    other = trainer_of(base, tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="folder: .*run is a run"):
        other.evaluate_controls(ROWS, folder=str(tmp_path / "run"))
    assert json.loads((tmp_path / "run/metrics.json").read_text("utf-8")) == again

    beside = tmp_path / "run/evaluation/test"
    assert trainer.evaluate_controls(ROWS, folder=str(beside))["weights"] == first["weights"]
    with torch.no_grad():
        next(trainer.model.parameters()).mul_(0.5)
    for folder in (None, str(beside)):
        with pytest.raises(ValueError, match="save_model"):
            trainer.evaluate_controls(ROWS, folder=folder)
    assert json.loads((tmp_path / "run/metrics.json").read_text("utf-8")) == again
    trainer.save_model()
    assert trainer.evaluate_controls(ROWS)["weights"] != first["weights"]


def test_results_of_an_adapter_never_stand_beside_other_weights(base, tmp_path):
    from peft import LoraConfig

    config = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "max_warmup_length": 3, "max_target_length": 3}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "num_warmups": 2}
    peft = LoraConfig(r=2, target_modules="all-linear")
    trainer = WarmupTrainer(str(base), WarmupConfig(**config, **quiet), ROWS, peft_config=peft)
    trainer.train()
    trainer.save_model()
    trainer.evaluate_controls(ROWS)
    with torch.no_grad():
        next(weight for name, weight in trainer.model.named_parameters() if "lora_B" in name).add_(0.5)
    with pytest.raises(ValueError, match="lora_B.* differs"):
        trainer.evaluate_controls(ROWS)


def test_rows_that_another_trainer_encoded_are_refused(base, tmp_path):
    model, tokenizer = load_model(
        "scratch-t5", lambda: ["delta gamma beta"] * 3, {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
    )
    own, quiet = {"eval_dataset": ROWS}, {"use_cpu": True, "report_to": "none", "max_target_length": 3}
    other = WarmupTrainer(
        model, WarmupConfig(output_dir=str(tmp_path / "a"), **quiet), ROWS[3:4], processing_class=tokenizer, **own
    )
    trainer = trainer_of(base, tmp_path / "b")
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == trainer.evaluate(ROWS)["eval_loss"]
    for method in (trainer.evaluate, trainer.predict, trainer.evaluate_controls):
        with pytest.raises(ValueError, match="another tokenizer"):
            method(other.eval_dataset)


def test_a_model_without_a_name_needs_its_tokenizer(base, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    for name, words in (("", "made in Python"), (str(tmp_path), "no tokenizer")):
        model.name_or_path = name
        with pytest.raises(ValueError, match=words):
            WarmupTrainer(model, WarmupConfig(output_dir=str(tmp_path / "x"), use_cpu=True), ROWS)


def test_rewards_may_be_functions_in_mappings_and_weighed_by_reward_weights(base, tmp_path):
    given = ["target_logprob", {"name": brevity, "weight": 0.5}, {"name": brevity, "label": "short"}, brevity]
    rewards = trainer_of(base, tmp_path / "a", reward_funcs=given[:3]).rewards.rewards
    assert [(r.name, r.weight) for r in rewards] == [("target_logprob", 1.0), ("brevity", 0.5), ("short", 1.0)]
    more = {"reward_weights": [2.0, 0.25, -1], "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    trainer = trainer_of(base, tmp_path / "b", reward_funcs=given[:3], **more)
    assert [r.weight for r in trainer.rewards.rewards] == [2.0, 0.25, -1]
    assert all(isinstance(r, Reward) for r in trainer.rewards.rewards)
    trainer.train()  # describes itself in its checkpoint
    assert "rewards/brevity/mean" in trainer.state.log_history[0]
    with pytest.raises(ValueError, match="2 weights for 1"):
        trainer_of(base, tmp_path / "c", reward_funcs=[brevity], reward_weights=[1, 2])
