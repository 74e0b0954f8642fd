"""What a model is fed and may write is the same for everybody who loads it, and its figures with it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.models.inference_settings import LATER, LAYOUT_FILE, read_layout
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_jsonl

WORDS = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta"]
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


def long_rows(count: int, seed: int) -> list[dict]:
    """Prompts of 4 to 20 words, of which the last one comes first in the target; targets of 1 to 9 words."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        prompt = rng.choices(WORDS, k=rng.choice([4, 6, 20]))
        target = [prompt[-1], *rng.choices(WORDS, k=rng.choice([0, 2, 8]))]
        rows.append({"id": f"{seed}-{i}", "prompt": " ".join(prompt), "target": " ".join(target)})
    return rows


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains a recipe on rows of which some are beyond every limit; the run folder."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 16), ("validation", 5), ("test", 7)):
        write_jsonl(tmp_path / f"{name}.jsonl", long_rows(count, len(name)))

    def train(kind: str, **changes) -> Path:
        recipe = {
            "model_name_or_path": kind, "scratch": SIZE, "task": "file",
            "task_kwargs": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
            "metrics": ["exact_match", "chrf++"], "max_prompt_length": 8, "max_target_length": 6, "max_warmup_length": 4,
            "target_truncation": "right", "num_warmups": 2, "max_steps": 8, "learning_rate": 0.03,
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3, "save_strategy": "no", "use_cpu": True,
            "show_progress": False, "output_dir": "run", "report_to": "none",
        }  # fmt: skip
        Path("r.yaml").write_text(yaml.safe_dump({**recipe, **changes}), encoding="utf-8")
        assert main(["train", "--config", "r.yaml"]) == 0
        return tmp_path / "run"

    return train


def evaluated(folder: Path, *flags: str) -> dict:
    assert main(["evaluate", str(folder), *flags, "--output", "again"]) == 0
    return json.loads(Path("again", "metrics.json").read_text(encoding="utf-8"))


def same_as_after_training(folder: Path, *flags: str) -> None:
    after = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    later = evaluated(folder, *flags)
    assert later["metrics"] == after["metrics"]
    assert later["inference"] == after["inference"]
    for name in folder.glob("predictions*.jsonl"):
        assert read_jsonl(Path("again", name.name)) == read_jsonl(name), name


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
@pytest.mark.parametrize("objective", ["sft", "marginal"])
@pytest.mark.parametrize("policy", ["left", "right", "drop"])
def test_metrics_after_training_are_those_of_a_later_evaluate(run, kind, objective, policy):
    dropped = "drop" if policy == "drop" else "right"
    folder = run(kind, objective=objective, prompt_truncation=policy, target_truncation=dropped)
    same_as_after_training(folder)
    assert read_layout(folder)["prompt_truncation"] == ("right" if policy == "drop" else policy)
    texts = {row["warmup_finish"] for row in read_jsonl(folder / "predictions.jsonl")}
    assert ("empty" in texts) == (objective == "sft")


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_same_with_an_adapter_and_another_batch_size(run, tmp_path, kind):
    model, tokenizer = load_model(f"scratch-{kind}", lambda: [" ".join(WORDS)] * 3, SIZE, 1)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}
    folder = run(str(tmp_path / "base"), prompt_truncation="left", **lora)
    same_as_after_training(folder, "--batch-size", "4")


