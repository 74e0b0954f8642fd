"""The metric says what the generators' own `score_answer` says, of rows that went through a file."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from rl_warmup.metrics import compute, row_statistics, signatures
from rl_warmup.metrics.reasoning_gym import BY_EVAL
from rl_warmup.tasks import load_task, reasoning_gym

gym = pytest.importorskip("reasoning_gym", reason="needs pip install 'rl_warmup[reasoning_gym]'")
DATASETS = gym.factory.DATASETS

NAME = "reasoning_gym_score"


def saved(**kwargs):
    """Rows as predictions.jsonl gives them back."""
    rows = load_task("reasoning_gym", **{"train_size": 3, "validation_size": 0, "test_size": 0, **kwargs}).splits[
        "train"
    ]
    return [json.loads(json.dumps(row, ensure_ascii=False)) for row in rows]


def score(rows, predictions, **kwargs):
    return compute({"name": NAME, "kwargs": kwargs}, predictions, [row["target"] for row in rows], rows)[NAME]


def by_hand(question, answer, metadata=None):
    return {"prompt": question, "target": answer, "generator": "leg_counting", "metadata": repr(metadata)}


def test_by_hand():
    """The base class: 1 for the answer, its share of the characters where it stands within more, else 0."""
    rows = [by_hand("3 dogs?", "12")] * 4
    assert score(rows, ["12", "12 legs", "13", ""]) == pytest.approx((1 + 2 / 7 + 0 + 0) / 4)
    other = [{**by_hand("2 + 998 =", "1000"), "generator": "chain_sum"}]
    assert [score(other, [text]) for text in ("1000", "+1,000.00", "999")] == [1, 1, 0]


@pytest.mark.parametrize("name", ["leg_counting", "chain_sum", "countdown", "rearc", "knights_knaves", "n_queens"])
def test_it_equals_score_answer(name):
    rows = saved(name=name)
    dataset = gym.create_dataset(name, seed=3 * reasoning_gym.SEEDS_APART, size=reasoning_gym.CHUNK)
    entries = [dataset[index] for index in range(3)]
    targets = [entry["answer"] for entry in entries]
    assert [row["target"] for row in rows] == targets
    for answers in (targets, [f"{answer} " for answer in targets], ["0"] * 3):
        wanted = [dataset.score_answer(answer, entry) for answer, entry in zip(answers, entries, strict=True)]
        assert score(rows, answers, allow_eval=True) == pytest.approx(sum(wanted) / 3)
        spec = {"name": NAME, "kwargs": {"allow_eval": True}}
        assert row_statistics(spec, answers, targets, rows)[NAME].value() == pytest.approx(sum(wanted) / 3)
    assert score(rows, targets, allow_eval=True) == 1


def countdown():
    return {**by_hand("?", "2 + 3", {"numbers": [2, 3], "target": 5}), "generator": "countdown"}


def test_more_than_one_right_answer():
    """Countdown: any expression of the numbers that gives the result."""
    assert score([countdown()], ["3 + 2"], allow_eval=True) == 1
    assert score([countdown()], ["2 + 2"], allow_eval=True) < 1
    assert compute("exact_match", ["3 + 2"], ["2 + 3"], [countdown()]) == {"exact_match": 0}


def test_nothing_that_a_model_wrote_is_run_unasked(tmp_path):
    """n_queens calls `eval` on the answer."""
    program = f"open({str(tmp_path / 'written')!r}, 'w').close()"
    row = {**by_hand("?", "_ Q", {"valid_answers": []}), "generator": "n_queens"}
    with pytest.raises(ValueError, match="scores answers to n_queens by running them as Python.*allow_eval: true"):
        score([row], [program])
    assert not (tmp_path / "written").exists()


def test_the_generators_that_run_answers():
    """In both rooms, as neither may import the other; found in the sources that are installed."""
    assert BY_EVAL == reasoning_gym.BY_EVAL
    found = {
        name
        for name, (generator, _) in DATASETS.items()
        if re.search(r"\b(eval|exec|parse_expr|sympify)\(", inspect.getsource(generator.score_answer))
    }
    assert found - {"propositional_logic"} == set(BY_EVAL)  # its parse_expr is a reader of its own


def test_the_whole_question_is_scored_where_the_prompt_is_a_part():
    rows = saved(name="leg_counting", prompt_style="last_line")
    assert score(rows, [row["target"] for row in rows]) == 1


def test_an_answer_that_a_generator_cannot_read_counts_nothing():
    """prime_factorization reads numbers without looking whether there are any."""
    rows = saved(name="prime_factorization")
    assert score(rows, ["zebra"] * 3) == 0


def test_faults():
    with pytest.raises(
        ValueError, match=r"row 0 has no text in the column 'generator'; it scores only rows of `task: reasoning_gym`"
    ):
        compute(NAME, ["1"], ["1"], [{"prompt": "a", "target": "1"}])
    with pytest.raises(ValueError, match="row 0 has no text in the column 'prompt'"):
        compute(NAME, ["1"], ["1"])
    with pytest.raises(ValueError, match="no generator 'legs', which the column 'generator' names"):
        score([{**by_hand("?", "1"), "generator": "legs"}], ["1"])
    with pytest.raises(ValueError, match="'metadata' of row 0 is 'open', which is no Python literal"):
        score([{**by_hand("?", "1"), "metadata": "open"}], ["1"])
    words = "prime_factorization cannot score its own answer 'two'.*by another version of reasoning-gym"
    with pytest.raises(ValueError, match=words):
        score([{**by_hand("?", "two"), "generator": "prime_factorization"}], ["zebra"])


def test_the_signature_is_the_version():
    assert signatures([NAME]) == {NAME: "reasoning-gym:0.1.25"}
