"""JSON, JSON lines and YAML are read in one place, and what cannot be read is said with place and remedy."""

from __future__ import annotations

import ast
import datetime
from pathlib import Path

import pytest

import rl_warmup
from rl_warmup.runtime.documents import DEPTH, Unreadable, parse_json, parse_yaml, read_json, read_jsonl
from rl_warmup.runtime.recipe_file import read_yaml

PACKAGE = Path(rl_warmup.__file__).parent
OPEN = {"metrics/comet.py"}  # it reads lines that a command of other people printed


def test_values_come_as_they_are():
    assert parse_yaml("a: [1, 1.5, true, null, 1e-4, x]\nb: {c: 2020-01-02}") == {
        "a": [1, 1.5, True, None, "1e-4", "x"],
        "b": {"c": datetime.date(2020, 1, 2)},
    }
    assert parse_json('{"a": "\\ud83d", "b": [{"c": 1}, {"c": 2}]}') == {"a": "\ud83d", "b": [{"c": 1}, {"c": 2}]}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  'c': 2", 4, "key 'c' stands there twice"),
        ("a: 1\n? &x [1]\n: 2", 2, "no text; put it into quotes"),
        ("a:\n  - on: 1", 2, "the key on is no text"),
        ("a: 1\n2: 3", 2, "the key 2 is no text"),
        ("a: [1\nb: 2", 2, "not valid YAML"),
        ("a: !!python/object:os.system 1", 1, "not valid YAML"),
        ("a: " + "9" * 5000, 1, "not valid YAML"),
        ("b: 1\na: \x07", 2, "not valid YAML"),
        ("a: 2020-13-45", 1, "'2020-13-45' is no timestamp"),
        ("b: 1\na: !!int abc", 2, "'abc' is no int"),
        ("a: &a [*a]", None, "holds itself"),
        ("a: &a0 [1]\n" + "".join(f"b{i}: &a{i + 1} [{f'*a{i},' * 9}]\n" for i in range(30)), None, "through aliases"),
        (b"a: 1\nb: \xe9", 2, "no text in UTF-8"),
        ("a: *b", 1, "not valid YAML"),
        ("[" * (DEPTH + 1), 1, "nested deeper than 100 levels"),
        ("[" * 10**5, 1, "nested deeper than 100 levels"),
    ],
)
def test_what_is_no_yaml(text, line, words):
    with pytest.raises(Unreadable, match=words) as caught:
        parse_yaml(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"a": {"b": 1},\n "b": [{"c": 1}],\n "a": 2}', 3, "key 'a' stands there twice"),
        ('{"a": 1,\n "b" 2}', 2, r"not valid JSON \(Expecting ':' delimiter, column 6\)"),
        ("[" * 10**5, None, "not valid JSON"),
        (b'{"a": "\xff"}', None, "not valid JSON"),
        ("[" + "9" * 5000 + "]", None, "thousands of digits"),
    ],
)
def test_what_is_no_json(text, line, words):
    with pytest.raises(Unreadable, match=words) as caught:
        parse_json(text)
    assert caught.value.line == line


def test_files(tmp_path):
    path = tmp_path / "x"
    path.write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(ValueError, match=r"x, line 3: is a JSON list, no JSON object\. Mend or remove the line\."):
        read_jsonl(path)
    with pytest.raises(ValueError, match=r"x: is not valid JSON \(Extra data.*\)\. Copy it again"):
        read_json(path)
    path.write_text('{"a": 1}\n\n{"a": "\\ud83d"}')
    assert read_jsonl(path) == [{"a": 1}, {"a": "\ud83d"}]
    assert read_jsonl(tmp_path / "none") == []
    path.write_bytes("a: ä".encode("latin-1"))
    with pytest.raises(ValueError, match=r"recipe .*x, line 1: is no text in UTF-8\. Mend it there"):
        read_yaml(path)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_else_parses(path):
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    parses = calls & {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.load_all", "yaml.safe_load_all"}
    name = str(path.relative_to(PACKAGE))
    assert bool(parses) == (name in OPEN or name == "runtime/documents.py"), "read it by rl_warmup.runtime.documents"
