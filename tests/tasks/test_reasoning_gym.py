"""Rows of reasoning-gym's generators: which prompts, from which seeds, and every refusal."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from fractions import Fraction

import pytest

from rl_warmup.tasks import load_task, reasoning_gym, rows_hash

gym = pytest.importorskip("reasoning_gym", reason="needs pip install 'rl_warmup[reasoning_gym]'")

EASY = {"name": "leg_counting", "min_animals": 1, "max_animals": 2, "max_instances": 3}
ANIMALS = 37  # that leg_counting knows


def load(**changes):
    return load_task("reasoning_gym", **{**EASY, "train_size": 20, "validation_size": 5, "test_size": 5, **changes})


def prompts(rows):
    return [row["prompt"] for row in rows]


def test_a_row_is_the_generators():
    task = load(seed=2)
    assert task.name == "reasoning_gym leg_counting"
    assert task.metrics == ("reasoning_gym_score", "exact_match")
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [20, 5, 5]
    row = task.splits["validation"][0]
    seed = (3 * 2 + 2) * reasoning_gym.SEEDS_APART  # seed 2; test is the first of three splits, validation the second
    knobs = {key: value for key, value in EASY.items() if key != "name"}
    entry = gym.create_dataset("leg_counting", seed=seed, size=1, **knobs)[0]
    assert row["prompt"] == entry["question"]
    assert (row["id"], row["target"], row["generator"]) == ("validation-0", entry["answer"], "leg_counting")
    assert ast.literal_eval(row["metadata"]) == entry["metadata"]
    assert json.loads(json.dumps(row)) == row


def test_knobs_reach_the_generator():
    for row in load(min_animals=2).splits["train"]:
        counts = re.findall(r"(\d+) [a-z ]+", row["prompt"])
        assert len(counts) == 2
        assert max(map(int, counts)) <= 3
    rows = load_task(
        "reasoning_gym",
        name="chain_sum",
        min_terms=2,
        max_terms=2,
        max_digits=1,
        train_size=3,
        validation_size=0,
        test_size=0,
    ).splits
    assert all(re.search(r": \d [+-] \d =$", row["prompt"]) for row in rows["train"])


def test_a_list_stands_for_a_tuple():
    """YAML has no tuples, and some generators want one."""
    config = dataclasses.make_dataclass("Config", [("sides", tuple, dataclasses.field(default=(1, 2)))])
    assert reasoning_gym._checked_knobs("maze", config, {"sides": [3, 4]}) == {"sides": (3, 4)}


def test_no_prompt_occurs_twice_even_where_a_generator_repeats_itself():
    """One animal, 1 to 3 of each: 111 questions; by chance alone half of 60 validation rows would be among the 100 of test."""
    task = load(max_animals=1, train_size=21, validation_size=30, test_size=60)
    everything = [prompt for rows in task.splits.values() for prompt in prompts(rows)]
    assert len(everything) == len(set(everything)) == ANIMALS * 3


def test_test_rows_depend_on_seed_and_knobs_alone():
    one, same, more, other = load(), load(), load(train_size=200), load(seed=1)
    assert one == same
    for split in ("test", "validation"):
        assert rows_hash(one.splits[split]) == rows_hash(more.splits[split])
        assert rows_hash(one.splits[split]) != rows_hash(other.splits[split])
    assert more.splits["train"][:20] == one.splits["train"]
    assert load(validation_size=0).splits["test"] == one.splits["test"]
    assert not set(prompts(one.splits["test"])) & set(prompts(load(seed=1, max_animals=4).splits["train"]))


def test_the_last_line_alone():
    rows = load(prompt_style="last_line").splits["train"]
    full = load().splits["train"]
    assert rows[0]["prompt"].startswith("Now, how many legs are there in total if you have ")
    assert rows[0]["question"] == full[0]["prompt"]
    assert "question" not in full[0]
    assert len(set(prompts(rows))) == 20


@pytest.mark.parametrize("name", ["knights_knaves", "rearc", "syllogism", "count_primes"])
def test_metadata_comes_back_as_it_was(name):
    """Tuples stay tuples, which JSON would make lists of; numpy's text becomes text."""
    row = load_task("reasoning_gym", name=name, train_size=1, validation_size=0, test_size=0).splits["train"][0]
    entry = gym.create_dataset(name, seed=3 * reasoning_gym.SEEDS_APART, size=reasoning_gym.CHUNK)[0]
    assert ast.literal_eval(row["metadata"]) == entry["metadata"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "leg_count"}, r"there is no generator 'leg_count' \(did you mean 'leg_counting'\?\); known: ab, acre, "),
        ({"name": "composite"}, "there is no generator 'composite'"),
        ({"max_animal": 3}, r"leg_counting has no knob 'max_animal' \(did you mean 'max_animals'\?\); its knobs and their "
                            r"defaults: min_animals \(3\), max_animals \(10\), min_instances \(1\), max_instances \(15\)$"),
        ({"size": 3}, "no knob 'size'; seed and sizes are arguments of the task; its knobs"),
        ({"max_animals": "three"}, "max_animals='three' for leg_counting; give a value of the type int, like its default 10"),
        ({"max_animals": 2.5}, "max_animals=2.5 for leg_counting; give a value of the type int"),
        ({"max_animals": True}, "max_animals=True for leg_counting; give a value of the type int"),
        ({"max_animals": None}, "makes no rows with min_animals=1, max_animals=None, max_instances=3 .TypeError: .*change these"),
        ({"max_animals": 0}, r"makes no rows with .*\(AssertionError: max_animals must be >= min_animals\); change these"),
        ({"train_size": -1}, "train_size=-1; give a whole number, 0 or more"),
        ({"seed": "a"}, "seed='a'; give a whole number"),
        ({"prompt_style": "short"}, "prompt_style='short'; give one of full, last_line"),
        ({"max_animals": 1, "train_size": 200}, r"gave 101 of the 200 rows asked for in the train split, then no new questions"),
    ],
)  # fmt: skip
def test_faults(changes, words):
    with pytest.raises(ValueError, match="reasoning_gym: .*" + words):
        load(**changes)


