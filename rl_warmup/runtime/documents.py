"""JSON, JSON lines and YAML as plain values, and one kind of sentence for what cannot be read: where, what, what to do.

Knows: both languages and their traps. Must not know: what a file is for, torch, anything of ours. A key that stands twice is
refused, as one of its values would be lost. Half characters (lone surrogates) come back as they were written.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

DEPTH = 100  # of mappings and lists inside each other
VALUES = 1_000_000  # in one text of YAML, whose aliases may repeat values
NAMES = {dict: "object", list: "list", str: "text", int: "number", float: "number", bool: "boolean", type(None): "null"}
JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]', re.DOTALL)
# In YAML 1.1, which PyYAML reads, 010 is 8 and 1:30 is 90.
OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class Unreadable(ValueError):
    """A sentence without its end: what is wrong with a text. `line`: of the text, from 1; None where it is not known."""

    def __init__(self, why: str, line: int | None = None) -> None:
        super().__init__(why)
        self.line = line

    def at(self, place: str) -> str:
        """With its place."""
        return f"{place}{f', line {self.line}' if self.line else ''}: {self}"


def twice(name: str, noun: str = "key") -> str:
    """What is wrong with a name that stands for two values."""
    return f"the {noun} {name!r} stands there twice, and one of the two values would be lost; rename or remove one"


def kind(value: Any) -> str:
    """What JSON calls a value."""
    return NAMES.get(type(value), type(value).__name__)


class _Loader(yaml.SafeLoader):
    depth = 0

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if type(value) in (int, float) and OLD_NUMBER.fullmatch(node.value):
                why = f"{node.value} would be read as {value}; write that number, or put a text into quotes"
                raise Unreadable(why, node.start_mark.line + 1)
            return value
        except (Unreadable, yaml.YAMLError):
            raise
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # as !!int abc, 2020-13-01
            fault = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            if "digits" in str(error):
                fault = "holds a number of thousands of digits"
            raise Unreadable(f"is not valid YAML ({fault})", node.start_mark.line + 1) from None

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEPTH:
            raise Unreadable(f"is nested deeper than {DEPTH} levels", self.peek_event().start_mark.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise Unreadable(
                    "a key that is a list or a mapping is no text; put it into quotes", key.start_mark.line + 1
                )
        keys = [(str(key.value), key) for key, _ in node.value if key.tag != MERGE]
        for place, (name, key) in enumerate(keys):
            if any(name == other for other, _ in keys[:place]):
                raise Unreadable(twice(name), key.start_mark.line + 1)
        for name, key in keys:
            if key.tag != TEXT:
                raise Unreadable(f"the key {name:.40} is no text; put it into quotes", key.start_mark.line + 1)
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Merge keys (`<<`): a mapping's own keys win, then the earlier of several merged ones (PyYAML 6.0.4: the later)."""
        merges = [value for key, value in node.value if key.tag == MERGE]
        node.value = [pair for pair in node.value if pair[0].tag != MERGE]  # first, as a mapping may name itself
        merged: dict[str, Any] = {}
        for value in merges:
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise Unreadable("a merge (<<) names a mapping, or a list of them", source.start_mark.line + 1)
                self.flatten_mapping(source)
                for pair in source.value:
                    merged.setdefault(pair[0].value, pair)
        own = {key.value for key, _ in node.value}
        node.value = [pair for name, pair in merged.items() if name not in own] + node.value


