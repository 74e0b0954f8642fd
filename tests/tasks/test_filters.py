"""Which rows are left out, by counting characters."""

import pytest

from rl_warmup.tasks.columns import ColumnMap, Template
from rl_warmup.tasks.filters import RowFilter

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
