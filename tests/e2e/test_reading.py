"""Reading, then writing, in whole runs: phases, the switch, giving up, ending with the best, and a kill in between."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.method.proposals import COLUMNS, OTHER_REFERENCE, REFERENCE
from rl_warmup.method.reference import FILE
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.tasks.stream import Stream

from .conftest import READS, ledger_rows

FAILS = READS | {"reading_threshold": 1.0}


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def phases(folder):
    """Of the update to come, at every log."""
    return [log["phase"] for log in read_jsonl(folder / "metrics.jsonl") if "phase" in log]


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
@pytest.mark.parametrize(
    "more", [{}, {"backward_samples": 1}, {"imitation": "posterior"}, {"gradient_accumulation_steps": 2}]
)
def test_first_the_starts_samples_then_the_policys_own(make_trainer, tmp_path, kind, more):
    trainer = make_trainer(kind, **(READS | more))
    trainer.train()
    assert phases(tmp_path / "run") == ["reading"] * 2 + ["own warmups"] * 4
    logs = [log for log in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "phase" in log]
    assert ["kl" in log for log in logs] == [False] * 3 + [True] * 3
    assert logs[3]["kl"] >= 0
    assert trainer.schedule.switched_at == 3
    assert all("read" in log for log in logs)
    own = ("prompt", "target", "id", "prompt_ids", "target_ids", "word_lengths")
    assert {tuple(sorted(row)) for row in trainer.train_dataset} == {
        tuple(sorted((*own, COLUMNS[REFERENCE], OTHER_REFERENCE)))
    }


def test_a_second_training_reads_first_as_well(make_trainer, tmp_path):
    trainer = make_trainer(**READS)
    trainer.train()
    moved = weights(trainer)
    trainer.train()
    assert phases(tmp_path / "run") == ["reading"] * 2 + ["own warmups"] * 4
    held_to = trainer.start.model.state_dict()
    assert all(torch.equal(value, held_to[name]) for name, value in moved.items())


def test_columns_of_the_data_may_be_called_like_ours(make_trainer):
    """Rewards see the data's own `reference` and `stored`, and nothing of ours."""
    seen = []

    def reward(completions, reference, stored, **others):
        seen.append((reference[0], stored[0], *sorted(others)))
        return [0.0] * len(completions)

    rows = [row | {"reference": "a text", "stored": "another"} for row in ledger_rows(32)]
    make_trainer(rows=rows, reward_funcs=[reward, "target_logprob"], **READS).train()
    assert {columns[:2] for columns in seen} == {("a text", "another")}
    assert not [name for columns in seen for name in columns[2:] if "warmups" in name]


def test_only_the_rows_that_reading_comes_to_are_sampled(make_trainer, tmp_path):
    """Four updates of three rows out of 32: twelve lines behind the header, and no update asks for another."""
    trainer = make_trainer(**(READS | {"per_device_train_batch_size": 3}))
    trainer.train()
    assert len((tmp_path / "run" / FILE).read_text().splitlines()) == 13
    assert sum(COLUMNS[REFERENCE] in row for row in trainer.train_dataset) == 12


def test_another_prompt_is_not_the_same_one_again(make_trainer):
    """Two rows for every prompt, as in a data set with two targets each; the last prompt is the first one."""
    rows = [row for row in ledger_rows(12) for _ in range(2)]
    rows += [rows[0]] * 8
    trainer = make_trainer(rows=rows, **READS)
    trainer.train()
    group_of = {id(row[COLUMNS[REFERENCE]]): row["prompt"] for row in trainer.train_dataset}
    assert all(group_of[id(row[OTHER_REFERENCE])] != row["prompt"] for row in trainer.train_dataset)


def test_where_all_prompts_are_one_no_warmup_stands_for_another_prompts(make_trainer, tmp_path):
    """What is read is then compared with none: a run on one row, the first thing many try, is not told that nothing helps."""
    rows = [ledger_rows(1)[0]] * 8
    trainer = make_trainer(
        rows=rows, **(READS | {"reading_threshold": 0.01, "min_reading_updates": 1, "max_reading_updates": 6})
    )
    trainer.train()
    assert all(row[OTHER_REFERENCE] == [] for row in trainer.train_dataset)
    measured = trainer.schedule.measurement
    assert measured.other == measured.none < 0


def test_a_run_that_ends_before_the_policy_writes_samples_its_own_rows_alone(make_trainer, tmp_path):
    trainer = make_trainer(**(READS | {"max_steps": 2, "min_reading_updates": 100, "max_reading_updates": 600}))
    trainer.train()
    assert len((tmp_path / "run" / FILE).read_text().splitlines()) == 1 + 2 * 8
    assert [warning["rule"] for warning in read_jsonl(tmp_path / "run" / "warnings.jsonl")][-1] == "never_switched"