def test_boilerplate_as_prompt_is_refused():
    with pytest.raises(
        ValueError, match=r"gave 1 of the 5 rows .* test split, then no new prompts \(prompt_style last_line\)"
    ):
        load_task("reasoning_gym", name="syllogism", prompt_style="last_line", test_size=5)


def test_generators_without_answers_or_without_repeatable_rows(monkeypatch):
    with pytest.raises(ValueError, match="graph_color gave 0 of the 5 rows .*without an answer"):
        load_task("reasoning_gym", name="graph_color", test_size=5)
    with pytest.raises(ValueError, match="list_functions makes another row each time"):
        load_task("reasoning_gym", name="list_functions")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match="ransom_note .* makes other rows in every process.*PYTHONHASHSEED=0"):
        load_task("reasoning_gym", name="ransom_note")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert load_task("reasoning_gym", name="ransom_note", train_size=1, validation_size=0, test_size=0)


def test_scores_that_run_the_answer_are_no_default():
    task = load_task("reasoning_gym", name="n_queens", train_size=1, validation_size=0, test_size=0)
    assert task.metrics == ("exact_match",)


def test_fractions_of_gsm_symbolic_are_text():
    rows = load_task("reasoning_gym", name="gsm_symbolic", train_size=300, validation_size=0, test_size=0).splits[
        "train"
    ]
    entries = gym.create_dataset("gsm_symbolic", seed=3 * reasoning_gym.SEEDS_APART, size=reasoning_gym.CHUNK)
    made = {entry["question"]: entry["metadata"]["variables"] for entry in entries}
    pairs = [(ast.literal_eval(row["metadata"])["variables"], made[row["prompt"]]) for row in rows]
    fractions = [
        (ours[key], value) for ours, theirs in pairs for key, value in theirs.items() if isinstance(value, Fraction)
    ]
    assert fractions
    assert all(Fraction(text) == value for text, value in fractions)


def test_values_that_no_literal_can_hold():
    with pytest.raises(ValueError, match="the metadata of maze is no Python literal"):
        reasoning_gym._literal({"share": float("nan")}, "maze")
