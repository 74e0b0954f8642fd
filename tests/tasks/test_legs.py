"""legs: the embedded questions, and the worked-out warmup by hand."""

from __future__ import annotations

from importlib.resources import files

import pytest

from rl_warmup.tasks import load_task
from rl_warmup.tasks.legs import AFTER, BEFORE, animals, worked

COUNTS = {"train": 4000, "validation": 250, "test": 800}


def asked(said: str) -> str:
    return BEFORE + said + AFTER


@pytest.mark.parametrize(
    ("said", "warmup"),
    [
        ("4 beetles , 1 shrimp , 6 flatworms", "24 ; 24 ; 10 ; 34 ; 0 ; 34"),
        ("3 starfishs , 2 sea slugs , 5 woodlouses , 1 praying mantis", "15 ; 15 ; 0 ; 15 ; 70 ; 85 ; 6 ; 91"),
        ("1 starfish , 1 sea slug , 2 praying mantiss", "5 ; 5 ; 0 ; 5 ; 12 ; 17"),
        ("2 humans , 6 spiders , 3 fireflys", "4 ; 4 ; 48 ; 52 ; 18 ; 70"),
    ],
)
def test_worked_by_hand(said, warmup):
    assert worked(asked(said)) == warmup


def test_animals_come_in_the_order_of_the_question():
    assert animals(asked("2 sea slugs , 1 jellyfish")) == [(2, "sea slug"), (1, "jellyfish")]


@pytest.mark.parametrize("prompt", ["how many ?", asked("4 unicorns"), asked("beetles"), asked("two ants")])
def test_anything_else_is_refused(prompt):
    with pytest.raises(ValueError, match=r"is no question of legs|is no number of a known animal"):
        worked(prompt)


def test_all_rows_are_there_their_answers_right_and_no_question_twice():
    splits = load_task("legs").splits
    assert {split: len(rows) for split, rows in splits.items()} == COUNTS
    rows = [row for split in splits.values() for row in split]
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert all(set(row) == {"id", "prompt", "target"} for row in rows)
    assert all(row["target"] == worked(row["prompt"]).split(" ; ")[-1] for row in rows)
    assert all(3 <= len(animals(row["prompt"])) <= 5 for row in rows)


def test_no_question_differs_from_another_in_the_order_of_its_animals_alone():
    splits = load_task("legs").splits
    orders = [{tuple(sorted(animals(row["prompt"]))) for row in rows} for rows in splits.values()]
    assert len(set.union(*orders)) == sum(map(len, orders))


def test_licence_and_attribution_lie_beside_the_questions():
    home = files("rl_warmup.tasks") / "data" / "legs"
    assert "Apache License" in (home / "LICENSE").read_text(encoding="utf-8")
    attribution = (home / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "reasoning-gym" in attribution
    assert "Changes made" in attribution


def test_the_questions_can_be_made_again_and_none_was_pretrained_on():
    pytest.importorskip("reasoning_gym")
    from benchmarks.make_starts import questions

    found = questions()
    for split, rows in load_task("legs").splits.items():
        assert {row["prompt"]: row["target"] for row in rows} == found[split]
        assert not found[split].keys() & found["pool"].keys()
