"""docs/data.md, "Your own data": its examples are run as they stand there, and no argument is missing from its tables."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.config import build_recipe
from rl_warmup.experiments.run import recipe_task, train_run
from rl_warmup.tasks import files, hub

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
CASES = Path(__file__).parents[2] / "shared" / "cases"
FENCE = re.compile(r"^(?:`(?P<file>[^`\n]+)`[^\n]*\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TRAINING = {"chat_template", "system", "chat_template_kwargs", "max_steps"}
TINY = {
    "model_name_or_path": "scratch-llama", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "output_dir": "run", "num_warmups": 2, "max_warmup_length": 2, "max_steps": 1, "per_device_train_batch_size": 1,
    "use_cpu": True, "controls": [], "report_to": "none", "save_strategy": "no", "show_progress": False, "logging_steps": 1,
}  # fmt: skip


def section(title: str) -> str:
    return PAGE.split(f"\n{title}", 1)[1].split("\n## ", 1)[0]


EXAMPLES = {part.split("\n", 1)[0]: part for part in section("## Ten examples").split("\n### ")[1:]}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def unpack(text: str) -> dict[str, str]:
    """Write the files of a part of the page; return its other blocks by kind."""
    blocks = {}
    for found in FENCE.finditer(text):
        if found["file"]:
            Path(found["file"]).parent.mkdir(exist_ok=True)
            Path(found["file"]).write_text(found["text"], encoding="utf-8")
        else:
            blocks[found["kind"]] = found["text"]
    return blocks


def test_there_are_ten_examples():
    assert [int(name.split(".")[0]) for name in EXAMPLES] == list(range(1, 11))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_the_row_that_stands_there(name):
    blocks = unpack(EXAMPLES[name])
    values = yaml.safe_load(blocks["yaml"])
    if values["task"] == "hub":
        values["task_kwargs"]["cache_dir"] = "cache"
    recipe = build_recipe({**TINY, **values})
    splits = recipe_task(recipe).splits
    row = next(iter(splits["train"] or splits["test"]))
    shown = json.dumps(row["prompt"]) if isinstance(row["prompt"], list) else row["prompt"]
    assert f"prompt: {shown}\ntarget: {row['target']}\n" == blocks["text"]
    if TRAINING & values.keys():
        assert train_run(recipe)["updates"] == 1


def test_the_first_run_and_python(capsys):
    blocks = unpack(section("## A first run"))
    assert blocks.keys() == {"sh"}
    faster = {"train": ["--max_steps=1", "--use_cpu=true", "--report_to=none", "--controls=[]"]}
    for line in blocks["sh"].splitlines():
        program, command, *args = shlex.split(line)
        assert program == "rl-warmup"
        assert main([command, *args, *faster.get(command, [])]) == 0, line
    assert "prediction" in capsys.readouterr().out
    code = unpack(section("## In Python"))["python"]
    exec(code.replace("max_steps=1", "max_steps=1, use_cpu=True, report_to='none'"), {})


@pytest.mark.parametrize("module", [files, hub])
def test_every_argument_stands_in_the_tables(module):
    named = set(re.findall(r"`(\w+)`", section("## Arguments of")))
    assert set(inspect.signature(module.load).parameters) - named == set()


def test_links_lead_somewhere():
    titles = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= anchors
    for page in Path(files.__file__).parents[2].glob("docs/*.md"):
        for target in re.findall(r"\]\(([\w./-]+\.md)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


# ---------------------------------------------------------------------- tables that users have brought

TABLES = {
    "alpaca.json": ({}, "Name a colour."), "sharegpt.json": ({}, [{"role": "user", "content": "Hi"}]),
    "messages.jsonl": ({}, [{"role": "user", "content": "Hi"}]), "trlconv.jsonl": ({}, [{"role": "user", "content": "Hi"}]),
    "flores.tsv": ({"prompt_column": "eng_Latn", "target_column": "deu_Latn"}, "The cat sat."),
    "wmt.tsv": ({"prompt_column": "en", "target_column": "de"}, "Plain line."),
    "nohead.tsv": ({"column_names": ["en", "de"], "prompt_column": "en", "target_column": "de"}, "Good morning"),
    "xsum.csv": ({"prompt_column": "document", "target_column": "summary", "prompt_template": "Sum: {text}"}, "Sum: First "),
    "arc.jsonl": ({"choices_column": "choices.text", "labels_column": "choices.label", "answer_column": "answerKey",
                   "prompt_template": "{question} {options}"}, "Which? A) a1 B) b1 C) c1"),
    "qa.jsonl": ({"prompt_column": "question", "target_column": "answer"}, "what colour is black thing"),
    "dup.jsonl": ({}, "a"),
}  # fmt: skip


@pytest.mark.skipif(not CASES.is_dir(), reason="the tables are not part of the repository")
@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_a_user_brought_loads(name):
    kwargs, prompt = TABLES[name]
    rows = files.load(train=str(CASES / name), **kwargs).splits["train"]
    assert rows[0]["prompt"] == prompt or rows[0]["prompt"].startswith(prompt)


@pytest.mark.skipif(not CASES.is_dir(), reason="the tables are not part of the repository")
def test_tables_that_need_a_second_file_or_name_a_choice_twice(tmp_path):
    german = [json.loads(line) for line in (CASES / "flores_dev.jsonl").read_text().splitlines()]
    english = [json.dumps({**row, "iso_639_3": "eng", "text": f"english {row['id']}"}) for row in german]
    Path("eng.jsonl").write_text("\n".join(english))
    languages = {"language_column": "iso_639_3", "source_language": "eng", "target_language": "deu"}
    rows = files.load(train=[str(CASES / "flores_dev.jsonl"), "eng.jsonl"], **languages).splits["train"]
    assert (rows[0]["prompt"], rows[0]["target"]) == ("english 1", "Die Katze sass.")
    with pytest.raises(ValueError, match="the languages found are deu"):
        files.load(train=str(CASES / "flores_dev.jsonl"), **languages)
    choices = {"choices_column": "choices", "answer_column": "answer", "prompt_template": "{question}{options}"}
    lines = (CASES / "numch.jsonl").read_text().splitlines()
    Path("numch.jsonl").write_text("\n".join(lines[:2]))
    assert [row["answer"] for row in files.load(train="numch.jsonl", **choices).splits["train"]] == [1, 2]
    with pytest.raises(ValueError, match="column 'answer' is 'A'"):  # the letter of one choice, the text of another
        files.load(train=str(CASES / "numch.jsonl"), **choices)
