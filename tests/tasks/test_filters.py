"""Which rows are left out, by counting characters."""

import pytest

from rl_warmup.tasks.columns import ColumnMap, Template
from rl_warmup.tasks.filters import RowFilter
from rl_warmup.tasks.forms import AutoColumns

COLUMNS = ColumnMap("de", "en", None, Template.parse("{text}"))
PAIRS = [("ab", "ab"), ("ab", ""), ("ab", "abcde"), ("abcdefg", "abcdefg"), ("abcd", "a"), (None, "ab")]


def kept(rules, size=None):
    located = [(n, f"row {n}", {"de": de, "en": en}) for n, (de, en) in enumerate(PAIRS)]
    return [int(row["id"]) for row in rules.rows(located, COLUMNS, size, "here")]


def test_an_empty_text_is_an_error_unless_it_may_be_dropped():
    with pytest.raises(ValueError, match="row 1: column 'en' is empty"):
        kept(RowFilter())
    assert kept(RowFilter(drop_empty=True)) == [0, 2, 3, 4]
    assert kept(RowFilter(drop_empty=True), size=2) == [0, 2]


def test_limits_count_characters_of_prompt_and_target(caplog):
    with caplog.at_level("INFO"):
        assert kept(RowFilter(drop_empty=True, max_chars=5)) == [0, 2, 4]
    assert caplog.messages == ["here: left out 2 rows: empty", "here: left out 1 rows: more than 5 characters"]
    assert kept(RowFilter(drop_empty=True, target_ratio=(0.5, 2.5))) == [0, 2, 3]
    assert kept(RowFilter(drop_empty=True, target_ratio=(0.25, 1))) == [0, 3, 4]


def test_limits_hold_for_training_rows_alone():
    rules = RowFilter(drop_empty=True, max_chars=1, target_ratio=(3, 4))
    assert kept(rules.of_split("test")) == [0, 2, 3, 4]
    assert kept(rules.of_split("train")) == []
    assert not rules.of_split("test").idle
    assert RowFilter(max_chars=1).of_split("test").idle


def test_limits_that_leave_nothing():
    with pytest.raises(ValueError, match="max_chars=0.*at least 1"):
        RowFilter(max_chars=0)
    for ratio in ((2, 1), (1, 1), (-1, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"target_ratio=.*the least and the greatest"):
            RowFilter(target_ratio=ratio)


def left(rules, columns, *records):
    located = [(n, f"row {n}", record) for n, record in enumerate(records)]
    return [int(row["id"]) for row in rules.rows(located, columns, None, "here")]


def test_limits_count_all_columns_of_the_prompt_and_no_words_of_the_template():
    two = ColumnMap("q", "a", None, Template.parse("translate: {text} {hint}"))
    records = [{"q": "ab", "hint": "c", "a": "abcd"}, {"q": "ab", "hint": "c", "a": "abcdefgh"}]
    assert left(RowFilter(target_ratio=(0.5, 1.5)), two, *records) == [0]  # 4 and 8 characters for "ab" and "c"
    alpaca = AutoColumns(None, Template.parse("{text}"))
    records = [{"instruction": "ab", "input": x, "output": "c"} for x in ("", "de", "d" * 9)]
    assert left(RowFilter(max_chars=6), alpaca, *records) == [0, 1]  # "ab", a blank line, the input
    talk = [[{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b"}] for n in (3, 7)]
    assert left(RowFilter(max_chars=6), alpaca, *({"messages": one} for one in talk)) == [0]


def test_empty_columns_of_a_template_are_dropped_and_faults_are_named():
    columns = AutoColumns(None, Template.parse("{text} {lang}"))
    records = [{"instruction": "a", "output": "b", "lang": lang} for lang in ("de", "", None)]
    assert left(RowFilter(drop_empty=True), columns, *records) == [0]
    with pytest.raises(ValueError, match="row 0: message 0 of column 'prompt'"):
        left(RowFilter(drop_empty=True), columns, {"prompt": [{"role": 3}], "target": "b", "lang": "de"})


@pytest.mark.parametrize(
    ("record", "column"),
    [
        ({"instruction": "c", "output": None}, "output"), ({"instruction": None, "output": "c"}, "instruction"),
        ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"conversations": []}, "conversations"),
        ({"prompt": None, "completion": "c"}, "prompt"), ({"prompt": [], "target": "c"}, "prompt"),
    ],
)  # fmt: skip
def test_a_recognised_form_without_text_is_empty(record, column):
    columns = AutoColumns(None, Template.parse("{text}"))
    assert left(RowFilter(drop_empty=True), columns, record, {"prompt": "a", "target": "b"}) == [1]
    with pytest.raises(ValueError, match=f"row 0: column '{column}' is empty"):
        left(RowFilter(), columns, record)
