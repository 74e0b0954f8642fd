"""The hub task on local folders and with a stand-in for the network: nothing here leaves the machine."""

import json
import sys

import pytest

from rl_warmup.tasks import load_task

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "set"
    home.mkdir()
    for split, size in (("train", 12), ("test", 4)):
        records = [{"translation": {"en": f"{split} {i}", "de": f"Wort {i}"}, "kind": "noun"} for i in range(size)]
        (home / f"{split}.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    columns = {"prompt_column": "translation.en", "target_column": "translation.de", "validation": None}
    return {"dataset_name": str(home), "cache_dir": str(tmp_path / "cache"), **columns}


def test_a_local_folder_with_nested_columns(folder):
    task = load_task("hub", **folder, prompt_template="{kind}: {text}", train_size=5, metrics=("chrf++",))
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 5, "validation": 0, "test": 4}
    row = task.splits["test"][2]
    assert (row["id"], row["prompt"], row["target"], row["kind"]) == ("2", "noun: test 2", "Wort 2", "noun")
    assert task.metrics == ("chrf++",)
    for row in task.splits["train"]:
        assert row["prompt"] == f"noun: train {row['id']}"


def test_one_split_may_serve_as_another(folder):
    splits = load_task("hub", **{**folder, "validation": "test"}).splits
    assert splits["validation"] == splits["test"]


@pytest.fixture
def flores(tmp_path):
    """A second set, with a column per language."""
    home = tmp_path / "flores"
    home.mkdir()
    rows = [{"deu_Latn": f"Satz {i}", "eng_Latn": f"sentence {i}", "fra_Latn": f"phrase {i}"} for i in range(6)]
    (home / "devtest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {"dataset_name": str(home), "data_files": {"devtest": "devtest.jsonl"}, "split": "devtest"}


def test_test_rows_may_come_from_another_set_with_other_columns(folder, flores):
    test = {**flores, "prompt_column": "eng_Latn", "target_column": "deu_Latn"}
    task = load_task("hub", **folder, test=test, test_size=3, keep_columns=[], drop_empty=True)
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 12, "validation": 0, "test": 3}
    assert task.splits["train"][3]["prompt"] == "train 3"
    for row in task.splits["test"]:
        number = row["id"]
        assert (row["prompt"], row["target"]) == (f"sentence {number}", f"Satz {number}")
        assert set(row) == {"id", "prompt", "target", "eng_Latn", "deu_Latn"}
    kept = load_task("hub", **folder, test=test, keep_columns=["fra_Latn"]).splits["test"][0]
    assert kept["fra_Latn"] == "phrase 0"


def test_a_split_from_elsewhere_says_what_is_wrong(folder, flores):
    with pytest.raises(
        ValueError, match=r"test: no setting 'dataset' \(did you mean 'dataset_name'\?\); allowed: split, "
    ):
        load_task("hub", **folder, test={"dataset": "x", "split": "y"})
    with pytest.raises(ValueError, match="test: .*names no split; add `split: ...`"):
        load_task("hub", **folder, test={"dataset_name": "x"})
    with pytest.raises(
        ValueError, match=r"flores', split 'devtest', row 0: no column 'translation.en'; available: deu_Latn, "
    ):
        load_task("hub", **folder, test=flores)


def test_filters_shorten_training_rows_alone_and_sizes_count_what_is_left(folder):
    # "train 10" and "train 11" have 8 characters, all others 7
    task = load_task("hub", **folder, max_chars=7)
    assert [row["prompt"] for row in task.splits["train"]] == [f"train {i}" for i in range(10)]
    ten = load_task("hub", **folder, max_chars=7, train_size=10)
    three = load_task("hub", **folder, max_chars=7, train_size=3)
    assert {row["id"] for row in ten.splits["train"]} == {str(i) for i in range(10)}
    assert three.splits["train"] == ten.splits["train"][:3]
    with pytest.raises(ValueError, match="train_size=11, but 10 rows are available after the filters; give 0 to 10"):
        load_task("hub", **folder, max_chars=7, train_size=11)


def test_missing_split_size_and_column(folder):
    with pytest.raises(ValueError, match=r"no split 'tset'.*did you mean 'test'.*available: train, test; set test"):
        load_task("hub", **folder, test="tset")
    with pytest.raises(ValueError, match="validation_size=1, but 0 rows"):
        load_task("hub", **folder, validation_size=1)
    with pytest.raises(ValueError, match=r"split 'train', row 0: no column 'translation.eng'.*'translation.en'"):
        load_task("hub", **{**folder, "prompt_column": "translation.eng"})


def test_an_unreachable_set_is_one_sentence(monkeypatch):
    def load_dataset(path, **kwargs):
        assert kwargs["trust_remote_code"] is False
        raise ConnectionError("Couldn't reach 'wmt/none' on the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="'wmt/none' could not be loaded") as error:
        load_task("hub", dataset_name="wmt/none")
    message = str(error.value)
    assert "\n" not in message
    assert "(ConnectionError: Couldn't reach 'wmt/none' on the Hub)" in message
    assert "check the name, the configuration and the network, or give a local folder" in message
    assert isinstance(error.value.__cause__, ConnectionError)


def test_without_the_package_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="needs the package datasets; install it, or use the task 'file'"):
        load_task("hub", dataset_name="any")
