"""The trainer as a user meets it: exact accumulation, exact resume, controls, rewards, adapters."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from rl_warmup import WarmupConfig, WarmupGenerator, WarmupTrainer
from rl_warmup.method.objectives import RULES
from rl_warmup.runtime.documents import read_jsonl

from .conftest import ledger_rows, tiny_model

KINDS = ("scratch-t5", "scratch-llama")


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}


def assert_same(one, other, tolerance):
    for name in one:
        assert torch.allclose(one[name], other[name], atol=tolerance), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "sft"},
        {"proposals": ["reverse"], "proposal_only": True},
        {"backward_samples": 1},
    ],
)
def test_eight_micro_batches_of_one_equal_one_of_eight(make_trainer, kind, settings):
    runs = []
    for size, pieces in ((8, 1), (1, 8)):
        trainer = make_trainer(
            kind,
            f"b{size}",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=pieces,
            max_steps=3,
            **settings,
        )
        trainer.train()
        runs.append((weights(trainer), [log["loss"] for log in trainer.state.log_history if "loss" in log]))
    assert_same(runs[0][0], runs[1][0], 2e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sft_control_is_token_cross_entropy(make_trainer, kind):
    trainer = make_trainer(kind, objective="sft", rows=ledger_rows(8), max_steps=1)
    rows, tokens = trainer.train_dataset, trainer.layout.tokens
    model = trainer.model
    summed, count = 0.0, 0
    for row in rows:
        target = torch.tensor([[tokens.separator_id, *row["target_ids"]]])
        prompt = torch.tensor([row["prompt_ids"]])
        with torch.no_grad():
            if kind == "scratch-t5":
                start = torch.tensor([[model.config.decoder_start_token_id]])
                logits = model(input_ids=prompt, decoder_input_ids=torch.cat([start, target[:, :-1]], 1)).logits[0, 1:]
            else:
                logits = model(input_ids=torch.cat([prompt, target[:, :-1]], 1)).logits[0, prompt.size(1) :]
        summed += F.cross_entropy(logits, target[0, 1:], reduction="sum").item()
        count += len(row["target_ids"])
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(summed / count, rel=1e-4)


@pytest.mark.parametrize("objective", sorted(RULES))
def test_every_objective_trains_both_layouts(make_trainer, objective):
    for kind in KINDS:
        steered = {"target_ess": 2.0, "uniform_target_share": 0.3} if objective == "marginal" else {}
        trainer = make_trainer(kind, kind, objective=objective, **steered)
        before = weights(trainer)
        trainer.train()
        log = trainer.state.log_history[1]
        assert math.isfinite(log["loss"])
        assert 1 <= log["ess"] <= 3
        assert log["target_logprob"] < 0
        assert (log["tau"] != 1.0) == bool(steered)
        assert any(not torch.equal(before[name], after) for name, after in weights(trainer).items())


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_gradients_change_no_number_that_is_logged(make_trainer, kind):
    """Every warmup is still scored and weighed; the first update, before weights differ, logs the same."""
    logs = []
    for k in (None, 1, 2):
        trainer = make_trainer(kind, f"k{k}", backward_samples=k, empty_share=0.6, max_steps=1)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for log in logs[1:]:
        assert log.keys() == logs[0].keys()
        for name in ("loss", "loss/policy", "loss/target", "target_logprob", "warmup_logp", "ess", "gain", "reward"):
            assert log[name] == pytest.approx(logs[0][name], rel=1e-4, abs=1e-6), name


def test_drawn_gradients_learn(make_trainer):
    """One of four warmups gets a gradient, and the targets become likely all the same."""
    trainer = make_trainer(backward_samples=1, num_warmups=4, max_steps=150, learning_rate=3e-3, logging_steps=10)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert last["target_logprob"] > first["target_logprob"] / 2


@pytest.mark.parametrize(
    "changed",
    [{}, {"backward_samples": 1}],
)
def test_a_resumed_run_ends_like_one_left_alone(make_trainer, tmp_path, changed):
    settings = {
        "max_steps": 8, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "proposals": ["reverse"],
        "readiness": -4.0,
        "anchor_weight": 0.1, "target_ess": 2.0, "eval_dataset": ledger_rows(8, seed=5), "eval_strategy": "steps",
        "eval_steps": 2, **changed,
    }  # fmt: skip
    whole = make_trainer(folder="whole", **settings)
    whole.train()
    assert (whole.schedule.switched_at is not None) == bool(settings["proposals"])
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", stopped)
    for later in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(stopped / later)
    again = make_trainer(folder="stopped", **settings)
    again.train(resume_from_checkpoint=str(stopped / "checkpoint-3"))
    assert_same(weights(whole), weights(again), 0.0)
    assert read_jsonl(tmp_path / "whole" / "metrics.jsonl") == read_jsonl(stopped / "metrics.jsonl")
    assert again.schedule.switched_at == whole.schedule.switched_at
    assert again.schedule.tau == whole.schedule.tau


def test_evaluating_more_often_changes_no_training(make_trainer):
    validation = ledger_rows(8, seed=3)
    runs = []
    for steps in (1, 100):
        trainer = make_trainer(
            folder=f"e{steps}", eval_dataset=validation, eval_strategy="steps", eval_steps=steps, max_steps=3
        )
        trainer.train()
        runs.append(weights(trainer))
    assert_same(runs[0], runs[1], 0.0)


def test_evaluation_reports_the_bound_and_the_gain(make_trainer):
    trainer = make_trainer(eval_dataset=ledger_rows(8, seed=3), num_eval_warmups=5)
    metrics = trainer.evaluate()
    tokens = 4  # three words and the end
    assert metrics["eval_loss"] == pytest.approx(-metrics["eval_target_bound"] / tokens, rel=1e-5)
    difference = metrics["eval_target_logprob"] - metrics["eval_empty_target_logprob"]
    assert metrics["eval_gain"] == pytest.approx(difference, abs=1e-4)
    assert metrics["eval_target_bound"] >= metrics["eval_target_logprob"]  # log-mean-exp is at least the mean


def test_ten_lines_with_a_trl_prompt_completion_dataset(tmp_path):
    from datasets import Dataset

    rows = [{"prompt": row["prompt"], "completion": row["target"]} for row in ledger_rows(16)]
    model, tokenizer = tiny_model("scratch-llama")
    trainer = WarmupTrainer(
        model=model,
        args=WarmupConfig(output_dir=str(tmp_path / "run"), max_steps=1, use_cpu=True, disable_tqdm=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.train_dataset[0]["target"] == rows[0]["completion"]


def test_trl_reward_functions_join_the_target(make_trainer):
    from trl.rewards import get_soft_overlong_punishment

    rewards = ["target_logprob", {"name": "trl.rewards:get_soft_overlong_punishment", "weight": 2.0,
                                  "kwargs": {"max_completion_len": 4, "soft_punish_cache": 2}}]  # fmt: skip
    trainer = make_trainer(rewards=rewards, max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    names = [name for name in log if name.startswith("rewards/") and "overlong" in name]
    assert log["reward"] == pytest.approx(log["rewards/target_logprob/mean"] + 2 * log[names[0]], rel=1e-4)
    assert get_soft_overlong_punishment(4, 2)(completion_ids=[[0] * 4]) == [-1.0]


SHORT = {
    "max_steps": 2, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True, "max_warmup_length": 4, "save_strategy": "no",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "modules"), [("scratch-t5", ["q", "v"]), ("scratch-llama", ["q_proj", "v_proj"])])
def test_a_lora_adapter_trains_alone_and_is_loaded_again(tmp_path, kind, modules):
    from peft import LoraConfig

    base = tmp_path / "base"
    for part in tiny_model(kind):
        part.save_pretrained(base)
    config = WarmupConfig(**SHORT, output_dir=str(tmp_path / "run"))
    lora = LoraConfig(r=2, target_modules=modules)
    trainer = WarmupTrainer(model=str(base), args=config, train_dataset=ledger_rows(16), peft_config=lora)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, after in weights(trainer).items() if not torch.equal(before[name], after)}
    assert moved
    assert all("lora" in name for name in moved)
    trainer.save_model()
    rows = trainer.train_dataset[:4]
    assert WarmupGenerator.load(tmp_path / "run").predict(rows) == trainer.predict_rows(rows)
    # a run that starts from it trains what it has become: the base with the adapter merged into it
    there = WarmupTrainer(model=str(tmp_path / "run"), args=trainer.args, train_dataset=ledger_rows(16))
    with pytest.raises(ValueError, match="output_dir"):  # not into the folder that it starts from
        there.train()
    config = WarmupConfig(**{**SHORT, "output_dir": str(tmp_path / "onward")})
    onward = WarmupTrainer(model=str(tmp_path / "run"), args=config, train_dataset=ledger_rows(16))
    before = weights(onward)
    onward.train()
    assert not any(torch.equal(before[name], after) for name, after in weights(onward).items() if after.dim() == 2)


def test_an_adapter_on_random_weights_is_refused(make_trainer):
    from peft import LoraConfig

    with pytest.raises(ValueError, match="this base model has random weights.*Save the base model"):
        make_trainer(peft_config=LoraConfig(r=2, target_modules=["q"]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(make_trainer, kind):
    runs = []
    for on in (False, True):
        trainer = make_trainer(kind, f"gc{on}", gradient_checkpointing=on)
        trainer.train()
        runs.append(weights(trainer))
    assert_same(runs[0], runs[1], 1e-6)


def test_settings_without_effect_are_said_in_python_too(make_trainer, capsys):
    trainer = make_trainer(tsallis_q=0.3, ignore_data_skip=True)
    assert "tsallis_q (the objective is marginal)" in capsys.readouterr().out
    trainer.train()
    assert "ignore_data_skip" in "".join(capsys.readouterr())


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_folder_is_a_plain_model_and_a_writer(make_trainer, tmp_path, kind):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    trainer = make_trainer(kind)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    declared = json.loads((tmp_path / "saved" / "warmup_layout.json").read_text())
    assert declared["separator"] == "<extra_id_0>"
    auto = AutoModelForSeq2SeqLM if kind == "scratch-t5" else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "saved")
    assert_same(weights(trainer), dict(plain.named_parameters()), 0.0)
    rows = trainer.train_dataset[:3]
    own, loaded = trainer.predict_rows(rows), WarmupGenerator.load(tmp_path / "saved").predict(rows)
    assert own == loaded


def test_an_sft_model_is_saved_as_one_that_writes_no_warmup(make_trainer, tmp_path):
    trainer = make_trainer(objective="sft")
    trainer.save_model(str(tmp_path / "saved"))
    written = WarmupGenerator.load(tmp_path / "saved").predict(trainer.train_dataset[:2])
    assert [row["warmup_finish"] for row in written] == ["empty", "empty"]


def test_the_run_folder_tells_what_happened(make_trainer, tmp_path):
    trainer = make_trainer(log_warmups=2, max_steps=3)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    metrics = read_jsonl(folder / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3]
    for name in ("loss", "target_logprob", "ess", "completions/mean_length", "completions/distinct_ratio", "reward"):
        assert name in metrics[0]
    shown = read_jsonl(folder / "warmups.jsonl")
    assert len(shown) == 6
    assert sum(w["posterior"] for w in shown[0]["warmups"]) == pytest.approx(1, abs=1e-4)
    environment = json.loads((folder / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])  # 2.13.0 of 2.13.0+cpu, as it was installed
    timing = read_jsonl(folder / "timing.jsonl")
    assert timing[-1]["train_seconds"] > 0
    # per update: 8 prompts of 3 words and the end; 8 groups of 3 rows `c [sep] y [eos]`, and whatever empty rows were drawn
    assert timing[0]["train_tokens"] >= 8 * 4 + 24 * (1 + 1 + 4)
    parameters = trainer.model.num_parameters()
    assert timing[0]["train_flops"] > 6 * parameters * timing[0]["train_tokens"]


def test_draft_and_mixture_proposals_train(make_trainer):
    trainer = make_trainer(proposals=["draft", "reverse", "keywords", "head", "sorted"], max_steps=2)
    trainer.train()
    assert trainer.state.log_history[0]["phase"] == "cold start"
    assert trainer.update.shown[0].group_size == 5


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_the_variety_of_warmups_is_that_of_the_update_however_it_is_cut(make_trainer, tmp_path, kind):
    """One prompt eight times has one warmup, or two: of 16, and not of the two in a micro-batch of one row."""
    settings = {"temperature": 0.05, "max_warmup_length": 2, "num_warmups": 2, "max_steps": 3, "guard": "warn"}
    settings["rows"] = ledger_rows(1) * 8
    logs = []
    for size in (8, 2, 1):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = make_trainer(kind, f"by-{size}", **cut, **settings)
        trainer.train()
        logs.append([log for log in trainer.state.log_history if "loss" in log])
    for name in (name for name in logs[0][0] if name.startswith("completions/")):
        values = [[log[name] for log in found] for found in logs]
        assert values[1:] == [values[0]] * 2, name
    assert all(log["completions/distinct_across_prompts"] <= 2 / 16 for log in logs[2])
    assert "same_everywhere" in [one["rule"] for one in read_jsonl(tmp_path / "by-1" / "warnings.jsonl")]


def test_the_control_warmups_reach_the_generator(make_trainer):
    from rl_warmup.inference.controls import control_warmups

    trainer = make_trainer()
    rows = trainer.train_dataset[:6]
    own = trainer.predict_rows(rows)
    shuffled = control_warmups("shuffled", own)
    assert sorted(map(tuple, shuffled)) == sorted(tuple(row["warmup_ids"]) for row in own)
    forced = trainer.predict_rows(rows, forced=shuffled)
    assert [row["warmup_ids"] for row in forced] == shuffled
    assert control_warmups("empty_warmup", own) == [[]] * 6
    with pytest.raises(ValueError, match="Unknown control 'shuffle'.*shuffled"):
        control_warmups("shuffle", own)


def test_a_loss_that_is_no_number_stops_with_a_sentence(make_trainer):
    def broken(completions, **kwargs):
        return [1e39] * len(completions)  # beyond float32, so infinite once weighed

    trainer = make_trainer(reward_funcs=[broken], objective="expected_logprob")
    with pytest.raises((FloatingPointError, ValueError), match="broken|not a number any more at update 1"):
        trainer.train()


@pytest.mark.parametrize("settings", [{}, {"objective": "sft"}], ids=["warmups", "sft"])
def test_weights_ruined_by_the_last_update_are_not_saved(make_trainer, settings):
    trainer = make_trainer(learning_rate=1e39, max_steps=1, save_strategy="steps", save_steps=1, **settings)
    with pytest.raises(FloatingPointError, match="update 1"):
        trainer.train()
    assert not list(Path(trainer.args.output_dir).rglob("model.safetensors"))


def test_a_network_without_finite_states_draws_nothing(make_trainer):
    trainer = make_trainer()
    trainer.model.encoder.block[0].layer[0].SelfAttention.o.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.train()


def test_samples_are_shown_in_the_terminal(make_trainer, capsys):
    trainer = make_trainer(disable_tqdm=False, max_steps=1)
    trainer.train()
    shown = capsys.readouterr()
    assert "log P(y|x,c)" in shown.out + shown.err
    assert "step 1/1 [own warmups]" in shown.out + shown.err


def test_the_guard_speaks_on_a_run_whose_warmups_are_ignored(make_trainer):
    trainer = make_trainer(learning_rate=1e-9, max_steps=4, empty_share=1.0)
    for block in trainer.model.decoder.block:  # a decoder that sees its last token only cannot read a warmup
        block.layer[0].SelfAttention.o.weight.data.zero_()
    trainer.train()
    warnings = read_jsonl(Path(trainer.args.output_dir) / "warnings.jsonl")
    ignored = next(warning for warning in warnings if warning["rule"] == "ignored")
    assert ignored["means"] == "the model does not read its warmup"
    assert trainer.state.log_history[0]["gain"] == pytest.approx(0, abs=1e-3)


def test_the_guard_changes_the_constraints_that_sample_and_score(make_trainer):
    trainer = make_trainer(guard="act")

    class Acts(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            trainer._change_constraints(temperature=1.5, min_length=2)
            assert trainer.constraints is trainer.rollout.constraints

    trainer.add_callback(Acts())
    trainer.train()
    assert all(
        len(warmup.ids) >= 2 for warmup in trainer.update.shown[0].warmups[: trainer.update.shown[0].num_prompts * 3]
    )
