"""`rl-warmup init`: the recipe it writes is read, trains, and says what was found in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl_warmup.cli.main import main
from rl_warmup.config import read_recipe
from rl_warmup.experiments.run import recipe_task, train_run

WORDS = ["red", "green", "blue", "pink", "grey", "black", "white", "brown", "gold", "lime", "teal", "rose"]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return name


def pairs(number: int = 12, answer: str = "no", names: tuple[str, str] = ("prompt", "target")) -> list[dict]:
    return [dict(zip(names, (f"the colour {word}", answer), strict=True)) for word in WORDS[:number]]


def test_the_recipe_trains(capsys):
    assert main(["init", write("mine.jsonl", pairs()), "--model", "scratch-t5"]) == 0
    assert "train --config mine.yaml" in capsys.readouterr().out
    flags = [
        "--max_steps=1",
        "--use_cpu",
        "--report_to=none",
        "--eval_strategy=no",
        "--logging_steps=1",
        "--max_warmup_length=2",
    ]
    recipe = read_recipe("mine.yaml", flags)
    assert train_run(recipe)["updates"] == 1
    assert recipe.config.output_dir == "runs/mine"


def test_texts_among_conversations_are_refused(capsys):
    assert main(["init", write("mine.jsonl", [*pairs(), {"messages": TALK}])]) == 2
    assert "prompts are texts up to row 12, and conversations there" in capsys.readouterr().err


def test_columns_are_asked_for_by_their_flags(capsys):
    assert main(["init", write("mine.jsonl", pairs(names=("q", "a")))]) == 2
    said = capsys.readouterr().err
    assert "--prompt-column" in said
    assert "--target-column" in said


@pytest.mark.parametrize(
    ("rows", "flags", "model", "metric"),
    [
        (pairs(), [], "google-t5/t5-small", "exact_match"),
        (pairs(answer="word " * 9), ["--model", "a/b"], "a/b", "chrf++"),
        (pairs(names=("q", "a")), ["--prompt-column", "q", "--target_column", "a"], "google-t5/t5-small", "exact_match"),
        (pairs(names=("instruction", "output")), [], "google-t5/t5-small", "exact_match"),
        ([{"messages": [{"role": "user", "content": word}, TALK[1]]} for word in WORDS], [],
         "HuggingFaceTB/SmolLM2-135M-Instruct", "exact_match"),
        (pairs(6), [], "google-t5/t5-small", "exact_match"),
        (pairs(7), [], "google-t5/t5-small", "exact_match"),
    ],
)  # fmt: skip
def test_what_was_found_in_the_file(rows, flags, model, metric):
    assert main(["init", write("rows.jsonl", rows), "--output", "r.yaml", *flags]) == 0
    recipe = read_recipe("r.yaml", ["--use_cpu"])
    task = recipe_task(recipe)
    assert sum(map(len, task.splits.values())) == len(rows)
    assert all(task.splits.values())
    assert (recipe.model.model_name_or_path, recipe.task.metrics) == (model, [metric])
    assert f"{len(rows)} rows" in Path("r.yaml").read_text("utf-8")


def test_long_rows_get_room():
    main(["init", write("rows.jsonl", pairs(answer="word " * 100)), "--output", "r.yaml"])
    config = read_recipe("r.yaml", ["--use_cpu"]).config
    assert (config.max_prompt_length, config.max_target_length) == (512, 256)


def test_letters_of_a_script_without_spaces_count_as_words():
    main(["init", write("rows.jsonl", pairs(answer="東京の天気" * 30)), "--output", "r.yaml"])
    assert "has 150 words" in Path("r.yaml").read_text("utf-8")
    assert read_recipe("r.yaml", ["--use_cpu"]).task.metrics == ["chrf++"]


@pytest.mark.parametrize(
    ("rows", "flags", "facts"),
    [
        (pairs(names=("q", "a")), [], ["rows.jsonl", "--prompt-column", "q, a"]),
        (pairs(5), [], ["rows.jsonl", "5 distinct prompts", "6"]),
        (pairs(), ["--output", "rows.jsonl"], ["rows.jsonl exists already", "--output"]),
        (pairs(), ["--output", "no/r.yaml"], ["no/r.yaml"]),
        ([{"prompt": "a", "target": ""}], [], ["rows.jsonl"]),
    ],
)
def test_what_is_refused_writes_nothing(rows, flags, facts, capsys):
    text = Path(write("rows.jsonl", rows)).read_text("utf-8")
    assert main(["init", "rows.jsonl", *flags]) == 2
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts)
    assert [path.name for path in Path().iterdir()] == ["rows.jsonl"]
    assert Path("rows.jsonl").read_text("utf-8") == text
