"""A model is refused where transformers would make a part of it up: tensors, a tokenizer, positions, a kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5EncoderModel,
)

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.models.inference_settings import Inference
from rl_warmup.models.loading import add_adapter, load_model
from rl_warmup.models.positions import Positions
from rl_warmup.models.tiny import TinySize, build_model, build_tokenizer
from rl_warmup.models.tokens import declare_tokens

SIZE = TinySize(width=16, layers=2, heads=2, tokenizer="words")
ROWS = [{"prompt": "w1 w2", "target": "w2 w1"}, {"prompt": "w3 w4", "target": "w4 w3"}]


def tokenizer_of(kind="llama"):
    return build_tokenizer([" ".join(f"w{i}" for i in range(40))], SIZE, encoder_decoder=kind == "t5")


@pytest.fixture(params=["t5", "llama"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, kind):
    tokenizer = tokenizer_of(kind)
    build_model(kind, tokenizer, SIZE).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def change(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder) -> str:
    with pytest.raises(ValueError, match=r"^model_name_or_path: ") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_folder_without_tokenizer_files(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "tokenizer" in refused(folder)


def test_a_folder_with_a_tokenizer_config_alone(folder):
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in refused(folder)


@pytest.mark.parametrize("what", ["missing", "superfluous", "other shape"])
def test_one_tensor_that_does_not_fit(folder, what):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer" in name and weights[name].dim() == 2)
    if what == "missing":
        del weights[name]
    elif what == "superfluous":
        weights["foreign.extra.weight"] = torch.zeros(2)
        name = "foreign.extra.weight"
    else:
        weights[name] = torch.zeros(3, 5)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert name in refused(folder)


@pytest.mark.parametrize("layers", [1, 3])
def test_other_layers_than_stored(folder, kind, layers):
    change(folder, **({"num_layers": layers} if kind == "t5" else {"num_hidden_layers": layers}))
    assert ("block.2" if kind == "t5" and layers == 3 else "layers.2" if layers == 3 else ".1.") in refused(folder)


def test_tied_heads_need_no_tensor(folder):
    model, _ = load_model(str(folder))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("model", [BertForSequenceClassification, LlamaForSequenceClassification])
def test_networks_that_do_not_write(tmp_path, model):
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    config = (
        BertConfig(**sizes) if model is BertForSequenceClassification else LlamaConfig(**sizes, num_key_value_heads=2)
    )
    model(config).save_pretrained(tmp_path)
    tokenizer_of().save_pretrained(tmp_path)
    assert model.__name__ in refused(tmp_path)


def test_a_tokenizer_beyond_the_embedding(kind):
    tokenizer = tokenizer_of(kind)
    model = build_model(kind, tokenizer, SIZE)
    tokenizer.add_tokens(["new1", "new2"])
    rows = model.get_input_embeddings().num_embeddings
    with pytest.raises(ValueError, match=rf"2 tokens beyond the model's {rows} embedding rows.*'new1' \({rows}\)"):
        declare_tokens(model, tokenizer)


def test_weights_are_float32_unless_asked_otherwise(folder, tmp_path):
    model, tokenizer = load_model(str(folder), dtype=torch.bfloat16)
    half = tmp_path / "half"
    model.save_pretrained(half)
    tokenizer.save_pretrained(half)
    assert load_file(half / "model.safetensors").popitem()[1].dtype == torch.bfloat16
    args = WarmupConfig(output_dir=str(tmp_path / "run"), use_cpu=True, max_steps=1, max_warmup_length=2, num_warmups=2,
                        save_strategy="no", report_to="none", disable_tqdm=True)  # fmt: skip
    trainer = WarmupTrainer(model=str(half), args=args, train_dataset=[dict(row) for row in ROWS])
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert load_model(str(half), dtype="auto")[0].dtype == torch.bfloat16


@pytest.fixture(scope="module")
def small():
    """By name, networks with 12 positions."""
    ids = {"vocab_size": 60, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    llama = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "max_position_embeddings": 12, **ids}  # fmt: skip
    long = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "rope_theta": 10000.0,
        "factor": 2.0,
    }
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=12, **ids)),
        "llama": LlamaForCausalLM(LlamaConfig(**llama)),
        "dynamic": LlamaForCausalLM(
            LlamaConfig(**llama, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
        ),
        "longrope": LlamaForCausalLM(LlamaConfig(
            **{**llama, "max_position_embeddings": 24},
            rope_parameters={**long, "original_max_position_embeddings": 12},
        )),
        "bart": BartForConditionalGeneration(BartConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=12, decoder_start_token_id=1, **ids,
        )),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "llama", "dynamic", "longrope", "bart"])
def test_a_row_beyond_the_positions_is_refused_with_its_number(small, name):
    model, both = small[name], name == "bart"
    tokenizer = tokenizer_of("t5" if both else "llama")
    coder = RowEncoder(tokenizer, 4, encoder_decoder=both, positions=Positions.of(model, 3))
    # prompt <s> w.. (or w.. </s>), 3 of the warmup, the separator, the target and its end
    fits = {"id": "a", "prompt": " ".join(["w1"] * (11 if both else 4)), "target": "w2 w3"}
    assert len(coder.encode_all([fits], "train")) == 1
    prompt = {**fits, "id": "b", "prompt": fits["prompt"] + " w1"}
    target = {**fits, "id": "c", "target": " ".join(["w2"] * 7)}
    for row in (prompt, target):
        with pytest.raises(ValueError, match=rf"train row 1 \(id {row['id']}\).*12"):
            coder.encode_all([fits, row], "train")
    with torch.no_grad():  # what fits can be computed
        ids = torch.tensor([coder.encode(dict(fits), "row")["prompt_ids"]])
        model(input_ids=ids, **({"decoder_input_ids": torch.full((1, 12), 5)} if both else {}))


def test_t5_has_no_limit(t5):
    assert Positions.of(t5.model, 3) == Positions(None, None, 3)


LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["shared"]}, "shared"),
        ({"target_modules": r".*(embed_tokens|lm_head)"}, "embed_tokens|lm_head"),
        ({"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, "lm_head"),
        ({"target_modules": "all-linear", "modules_to_save": ["embed_tokens"]}, "embed_tokens"),
    ],
)
def test_adapters_of_tied_embeddings_are_refused(folder, kind, changes, named):
    if kind == "llama" and named == "shared":
        pytest.skip("a Llama has no module of that name")
    model, _ = load_model(str(folder))
    with pytest.raises(ValueError, match=rf"({named}).*tied"):
        add_adapter(model, LoraConfig(**LORA, **changes))


@pytest.mark.parametrize("modules", ["all-linear", ["embed_tokens", "lm_head"]])
@torch.no_grad()
def test_an_adapter_is_loaded_as_it_was_trained(tmp_path, modules):
    tokenizer = tokenizer_of()
    base = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=3, tie_word_embeddings=modules == "all-linear",
    ))  # fmt: skip
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = add_adapter(load_model(str(tmp_path / "base"))[0], LoraConfig(**LORA, target_modules=modules))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[3, 6, 7, 8]])
    again, _ = load_model(str(tmp_path / "adapter"))
    assert torch.allclose(again(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits, atol=1e-4)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    lost = next(key for key in sorted(stored) if "lora_" in key)
    save_file({k: v for k, v in stored.items() if k != lost}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapter in .* does not store") as caught:
        load_model(str(tmp_path / "adapter"))
    assert lost in str(caught.value)


def test_an_adapter_whose_base_has_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_model("start:skills-llama")
    model.save_pretrained("base")
    tokenizer.save_pretrained("base")
    adapted = add_adapter(load_model("base")[0], LoraConfig(**LORA, target_modules=["q_proj"]))
    adapted.save_pretrained("adapter")
    tokenizer.save_pretrained("adapter")
    (tmp_path / "base").rename("elsewhere")
    with pytest.raises(ValueError, match="model_name_or_path: ") as caught:
        load_model("adapter")
    said = str(caught.value)
    assert all(word in said for word in ("adapter/adapter_config.json", "'base'", "base_model_name_or_path"))
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    Path("adapter/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "elsewhere"}))
    load_model("adapter")  # what the sentence says works


def test_a_writer_keeps_the_stored_precision(folder, tmp_path):
    model, tokenizer = load_model(str(folder), dtype=torch.bfloat16)
    tokens = declare_tokens(model, tokenizer)
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    Inference(SamplingConstraints(tokens.separator_id, tokens.banned), tokens.separator).save(tmp_path / "run")
    assert WarmupGenerator.load(tmp_path / "run", "cpu").model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind_of_number", [torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("pickled", [False, True])
def test_whole_numbers_are_no_weights(folder, kind_of_number, pickled):
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in sorted(weights) if weights[key].dim() == 2)
    weights[key] = (weights[key] * 10).to(kind_of_number)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    said = refused(folder)
    assert key in said


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{}"), ("tokenizer.json", ""), ("tokenizer.json", '{"model": {"vocab": {}}}'),
        ("tokenizer_config.json", "[]"), ("tokenizer_config.json", ""),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_named(folder, file, text):
    (folder / file).write_text(text)
    refused(folder)


@pytest.mark.parametrize("kind", ["t5"])
def test_a_tokenizer_that_transformers_takes_for_another(folder):
    (folder / "tokenizer_config.json").unlink()
    refused(folder)


def test_an_encoder_alone_is_called_so(tmp_path):
    size = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**size, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)).save_pretrained(tmp_path)
    tokenizer_of("t5").save_pretrained(tmp_path)
    assert "T5EncoderModel" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"r": 4}, "adapter_config.json"), ({"base_model_name_or_path": 5}, "5"), ({}, "names no base")],
)
def test_an_adapter_whose_settings_were_changed(folder, tmp_path, changes, named):
    model, _ = load_model(str(folder))
    target = ["q"] if model.config.is_encoder_decoder else ["q_proj"]
    adapter = tmp_path / "adapter"
    add_adapter(model, LoraConfig(r=2, target_modules=target)).save_pretrained(adapter)
    tokenizer_of().save_pretrained(adapter)
    path = adapter / "adapter_config.json"
    changes = changes or {"base_model_name_or_path": str(adapter)}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert named in refused(adapter)
