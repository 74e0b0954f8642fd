import csv
import gzip
import json
import sys

import pytest

from rl_warmup.tasks import load_task

RECORDS = [{"prompt": f"say {i}", "target": f"word {i}", "page": i} for i in range(20)]


def write_jsonl(path, records=RECORDS):
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def write_table(path, separator):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(RECORDS[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(RECORDS)


def write_any(path):
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    elif ".csv" in path.name or ".tsv" in path.name:
        write_table(path, "," if ".csv" in path.name else "\t")
    elif path.suffix == ".json":
        path.write_text(json.dumps(RECORDS))
    else:
        write_jsonl(path)
    return str(path)


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.csv", "r.tsv", "r.parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    rows = load_task("file", train=write_any(tmp_path / name)).splits["train"]
    assert [(row["id"], row["prompt"], row["target"]) for row in rows] == [
        (str(i), f"say {i}", f"word {i}") for i in range(20)
    ]
    assert str(rows[3]["page"]) == "3"


def test_several_files_columns_template_and_metrics(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"t": {"en": "cat", "de": "Katze"}, "n": 5, "hint": "noun"}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"t": {"en": "go", "de": "gehen\u2028"}, "n": 6, "hint": "verb"}])
    task = load_task(
        "file", train=[one, two], test=two, prompt_column="t.en", target_column="t.de", id_column="n",
        prompt_template="{hint}: {text}", metrics=["bleu", "chrf++"],
    )  # fmt: skip
    assert [(row["id"], row["prompt"], row["target"]) for row in task.splits["train"]] == [
        ("5", "noun: cat", "Katze"),
        ("6", "verb: go", "gehen\u2028"),
    ]
    assert len(task.splits["test"]) == 1
    assert task.splits["validation"] == []
    assert task.metrics == ("bleu", "chrf++")


def test_completion_serves_as_target(tmp_path):
    path = write_jsonl(tmp_path / "trl.jsonl", [{"prompt": "x", "completion": "y"}])
    assert load_task("file", train=path).splits["train"][0]["target"] == "y"


def test_a_single_path_is_split_without_sharing_prompts(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt": f"p{i // 2}", "target": "y"} for i in range(100)])
    splits = load_task("file", path=path, validation_fraction=0.2, test_fraction=0.1).splits
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 70, "validation": 20, "test": 10}
    prompts = [{row["prompt"] for row in rows} for rows in splits.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 50
    assert load_task("file", path=path, seed=1).splits != load_task("file", path=path).splits
    assert len(load_task("file", path=path, train_size=5).splits["train"]) == 5


def fault(**kwargs):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_task("file", **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_contradicting_paths_and_fractions(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl")
    assert "either path" in fault()
    assert "either path" in fault(path=path, test=path)
    assert "add up to less than 1" in fault(path=path, test_fraction=0.9, validation_fraction=0.1)
    few = write_jsonl(tmp_path / "few.jsonl", RECORDS[:3])
    assert "3 distinct prompts" in (message := fault(path=few))
    assert "leave validation and test empty" in message


def test_missing_files(tmp_path):
    assert "does not exist" in fault(train=str(tmp_path / "no.jsonl"))
    assert "is a folder" in fault(train=str(tmp_path))
    (tmp_path / "r.txt").write_text("x")
    (tmp_path / "r.doc").write_text("x")
    assert "unknown format '.doc'" in fault(train=str(tmp_path / "r.doc"))
    assert "begins with 'x'" in (message := fault(train=str(tmp_path / "r.txt")))
    assert ".parquet" in message


def test_missing_columns(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"promt": "x", "target": "y"}])
    message = fault(train=path)
    assert f"{path}:1: no column 'prompt' (did you mean 'promt'?); available: promt, target" in message
    for setting in ("prompt_column", "target_column", "id_column"):
        assert f"{setting}=0; give a text" in fault(train=path, **{setting: 0})
    assert "no column 'hint'" in fault(train=path, prompt_column="promt", prompt_template="{hint} {text}")
    assert "no column 'target'" in fault(train=write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x"}]))


def test_empty_and_wrong_values(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [*RECORDS[:2], {"prompt": "x", "target": ""}])
    assert f"{path}:3: column 'target' is empty" in fault(train=path)
    listed = write_jsonl(tmp_path / "listed.jsonl", [{"prompt": ["x"], "target": "y"}])
    assert "column 'prompt' holds a list, not text" in fault(train=listed)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", b'{"prompt": "x", "target": "y"}\n\n{"prompt": ', ["r.jsonl:3:", "not valid JSON", "Mend or drop"]),
        ("r.jsonl", b"[1]", ["r.jsonl:1:", "a JSON list", "give an object"]),
        ("r.json", b'{"prompt": 1}\n{"prompt": 2}', ["r.json:2:", "Extra data", "one object per line is .jsonl"]),
        ("r.json", b'{"data": []}', ["r.json:", "a JSON object", "list of objects"]),
        ("r.json", b"[3]", ["item 0", "a JSON number"]),
        ("r.csv", b"prompt,target\nx,y\na,b,c\n", ["r.csv:3:", "3 cells, but the header has 2", "quote"]),
        ("r.csv", b'prompt,target\n"x"y,z\n', ["r.csv:2:", "not valid"]),
        ("r.jsonl", b"\xff\xfe", ["r.jsonl", "not UTF-8", "byte 0"]),
        ("r.jsonl.gz", b"plain", ["r.jsonl.gz", "not a whole gzip file"]),
        ("r.parquet", b"plain", ["r.parquet", "not a readable Parquet file"]),
        ("r.jsonl", b"", ["r.jsonl: no rows for the train split"]),
    ],
)
def test_unreadable_content(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = fault(train=str(tmp_path / name))
    assert all(word in message for word in words), message


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"\xef\xbb\xbfprompt,target\nx,y\n\n")
    assert len(load_task("file", train=str(tmp_path / "r.csv")).splits["train"]) == 1


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "r.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.lib", None)
    with pytest.raises(ImportError, match="needs pyarrow; pip install pyarrow"):
        load_task("file", train=str(tmp_path / "r.parquet"))


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ({"keep_columns": ["topc"]}, ["keep_columns", "'topc'"]),
        ({"column_names": ["prompt", "target"]}, ["column_names", "no effect", ".csv"]),
        ({"quoted": True}, ["quoted", "no effect", ".csv"]),
    ],
)
def test_columns_that_no_row_has_and_arguments_of_tables_for_json_lines_are_refused(tmp_path, more, facts):
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "target": "b", "topic": "c"}])
    with pytest.raises(ValueError, match="(?s)" + ".*".join(facts)):
        load_task("file", train=str(tmp_path / "rows.jsonl"), **more)