def test_a_prompt_beyond_the_limit_is_refused_where_training_refused_it(run, capsys):
    short = [row for row in long_rows(40, 3) if len(row["prompt"].split()) < 8]
    for name in ("train", "validation", "test"):
        write_jsonl(Path(f"{name}.jsonl"), short[:8])
    run("scratch-llama", max_prompt_length=8)
    longer = " ".join(WORDS * 2)
    capsys.readouterr()
    assert main(["generate", "run", "alpha beta", longer]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "prompt 1" in error
    assert "17 tokens" in error
    assert "max_prompt_length is 8" in error
    write_jsonl(Path("w.jsonl"), [{"prompt": longer, "target": "alpha", "warmup": "beta"}])
    assert main(["score", "w.jsonl", "--reward", "target_logprob", "--model", "run"]) == 2
    assert "max_prompt_length is 8" in capsys.readouterr().err


def test_generate_score_and_sample_cut_on_the_side_of_training(run, capsys):
    """A prompt and its last eight tokens (seven words and the end) are one for all of them."""
    run("scratch-t5", prompt_truncation="left", temperature=0.7, min_warmup_length=2)
    longer = " ".join(WORDS * 2)
    cut = " ".join((WORDS * 2)[-7:])
    capsys.readouterr()
    assert main(["generate", "run", longer, cut, "--json"]) == 0
    whole, same = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (whole["warmup"], whole["prediction"]) == (same["warmup"], same["prediction"])
    rows = [{"prompt": text, "target": "alpha", "warmup": "beta"} for text in (longer, cut)]
    write_jsonl(Path("w.jsonl"), rows)
    assert main(["score", "w.jsonl", "--reward", "target_logprob", "--model", "run", "--output", "s.jsonl"]) == 0
    one, other = (row["scores"]["target_logprob"] for row in read_jsonl(Path("s.jsonl")))
    assert one == pytest.approx(other, abs=1e-5)
    assert main(["sample", "run", "--split", "test", "--output", "drawn.jsonl", "--show_progress", "false"]) == 0
    told = json.loads(Path("drawn.jsonl.drawing.json").read_text(encoding="utf-8"))
    assert (told["temperature"], told["min_length"], told["max_length"]) == (0.7, 2, 4)


def test_python_and_the_command_line_write_the_same(run, capsys):
    folder = run("scratch-llama", prompt_truncation="left")
    rows = long_rows(6, 9)
    capsys.readouterr()
    written = WarmupGenerator.load(folder, "cpu").predict(rows)
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    assert main(["generate", "run", *(row["prompt"] for row in rows), "--json"]) == 0
    told = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    assert told == [row["prediction"] for row in written]


@pytest.mark.parametrize("template", ["say {text} now", "{{gamma}} {text}"])
def test_generate_lays_a_text_into_the_template_of_training(run, template, capsys):
    kwargs = {"train": "train.jsonl", "test": "test.jsonl", "prompt_template": template}
    run("scratch-t5", prompt_truncation="left", max_prompt_length=12, task_kwargs=kwargs)
    assert read_layout("run")["prompt_template"] == template
    whole = template.replace("{{", "{").replace("}}", "}").replace("{text}", "alpha beta")
    capsys.readouterr()
    assert main(["generate", "run", "alpha beta", whole, "--json"]) == 0
    bare, laid = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert bare["prediction"] == laid["prediction"]
    settings = WarmupGenerator.load("run", "cpu").settings
    assert settings.prompt("alpha beta") == settings.prompt(whole) == whole


def test_the_prompt_column_by_its_name_is_the_text(run):
    kwargs = {
        "train": "train.jsonl",
        "test": "test.jsonl",
        "prompt_template": "say {prompt}",
        "prompt_column": "prompt",
    }
    folder = run("scratch-t5", prompt_truncation="left", task_kwargs=kwargs)
    assert read_layout(folder)["prompt_template"] == "say {text}"
    same_as_after_training(folder)


def test_a_template_of_several_columns_is_said_to_be_unknown(run, capsys):
    kwargs = {"train": "train.jsonl", "test": "test.jsonl", "prompt_template": "{id} {text}"}
    run("scratch-t5", prompt_truncation="left", task_kwargs=kwargs)
    assert read_layout("run")["prompt_template"] is None
    assert main(["generate", "run", "alpha"]) == 0
    assert "several columns" in capsys.readouterr().err


def test_another_run_of_a_trained_model_keeps_its_separator(run):
    kwargs = {"train": "train.jsonl", "test": "test.jsonl", "prompt_template": "zeta {text}"}
    folder = run("scratch-t5", prompt_truncation="left", separator="zeta", task_kwargs=kwargs)
    assert read_layout(folder)["separator"] == "zeta"
    run(str(folder), prompt_truncation="left", output_dir="next")
    assert read_layout("next")["separator"] == "zeta"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_prompt_length": ...}, "max_prompt_length"),
        ({"max_prompt_length": "8"}, "max_prompt_length"),
        ({"law": {"temperature": 1.0}}, "law"),
        ({"law": []}, "law"),
        ({"law": {"temperature": 0, "top_p": 1, "min_length": 1, "max_length": 2}}, "law"),
        ({"inference": "both"}, "inference"),
        ({"prompt_truncation": "drop"}, "prompt_truncation"),
        ({"max_target_length": None}, "max_target_length"),
        ({"separator_id": 5}, "separator"),
        (b"[]", LAYOUT_FILE),
        (b"{", LAYOUT_FILE),
        (b"\xff\xfe", LAYOUT_FILE),
    ],
)  # fmt: skip
def test_a_damaged_or_incomplete_file_is_one_sentence(run, capsys, change, named):
    folder = run("scratch-t5", prompt_truncation="left", max_steps=1)
    path = folder / LAYOUT_FILE
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        record = {**json.loads(path.read_text(encoding="utf-8")), **change}
        path.write_text(json.dumps({k: v for k, v in record.items() if v is not ...}), encoding="utf-8")
    capsys.readouterr()
    for args in (["generate", "run", "alpha"], ["evaluate", "run"], ["sample", "run", "--output", "s.jsonl"]):
        assert main(args) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert LAYOUT_FILE in error.splitlines()[-1]
        assert named in error.splitlines()[-1]


def test_an_earlier_folder_without_the_newer_keys_still_loads(run, capsys):
    folder = run("scratch-t5", prompt_truncation="left")
    record = json.loads((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
    for name in LATER:
        del record[name]
    (folder / LAYOUT_FILE).write_text(json.dumps(record), encoding="utf-8")
    assert main(["generate", "run", "alpha beta"]) == 0
    capsys.readouterr()
    assert main(["generate", "run", " ".join(WORDS * 2)]) == 2  # it does not say on which side to cut
    assert "max_prompt_length is 8" in capsys.readouterr().err
