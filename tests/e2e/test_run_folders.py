"""A run folder belongs to one run: features that write to it, in pairs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from rl_warmup.cli.main import main
from rl_warmup.experiments.collect import find_runs
from rl_warmup.runtime import ownership
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.ownership import fingerprint, foreign_files

from .conftest import SIZE, ledger_rows

RECIPE = {
    "model_name_or_path": "scratch-t5", "scratch": SIZE, "task": "file", "max_steps": 2, "per_device_train_batch_size": 2,
    "num_warmups": 2, "max_warmup_length": 3, "controls": [], "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2,
    "logging_steps": 1, "use_cpu": True, "show_progress": False, "report_to": "none", "proposals": [],
}  # fmt: skip
HOLD = "import sys, time; from pathlib import Path; from rl_warmup.runtime.ownership import writing\n"
HOLD += "with writing(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ownership.LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def flags(**settings: object) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of two updates, in `out` beside its recipe and rows."""
    place = tmp_path_factory.mktemp("trained")
    write_rows(place / "rows.jsonl", ledger_rows(8))
    before = Path.cwd()
    os.chdir(place)
    try:
        kwargs = {"train": "rows.jsonl", "test": "rows.jsonl"}
        (place / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "task_kwargs": kwargs, "output_dir": "out"}))
        assert main(["train", "--config", "r.yaml"]) == 0
        assert main(["evaluate", "out", "--controls", "filler"]) == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and there we are."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def train(**settings: object) -> int:
    return main(["train", "--config", "r.yaml", *flags(**settings)])


def resume(**settings: object) -> int:
    return train(resume_from_checkpoint="auto", **settings)


