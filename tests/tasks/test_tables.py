"""What two readers of one file could take for different things: keys that stand twice, quotes in TSV, files without a header."""

import json
from pathlib import Path

import pytest

from rl_warmup.experiments.sweeps.question import read_question
from rl_warmup.inference.scorecard import read_warmups
from rl_warmup.runtime.documents import parse_yaml
from rl_warmup.runtime.recipe_file import read_values
from rl_warmup.tasks import load_task

LOGIQA = [
    {"id": 10, "answer": 1, "text": "All pigs fly.", "question": "What flies?", "options": ["cows", "pigs", "a", "b"],
     "type": {"Categorical Reasoning": True}},
    {"id": 10, "answer": 0, "text": "No pig flies.", "question": "What flies?", "options": ["crows", "pigs", "a", "b"],
     "type": {}},
]  # fmt: skip


def rows(path: Path, text: str | bytes, **kwargs):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_task("file", train=str(path), **kwargs).splits["train"]


@pytest.mark.parametrize(
    ("name", "text", "place", "key"),
    [
        ("r.jsonl", '{"prompt": "a", "target": "b"}\n{"prompt": "a", "target": "b", "target": "c"}', "r.jsonl:2", "target"),
        ("r.jsonl", '{"prompt": {"en": "a", "en": "x"}, "target": "b"}', "r.jsonl:1", "en"),
        ("r.txt", '{"prompt": "a", "pr\\u006fmpt": "x", "target": "b"}', "r.txt:1", "prompt"),
        ("r.json", '[{"target": "b",\n"prompt": "a"},\n{"prompt": "{\\"", "target": [],\n "target": "c"}]', "r.json:4", "target"),
        ("r.csv", "prompt,target,prompt\na,b,c\n", "r.csv:1", "prompt"),
        ("r.csv", "prompt,target, prompt\na,b,c\n", "r.csv:1", "prompt"),
        ("r.tsv", "prompt\ttarget\ttarget\na\tb\tc\n", "r.tsv:1", "target"),
    ],
)  # fmt: skip
def test_a_name_that_stands_twice_in_a_row_or_header(tmp_path, name, text, place, key):
    with pytest.raises(ValueError, match="twice") as caught:
        rows(tmp_path / name, text)
    assert place in str(caught.value)
    assert repr(key) in str(caught.value)


def test_a_column_that_stands_twice_in_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "target", "target"]), path)
    with pytest.raises(ValueError, match="r.parquet.*'target'.*twice"):
        load_task("file", train=str(path))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("seed: 1\ntau: 1.0\nseed: 2\n", 3, "seed"),
        ("task_kwargs:\n  train: a\n  test: b\n  train: c\n", 4, "train"),
        ("scratch: {width: 1, width: 2}\n", 1, "width"),
        ("rewards:\n  - name: gain\n    weight: 1\n    name: x\n", 4, "name"),
        ("'seed': 1\nseed: 2\n", 2, "seed"),
    ],
)
def test_a_key_that_stands_twice_in_a_recipe(tmp_path, text, line, key):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"r\.yaml, line {line}: the key '{key}'.*twice"):
        read_values(tmp_path / "r.yaml")


def test_flags_and_merges():
    with pytest.raises(ValueError, match="--scratch.*'width'.*twice"):
        read_values(None, ["--scratch", "{width: 1, width: 2}"])
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: *b\n"
    assert parse_yaml(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 3, "y": 4},
        "d": {"x": 3, "y": 2},
    }
    text = "p: &p {width: 1}\nq: &q {width: 2, height: 5}\nr: {<<: [*p, *q]}\ns: {height: 7, <<: *q}\n"
    assert parse_yaml(text) == {
        "p": {"width": 1}, "q": {"width": 2, "height": 5}, "r": {"width": 1, "height": 5}, "s": {"width": 2, "height": 7}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arms", "words"), [("runs: {a: {tau: 1.0}, a: {}}", "'a'.*twice"), ("runs: {1: {}, '1': {}}", "'1'.*twice")]
)
def test_an_arm_that_stands_twice_in_a_sweep(tmp_path, arms, words):
    (tmp_path / "base.yaml").write_text("seed: 1")
    (tmp_path / "s.yaml").write_text(f"question: x\nbase: base.yaml\nmetric: m\nseeds: 1\n{arms}\n")
    with pytest.raises(ValueError, match=rf"s\.yaml, line 5.*{words}"):
        read_question(tmp_path / "s.yaml")


def test_a_key_that_stands_twice_among_warmups(tmp_path):
    (tmp_path / "w.jsonl").write_text('{"prompt": "a", "target": "b", "warmup": "c", "warmup": "d"}\n')
    with pytest.raises(ValueError, match="line 1.*'warmup'.*twice"):
        read_warmups(tmp_path / "w.jsonl")


