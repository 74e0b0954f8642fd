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


def test_missing_split_size_and_column(folder):
    with pytest.raises(ValueError, match=r"no split 'tset'.*did you mean 'test'.*available: train, test; set test"):
        load_task("hub", **folder, test="tset")
    with pytest.raises(ValueError, match="validation_size=1, but 0 rows"):
        load_task("hub", **folder, validation_size=1)
    with pytest.raises(ValueError, match=r"split 'train', row 0: no column 'translation.eng'.*'translation.en'"):
        load_task("hub", **{**folder, "prompt_column": "translation.eng"})


def test_an_unreachable_set_is_one_sentence(monkeypatch):
    def load_dataset(path, **kwargs):
        assert "trust_remote_code" not in kwargs
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
    with pytest.raises(ImportError, match="needs the package datasets; pip install datasets, or use the task 'file'"):
        load_task("hub", dataset_name="any")
