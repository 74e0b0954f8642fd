"""Files of a model that are damaged, or say what no model can be: one sentence with the file or the key, and code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rl_warmup.cli.main import main
from rl_warmup.experiments.plan.shapes import read_shape
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.models.inference_settings import Inference
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens
from rl_warmup.options import WarmupOptions
from rl_warmup.runtime.damage import damage

SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
BYTES = {
    "empty": (lambda old: b"", "is empty"),
    "half": (lambda old: old[: len(old) // 2], "is not valid JSON|it was cut off|do not begin"),
    "page": (lambda old: b"\n<!DOCTYPE html><html></html>", "is a web page"),
    "pointer": (lambda old: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS"),
    "zeros": (lambda old: bytes(len(old)), "begins with zero bytes"),
    "list": (lambda old: b"[]", "is a JSON list|do not begin"),
    "deep": (lambda old: b"[" * 100_000, "is not valid JSON|do not begin"),
    "binary": (lambda old: bytes(range(256)), "is not valid JSON|do not begin"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """Folders as training leaves them: a T5, a Llama, an adapter of the Llama."""
    places = {}
    for kind in ("t5", "llama"):
        places[kind] = tmp_path_factory.mktemp(kind)
        model, tokenizer = load_model(f"scratch-{kind}", lambda: ["a b c d e f g"], SIZE)
        model.save_pretrained(places[kind])
        tokenizer.save_pretrained(places[kind])
        Inference.of(WarmupOptions(max_warmup_length=3), declare_tokens(model, tokenizer)).save(places[kind])
    model, tokenizer = load_model(str(places["llama"]))
    places["adapter"] = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(places["adapter"])
    tokenizer.save_pretrained(places["adapter"])
    shutil.copy(places["llama"] / "warmup_layout.json", places["adapter"])
    return places


@pytest.fixture
def copy(whole, tmp_path):
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / kind))


@pytest.fixture
def told(capfd):
    """What `rl-warmup generate` says about a folder; its code is 2."""

    def say(folder: Path) -> str:
        assert main(["generate", str(folder), "a b"]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rl-warmup generate: ")]
        assert len(lines) == 1
        return lines[0]

    return say


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(path: Path, change) -> None:
    save_file({key: change(value) for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("how", BYTES)
@pytest.mark.parametrize(
    ("kind", "file"),
    [("llama", file) for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                  "model.safetensors")] + [("adapter", "adapter_model.safetensors")],
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_it_looks_like(copy, told, kind, file, how):
    path = copy(kind) / file
    make, words = BYTES[how]
    path.write_bytes(make(path.read_bytes()))
    sentence = told(path.parent)
    assert f"{path} " in sentence
    assert any(word in sentence for word in words.split("|"))


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        ("t5", {"num_heads": 0}, "num_heads: is 0"), ("t5", {"d_model": -5}, "d_model: is -5"),
        ("llama", {"hidden_size": 10**9}, "hidden_size: is 1000000000"), ("t5", {"vocab_size": "x"}, "vocab_size is 'x'"),
        ("t5", {"num_layers": 0}, "num_layers: is 0"),
        ("t5", {"max_position_embeddings": "x"}, "max_position_embeddings is 'x'"), ("t5", {"d_ff": [1]}, "d_ff"),
        ("llama", {"dtype": "nosuch"}, "nosuch"), ("llama", {"quantization_config": "x"}, "config.json"),
        ("llama", {"rope_parameters": "x"}, "config.json"), ("llama", {"model_type": ["x"]}, "config.json"),
        ("t5", {"architectures": 5}, "architectures in its config.json is 5"), ("t5", {"eos_token_id": "x"}, "eos_token_id"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "(quantization_config) needs a package"),
        *(("t5", {"decoder_start_token_id": start}, f"decoder_start_token_id: is {start!r}") for start in (9999, -1, "x")),
    ],
)  # fmt: skip
def test_a_config_that_no_model_can_have_is_named_with_its_key(copy, told, kind, values, named):
    folder = copy(kind)
    change(folder / "config.json", **values)
    sentence = told(folder)
    assert named in sentence
    assert "config.json" in sentence


@pytest.mark.parametrize("key", ["vocab_size", "num_layers", "d_model"])
@pytest.mark.parametrize("value", ["x", 0, -3, 10**12, True])
def test_a_plan_refuses_the_same_sizes(copy, key, value):
    folder = copy("t5")
    change(folder / "config.json", **{key: value})
    with pytest.raises(ValueError, match=f"config.json: {key}"):
        read_shape(str(folder))


@pytest.mark.parametrize(
    ("file", "values"),
    [("tokenizer_config.json", {"model_max_length": "x"}),
     ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}})],
)  # fmt: skip
def test_a_tokenizer_that_fails_when_it_is_used_is_refused_when_it_is_loaded(copy, told, file, values):
    folder = copy("llama")
    change(folder / file, **values)
    assert f"the tokenizer's files of {folder} cannot be read" in (sentence := told(folder))
    assert file in sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["t5", "llama", "adapter"])
def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(copy, told, kind, value):
    folder = copy(kind)
    path = folder / ("adapter_model.safetensors" if kind == "adapter" else "model.safetensors")
    change_weights(path, lambda weight: weight.index_fill(0, torch.tensor([0]), value))
    assert f"{folder} stores values in " in (sentence := told(folder))
    assert "not finite" in sentence


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_exploded_weights_write_nothing(copy, told, kind):
    folder = copy(kind)
    change_weights(folder / "model.safetensors", lambda weight: weight * 1e30)
    assert "logits are not finite, or all the same, so it can write nothing" in told(folder)


INDEX = {
    "none": lambda index: index.pop("weight_map"), "list": lambda index: index.update(weight_map=[1]),
    "numbers": lambda index: index.update(weight_map=dict.fromkeys(index["weight_map"], 5)),
    "gone": lambda index: index.update(weight_map=dict.fromkeys(index["weight_map"], "model-9.safetensors")),
}  # fmt: skip


@pytest.mark.parametrize("how", INDEX)
def test_an_index_that_leads_nowhere_is_named(copy, told, how):
    folder = copy("llama")
    path, index = folder / "model.safetensors", {"metadata": {}, "weight_map": {}}
    index["weight_map"] = dict.fromkeys(load_file(path), "model-00001-of-00001.safetensors")
    path.rename(folder / "model-00001-of-00001.safetensors")
    INDEX[how](index)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = told(folder)
    if how in ("none", "list"):
        assert f"model_name_or_path: {folder}/model.safetensors.index.json has no mapping 'weight_map'" in said
    else:
        assert f"model_name_or_path: {str(folder)!r} could not be loaded" in said


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04abc", b"<html>", [1], "x", {"lm_head.weight": 5}], ids=repr)
def test_damaged_pickles_are_refused(copy, told, content):
    folder = copy("llama")
    path = folder / "pytorch_model.bin"
    (folder / "model.safetensors").unlink()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert (str(path) if isinstance(content, bytes) else str(folder)) in told(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"peft_type": "NOSUCH"}, "peft_type is 'NOSUCH'"), ({"peft_type": 5}, "peft_type is 5"), ({"r": 0}, "r is 0"),
        ({"r": -3}, "r is -3"), ({"target_modules": 5}, "target_modules is 5"), ({"target_modules": ["nosuch"]}, "nosuch"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"), ({"task_type": "NOSUCH"}, "NOSUCH"),
        ({"init_lora_weights": "nosuch"}, "init_lora_weights"), ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, ""),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"), ({"alora_invocation_tokens": [3]}, "aLoRA does not support merging"),
    ],
)  # fmt: skip
def test_an_adapters_config_is_named_with_its_key(copy, told, values, named):
    folder = copy("adapter")
    change(folder / "adapter_config.json", **values)
    sentence = told(folder)
    assert "adapter_config.json" in sentence
    assert named in sentence


def test_adapters_in_a_circle_are_refused(copy, told):
    first = copy("adapter")
    second = Path(shutil.copytree(first, first.parent / "second"))
    change(first / "adapter_config.json", base_model_name_or_path=str(second))
    change(second / "adapter_config.json", base_model_name_or_path=str(first))
    assert "is its own base model, by base_model_name_or_path" in told(first)


def test_an_adapter_without_weights_names_the_missing_file(copy, told):
    folder = copy("adapter")
    (folder / "adapter_model.safetensors").unlink()
    assert f"{folder} holds no adapter_model.safetensors" in told(folder)


@pytest.mark.parametrize("name", ["nosuch", "flex_attention", "kernels-community/x", "paged|sdpa", "flash_attention_2"])
@pytest.mark.parametrize("model", ["scratch-t5", "folder"])
def test_an_attention_that_cannot_be_used_is_refused(whole, name, model):
    with pytest.raises(ValueError, match=f"attn_implementation: '?{name.replace('|', '.')}"):
        load_model(str(whole["llama"]) if model == "folder" else model, lambda: ["a"], SIZE, attn_implementation=name)


@pytest.mark.parametrize("key", ["separator", "law", "inference"])
def test_a_layout_without_a_key_shows_a_whole_one(copy, told, key):
    path = copy("t5") / "warmup_layout.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))
    sentence = told(path.parent)
    assert f"{path}: {key!r} is missing. Copy the file again from the run" in sentence
    assert '"law": {"temperature": 1.0' in sentence


def test_a_layout_with_an_unknown_key(copy, told):
    path = copy("t5") / "warmup_layout.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_target_lenght": 5}))
    assert f"{path}: 'max_target_lenght' is no key of it" in told(path.parent)


def test_whole_files_are_not_damaged(whole):
    files = [path for folder in whole.values() for path in folder.iterdir()]
    assert len(files) > 12
    assert [path for path in files if damage(path)] == []
    assert WarmupGenerator.load(whole["adapter"]).predict([{"prompt": "a b"}])


@pytest.mark.parametrize("kind", ["words", "digits", "subwords"])
@pytest.mark.parametrize("name", ["scratch-t5", "scratch-llama"])
def test_special_words_in_the_texts_leave_no_gap_in_the_ids(name, kind):
    texts = ["a <pad> </s> <unk> <s> <extra_id_0> b", "<pad> <pad> c<unk>d"]
    model, tokenizer = load_model(name, lambda: texts, {**SIZE, "tokenizer": kind, "vocab_size": 300})
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert declare_tokens(model, tokenizer).separator == "<extra_id_0>"
