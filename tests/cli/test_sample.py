"""`rl-warmup sample`: from a start and from a run, what a model's folder declares, resuming, and mistakes."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from rl_warmup.cli.main import main
from rl_warmup.method import drawing
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.ownership import file_lock
from rl_warmup.runtime.run_folder import write_jsonl

LEDGER = "{length: 8, modulus: 5, train_size: 20, validation_size: 3, test_size: 3}"
START = [
    "start:skills-llama",
    "--task",
    "ledger",
    "--task_kwargs",
    LEDGER,
    "--num_warmups",
    "3",
    "--max_warmup_length",
    "10",
]
TINY = {
    "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger", "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 2, "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 4, "save_strategy": "no",
    "use_cpu": True, "show_progress": False, "logging_steps": 1, "temperature": 0.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(*args) -> int:
    return main(["sample", *map(str, args), "--show_progress", "false"])


def fails(capsys, *args) -> str:
    capsys.readouterr()
    assert sample(*args) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    sentence = error.splitlines()[-1]  # behind transformers' bar
    assert sentence.startswith("rl-warmup sample: ")
    return sentence


def drawn(path="w.jsonl"):
    return json.loads(open(f"{path}.drawing.json", encoding="utf-8").read())


def train(**changes) -> int:
    values = {**TINY, **changes}
    with open("recipe.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file)
    return main(["train", "--config", "recipe.yaml"])


def test_a_start_writes_a_group_for_every_row(place, capsys):
    assert sample(*START, "--output", "w.jsonl") == 0
    assert "w.jsonl: 60 warmups for 20 rows (train of ledger)" in capsys.readouterr().out
    rows = read_jsonl(place / "w.jsonl")
    assert [row["row"] for row in rows] == list(range(20))
    assert [row["id"] for row in rows] == [f"train-{i}" for i in range(20)]
    warmups = [warmup for row in rows for warmup in row["warmups"]]
    assert {len(row["warmups"]) for row in rows} == {3}
    # the separator stands for the end token: the start ends its samples as it ends its habits, after eight words
    ended = [w for w in warmups if w["finish"] == "separator"]
    assert len(ended) > 50
    assert sum(len(w["warmup"].split()) == 8 for w in ended) > 50
    assert all(w["logprob"] < 0 for w in warmups)
    assert {k: drawn()[k] for k in ("model", "task", "split", "seed", "temperature", "max_length")} == {
        "model": "start:skills-llama", "task": "ledger", "split": "train", "seed": 42, "temperature": 1.0, "max_length": 10
    }  # fmt: skip
    assert (
        main(["score", "w.jsonl", "--reward", "{name: length_penalty, kwargs: {target_length: 8}}"]) == 0
    )  # its rows fit


def test_separator_init_keep_leaves_the_separator_as_it_was(place):
    assert sample(*START, "--separator_init", "keep", "--output", "w.jsonl") == 0
    ended = [w for row in read_jsonl(place / "w.jsonl") for w in row["warmups"] if w["finish"] == "separator"]
    assert len(ended) < 30  # nobody taught it


def test_a_torn_file_is_finished_with_the_same_samples(place, monkeypatch, capsys):
    assert sample(*START, "--output", "w.jsonl", "--batch-size", "4") == 0
    whole = (place / "w.jsonl").read_bytes()
    capsys.readouterr()
    calls = []
    draw = drawing.Drawing.draw
    monkeypatch.setattr(drawing.Drawing, "draw", lambda *args: calls.append(1) or draw(*args))
    assert sample(*START, "--output", "w.jsonl", "--batch-size", "4") == 0
    assert "w.jsonl was finished; nothing was drawn." in capsys.readouterr().out
    assert not calls
    (place / "w.jsonl").write_bytes(
        b"".join(whole.splitlines(keepends=True)[8:14]) + whole[:50]
    )  # two batches, a half, a bit
    assert sample(*START, "--output", "w.jsonl", "--batch-size", "4") == 0
    assert (place / "w.jsonl").read_bytes() == whole
    assert len(calls) == 4  # of five


def test_a_killed_drawing_keeps_whole_batches(place, monkeypatch):
    monkeypatch.setattr(drawing, "BATCHES_PER_WRITE", 1)
    draw = drawing.Drawing.draw

    def dies(self, prompts, batch):
        if batch[0] >= 8:
            raise KeyboardInterrupt
        return draw(self, prompts, batch)

    monkeypatch.setattr(drawing.Drawing, "draw", dies)
    assert sample(*START, "--output", "w.jsonl", "--batch-size", "4") == 130
    assert [row["row"] for row in read_jsonl(place / "w.jsonl")] == list(range(8))
    monkeypatch.setattr(drawing.Drawing, "draw", draw)
    assert sample(*START, "--output", "w.jsonl", "--batch-size", "4") == 0
    assert sample(*START, "--output", "alone.jsonl", "--batch-size", "4") == 0
    assert (place / "w.jsonl").read_bytes() == (place / "alone.jsonl").read_bytes()


def test_another_drawing_is_not_written_over_unasked(place, capsys):
    assert sample(*START, "--output", "w.jsonl", "--limit", 4) == 0
    error = fails(capsys, *START, "--output", "w.jsonl", "--limit", 4, "--temperature", "0.5", "--seed", "1")
    assert "w.jsonl is another drawing (seed is 42, now 1; temperature is 1.0, now 0.5)" in error
    assert sample(*START, "--output", "w.jsonl", "--limit", 4, "--temperature", "0.5", "--overwrite") == 0
    assert drawn()["temperature"] == 0.5
    (place / "notes.jsonl").write_text("mine\n")
    for more in ([], ["--overwrite"]):  # which replaces drawings alone
        assert "notes.jsonl.drawing.json" in fails(capsys, *START, "--output", "notes.jsonl", *more)
    assert (place / "notes.jsonl").read_text() == "mine\n"


def test_one_drawing_at_a_time_writes_to_a_file(place, capsys):
    assert sample(*START, "--output", "w.jsonl", "--limit", 4) == 0
    whole = (place / "w.jsonl").read_bytes()
    with file_lock(place / "w.jsonl"):
        for more in ([], ["--overwrite"]):
            assert "w.jsonl" in fails(capsys, *START, "--output", "w.jsonl", "--limit", 4, *more)
    assert (place / "w.jsonl").read_bytes() == whole
    assert sorted(path.name for path in place.iterdir()) == ["w.jsonl", "w.jsonl.drawing.json"]


def test_a_run_is_sampled_under_what_its_folder_declares_and_its_file_trains_the_next(place, capsys):
    assert train(output_dir="run") == 0
    assert sample("run", "--output", "w.jsonl") == 0
    known = drawn()
    assert (known["task_kwargs"], known["num_warmups"]) == (TINY["task_kwargs"], 2)
    assert (known["temperature"], known["min_length"], known["max_length"]) == (0.5, 1, 4)
    assert sample("run", "--output", "other.jsonl", "--temperature", "1.5", "--num_warmups", 1, "--split", "test") == 0
    assert (drawn("other.jsonl")["temperature"], drawn("other.jsonl")["max_length"]) == (1.5, 4)
    assert [row["id"] for row in read_jsonl(place / "other.jsonl")] == [f"test-{i}" for i in range(4)]
    assert train(output_dir="next", model_name_or_path="run", proposals=["stored"], stored_warmups="w.jsonl") == 0
    error = main(["train", "--config", "recipe.yaml", "--output_dir", "third", "--stored_warmups", "other.jsonl"])
    assert error == 2
    assert "its prompt is" in capsys.readouterr().err  # the test rows' file is not the training rows'


def test_a_run_is_sampled_wherever_it_was_trained_and_whatever_became_of_its_files(place):
    """Its warmups were made by code, on other devices, and under a template that is gone but for its text in the folder."""
    (place / "own.py").write_text("def back(words, context):\n    return words[::-1]\n")
    (place / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    own = {"proposals": ["own.py:back"], "anchor_weight": 0.5, "chat_template": "own.jinja"}
    assert train(output_dir="run", **own) == 0
    (place / "own.py").unlink()
    (place / "own.jinja").unlink()
    with (place / "run" / "recipe.yaml").open("a") as file:
        file.write("tf32: true\nddp_backend: gloo\n")
    assert sample("run", "--output", "w.jsonl") == 0
    assert len(read_jsonl(place / "w.jsonl")) == 12


def test_samples_are_those_of_training_with_proposals_reference(place):
    """The same model, seed, prompts and batches: one drawing, kept as ids or as text."""
    changes = {
        "model_name_or_path": "start:skills-llama",
        "task_kwargs": yaml.safe_load(LEDGER),
        "max_warmup_length": 10,
    }
    reading = {"proposals": ["reference"], "proposal_only": True, "temperature": 1.0, "num_warmups": 3}
    assert train(output_dir="run", per_device_eval_batch_size=8, **changes, **reading) == 0
    assert sample(*START, "--batch-size", "8", "--output", "w.jsonl") == 0
    _, tokenizer = load_model("start:skills-llama")
    lines = (place / "run" / "reference_warmups.jsonl").read_text().splitlines()
    kept = {record["row"]: tokenizer.batch_decode(record["ids"]) for record in map(json.loads, lines[1:])}
    texts = {row["row"]: [w["warmup"] for w in row["warmups"]] for row in read_jsonl(place / "w.jsonl")}
    assert kept == texts


def test_drawing_leaves_the_random_state_alone(place):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert sample(*START, "--limit", 2, "--output", "w.jsonl") == 0
    assert torch.rand(1) == expected


def test_mistakes(place, capsys):
    assert "has no recipe.yaml with a task" in fails(capsys, "start:skills-llama", "--output", "w.jsonl")
    assert "there is no start 'nothing'" in fails(capsys, "start:nothing", "--task", "ledger", "--output", "w.jsonl")
    assert "scratch-t5 has random weights" in fails(capsys, "scratch-t5", "--task", "ledger", "--output", "w.jsonl")
    assert "Did you mean 'temperature'" in fails(capsys, *START, "--temperatur", "1", "--output", "w.jsonl")
    assert "--limit" in fails(capsys, *START, "--limit", 0, "--output", "w.jsonl")
    assert "top_p: is 2.0, must be" in fails(capsys, *START, "--top_p", "2", "--output", "w.jsonl")
    assert "the limit max_prompt_length is 3" in fails(
        capsys, *START, "--max_prompt_length", "3", "--output", "w.jsonl"
    )
    empty = [str(part).replace("validation_size: 3", "validation_size: 0") for part in START]
    assert "has no rows in its validation split" in fails(
        capsys, *empty, "--split", "validation", "--output", "w.jsonl"
    )
    assert train(output_dir="sft", objective="sft") == 0
    assert "sft was trained without warmups" in fails(capsys, "sft", "--output", "w.jsonl")
    assert "--output" in fails(capsys, *START)
    assert not (place / "w.jsonl").exists()


@pytest.mark.parametrize("name", ["learning_rate", "objective", "use_cpu", "model_name_or_path", "max_target_length"])
def test_a_setting_without_effect_is_refused(place, capsys, name):
    value = {"learning_rate": "0.1", "objective": "sft", "use_cpu": "true", "max_target_length": "3"}.get(name, "run")
    assert f"--{name}: has no effect" in fails(capsys, *START, f"--{name}", value, "--output", "w.jsonl")


def test_a_run_is_sampled_as_it_was_trained(place, capsys):
    assert train(output_dir="run") == 0
    given = {"separator": "b+1", "separator_init": "keep", "chat_template": "none", "system": "Be brief"}
    for name, value in {**given, "chat_template_kwargs": "{enable_thinking: false}"}.items():
        said = fails(capsys, "run", f"--{name}", value, "--output", "w.jsonl")
        assert f"--{name}: " in said
        assert "warmup_layout.json" in said
    assert sample("run", "--output", "w.jsonl", "--dtype", "bfloat16", "--attn_implementation", "eager") == 0


def test_a_row_that_training_would_refuse_is_refused_before_the_first_sample(place, capsys):
    rows = [{"prompt": f"a b w{i}", "target": f"w{i} b"} for i in range(4)]
    write_jsonl(place / "rows.jsonl", rows)
    write_jsonl(place / "more.jsonl", [*rows, {"prompt": "unheard of", "target": "b"}])
    assert train(task="file", task_kwargs={"train": "rows.jsonl"}, output_dir="run") == 0
    sentence = fails(capsys, "run", "--task_kwargs", "{train: more.jsonl}", "--output", "w.jsonl")
    assert "train row 4" in sentence
    assert not (place / "w.jsonl").exists()
    assert (
        sample(
            "run", "--task_kwargs", "{train: rows.jsonl, test: more.jsonl}", "--split", "test", "--output", "w.jsonl"
        )
        == 0
    )


def test_texts_of_another_tokenizer_train_a_model(place):
    """What any model or person wrote: unknown words are left out, and said."""
    write_jsonl(place / "notes.jsonl", [{"row": i, "warmup": "first we add: a=1 b=2"} for i in range(12)])
    assert train(output_dir="run", proposals=["stored"], stored_warmups="notes.jsonl") == 0
    assert read_jsonl(place / "run" / "warmups.jsonl")[0]["warmups"][0]["warmup"] == "a=1 b=2"
