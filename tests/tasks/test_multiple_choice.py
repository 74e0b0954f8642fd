import random
from collections import Counter

import pytest

from rl_warmup.tasks import multiple_choice, rows_hash
from rl_warmup.tasks.puzzles import FAMILIES

SIZES = {"train_size": 400, "validation_size": 80, "test_size": 80}


def test_a_row_states_context_question_and_options():
    row = multiple_choice.load(["weekdays"], train_size=1, validation_size=0, test_size=0).splits["train"][0]
    context, question, options = row["prompt"].split("\n")
    assert "days" in context
    assert question.endswith("?")
    assert options == " ".join(f"{letter}) {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    assert row["target"] == "ABCD"[row["answer"]]
    assert row["family"] == "weekdays"


def test_target_styles_and_template():
    letters = multiple_choice.load(**SIZES).splits["test"]
    told = multiple_choice.load(**SIZES, target_style="text", prompt_template="{options} | {context}").splits["test"]
    for row, other in zip(letters, told, strict=True):
        assert other["target"] == f"{row['target']}) {row['choices'][row['answer']]}"
        assert other["prompt"].startswith("A) ")


def test_answers_are_balanced_and_families_take_turns():
    for rows in multiple_choice.load(**SIZES).splits.values():
        counts = Counter((row["family"], row["target"]) for row in rows)
        assert set(counts.values()) == {len(rows) // (4 * len(FAMILIES))}
        assert [row["family"] for row in rows[:5]] != list(FAMILIES)  # shuffled


def test_choices_are_distinct_and_splits_disjoint():
    splits = multiple_choice.load(**SIZES).splits
    rows = [row for part in splits.values() for row in part]
    assert all(len(set(row["choices"])) == 4 for row in rows)
    assert len({row["prompt"].rsplit("\n", 1)[0] for row in rows}) == len(rows)


def test_seed_decides_and_test_rows_do_not_depend_on_train_size():
    reference = rows_hash(multiple_choice.load(**SIZES).splits["test"])
    assert rows_hash(multiple_choice.load(**{**SIZES, "train_size": 10}).splits["test"]) == reference
    assert rows_hash(multiple_choice.load(**SIZES, seed=1).splits["test"]) != reference


def test_faults():
    with pytest.raises(ValueError, match=r"unknown family 'knigths'.*did you mean 'knights'"):
        multiple_choice.load(["knigths"])
    with pytest.raises(ValueError, match=r"target_style='word'.*letter, text"):
        multiple_choice.load(target_style="word")
    with pytest.raises(ValueError, match=r"unknown field 'option'.*did you mean 'options'"):
        multiple_choice.load(prompt_template="{option}")
    with pytest.raises(ValueError, match="families is empty"):
        multiple_choice.load([])


def test_an_exhausted_family_says_so(monkeypatch):
    puzzle = FAMILIES["order"]
    monkeypatch.setitem(FAMILIES, "order", lambda rng: puzzle(random.Random(rng.randrange(5))))
    with pytest.raises(ValueError, match="'order' makes no new puzzle after 5 rows; lower the sizes"):
        multiple_choice.load(["order"], train_size=10, validation_size=0, test_size=0)
