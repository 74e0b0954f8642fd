"""Rows read as they are needed: passes, the shuffle buffer, and the faults of a stream."""

import gzip
import json

import pytest

from rl_warmup.tasks import load_task
from rl_warmup.tasks.stream import Stream


def numbers(count, shuffle_buffer, **where):
    return Stream("numbers", lambda: ({"id": str(i)} for i in range(count)), shuffle_buffer, **where)


def ids(stream):
    return [int(row["id"]) for row in stream]


def test_a_pass_holds_every_row_once_in_an_order_of_its_own():
    stream = numbers(50, 8, seed=3)
    first = ids(stream)
    assert sorted(first) == list(range(50))
    assert ids(stream) == first  # gone through again without another pass being chosen
    stream.set_epoch(1)
    assert sorted(ids(stream)) == list(range(50))
    assert ids(stream) != first
    assert ids(numbers(50, 8, seed=4)) != first


def test_a_row_leaves_the_buffer_at_the_earliest_when_it_has_come_in():
    """Of the first n rows out none has a number of n - 1 + the buffer's size or more."""
    order = ids(numbers(200, 10))
    assert all(number < place + 10 for place, number in enumerate(order))
    assert max(place - number for place, number in enumerate(order)) > 10  # others stay for long


def test_a_buffer_of_one_keeps_the_order_and_a_large_one_shuffles_all():
    assert ids(numbers(20, 1)) == list(range(20))
    orders = {tuple(ids(numbers(3, 10, seed=seed))) for seed in range(60)}
    assert len(orders) == 6


def test_only_what_is_needed_is_read():
    read = []

    def count():
        for i in range(10**9):
            read.append(i)
            yield {"id": str(i)}

    stream = Stream("numbers", count, 5)
    assert read == [0]  # to know that there is a row
    rows = iter(stream)
    next(rows)
    assert len(read) == 1 + 6


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.csv", "r.parquet"])
def test_a_streamed_file_has_the_rows_of_one_read_whole(tmp_path, name):
    records = [{"prompt": f"say {i}", "target": f"word {i}"} for i in range(3000)]
    path = tmp_path / name
    if name == "r.parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif name == "r.csv":
        path.write_text("prompt,target\n" + "".join(f"{r['prompt']},{r['target']}\n" for r in records))
    else:
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    whole = load_task("file", train=str(path), test=str(path), test_size=7)
    streamed = load_task("file", train=str(path), test=str(path), test_size=7, stream=True, shuffle_buffer=1)
    assert list(streamed.splits["train"]) == whole.splits["train"]
    assert streamed.splits["test"] == whole.splits["test"]
    assert streamed.splits["train"].first(2) == whole.splits["train"][:2]


def test_faults_say_where_and_come_with_the_row(tmp_path):
    path = tmp_path / "r.jsonl"
    good = json.dumps({"prompt": "x", "target": "y"}) + "\n"
    for bad, words in [
        (b'{"prompt": "x"}\n', "r.jsonl:4: no column 'target'"),
        (b'{"prompt": "x", "target": ""}\n', "r.jsonl:4: column 'target' is empty"),
        (b"{\n", "r.jsonl:4: is not valid JSON"),
        (b"\xff\n", "is not UTF-8 (invalid start byte at byte 31000)"),
    ]:
        before = 1000 if b"\xff" in bad else 3  # text is decoded some thousand bytes ahead
        path.write_bytes(before * good.encode() + bad + good.encode())
        rows = iter(load_task("file", train=str(path), stream=True, shuffle_buffer=1).splits["train"])
        assert [next(rows)["target"] for _ in range(2)] == ["y"] * 2  # one is held while the next is read
        with pytest.raises(ValueError, match="r.jsonl") as error:
            list(rows)
        assert words in str(error.value)


def test_the_first_row_is_looked_at_before_anything_else(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"promt": "x", "target": "y"}\n')
    with pytest.raises(ValueError, match=r"r.jsonl:1: no column 'prompt' \(did you mean 'promt'\?\)"):
        load_task("file", train=str(path), stream=True)
    path.write_text("")
    with pytest.raises(ValueError, match="file, split 'train' has no rows"):
        load_task("file", train=str(path), stream=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_task("file", train=str(tmp_path / "no.jsonl"), stream=True)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "x", "target": "y"}\n')
    (tmp_path / "r.json").write_text("[]")
    for settings, words in [
        ({"path": str(path)}, "give train: one or more files, as `path` must be read whole"),
        ({"train": str(path), "train_size": 1}, "give no train_size"),
        ({"train": [str(path), str(tmp_path / "r.json")]}, "r.json: a .json file is read whole; give .jsonl"),
        ({"train": str(path), "shuffle_buffer": 0}, "shuffle_buffer=0; give a number of rows"),
    ]:
        with pytest.raises(ValueError, match="stream|shuffle_buffer") as error:
            load_task("file", stream=True, **settings)
        assert words in str(error.value)


def test_a_streamed_hub_set_has_the_rows_of_one_loaded_whole(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        records = [{"prompt": f"{split} {i}", "target": f"Wort {i}"} for i in range(30)]
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    settings = {"cache_dir": str(tmp_path / "cache"), "validation": None, "test_size": 4}
    whole = load_task("hub", dataset_name=str(tmp_path / "set"), **settings)
    settings |= {"stream": True, "shuffle_buffer": 1}
    streamed = load_task("hub", dataset_name=str(tmp_path / "set"), **settings)
    assert list(streamed.splits["train"]) == list(streamed.splits["train"]) == whole.splits["train"]
    assert streamed.splits["test"] == whole.splits["test"]
    with pytest.raises(ValueError, match="give no train_size"):
        load_task("hub", dataset_name="any", stream=True, train_size=3)