def parse_yaml(text: str | bytes) -> Any:
    """YAML of plain values, the keys of mappings being texts. Raises Unreadable, with the line where it is known."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-16" if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
        found = yaml.load(text, _Loader)
        _measure(found, {}, frozenset())
    except UnicodeDecodeError as error:
        raise Unreadable("is no text in UTF-8", error.object.count(b"\n", 0, error.start) + 1) from None
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise Unreadable(f"is not valid YAML ({error.problem})", line) from None
    except yaml.reader.ReaderError as error:
        line = str(text).count("\n", 0, error.position) + 1
        raise Unreadable(f"is not valid YAML (the character {chr(error.character)!r} is not allowed)", line) from None
    return found


def _measure(value: Any, known: dict[int, tuple[int, int]], above: frozenset[int]) -> tuple[int, int]:
    """How many values one is made of and how deep it is, with what aliases repeat. Raises Unreadable: too many, or too deep."""
    if not isinstance(value, dict | list):
        return 1, 0
    if id(value) in above:
        raise Unreadable("holds itself through an alias (*name); write the value out")
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value
        sizes = [_measure(item, known, above | {id(value)}) for item in inner]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size > VALUES or depth > DEPTH:
            raise Unreadable(f"holds over {VALUES:,} values or {DEPTH} levels through aliases (*name); write it out")
        known[id(value)] = size, depth
    return known[id(value)]


def parse_json(text: str | bytes) -> Any:
    """One JSON value. Raises Unreadable, with the line."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            again = next(name for place, name in enumerate(names) if name in names[:place])
            raise Unreadable(twice(again), _line_of_second(str(text)))
        return found

    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not valid JSON ({error.msg}, column {error.colno})", error.lineno) from None
    except UnicodeDecodeError:
        raise Unreadable("is not valid JSON (no text in UTF-8)") from None
    except RecursionError:
        raise Unreadable("is not valid JSON (nested too deep)") from None
    except Unreadable:
        raise
    except ValueError:  # Python reads at most 4,300 digits
        raise Unreadable("holds a number of thousands of digits") from None


def parse_object(text: str | bytes, place: str, remedy: str) -> dict[str, Any]:
    """One JSON object. Raises Unreadable with a whole sentence, which begins with `place` and ends with `remedy`."""
    try:
        found = parse_json(text)
    except Unreadable as error:
        raise Unreadable(f"{place}: {error}. {remedy}", error.line) from None
    if not isinstance(found, dict):
        raise Unreadable(f"{place}: is a JSON {kind(found)}, no JSON object. {remedy}")
    return found


def read_json(path: str | Path, remedy: str = "Copy it again, or make it anew.") -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or as `parse_object`."""
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:  # it is a folder, or somebody else's
        raise Unreadable(f"{path}: cannot be read ({error.strerror}). {remedy}") from None
    return parse_object(text, str(path), remedy)


def records(lines: Iterable[str | bytes], place: str, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines with their numbers, from 1, over empty lines. Raises as `parse_object`, at `place` and number."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, parse_object(line, f"{place}{number}", remedy)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a file of JSON lines; an empty list where there is none. Raises as `records`."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        return [record for _, record in records(file, f"{path}, line ", "Mend or remove the line.")]


def whole_records(path: Path) -> list[Any]:
    """The records of a file that grew line by line. From a line that was torn on, it is cut off, on the disk as well."""
    if not path.is_file():
        return []
    content, records, end = path.read_bytes(), [], 0
    for line in content.splitlines(keepends=True):
        try:
            records.append(parse_json(line if line.endswith(b"\n") else b""))
        except ValueError:  # of a torn character too
            break
        end += len(line)
    if end < len(content):
        path.write_bytes(content[:end])
    return records


def _line_of_second(text: str) -> int:
    """The line of the first key that stands for a second time in its object."""
    open_objects: list[set[str]] = []
    for token, after in pairwise(JSON_TOKEN.finditer(text)):
        if token[0] in "{[":
            open_objects.append(set())
        elif token[0] in "}]":
            open_objects.pop()
        elif token[0].startswith('"') and after[0] == ":":
            key = json.loads(token[0], strict=False)
            if key in open_objects[-1]:
                return text.count("\n", 0, token.start()) + 1
            open_objects[-1].add(key)
    return 1


def file_hash(path: str | Path) -> str:
    """16 hex digits of the SHA-256 of a file's contents."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
