"""JSON, JSON lines and YAML as plain values, and one kind of sentence for what cannot be read: where, what, what to do.

Knows: both languages and their traps. Must not know: what a file is for, torch, anything of ours. A key that stands twice is
refused, as one of its values would be lost. Half characters (lone surrogates) come back as they were written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

DEPTH = 100  # of mappings and lists inside each other
JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]', re.DOTALL)
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


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEPTH:
            raise Unreadable(f"is nested deeper than {DEPTH} levels", self.peek_event().start_mark.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [(str(key.value), key) for key, _ in node.value if key.tag != MERGE]
        for place, (name, key) in enumerate(keys):
            if any(name == other for other, _ in keys[:place]):
                raise Unreadable(twice(name), key.start_mark.line + 1)
        for name, key in keys:
            if key.tag != TEXT:
                raise Unreadable(f"the key {name:.40} is no text; put it into quotes", key.start_mark.line + 1)
        return node


def parse_yaml(text: str | bytes) -> Any:
    """YAML of plain values, the keys of mappings being texts. Raises Unreadable, with the line."""
    try:
        return yaml.load(text, _Loader)
    except Unreadable:
        raise
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise Unreadable(f"is not valid YAML ({error.problem})", line) from None
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:  # of characters, huge numbers, dates, tags
        raise Unreadable(f"is not valid YAML ({' '.join(str(error).split()):.120})") from None


def parse_json(text: str | bytes) -> Any:
    """One JSON value. Raises Unreadable, with the line."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            again = next(name for place, name in enumerate(names) if name in names[:place])
            raise Unreadable(twice(again), _line_of_second(text if isinstance(text, str) else text.decode()))
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not valid JSON ({error.msg}, column {error.colno})", error.lineno) from None
    except (RecursionError, UnicodeDecodeError) as error:
        raise Unreadable(f"is not valid JSON ({error})") from None


def parse_object(text: str | bytes, place: str, remedy: str) -> dict[str, Any]:
    """One JSON object. Raises Unreadable with a whole sentence, which begins with `place` and ends with `remedy`."""
    try:
        found = parse_json(text)
    except Unreadable as error:
        raise Unreadable(f"{place}: {error}. {remedy}", error.line) from None
    if not isinstance(found, dict):
        raise Unreadable(f"{place}: is a JSON {type(found).__name__}, no JSON object. {remedy}")
    return found


def read_json(path: str | Path, remedy: str = "Copy it again, or make it anew.") -> dict[str, Any]:
    """The object in a JSON file. Raises OSError, or as `parse_object`."""
    return parse_object(Path(path).read_bytes(), str(path), remedy)


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