def fails(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The error of a command that was refused; nothing in `out` is another one."""
    error = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in error
    return error


def test_every_file_of_a_run_is_known_and_an_overwritten_one_leaves_nothing(place, capsys):
    assert main(["report", "out", "--output", "out/report"]) == 0
    assert main(["sample", "out", "--output", "out/drawn.jsonl"]) == 0
    assert main(["evaluate", "out", "--output", "out/elsewhere"]) == 0
    assert foreign_files(Path("out")) == []
    before = files(Path("out"))
    Path("boom.py").write_text("def f(completions, **k): raise RuntimeError('boom')\n")
    error = fails(capsys, train(overwrite=True, rewards=["boom.py:f"], learning_rate=0.1))
    assert "boom" in error
    left = files(Path("out"))
    assert left.keys() <= {"recipe.yaml", "environment.json", "metrics.jsonl", "timing.jsonl", "warmups.jsonl"}
    assert not left.keys() & before.keys() - {"recipe.yaml", "environment.json"} or not any(
        left[name] == before[name] for name in left.keys() & before.keys() - {"environment.json"}
    )
    assert yaml.safe_load(left["recipe.yaml"])["learning_rate"] == 0.1
    assert main(["report", "out"]) == 2  # unfinished


def test_a_fault_found_before_training_leaves_the_old_run_alone(place, capsys):
    before = files(Path("out"))
    Path("bad.jsonl").write_text('{"prompt": "a", "target": ""}\n')
    fails(capsys, train(overwrite=True, task_kwargs={"train": "bad.jsonl", "test": "rows.jsonl"}))
    fails(capsys, train())
    assert files(Path("out")) == before


def test_numbers_of_other_weights_are_left_out_and_named(place):
    (run,), said = find_runs(["out"])
    assert "filler" in run.metrics
    assert said == []
    first = json.loads(Path("out/metrics.json").read_text())["weights"]
    assert first == fingerprint(Path("out"))
    assert json.loads(Path("out/evaluation/test/metrics.json").read_text())["weights"] == first
    assert resume(max_steps=4) == 0
    (run,), said = find_runs(["out"])
    assert run.result["updates"] == 4
    assert run.result["weights"] == fingerprint(Path("out")) != first
    assert set(run.metrics) == {""}
    assert len(said) == 1
    assert "out/evaluation/test" in said[0]
    assert first in said[0]
    assert main(["evaluate", "out", "--controls", "empty_warmup"]) == 0
    (run,), said = find_runs(["out"])
    assert said == []
    assert set(run.metrics) == {"", "empty_warmup"}
    assert not Path("out/evaluation/test/predictions.filler.jsonl").exists()  # of the weights before


def test_an_evaluation_of_other_rows_is_left_out_and_named(place, capsys):
    write_rows(place / "rows.jsonl", ledger_rows(4))
    assert main(["evaluate", "out", "--controls", "filler"]) == 0
    (run,), said = find_runs(["out"])
    assert set(run.metrics) == {""}
    assert len(said) == 1
    assert "out/evaluation/test" in said[0]
    assert "(4)" in said[0]
    assert "(8)" in said[0]


def test_weights_that_changed_after_the_numbers_are_named(place, capsys):
    recorded = json.loads(Path("out/metrics.json").read_text())["weights"]
    weights = {name: 2 * tensor for name, tensor in load_file("out/model.safetensors").items()}
    save_file(weights, "out/model.safetensors", {"format": "pt"})
    _, said = find_runs(["out"])
    assert len(said) == 1
    assert recorded in said[0]
    assert fingerprint(Path("out")) in said[0]
    capsys.readouterr()
    assert main(["evaluate", "out", "--controls"]) == 0
    assert recorded in capsys.readouterr().out


def test_a_model_is_not_saved_over_another_runs(place, make_trainer):
    trainer = make_trainer()
    before = files(place)
    for folder in ("out", "out/checkpoint-2", "out/model"):
        with pytest.raises(ValueError, match=r"save_model: .*another run"):
            trainer.save_model(folder)
    assert files(place) == before
    trainer.train()
    trainer.save_model()
    trainer.save_model("elsewhere")
    assert Path("elsewhere/model.safetensors").is_file()
    with pytest.raises(ValueError, match="save_model: "):
        make_trainer().save_model()  # one that has not trained, into the folder of the one that has


def test_a_checkpoint_is_evaluated_as_what_it_is(place, capsys):
    """Weights of two updates, in a run of four."""
    for name, steps in (("short", 2), ("long", 4)):
        settings = flags(output_dir=name, max_steps=steps, lr_scheduler_type="constant")
        assert main(["train", "--config", "r.yaml", *settings]) == 0
    alone, ended = (json.loads((place / name / "metrics.json").read_text()) for name in ("short", "long"))
    assert main(["evaluate", "long/checkpoint-2", "--controls", "filler"]) == 0
    found = json.loads((place / "long" / "checkpoint-2" / "evaluation" / "test" / "metrics.json").read_text())
    assert (found["weights"], found["metrics"][""]) == (alone["weights"], alone["metrics"][""])
    assert found["weights"] != ended["weights"]
    assert read_jsonl(place / "long/checkpoint-2/evaluation/test/predictions.jsonl") == read_jsonl(
        place / "short/predictions.jsonl"
    )
    assert main(["evaluate", "long/checkpoint-4", "--controls", "filler", "--output", "aside"]) == 0
    assert json.loads((place / "aside" / "metrics.json").read_text())["weights"] == ended["weights"]
    (run,), left_out = find_runs([place / "long"])
    assert (run.metrics, left_out) == (ended["metrics"], [])
    for output in ("long", "long/checkpoint-2"):
        assert main(["evaluate", "long/checkpoint-2", "--output", output]) == 2
    with ownership.writing(place / "long", "x"):
        assert main(["evaluate", "long/checkpoint-2"]) == 2
    shutil.copytree(place / "long" / "checkpoint-2", place / "checkpoint-2")
    assert main(["evaluate", "checkpoint-2"]) == 2  # of no run
    assert "recipe.yaml" in capsys.readouterr().err
    assert foreign_files(place / "long") == []
    assert main(["train", "--config", "r.yaml", "--output_dir", "long", "--overwrite", "true"]) == 0
    assert not (place / "long" / "checkpoint-2" / "evaluation").exists()


def test_a_run_that_goes_on_is_not_finished_until_it_is(place, capsys):
    Path("boom.py").write_text("def f(predictions, targets, **k): raise RuntimeError('boom')\n")
    Path("late.py").write_text(
        "def f(completions, trainer_state, **k):\n"
        "    assert trainer_state.global_step < 3\n    return [0.0] * len(completions)\n"
    )
    assert train(output_dir="late", rewards=["late.py:f"]) == 0
    fails(capsys, resume(output_dir="late", rewards=["late.py:f"], max_steps=6))
    assert not Path("late/metrics.json").exists()
    assert not list(Path("late").glob("predictions*"))
    assert main(["report", "late"]) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", "sft"), ("seed", 1), ("learning_rate", 0.01), ("num_warmups", 3), ("tau", 2.0), ("temperature", 0.7),
        ("weight_decay", 0.1), ("lr_scheduler_type", "constant"), ("max_steps", 1), ("dtype", "bfloat16"), ("data_seed", 5),
        ("max_grad_norm", 0.5), ("rewards", ["target_logprob", "gain"]), ("scratch", {**SIZE, "layers": 2}), ("beta", 0.2),
        ("max_target_length", 64), ("prompt_truncation", "left"), ("guard", "act"), ("per_device_train_batch_size", 4),
    ],
)  # fmt: skip
def test_what_makes_another_run_is_refused_by_name(place, capsys, key, value):
    before = files(Path("out"))
    error = fails(capsys, resume(**{"max_steps": 4, key: value}))
    assert key in error
    assert "checkpoint-2" in error
    assert "max_steps" not in error or key == "max_steps"
    assert files(Path("out")) == before


def test_several_changes_are_named_together(place, capsys):
    error = fails(capsys, resume(objective="sft", seed=7, learning_rate=0.5, logging_steps=2))
    assert all(word in error for word in ("objective", "seed", "42", "7", "learning_rate", "0.5"))
    assert "logging_steps" not in error


def test_harmless_changes_are_named_and_written_down(place, capsys):
    Path("moved.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    changed = {
        "max_steps": 4, "logging_steps": 2, "save_steps": 1, "hang_timeout": 5.0, "controls": ["filler"],
        "dataloader_num_workers": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
        "task_kwargs": {"train": "moved.jsonl", "test": "rows.jsonl"},
    }  # fmt: skip
    assert resume(**changed, overwrite=True, log_level="error") == 0
    said = capsys.readouterr()
    (record,) = read_jsonl(Path("out/resumes.jsonl"))
    assert record["step"] == 2
    assert set(record["changes"]) == set(changed)
    assert record["changes"]["max_steps"] == [2, 4]
    assert all(key in said.out + said.err for key in changed)
    assert json.loads(Path("out/metrics.json").read_text())["updates"] == 4
    assert resume(**changed) == 0  # nothing differs from checkpoint-4
    assert len(read_jsonl(Path("out/resumes.jsonl"))) == 1


@pytest.mark.parametrize("change", ["a target", "another column", "a row less", "the order"])
def test_other_training_rows_are_refused_and_placed(place, capsys, change):
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    if change == "a target":
        rows[5]["target"] = rows[4]["target"] + " a=0"
    elif change == "another column":
        rows[5]["gold"] = "1"
    elif change == "a row less":
        rows.pop()
    else:
        rows[5:7] = [rows[6], rows[5]]
    write_rows(Path("rows.jsonl"), rows)
    before = files(Path("out"))
    error = fails(capsys, resume(max_steps=4))
    assert ("8 training rows, now 7" if change == "a row less" else "row 5") in error
    assert files(Path("out")) == before


def test_the_first_rows_of_a_stream_are_compared(place, capsys):
    stream = {"train": "rows.jsonl", "test": "rows.jsonl", "stream": True, "shuffle_buffer": 1}
    if train(output_dir="stream", task_kwargs=stream) != 0:
        pytest.fail(capsys.readouterr().err)
    assert resume(output_dir="stream", task_kwargs=stream, max_steps=4) == 0
    error = fails(capsys, resume(output_dir="stream", task_kwargs={**stream, "shuffle_buffer": 2}, max_steps=4))
    assert "task_kwargs" in error
    rows = ledger_rows(8)
    rows[2]["target"] = "a=0"
    write_rows(Path("rows.jsonl"), rows)
    assert "row 2" in fails(capsys, resume(output_dir="stream", task_kwargs=stream, max_steps=6))


def test_a_checkpoint_of_another_run_starts_a_folder_of_its_own(place, capsys):
    assert train(output_dir="other", seed=3) == 0
    before = files(Path("other"))
    step = "out/checkpoint-2"
    assert "other" in fails(capsys, train(output_dir="other", resume_from_checkpoint=step, max_steps=4))
    assert "seed" in fails(capsys, train(output_dir="new", resume_from_checkpoint=step, max_steps=4, seed=3))
    assert files(Path("other")) == before
    assert train(output_dir="other", resume_from_checkpoint=step, max_steps=4, overwrite=True) == 0
    assert {record["step"] for record in read_jsonl(Path("other/metrics.jsonl"))} == {3, 4}
    assert yaml.safe_load(Path("other/recipe.yaml").read_text())["max_steps"] == 4


@pytest.mark.parametrize("settings", [{}, {"overwrite": True}, {"resume_from_checkpoint": "auto", "max_steps": 4}])
def test_a_second_run_is_refused_while_the_first_one_writes(place, capsys, settings):
    process = subprocess.Popen([sys.executable, "-c", HOLD, "out"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        before = files(Path("out"))
        assert str(process.pid) in fails(capsys, train(**settings))
        assert str(process.pid) in fails(capsys, main(["evaluate", "out"]))
        assert files(Path("out")) == before
    finally:
        process.kill()
        process.communicate()
    assert main(["evaluate", "out", "--controls"]) == 0


def test_folders_that_are_not_this_runs(place, capsys):
    (place / "link").symlink_to("out")
    Path("model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "warmup_layout.json"):
        shutil.copy(Path("out", name), "model")
    Path("mine").mkdir()
    Path("mine/essay.txt").write_text("")
    Path("out/essay.txt").write_text("")
    before = files(place)
    scratch = {"scratch": None, "overwrite": True}
    for settings in (
        {"model_name_or_path": "model", "output_dir": "model"}, {"model_name_or_path": "out", "output_dir": "out"},
        {"model_name_or_path": "link", "output_dir": "out"}, {"model_name_or_path": "out", "output_dir": "link"},
        {"model_name_or_path": "out/checkpoint-2", "output_dir": "out"}, {"model_name_or_path": "model", "output_dir": "."},
        {"output_dir": "mine"}, {"output_dir": "out"}, {"output_dir": "out/checkpoint-2"}, {"output_dir": "r.yaml"},
    ):  # fmt: skip
        assert "output_dir: " in fails(
            capsys, train(**{**(scratch if "model_name_or_path" in settings else {}), **settings})
        )
    for output in ("out", "link", "out/checkpoint-2", "mine", ".", "model"):
        assert "--output: " in fails(capsys, main(["evaluate", "out", "--output", output]))
    for output in ("out/warmups.jsonl", "out/model.safetensors", "rows.jsonl"):
        fails(capsys, main(["sample", "out", "--output", output, "--overwrite"]))
    fails(capsys, main(["score", "rows.jsonl", "--reward", "target_logprob", "--output", "out/metrics.json"]))
    assert files(place) == before


def test_an_adapter_has_a_fingerprint_and_its_base_is_not_written_over(place, capsys):
    lora = {
        "use_peft": True,
        "lora_r": 2,
        "lora_target_modules": ["q", "v"],
        "scratch": None,
        "model_name_or_path": "out",
    }
    assert train(**lora, output_dir="adapter") == 0
    result = json.loads(Path("adapter/metrics.json").read_text())
    assert result["weights"] == fingerprint(Path("adapter"))
    assert foreign_files(Path("adapter")) == []
    assert "base" in fails(
        capsys, train(output_dir="out", overwrite=True, model_name_or_path="adapter", scratch=None, objective="sft")
    )
    error = fails(capsys, resume(**{**lora, "lora_alpha": 64}, output_dir="adapter", max_steps=4))
    assert "lora_alpha" in error


def test_an_adapter_goes_on_with_its_base_alone(place, capsys):
    Path("base").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("out", name), "base")
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q", "v"], "scratch": None}
    lora |= {"model_name_or_path": "base", "output_dir": "lora"}
    assert train(**lora) == 0
    assert resume(**lora, max_steps=4) == 0
    weights = {name: 2 * tensor for name, tensor in load_file("base/model.safetensors").items()}
    save_file(weights, "base/model.safetensors", {"format": "pt"})
    assert "other weights" in fails(capsys, resume(**lora, max_steps=6))
