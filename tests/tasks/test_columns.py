import math

import pytest

from rl_warmup.tasks.columns import ColumnMap, Template, as_text, column_names, pick

RECORD = {"id": 7, "translation": {"en": "cat", "de": "Katze"}, "a.b": "dotted name"}


def test_pick_follows_dots_but_prefers_a_literal_name():
    assert pick(RECORD, "translation.de", "here") == "Katze"
    assert pick(RECORD, "a.b", "here") == "dotted name"


def test_a_missing_column_names_the_nearest_and_the_available():
    with pytest.raises(ValueError, match=r"f:3: no column 'translation.dee'") as error:
        pick(RECORD, "translation.dee", "f:3")
    assert "did you mean 'translation.de'?" in str(error.value)
    assert "available: id, translation, translation.en, translation.de, a.b" in str(error.value)
    assert column_names({}) == []


def test_as_text_writes_numbers_and_refuses_the_rest():
    assert [as_text(value, "c", "w") for value in ("x", 3, 0.5)] == ["x", "3", "0.5"]
    for empty in ("", "  ", None, math.nan):
        with pytest.raises(ValueError, match="w: column 'c' is empty"):
            as_text(empty, "c", "w")
    for value, name in (([1], "list"), ({"a": 1}, "dict"), (True, "bool")):
        with pytest.raises(ValueError, match=f"holds a {name}, not text"):
            as_text(value, "c", "w")


def test_template_fills_columns_and_keeps_doubled_braces():
    template = Template.parse("{{say}} {translation.en}: {text}")
    assert template.fill({**RECORD, "text": "hi {text}"}, "here") == "{say} cat: hi {text}"


def test_template_fields_reach_columns_only():
    with pytest.raises(ValueError, match="no column 'text.__class__'"):
        Template.parse("{text.__class__}").fill({"text": "x"}, "here")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("say {text", ["unmatched brace", "{{ or }}"]),
        ("say text}", ["unmatched brace"]),
        ("say", ["has no field", "{text}"]),
        ("say {}", ["not a plain name"]),
        ("say {text!r}", ["not a plain name"]),
        ("say {text:>3}", ["not a plain name"]),
        ("say {txt}", ["'txt'", "did you mean 'text'", "known: text"]),
    ],
)
def test_template_faults_are_named(template, words):
    with pytest.raises(ValueError, match="prompt_template") as error:
        Template.parse(template, allowed=["text"])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_column_map_makes_rows():
    template = Template.parse("{text} ({lang})")
    row = ColumnMap("p", None, None, template).row({"p": "x", "completion": "y", "lang": "de"}, 4, "here")
    assert row == {"p": "x", "completion": "y", "lang": "de", "id": "4", "prompt": "x (de)", "target": "y"}
    both = {"p": "x", "completion": "c", "target": "t", "lang": "de", "id": 9}
    with pytest.raises(ValueError, match="here: has the columns 'target' and 'completion', which differ"):
        ColumnMap("p", None, None, template).row(both, 4, "here")
    assert ColumnMap("p", "target", None, template).row(both, 4, "here")["id"] == "9"
    assert ColumnMap("p", "completion", "lang", template).row(both, 4, "here")["target"] == "c"


def test_a_prompt_column_may_be_optional():
    columns = ColumnMap("p", "t", None, Template.parse("{q} {text?}"))
    for value in ("", None, []):
        assert columns.row({"p": value, "q": "why", "t": "y"}, 0, "here")["prompt"] == "why"
    assert columns.row({"p": "x", "q": "why", "t": "y"}, 0, "here")["prompt"] == "why x"
