"""translation and summarization: the embedded real text."""

import logging
from importlib.resources import files

import pytest

from rl_warmup.tasks import load_task, rows_hash

COUNTS = {"translation": (8814, 542, 320), "summarization": (266, 13, 13)}


@pytest.mark.parametrize("name", COUNTS)
def test_all_rows_are_there_and_splits_share_no_prompt(name):
    splits = load_task(name).splits
    assert tuple(len(splits[split]) for split in ("train", "validation", "test")) == COUNTS[name]
    prompts = [{row["prompt"] for row in rows} for rows in splits.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == sum(COUNTS[name])


@pytest.mark.parametrize("folder", ["docs-en-de", "gnome-sum-en"])
def test_licence_and_attribution_lie_beside_the_text(folder):
    home = files("rl_warmup.tasks") / "data" / folder
    assert "Attribution-ShareAlike 3.0 Unported" in (home / "LICENSE").read_text(encoding="utf-8")
    attribution = (home / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "CC-BY-SA-3.0" in attribution
    assert "Changes made" in attribution
    assert ("Debian Administrator's Handbook" in attribution) == (folder == "docs-en-de")


def test_directions_mirror_each_other():
    there = load_task("translation", test_size=20).splits["test"]
    back = load_task("translation", source="de", target="en", test_size=20).splits["test"]
    assert [(row["prompt"], row["target"]) for row in there] == [(row["target"], row["prompt"]) for row in back]
    with pytest.raises(ValueError, match=r"target='fr'; give en and de"):
        load_task("translation", target="fr")


def test_template_changes_the_prompt_only():
    plain = load_task("translation", test_size=5).splits["test"]
    told = load_task("translation", test_size=5, prompt_template="translate: {text}").splits["test"]
    assert [row["prompt"] for row in told] == ["translate: " + row["prompt"] for row in plain]
    assert [row["target"] for row in told] == [row["target"] for row in plain]
    with pytest.raises(ValueError, match=r"'source'.*known: text"):
        load_task("summarization", prompt_template="{source}")


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_reproducible_and_bounded(name):
    first = load_task(name, train_size=50).splits["train"]
    assert rows_hash(first) == rows_hash(load_task(name, train_size=100).splits["train"][:50])
    assert rows_hash(first) != rows_hash(load_task(name, train_size=50, seed=1).splits["train"])
    with pytest.raises(ValueError, match=f"test_size=1000, but {COUNTS[name][2]} rows are available"):
        load_task(name, test_size=1000)


def test_max_words_drops_and_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="rl_warmup.tasks"):
        splits = load_task("translation", max_words=10).splits
    assert all(max(len(row["prompt"].split()), len(row["target"].split())) <= 10 for row in splits["train"])
    dropped = 8814 - len(splits["train"])
    assert 0 < dropped < 8814
    assert f"train: dropped {dropped} of 8814 rows with more than 10 words in en or de" in caplog.text
    with pytest.raises(ValueError, match=f"but {len(splits['test'])} rows are available"):
        load_task("translation", max_words=10, test_size=320)
    with pytest.raises(ValueError, match="max_words=0"):
        load_task("translation", max_words=0)


def test_min_words_keeps_long_rows_and_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="rl_warmup.tasks"):
        splits = load_task("translation", min_words=18, max_words=40).splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2551, "validation": 203, "test": 87}
    assert all(18 <= len(row[side].split()) <= 40 for row in splits["test"] for side in ("prompt", "target"))
    assert "rows with fewer than 18 words in en or de" in caplog.text
    with pytest.raises(ValueError, match="min_words=18, max_words=10: no row can have both"):
        load_task("translation", min_words=18, max_words=10)