@pytest.mark.parametrize("streamed", [False, True])
def test_plain_fine_tuning_samples_nothing_and_may_be_prolonged(make_trainer, tmp_path, streamed):
    """With the default `proposals`, which mean nothing to it; a search of two updates has sampled for these alone."""
    for objective in ("sft", "marginal"):
        given = {"rows": Stream("train", lambda: iter(ledger_rows(40)), 1)} if streamed else {}
        given |= {"objective": objective, "proposals": ["reference"], "save_strategy": "steps", "save_steps": 1}
        make_trainer(folder=objective, **given, max_steps=2).train()
        longer = make_trainer(folder=objective, **given, max_steps=3)
        if objective == "sft":
            assert longer.train(resume_from_checkpoint=True).global_step == 3
            assert not (tmp_path / objective / FILE).exists()
        else:
            with pytest.raises(ValueError, match="max_steps was 2, now 3"):
                longer.train(resume_from_checkpoint=True)


def test_streams_bring_their_first_rows(make_trainer, tmp_path):
    rows = ledger_rows(40)
    trainer = make_trainer(rows=Stream("train", lambda: iter(rows), 1), **READS)
    trainer.train()
    assert phases(tmp_path / "run") == ["reading"] * 2 + ["own warmups"] * 4
    assert len((tmp_path / "run" / FILE).read_text().splitlines()) == 1 + 4 * 8


@pytest.mark.parametrize("more", [{"proposal_only": True}, {"anchor_weight": 0.5}])
def test_streams_bring_all_rows_where_samples_are_trained_on_to_the_end(make_trainer, tmp_path, more):
    rows = ledger_rows(40)
    make_trainer(rows=Stream("train", lambda: iter(rows), 1), **(READS | more)).train()
    assert len((tmp_path / "run" / FILE).read_text().splitlines()) == 1 + 6 * 8


def test_without_a_kl_no_second_model_is_kept(make_trainer):
    assert make_trainer(**READS, beta=0.0).start is None
    assert make_trainer(**READS).start.model is not None
    assert make_trainer(proposals=["reverse"]).start is None
    assert make_trainer(proposals=[], beta=0.2).start.model is not None


def test_start_and_policy_are_scored_in_one_precision(make_trainer, tmp_path):
    """Before the first update the two are one model: in bfloat16 too nothing lies between them."""
    make_trainer("scratch-llama", proposals=[], beta=0.2, bf16=True, max_steps=1).train()
    assert abs(read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]["kl"]) < 1e-7


def test_samples_are_drawn_on_the_device_of_the_training(make_trainer, monkeypatch):
    """Under DeepSpeed and FSDP, Trainer leaves the model on the CPU until training begins; `meta` stands for an accelerator."""
    trainer = make_trainer(**READS, bf16=True)
    told = []

    def draw(resumed):
        told.append("bf16" if torch.is_autocast_enabled("cpu") else "float32")
        raise InterruptedError

    monkeypatch.setattr(WarmupConfig, "device", torch.device("meta"))
    monkeypatch.setattr(trainer.model, "to", lambda device: told.append(str(device)))
    monkeypatch.setattr(trainer, "_add_reference_warmups", draw)
    with pytest.raises(InterruptedError):
        trainer.train()
    assert told == ["meta", "bf16", "cpu"]


def divergences(folder):
    return {log["step"]: log["kl"] for log in read_jsonl(folder / "metrics.jsonl") if "kl" in log}


def test_an_adapter_needs_no_second_model(adapted, tmp_path):
    trainer = adapted()
    assert trainer.start is not None
    assert trainer.start.model is None
    trainer.train()
    found = divergences(tmp_path / "run")
    assert list(found) == [4, 5, 6]
    assert found[6] > 0  # the adapter has moved the policy, and is switched off to see it


def test_samples_under_a_new_adapter_end_where_the_model_ends_its_texts(adapted, tmp_path):
    """Its separator cannot begin as a copy of the end token; a model that brings a trained adapter may know the separator."""
    for folder, adapter, ends in (("new", None, True), ("trained", {"init_lora_weights": False}, False)):
        trainer = adapted(adapter=adapter, folder=folder)
        tokens = trainer.layout.tokens
        trainer.train()
        header = read_jsonl(tmp_path / folder / "reference_warmups.jsonl")[0]
        assert header["separator_id"] == (tokens.eos_id if ends else tokens.separator_id)


