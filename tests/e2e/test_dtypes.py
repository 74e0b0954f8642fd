"""In which precision weights are kept and products are made."""

from __future__ import annotations

import math

import pytest
import torch

from rl_warmup import WarmupConfig, WarmupTrainer

from .conftest import ledger_rows, tiny_model

KINDS = ("scratch-t5", "scratch-llama")


@pytest.mark.parametrize("drawn", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_trains_beside_float32(make_trainer, kind, drawn):
    """Sampling, scoring ahead and gradient under autocast: the first loss is float32's but for rounding."""
    logs = []
    for bf16 in (False, True):
        trainer = make_trainer(kind, f"bf16-{bf16}", bf16=bf16, backward_samples=drawn, max_steps=2, empty_share=0.6)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[1]["empty_target_logprob"] == pytest.approx(logs[0]["empty_target_logprob"], rel=0.02)
    assert math.isfinite(logs[1]["loss"])
    assert logs[1]["grad_norm"] > 0


def test_bfloat16_autocast_trains(make_trainer):
    trainer = make_trainer(bf16=True)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_fp16_is_refused_for_t5(make_trainer, tmp_path):
    model, tokenizer = tiny_model("scratch-t5")
    with pytest.raises(ValueError, match="t5 overflows in float16.*bf16"):
        WarmupTrainer(
            model=model.half(), args=WarmupConfig(output_dir=str(tmp_path), use_cpu=True),
            train_dataset=ledger_rows(4), processing_class=tokenizer, dtype="auto",
        )  # fmt: skip


@pytest.mark.parametrize("way", ["object", "model_init", "auto"])
def test_a_model_in_16_bits_is_trained_in_float32_unless_asked(tmp_path, capsys, way):
    model, tokenizer = tiny_model("scratch-llama")
    model.to(torch.bfloat16)
    given = {"model_init": lambda: model} if way == "model_init" else {"model": model}
    given |= {"dtype": "auto"} if way == "auto" else {}
    trainer = WarmupTrainer(
        args=WarmupConfig(output_dir=str(tmp_path), use_cpu=True, max_steps=1, learning_rate=1e-5, report_to=[]),
        train_dataset=ledger_rows(8), processing_class=tokenizer, **given,
    )  # fmt: skip
    assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16 if way == "auto" else torch.float32}
    assert ("bfloat16" in capsys.readouterr().out) == (way != "auto")
    before = trainer.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer.train()
    moved = (trainer.model.model.layers[0].mlp.up_proj.weight != before).float().mean()
    assert (moved > 0.9) == (way != "auto")


def test_a_dtype_that_is_none(make_trainer):
    model, tokenizer = tiny_model("scratch-llama")
    for given in (model, "nowhere"):
        with pytest.raises(ValueError, match="dtype: 'float31'"):
            WarmupTrainer(model=given, args=WarmupConfig(use_cpu=True), processing_class=tokenizer, dtype="float31")
