"""T5Gemma and T5Gemma 2, whose configs nest encoder and decoder and name no start token: trained, saved, loaded, in plain use."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, T5Gemma2Config, T5GemmaConfig

from rl_warmup import WarmupConfig, WarmupGenerator, WarmupTrainer
from rl_warmup.models.loading import load_model
from rl_warmup.models.tiny import TinySize, build_tokenizer
from rl_warmup.models.tokens import declare_tokens, end_by_separator

ROWS = [{"prompt": f"a b c w{i}", "target": f"w{i} c b a"} for i in range(8)]


def config_of(name: str, tokenizer):
    ids = {key: getattr(tokenizer, key) for key in ("pad_token_id", "eos_token_id", "bos_token_id")}
    part = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8, "max_position_embeddings": 64, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"], "vocab_size": len(tokenizer) + 3, **ids,
    }  # fmt: skip
    if name == "t5gemma":
        return T5GemmaConfig(encoder=dict(part), decoder=dict(part), vocab_size=part["vocab_size"])
    eyes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 4}
    image = {"boi_token_index": len(tokenizer), "eoi_token_index": len(tokenizer) + 1, "mm_tokens_per_image": 1}
    encoder = {"text_config": dict(part), "vision_config": {**eyes, "patch_size": 2}, **image}
    return T5Gemma2Config(encoder=encoder, decoder=dict(part), image_token_index=len(tokenizer) + 2)


@pytest.fixture(params=["t5gemma", "t5gemma2"])
def folder(request, tmp_path):
    """As a checkpoint of the hub: no start token in config.json."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([f"{r['prompt']} {r['target']}" for r in ROWS], TinySize(tokenizer="words"), True)
    config = config_of(request.param, tokenizer)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert "decoder_start_token_id" not in json.loads((tmp_path / "base/config.json").read_text())
    return tmp_path / "base"


def test_the_start_token_is_the_generation_configs_or_else_the_decoders_first(folder):
    model, tokenizer = load_model(str(folder))
    declare_tokens(model, tokenizer)
    assert model.config.decoder_start_token_id == model.config.decoder.bos_token_id == tokenizer.bos_token_id
    GenerationConfig(decoder_start_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    model, tokenizer = load_model(str(folder))
    declare_tokens(model, tokenizer)
    assert model.config.decoder_start_token_id == tokenizer.pad_token_id


def test_a_config_without_any_start_token_is_refused(folder):
    model, tokenizer = load_model(str(folder))
    model.config.decoder.bos_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        declare_tokens(model, tokenizer)


def test_the_separator_begins_as_the_end_token_where_the_decoder_reads_it_too(folder):
    model, tokenizer = load_model(str(folder))
    tokens = declare_tokens(model, tokenizer)
    end_by_separator(model, tokens)
    for module in (model.get_decoder().get_input_embeddings(), model.get_output_embeddings()):
        assert torch.equal(module.weight[tokens.separator_id], module.weight[tokens.eos_id])


@pytest.mark.parametrize("objective", ["marginal", "sft"])
def test_trained_evaluated_saved_loaded_and_the_same_in_plain_transformers(folder, tmp_path, objective):
    args = WarmupConfig(
        output_dir=str(tmp_path / "run"), objective=objective, num_warmups=2, max_warmup_length=3, max_target_length=6,
        max_steps=4, per_device_train_batch_size=4, learning_rate=0.003, use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = WarmupTrainer(model=str(folder), args=args, train_dataset=ROWS, eval_dataset=ROWS)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    written = trainer.predict_rows(ROWS)
    trainer.save_model()
    again = WarmupGenerator.from_pretrained(tmp_path / "run").generate(ROWS)
    for one, other in zip(written, again, strict=True):
        assert [one[key] for key in ("warmup_ids", "prediction_ids")] == [
            other[key] for key in ("warmup_ids", "prediction_ids")
        ]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    code = {"trust_remote_code": True} if objective == "marginal" else {}
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run", **code)
    separator = trainer.layout.tokens.separator_id
    for row in written:
        ids = model.generate(**tokenizer(row["prompt"], return_tensors="pt"))[0, 1:].tolist()
        place = ids.index(separator)
        assert (ids[:place], [i for i in ids[place + 1 :] if i > 1]) == (row["warmup_ids"], row["prediction_ids"])
