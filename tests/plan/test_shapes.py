"""Numbers of parameters: exact, of published models and of what transformers builds."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rl_warmup.experiments.plan.shapes import SCRATCH, WELL_KNOWN, read_shape
from rl_warmup.experiments.plan.work import read_work
from rl_warmup.experiments.run import load_model
from rl_warmup.models.tiny import TinySize
from rl_warmup.tasks import load_task

PUBLISHED = {
    "google-t5/t5-small": 60_506_624, "google-t5/t5-base": 222_903_552, "google-t5/t5-large": 737_668_096,
    "google/flan-t5-small": 76_961_152, "google/flan-t5-base": 247_577_856, "google/flan-t5-large": 783_150_080,
    "google/mt5-small": 300_176_768, "google/mt5-base": 582_401_280, "google/mt5-large": 1_229_581_312,
    "meta-llama/Llama-3.2-1B": 1_235_814_400, "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248, "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120, "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen3-0.6B": 596_049_920,
}  # fmt: skip
T5 = {"d_model": 24, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 8, "vocab_size": 64}
LLAMA = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
CONFIGS = {
    "t5": T5, "mt5": T5, "llama": {**LLAMA, "attention_bias": True}, "mistral": {**LLAMA, "head_dim": 8},
    "qwen2": {**LLAMA, "tie_word_embeddings": True}, "qwen3": {**LLAMA, "head_dim": 16},
}  # fmt: skip


def test_well_known_models_have_their_published_number_of_parameters():
    assert {name: shape.parameters for name, shape in WELL_KNOWN.items()} == PUBLISHED
    assert read_shape("meta-llama/Llama-3.2-1B-Instruct") == read_shape("llama-3.2-1b")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_is_counted_as_transformers_builds_it(kind, tmp_path):
    config = AutoConfig.for_model(kind, **CONFIGS[kind])
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        built = auto.from_config(config).num_parameters()
    built += 64 * 24 if kind == "mt5" else 0  # transformers builds every T5 tied; a published mT5 has a head of its own
    config.save_pretrained(tmp_path)
    assert read_shape(str(tmp_path)).parameters == built
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind]}))  # defaults left out
    assert read_shape(str(tmp_path)).parameters == built


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_scratch_models_are_counted_as_they_are_built(kind):
    sizes = {"width": 32, "encoder_layers": 1, "layers": 2, "heads": 4, "tokenizer": "words"}
    kwargs = {"length": 4, "modulus": 5, "train_size": 50, "validation_size": 5, "test_size": 5}
    rows = load_task("ledger", **kwargs).splits["train"]
    model, _ = load_model(kind, lambda: (text for row in rows for text in (row["prompt"], row["target"])), sizes)
    work = read_work({"model_name_or_path": kind, "scratch": sizes, "task": "ledger", "task_kwargs": kwargs})
    assert work.shape.parameters == model.num_parameters()
    assert (work.mean.prompt, work.mean.target, work.train_rows) == (5, 5, 50)
    assert {f.name: f.default for f in fields(TinySize) if f.name in SCRATCH} == SCRATCH


def test_a_shape_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'google/mt5-bsae' is not known here.*Did you mean 'google/mt5-base'"):
        read_shape("google/mt5-bsae")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart"}))
    with pytest.raises(ValueError, match="is a 'bart'. plan knows what a step of t5, mt5, llama"):
        read_shape(str(tmp_path))