WMT = (
    'en\tde\nPlain line.\tEinfache Zeile.\n"Everything is quoted."\t"Alles in Anfuehrungszeichen."\n'
    '"He came home.\tEr kam nach Hause.\nAnd then he left."\tUnd dann ging er.\nLast\x0bline.\tLetzte\rZeile.\r\n'
)
PAIR = {"prompt_column": "en", "target_column": "de"}


def test_cells_of_tsv_are_literal(tmp_path):
    found = rows(tmp_path / "wmt.tsv", WMT, **PAIR)
    assert [(row["prompt"], row["target"]) for row in found] == [tuple(line.split("\t")) for line in (
        "Plain line.\tEinfache Zeile.", '"Everything is quoted."\t"Alles in Anfuehrungszeichen."',
        '"He came home.\tEr kam nach Hause.', 'And then he left."\tUnd dann ging er.', "Last\x0bline.\tLetzte\rZeile.",
    )]  # fmt: skip


def test_quotes_of_tsv_when_asked_for(tmp_path):
    text = 'en\tde\n"a\tb"\t"c ""d"""\n'
    assert [(r["prompt"], r["target"]) for r in rows(tmp_path / "q.tsv", text, **PAIR, quoted=True)] == [
        ("a\tb", 'c "d"')
    ]
    with pytest.raises(ValueError, match=r"q\.tsv:2: 3 cells.*quoted: true"):
        rows(tmp_path / "q.tsv", text, **PAIR)
    with pytest.raises(ValueError, match="quoted='yes'"):
        rows(tmp_path / "q.tsv", text, **PAIR, quoted="yes")


@pytest.mark.parametrize(("name", "separator"), [("nohead.tsv", "\t"), ("nohead.csv", ",")])
def test_columns_of_a_file_without_a_header(tmp_path, name, separator):
    text = f"Good morning{separator}Guten Morgen\nBye{separator}Tschuess\n"
    found = rows(tmp_path / name, text, **PAIR, column_names=["en", "de"])
    assert [(row["prompt"], row["target"]) for row in found] == [("Good morning", "Guten Morgen"), ("Bye", "Tschuess")]
    with pytest.raises(ValueError, match="no column 'prompt'.*Good morning.*column_names"):
        rows(tmp_path / name, text)
    with pytest.raises(ValueError, match="2 cells, but column_names has 3"):
        rows(tmp_path / name, text, column_names=["en", "de", "fr"])
    with pytest.raises(ValueError, match="column_names.*'en' twice"):
        rows(tmp_path / name, text, column_names=["en", "en"])


def test_a_folder_of_tsv_files_is_read_the_same_way(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.tsv").write_text(WMT.replace("\x0b", " ").replace("Letzte\rZeile.\r", "Letzte Zeile."))
    task = load_task(
        "hub", dataset_name=str(tmp_path / "d"), cache_dir=str(tmp_path / "c"), **PAIR, validation=None, test=None
    )
    assert [row["prompt"] for row in task.splits["train"]][1:4] == [
        '"Everything is quoted."', '"He came home.', 'And then he left."',
    ]  # fmt: skip


def test_foreign_ids_are_labels(tmp_path):
    text = "".join(
        json.dumps({"id": i, "prompt": f"p{n}", "target": "t"}) + "\n" for n, i in enumerate([1, 1, None, "", [3]])
    )
    assert [row["id"] for row in rows(tmp_path / "dup.jsonl", text)] == ["1", "1", "2", "3", "4"]


@pytest.mark.parametrize("kind", ["file", "hub"])
def test_logiqa_as_published(tmp_path, kind):
    path = tmp_path / "train.txt"
    path.write_text("".join(json.dumps(row) + "\n" for row in LOGIQA))
    columns = {"prompt_column": "text", "choices_column": "options", "answer_column": "answer",
               "prompt_template": "{question} {options} {text}"}  # fmt: skip
    if kind == "file":
        task = load_task("file", train=str(path), **columns)
    else:
        pytest.importorskip("datasets")
        task = load_task("hub", dataset_name="json", data_files={"train": str(path)}, cache_dir=str(tmp_path / "c"),
                         validation=None, test=None, keep_columns=[], **columns)  # fmt: skip
    assert [(row["id"], row["target"], row["choices_style"]) for row in task.splits["train"]] == [
        ("10", "B", "letter"), ("10", "A", "letter"),
    ]  # fmt: skip


def test_a_key_that_stands_twice_in_a_data_set(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "r.jsonl").write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a", "target": "b", "target": "c"}\n')
    files = {"train": str(tmp_path / "r.jsonl")}
    with pytest.raises(ValueError, match=r"could not be loaded.*target"):
        load_task(
            "hub", dataset_name="json", data_files=files, cache_dir=str(tmp_path / "c"), validation=None, test=None
        )
