"""Estimates beside real updates of a real trainer, and beside DeepSpeed's own estimates."""

from __future__ import annotations

import json

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rl_warmup.engine.fast import logprobs, passes, sampling
from rl_warmup.experiments.measurement import measure_update, measured_values
from rl_warmup.experiments.plan import cost, planned_cost
from rl_warmup.experiments.plan.cost import count_flops, count_memory
from rl_warmup.experiments.plan.work import read_work
from rl_warmup.models.tiny import TinySize, build_tokenizer

T5 = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 512, "num_layers": 2}
SHAPES = {
    "t5": ("t5", 2000, T5),
    "mt5": ("t5", 16000, {**T5, "d_model": 96, "d_kv": 24, "d_ff": 192, "feed_forward_proj": "gated-gelu",
                            "tie_word_embeddings": False}),
    "llama": ("llama", 4000, {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
                              "num_key_value_heads": 2}),
}  # fmt: skip
WAYS = [{}, {"backward_samples": 1}, {"gradient_checkpointing": True}, {"objective": "sft"}]


def write_recipe(folder, shape, **settings):
    """Writes a model with random weights and rows of one length; the recipe that trains it."""
    kind, vocab, sizes = SHAPES[shape]
    words = [f"w{i}" for i in range(vocab)]
    tokenizer = build_tokenizer(words, TinySize(tokenizer="words", vocab_size=vocab), kind == "t5")
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes, **ids))
    if shape == "mt5":  # a head of its own, as published ones have
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": " ".join(words[i : i + 47]), "target": " ".join(words[i + 50 : i + 81])} for i in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "model_name_or_path": str(folder / "model"), "task": "file", "task_kwargs": {"train": str(folder / "rows.jsonl")},
        "proposals": [], "num_warmups": 4, "max_warmup_length": 12, "empty_share": 0.0, "use_cpu": True, **settings,
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_operations_within_10_and_the_peak_within_25_percent(shape, way, tmp_path):
    values = measured_values(write_recipe(tmp_path, shape, **way))
    work, measured = read_work(values), measure_update(values)
    assert work.mean == work.longest == (48, 12, 32)
    assert count_flops(work)["total"] == pytest.approx(measured.flops, rel=0.10)
    assert count_memory(work, "ddp", 1)["peak"] == pytest.approx(measured.peak_bytes, rel=0.25)


def test_constants_are_those_of_the_code_they_describe():
    for name in ("KEPT_LOGITS", "LOGITS_PER_CHUNK", "ROWS_PER_CHUNK"):
        assert getattr(cost, name) == getattr(logprobs, name)
    assert (cost.TOKENS_AT_ONCE, cost.PAIRS_AT_ONCE) == (passes.MAX_TOKENS_PER_PASS, sampling.MAX_SCORES_PER_PASS)


PAPER = {
    "task": "hub", "max_prompt_length": 64, "max_warmup_length": 16, "max_target_length": 64, "num_warmups": 4,
    "empty_share": 0, "max_steps": 100, "per_device_train_batch_size": 2, "bf16": True,
}  # fmt: skip


def test_the_whole_run_for_a_sweep():
    recipe = {**PAPER, "model_name_or_path": "google/mt5-base"}
    planned, cheaper = planned_cost(recipe), planned_cost({**recipe, "backward_samples": 1})
    assert planned["parameters"] == 582_401_280
    assert planned["tokens_per_update"] == 2 * (64 + 4 * (16 + 1 + 64))
    assert planned["flops"] == 100 * planned["flops_per_update"]
    assert planned["tokens"] == 100 * planned["tokens_per_update"]
    assert planned_cost({**recipe, "objective": "sft"})["sft_ratio"] == 1 < cheaper["sft_ratio"] < planned["sft_ratio"]
    assert planned_cost({**recipe, "max_steps": -1})["flops"] is None
    # two processes do not share one reading of the prompts between sampling and gradient
    assert 2 < planned_cost(recipe, processes=2)["flops_per_update"] / planned["flops_per_update"] < 2.2


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_deepspeeds_own_estimators(devices):
    """Theirs counts float32 gradients beside bf16 ones under ZeRO-2 (4 bytes per parameter), half of that and one layer under
    ZeRO-3, and no gradients on their way to the host. Everything else agrees to the byte."""
    work = read_work({**PAPER, "model_name_or_path": "meta-llama/Llama-3.2-1B"})
    p, largest = work.shape.parameters, work.shape.head_size
    ours = {strategy: count_memory(work, strategy, devices) for strategy in cost.STRATEGIES}
    states = {strategy: m["parameters"] + m["gradients"] + m["optimizer"] for strategy, m in ours.items()}
    _, device = estimate_zero2_model_states_mem_needs(p, devices, 1, cpu_offload=False, additional_buffer_factor=1.0)
    assert states["zero2"] + 4 * p / devices == pytest.approx(device)
    _, device = estimate_zero2_model_states_mem_needs(p, devices, 1, cpu_offload=True, additional_buffer_factor=1.0)
    assert states["zero2_offload"] - 2 * p / devices == pytest.approx(device)
    _, device, _ = estimate_zero3_model_states_mem_needs(p, largest, devices, 1, False, False, True, 1.0)
    assert states["zero3"] + 2 * p / devices + 4 * largest == pytest.approx(device)
    host, device, _ = estimate_zero3_model_states_mem_needs(p, largest, devices, 1, True, True, True, 1.0)
    assert states["zero3_offload"] + 4 * largest == pytest.approx(device)
    assert ours["zero3_offload"]["host"] * devices == pytest.approx(host)
    assert states["ddp"] == (6 + 4 * min(devices, 2) + 8) * p  # no stage: float32 and bf16 weights, gradients, Adam
