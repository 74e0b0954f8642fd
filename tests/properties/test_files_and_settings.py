"""Readers and recipes for any value: rows or a recipe, or one ValueError that says where."""

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import io
import json
from dataclasses import fields

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_warmup.config import Recipe, WarmupConfig, build_recipe
from rl_warmup.inference.scorecard import read_warmups
from rl_warmup.method.warmup_files import read_lines
from rl_warmup.options import TaskOptions
from rl_warmup.runtime import compat
from rl_warmup.runtime.documents import Unreadable, parse_json, parse_yaml
from rl_warmup.tasks import Task, load_task

texts = st.one_of(st.text(max_size=12), st.sampled_from(["a b", "\ud800", "\x00", "", " ", "1e400", "file", "null"]))
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([10**40, 10**400, -(2**63)]), st.floats(), st.booleans(), st.none()
)
scalars = st.one_of(numbers, texts)
names = st.one_of(
    st.sampled_from(["prompt", "target", "id", "warmup", "warmups", "row", "completion", "finish"]), texts
)


def nested(leaves):
    return st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)),
                        max_leaves=8)  # fmt: skip


values = nested(scalars)
rows = st.one_of(values, st.fixed_dictionaries({"prompt": texts, "target": texts}, optional={"id": scalars, "x": values}),
                 st.fixed_dictionaries({"prompt": texts, "target": texts, "warmup": texts}, optional={"step": scalars}),
                 st.fixed_dictionaries({"row": numbers, "warmups": st.lists(st.one_of(texts, values), max_size=3)}))  # fmt: skip
tables = st.lists(rows, max_size=4)


def as_jsonl(table):
    return "".join(json.dumps(row) + "\n" for row in table).encode()


def as_table(table, separator):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(["prompt", "target"])
    for row in table:
        cells = list(row.values()) if isinstance(row, dict) else row if isinstance(row, list) else [row]
        with contextlib.suppress(csv.Error):
            writer.writerow(cells)
    return file.getvalue().encode("utf-8", "surrogatepass")


FORMATS = {
    "r.jsonl": as_jsonl,
    "r.txt": as_jsonl,
    "r.json": lambda table: json.dumps(table).encode(),
    "r.csv": lambda table: as_table(table, ","),
    "r.tsv": lambda table: as_table(table, "\t"),
    "r.jsonl.gz": lambda table: gzip.compress(as_jsonl(table), 1),
}


@pytest.mark.parametrize("name", FORMATS)
@given(tables)
def test_any_rows(tmp_path_factory, name, table):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(FORMATS[name](table))
    try:
        task = load_task("file", train=str(path))
    except ValueError as error:
        assert any(place in str(error) for place in (name, ", row ", "no rows"))
    else:
        assert isinstance(task, Task)
        assert all(isinstance(row[key], str) for row in task.splits["train"] for key in ("id", "prompt", "target"))


@given(tables)
def test_any_warmups(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "w.jsonl"
    path.write_bytes(as_jsonl(table))
    for read in (read_warmups, read_lines):
        try:
            assert read(path)
        except ValueError as error:
            assert "w.jsonl" in str(error)


@given(
    st.one_of(
        st.binary(max_size=60),
        texts,
        values.map(json.dumps),
        values.map(lambda v: yaml.safe_dump(v, allow_unicode=True)),
    )
)
def test_any_text_is_read_or_unreadable(text):
    for parse in (parse_json, parse_yaml):
        try:
            parse(text)
        except Unreadable as error:
            assert str(error)


BASE = {
    "model_name_or_path": "scratch-t5", "task": "file", "task_kwargs": {"train": "rows.jsonl"}, "use_cpu": True,
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}, "max_steps": 1,
}  # fmt: skip
CLASSES = (TaskOptions, WarmupConfig, compat.model_config_class())
SETTINGS = sorted({f.name for cls in CLASSES for f in fields(cls) if f.init})
KWARGS = [
    "path", "train", "test", "train_size", "seed", "stream", "metrics", "prompt_template", "column_names", "quoted",
    "validation_fraction", "shuffle_buffer", "target_style", "choices_column",
]  # fmt: skip
yaml_values = nested(st.one_of(scalars, st.dates(), st.binary(max_size=4), st.just(datetime.datetime(2020, 1, 1))))


@settings(max_examples=400)
@given(st.sampled_from(SETTINGS), yaml_values)
def test_any_value_of_any_setting(name, value):
    try:
        assert isinstance(build_recipe({**BASE, name: value}), Recipe)
    except ValueError as error:
        assert str(error)
        assert len(str(error)) < 5000


@settings(max_examples=100)
@given(st.sampled_from(KWARGS), yaml_values)
def test_any_argument_of_a_task(tmp_path_factory, name, value):
    path = tmp_path_factory.getbasetemp() / "k.jsonl"
    path.write_text("".join(f'{{"prompt": "p {i}", "target": "t"}}\n' for i in range(20)))
    try:
        load_task("file", **{"train": str(path), name: value})
    except (ValueError, FileNotFoundError) as error:
        assert "failed with" not in str(error)