def test_a_start_with_an_adapter_is_not_its_base(adapted, tmp_path):
    """A model that brings an adapter which was trained before: nothing has moved, so the KL is 0."""
    trainer = adapted(adapter={"init_lora_weights": False}, learning_rate=0.0)
    assert trainer.start.model is not None
    trainer.train()
    assert all(abs(value) < 1e-6 for value in divergences(tmp_path / "run").values())


@pytest.mark.parametrize("adapter", [None, {}])
def test_an_adapter_leaves_the_separator_of_its_base_alone(adapted, tmp_path, adapter):
    """It could not be saved: what is loaded again is the model that was trained."""
    with pytest.raises(ValueError, match="only the adapter is saved"):
        adapted(adapter, separator_init="end_token")
    trainer = adapted(adapter)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again, _ = load_model(str(tmp_path / "saved"))
    rows = [model.get_input_embeddings().weight for model in (again, trainer.model)]
    torch.testing.assert_close(*rows)


def test_going_on_from_a_saved_adapter_goes_on_from_all_of_it(adapted, tmp_path):
    """Its separator has been trained with it, and a second adapter is saved as one on top of the first."""
    other = {"lora": {"init_lora_weights": False}}
    adapted(folder="first", **other).save_model(str(tmp_path / "first"))
    model, tokenizer = load_model(str(tmp_path / "first"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = WarmupConfig(output_dir=str(tmp_path / "all"), use_cpu=True, report_to="none", **READS)
    WarmupTrainer(model, config, ledger_rows(8), processing_class=tokenizer)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    adapted(name="first", folder="second", seed=1, **other).save_model(str(tmp_path / "second"))
    again, _ = load_model(str(tmp_path / "second"))
    query = "encoder.block.0.layer.0.SelfAttention.q.weight"
    base, _ = load_model(str(tmp_path / "base"))
    ranks = [torch.linalg.matrix_rank(m.state_dict()[query] - base.state_dict()[query]) for m in (model, again)]
    assert ranks == [2, 4]


def test_the_start_has_no_dropout_under_an_adapter_either(adapted):
    trainer = adapted(dropout=0.3, disable_dropout=False)
    looks, look = [], trainer.start.warmup_logps

    def twice(*given):
        looks.append((look(*given), look(*given)))
        assert trainer.model.training
        return looks[-1][0]

    trainer.start.warmup_logps = twice
    trainer.train()
    assert looks
    assert all(torch.equal(one, other) for one, other in looks)


# ---------------------------------------------------------------------- nothing to read


def test_a_start_that_helps_nobody_ends_as_plain_fine_tuning(make_trainer, tmp_path, capsys):
    trainer = make_trainer(eval_dataset=ledger_rows(8, 1), eval_strategy="steps", eval_steps=1, **FAILS)
    trainer.train()
    assert phases(tmp_path / "run") == ["reading"] * 3 + ["plain"] * 3
    assert (trainer.schedule.switched_at, trainer.schedule.gave_up_at) == (None, 4)
    assert trainer.start is None  # the copy's memory is free
    (warning,) = [w for w in read_jsonl(tmp_path / "run" / "warnings.jsonl") if w["rule"] == "nothing_to_read"]
    assert warning["step"] == 4
    logs = [log for log in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "phase" in log]
    assert "ess" not in logs[-1]
    assert trainer.state.best_global_step in (4, 5, 6)  # what was measured with warmups counts no more
    trainer.save_model()
    assert WarmupGenerator.load(tmp_path / "run").mode == "empty"


@pytest.mark.parametrize("metric", ["gain", "eval_target_bound"])
def test_a_metric_that_needs_warmups_gives_way_to_the_loss(make_trainer, tmp_path, capsys, metric):
    """A plain model has no gain: from update 4 on the lowest loss is the best, also after a restart."""
    settings = FAILS | {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.3, "max_steps": 8}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": metric}
    trainer = make_trainer(eval_dataset=ledger_rows(8, 1), **settings)
    trainer.train()
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(range(4, 9), key=losses.__getitem__)
    assert trainer.state.best_global_step == best
    assert trainer.state.best_metric == losses[best]
    assert best == 8 or f"update {best}: loss" in capsys.readouterr().out
    assert trainer.args.metric_for_best_model == metric
    for step in (6, 7, 8):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    again = make_trainer(eval_dataset=ledger_rows(8, 1), **settings)
    again.train(resume_from_checkpoint="auto")
    assert (again.state.best_global_step, again.state.best_metric) == (best, losses[best])


def test_plain_updates_are_those_of_sft(make_trainer):
    """From the same weights and rows an update after giving up is the control's."""
    gave_up = make_trainer(folder="one", lr_scheduler_type="constant", **(FAILS | {"max_steps": 5, "optim": "sgd"}))
    kept = {}

    def keep(trainer, step):
        if trainer.state.global_step == step:
            kept.update(weights(trainer))

    original = gave_up.get_batch_samples

    def watched(*args):
        keep(gave_up, 4)
        return original(*args)

    gave_up.get_batch_samples = watched
    gave_up.train()
    rows = gave_up.update.rows
    control = make_trainer(folder="two", objective="sft", rows=rows, max_steps=1, lr_scheduler_type="constant", optim="sgd",
                           learning_rate=1e-2)  # fmt: skip
    with torch.no_grad():
        for name, parameter in control.model.named_parameters():
            parameter.copy_(kept[name])
    control.train()
    for name, value in weights(control).items():
        torch.testing.assert_close(value, weights(gave_up)[name], rtol=1e-5, atol=1e-7)


def test_a_run_ends_with_its_best_model(make_trainer, tmp_path, capsys):
    """The metric is made up: best after update 4, then worse."""
    worth = {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.5, 4: 0.9, 5: 0.3, 6: 0.0}
    trainer = make_trainer(
        eval_dataset=ledger_rows(8, 1), eval_strategy="steps", eval_steps=1, metric_for_best_model="worth",
        compute_metrics=lambda predictions: {"worth": worth[trainer.state.global_step]}, **READS,
    )  # fmt: skip
    trainer.train()
    assert trainer.best_at() == 4
    assert "update 4" in capsys.readouterr().out
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    mine = trainer.model.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in saved.items())


def test_the_best_model_writes_under_the_constraints_of_its_update(make_trainer, tmp_path):
    """The guard raises the temperature after update 5; the run ends with the model of update 4."""
    worth = {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.5, 4: 0.9, 5: 0.3, 6: 0.0}
    trainer = make_trainer(
        eval_dataset=ledger_rows(8, 1), eval_strategy="steps", eval_steps=1, metric_for_best_model="worth", guard="act",
        compute_metrics=lambda predictions: {"worth": worth[trainer.state.global_step]}, **READS,
    )  # fmt: skip
    log = trainer.log

    def act(logs, *args):
        log(logs, *args)
        if trainer.state.global_step == 5 and "loss" in logs:
            trainer._change_constraints(temperature=2.0, min_length=3)

    trainer.log = act
    trainer.train()
    trainer.save_model()
    assert trainer.rollout.constraints is trainer.constraints
    assert (trainer.constraints.temperature, trainer.constraints.min_length) == (1.0, 1)
    assert WarmupGenerator.load(tmp_path / "run").constraints.temperature == 1.0


# ---------------------------------------------------------------------- restarts


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_resumed_bit_for_bit_inside_reading_at_the_switch_and_after_it(make_trainer, tmp_path, kind, step):
    settings = READS | {"save_strategy": "steps", "save_steps": 1, "backward_samples": 1}
    whole = make_trainer(kind, folder="whole", **settings)
    whole.train()
    (tmp_path / "cut").mkdir()
    for name in (f"checkpoint-{step}", FILE, "metrics.jsonl"):
        source = tmp_path / "whole" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / "cut" / name)
    again = make_trainer(kind, folder="cut", **settings)
    again.train(resume_from_checkpoint="auto")
    mine, others = weights(again), weights(whole)
    assert all(torch.equal(value, others[name]) for name, value in mine.items())
    assert read_jsonl(tmp_path / "cut" / "metrics.jsonl") == read_jsonl(tmp_path / "whole" / "metrics.jsonl")


def test_auto_without_a_checkpoint_starts_anew(make_trainer, tmp_path):
    """What an earlier run left, killed before its first checkpoint, is replaced as in any new run."""
    make_trainer(**READS).train()
    again = make_trainer(seed=5, **READS)
    again.train(resume_from_checkpoint="auto")
    assert read_jsonl(tmp_path / "run" / FILE)[0]["seed"] == 5


def test_resumed_after_giving_up_it_stays_plain(make_trainer, tmp_path):
    settings = FAILS | {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(folder="whole", **settings)
    whole.train()
    for later in ("checkpoint-6",):
        shutil.rmtree(tmp_path / "whole" / later)
    again = make_trainer(folder="whole", **settings)
    again.train(resume_from_checkpoint="auto")
    assert again.rollout.objective == "sft"
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(again).items())
    state = json.loads((tmp_path / "whole" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["Schedule"]["attributes"]["gave_up_at"] == 4
