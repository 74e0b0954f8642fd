"""Rows with choices, as LogiQA 2 has them: text, question, options and the number of the answer."""

import json

import pytest

from rl_warmup.metrics import compute
from rl_warmup.tasks import load_task
from rl_warmup.tasks.columns import ChoiceMap

RECORD = {
    "id": 7,
    "text": "All pigs fly.",
    "question": "What flies?",
    "options": ["cows", "pigs", "2", "none"],
    "answer": 1,
}
COLUMNS = {"prompt_column": "text", "choices_column": "options", "answer_column": "answer"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(RECORD))
    return str(path)


def test_a_row_holds_lettered_options_and_the_letter_of_the_answer(path):
    task = load_task("file", test=path, **COLUMNS, prompt_template="{text} {question} {options} Answer:")
    row = task.splits["test"][0]
    assert row["prompt"] == "All pigs fly. What flies? A) cows B) pigs C) 2 D) none Answer:"
    assert (row["id"], row["target"], row["choices"], row["answer"]) == ("7", "B", RECORD["options"], 1)
    assert compute(["accuracy"], ["pigs"], ["B"], [row]) == {"accuracy": 1.0, "unparsed": 0.0}


def test_the_target_may_hold_the_text_as_well(path):
    row = load_task("file", test=path, **COLUMNS, target_style="text").splits["test"][0]
    assert (row["prompt"], row["target"]) == ("All pigs fly.", "B) pigs")


@pytest.mark.parametrize(("answer", "number"), [(0, 0), (3, 3), ("A", 0), ("D", 3), ("none", 3), ("2", 2)])
def test_an_answer_is_a_number_from_0_a_letter_or_a_text(answer, number):
    assert ChoiceMap("options", "answer").read({**RECORD, "answer": answer}, "row 1") == (RECORD["options"], number)


@pytest.mark.parametrize("answer", [4, -1, True, None, "E", "dogs", "b", 1.0])
def test_any_other_answer_is_named_with_its_place(answer):
    with pytest.raises(ValueError, match=r"row 1: column 'answer' is .*0 to 3.*A to D.*or its text"):
        ChoiceMap("options", "answer").read({**RECORD, "answer": answer}, "row 1")


def test_an_answer_that_names_two_choices_is_refused():
    with pytest.raises(ValueError, match="column 'answer' is 'B'"):
        ChoiceMap("options", "answer").read({"options": ["B", "C"], "answer": "B"}, "row 1")


@pytest.mark.parametrize("options", ["pigs", ["pigs"], 4, ["a"] * 27])
def test_choices_are_a_list(options):
    with pytest.raises(ValueError, match="row 1: column 'options' is .*give a list of 2 to 26 texts"):
        ChoiceMap("options", "answer").read({**RECORD, "options": options}, "row 1")


def test_arguments_that_contradict(path):
    with pytest.raises(ValueError, match="give choices_column and answer_column together"):
        load_task("file", test=path, prompt_column="text", choices_column="options")
    with pytest.raises(ValueError, match="and no target_column"):
        load_task("file", test=path, **COLUMNS, target_column="text")
    with pytest.raises(ValueError, match="target_style='word'; give one of letter, text"):
        load_task("file", test=path, **COLUMNS, target_style="word")
