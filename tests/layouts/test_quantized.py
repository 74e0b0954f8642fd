"""Base models in 4 and 8 bits: trained with an adapter, and loaded later as they were trained; refused without bitsandbytes."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from rl_warmup.cli.main import main
from rl_warmup.models.loading import load_model
from rl_warmup.models.tiny import TinySize, build_tokenizer

ROWS = [{"prompt": f"a b c w{i}", "target": f"w{i} c b a"} for i in range(8)]
missing = importlib.util.find_spec("bitsandbytes") is None


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = build_tokenizer([f"{r['prompt']} {r['target']}" for r in ROWS], TinySize(tokenizer="words"), False)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **ids)
    ).save_pretrained("base")
    tokenizer.save_pretrained("base")

    def write(**values) -> list[str]:
        recipe = {
            "model_name_or_path": "base", "separator": "<extra_id_0>", "task": "file",
            "task_kwargs": {"train": "rows.jsonl", "test": "rows.jsonl"}, "num_warmups": 2, "max_warmup_length": 3,
            "max_target_length": 12, "max_steps": 3, "per_device_train_batch_size": 4, "save_strategy": "no", "controls": [],
            "logging_steps": 1, "learning_rate": 0.01, "use_cpu": True, "show_progress": False, "output_dir": "run",
            "use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], **values,
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return ["train", "--config", "recipe.yaml"]

    return write


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(missing, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("setting", ["load_in_4bit", "load_in_8bit"])
def test_a_quantized_run_is_evaluated_as_it_was_trained(recipe, tmp_path, setting):
    assert main(recipe(output_dir="whole")) == 0
    assert main(recipe(**{setting: True})) == 0
    losses = [[log["loss"] for log in lines(tmp_path / run / "metrics.jsonl")] for run in ("whole", "run")]
    assert losses[0] != losses[1]
    assert main(["evaluate", "run", "--controls"]) == 0
    assert lines(tmp_path / "run" / "predictions.jsonl") == lines(tmp_path / "run/evaluation/test/predictions.jsonl")
    model, _ = load_model("run")
    assert model.is_quantized
    assert json.loads((tmp_path / "run" / "quantization.json").read_text())["quantization_config"][setting] is True


@pytest.mark.skipif(not missing, reason="bitsandbytes is installed")
@pytest.mark.parametrize("setting", ["load_in_4bit", "load_in_8bit"])
def test_without_bitsandbytes_it_is_refused(recipe, tmp_path, capsys, setting):
    assert main(recipe(**{setting: True})) == 2
    said = capsys.readouterr().err
    assert setting in said
    assert "bitsandbytes" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("setting", ["load_in_4bit", "load_in_8bit"])
def test_it_is_refused_under_an_engine_before_anything_is_loaded(recipe, tmp_path, capsys, monkeypatch, setting):
    monkeypatch.setattr("rl_warmup.experiments.run.recipe_task", lambda recipe: pytest.fail("rows were loaded"))
    monkeypatch.setattr("rl_warmup.runtime.launched.asks_fsdp", lambda args: True)
    assert main(recipe(**{setting: True})) == 2
    assert setting in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_random_weights_do_not_have():
    size = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
    with pytest.raises(ValueError, match="^model_revision: 'v2'"):
        load_model("scratch-t5", lambda: ["a b"], size, revision="v2")
    with pytest.raises(ValueError, match="load_in_4bit"):
        load_model("scratch-t5", lambda: ["a b"], size, quantization_config=object())
    with pytest.raises(ValueError, match="^attn_implementation: 'some/kernel'"):
        load_model("start:legs-llama", attn_implementation="some/kernel")
    with pytest.raises(ValueError, match="^model_revision: 'v2'"):
        load_model("start:legs-llama", revision="v2")
    model, _ = load_model("scratch-llama", lambda: ["a b"], size, dtype="bfloat16", attn_implementation="eager")
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
