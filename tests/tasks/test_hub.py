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


def test_a_folder_of_save_to_disk_has_no_configurations(tmp_path):
    home = str(tmp_path / "saved")
    datasets.Dataset.from_list([{"prompt": "a", "target": "b"}]).save_to_disk(home)
    for key, value in {"dataset_config": "de", "revision": "main", "data_files": {"train": "x"}}.items():
        with pytest.raises(ValueError, match=f"saved' is a folder of save_to_disk.*leave out {key}$"):
            load_task("hub", dataset_name=home, validation=None, test=None, **{key: value})


def test_a_split_has_columns_of_its_own_in_languages_too(tmp_path):
    rows = [("fr", 7, "Oui"), ("de", 7, "Ja"), ("en", 7, "Yes"), ("de", 8, "Nein"), ("en", 8, "No")]
    for name, text, key in (("one", "text", "id"), ("other", "said", "key")):
        lines = [json.dumps({"lang": lang, key: n, text: words}) for lang, n, words in rows]
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("\n".join(lines))
    pair = {"language_column": "lang", "source_language": "de", "target_language": "en", "validation": None}
    pair |= {"dataset_name": str(tmp_path / "one"), "cache_dir": str(tmp_path / "cache")}
    test = {"dataset_name": str(tmp_path / "other"), "split": "train", "prompt_column": "said", "id_column": "key"}
    splits = load_task("hub", **pair, test=test).splits
    for split in ("train", "test"):
        found = [(row["id"], row["prompt"], row["target"]) for row in splits[split]]
        assert found == [("7", "Ja", "Yes"), ("8", "Nein", "No")]
    with pytest.raises(ValueError, match="leave out target_column"):
        load_task("hub", **pair, test={**test, "target_column": "said"})
    with pytest.raises(ValueError, match="source_language and target_language are both 'de'"):
        load_task("hub", **{**pair, "target_language": "de"}, test=None)
    lines[-1] = json.dumps({"lang": "en", "key": 8, "said": ""})
    (tmp_path / "other" / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match="other', split 'train', row 3 with .*other', split 'train', row 4: column 'target' is empty"
    ):
        load_task("hub", **pair, test=test)
