"""`rl-warmup export`: what the exported folder writes is what the trained one wrote, and nobody's files are touched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rl_warmup import WarmupGenerator
from rl_warmup.cli.main import main
from rl_warmup.inference.export import export
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_jsonl

ROWS = [{"prompt": f"a+{i % 4} b+{i % 3}", "target": f"b={i % 3} a={i % 4}"} for i in range(12)]
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


@pytest.fixture(scope="module", params=["scratch-t5", "scratch-llama"])
def adapter(request, tmp_path_factory) -> Path:
    """A run that trained an adapter on a saved base model, and a licence in its README.md."""
    folder = tmp_path_factory.mktemp("export")
    model, tokenizer = load_model(request.param, lambda: [text for row in ROWS for text in row.values()], SIZE)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    write_jsonl(folder / "rows.jsonl", ROWS)
    recipe = {
        "model_name_or_path": str(folder / "base"), "use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear",
        "task": "file", "task_kwargs": {"train": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl")},
        "max_steps": 60, "learning_rate": 0.03, "max_warmup_length": 3, "max_target_length": 4, "num_warmups": 2,
        "use_cpu": True, "per_device_train_batch_size": 6, "show_progress": False, "report_to": "none",
        "save_strategy": "no", "controls": [], "model_card": {"license": "mit"}, "output_dir": str(folder / "run"),
    }  # fmt: skip
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", "--config", str(folder / "r.yaml")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def merged(adapter) -> Path:
    assert main(["export", str(adapter), "--output", str(adapter.parent / "merged"), "--merge"]) == 0
    return adapter.parent / "merged"


def test_merged_weights_predict_what_the_adapter_predicted(adapter, merged):
    assert not (merged / "adapter_config.json").exists()
    assert main(["evaluate", str(merged), "--controls"]) == 0
    before, after = (read_jsonl(place / "predictions.jsonl") for place in (adapter, merged / "evaluation" / "test"))
    assert before == after
    assert len({(row["warmup"], row["prediction"]) for row in before}) > 1  # else this shows little


def test_plain_transformers_writes_the_same_by_the_snippet_of_the_card(adapter, merged, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.chdir(merged)
    row = read_jsonl(adapter / "predictions.jsonl")[5]
    _, stock = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    capsys.readouterr()
    exec(stock.replace("a prompt", row["prompt"]), {})
    assert capsys.readouterr().out.split("\n")[:2] == [row["warmup"], row["prediction"]]


def test_the_folder_is_whole_and_its_card_has_no_figures_of_the_adapter(adapter, merged):
    names = {
        str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file() and "evaluation" not in path.parts
    }
    wanted = {
        "README.md", "config.json", "custom_generate/generate.py", "environment.json", "generation_config.json",
        "model.safetensors", "recipe.yaml", "tokenizer.json", "warmup_layout.json",
    }  # fmt: skip
    assert wanted <= names
    assert not {"metrics.json", "predictions.jsonl", "training_args.bin"} & names
    text = (merged / "README.md").read_text(encoding="utf-8")
    known = yaml.safe_load(text.split("---\n")[1])
    assert (known["license"], known["library_name"]) == ("mit", "transformers")
    assert "model-index" not in known
    weights = json.loads((adapter / "metrics.json").read_text(encoding="utf-8"))["weights"]
    assert weights in text
    for name in ("generation_config.json", "warmup_layout.json"):
        here, there = (json.loads((place / name).read_text(encoding="utf-8")) for place in (adapter, merged))
        assert here == there


def test_weights_are_rounded_once(adapter, merged, tmp_path):
    export(adapter, tmp_path / "half", merge=True, dtype="bfloat16")
    whole, half = (load_file(place / "model.safetensors") for place in (merged, tmp_path / "half"))
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[name], whole[name].bfloat16()) for name in whole)
    assert WarmupGenerator.from_pretrained(tmp_path / "half").generate("a+1 b+2")[0]["prediction"] is not None


def test_a_whole_model_is_exported_in_another_dtype(merged, tmp_path):
    again = export(merged, tmp_path / "again", dtype="bfloat16")
    assert json.loads((again / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    assert json.loads((again / "environment.json").read_text(encoding="utf-8"))["exported"]["merged"] is False


@pytest.mark.parametrize("where", [".", "sub", "full", "file", "hidden"])
def test_somebody_elses_folder_is_refused(adapter, tmp_path, capsys, where):
    place = {".": adapter, "sub": adapter / "sub"}.get(where, tmp_path / "out")
    if where == "file":
        place.write_text("mine", encoding="utf-8")
    elif where in ("full", "hidden"):
        place.mkdir()
        (place / (".mine" if where == "hidden" else "mine.txt")).write_text("mine", encoding="utf-8")
    before = {path: path.read_bytes() for path in (*adapter.rglob("*"), *tmp_path.rglob("*")) if path.is_file()}
    capsys.readouterr()
    assert main(["export", str(adapter), "--output", str(place), "--merge"]) == 2
    assert str(place) in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (*adapter.rglob("*"), *tmp_path.rglob("*")) if path.is_file()}


def test_what_cannot_be_exported_is_refused_before_anything_is_written(adapter, merged, tmp_path):
    out = tmp_path / "out"
    for source, settings, fact in [
        (adapter, {}, "--merge"),
        (merged, {"merge": True}, "no adapter"),
        (merged, {"dtype": "int8"}, "int8"),
        (tmp_path, {}, "warmup_layout.json"),
    ]:
        with pytest.raises(ValueError, match=re.escape(fact)):
            export(source, out, **settings)
    if (merged / "config.json").read_text(encoding="utf-8").find("T5") > 0:
        with pytest.raises(ValueError, match="float16"):
            export(merged, out, dtype="float16")
    (adapter / "quantization.json").write_text("{}", encoding="utf-8")
    try:
        with pytest.raises(ValueError, match="quantized"):
            export(adapter, out, merge=True)
    finally:
        (adapter / "quantization.json").unlink()
    assert not out.exists()
