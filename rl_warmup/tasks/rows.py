"""Knows what a row and a task are, and checks them; must not know where rows come from, nor any model or tokenizer.

A row is a dict with three non-empty strings - `id`, `prompt` (x) and `target` (y) - and further columns of its task. The prompt
may also be a conversation: a list of messages with `role` and `content` (docs/data.md). The id is a label, by default the row's
number, and may occur twice, as in some data sets: a row is identified by its place.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rl_warmup.runtime.values import argument_fault
from rl_warmup.tasks.conversations import conversation, flat, is_conversation

Row = dict[str, Any]

Item = TypeVar("Item")
HALF = re.compile("[\ud800-\udfff]")  # a lone surrogate, which no tokenizer accepts
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """A checked data set: three lists of rows, of which not all are empty, and their metrics.

    Raises:
        ValueError: at construction, for a missing split, a row without a non-empty string `id`, `prompt` or `target`, or no
            metric.
    """

    name: str  # in logs and tables
    splits: dict[str, Any]  # by SPLITS; `train` may be a `stream.Stream`, whose rows are checked when they are read
    metrics: tuple[str, ...]  # names for `rl_warmup.metrics.compute`; the first one is the main metric
    prompt_template: str | None = "{text}"  # for `rl-warmup generate`; None if a prompt has several columns
    notes: tuple[str, ...] = ()  # sentences about how the rows were read, for the user

    def __post_init__(self) -> None:
        for name, hint in (("name", str), ("prompt_template", str | None), ("notes", list[str])):
            if fault := argument_fault(getattr(self, name), hint):
                raise ValueError(f"task '{self.name}' has {name}={getattr(self, name)!r:.80}; {fault}")
        if not isinstance(self.splits, Mapping) or set(self.splits) != set(SPLITS):
            given = list(self.splits) if isinstance(self.splits, Mapping) else self.splits
            raise ValueError(
                f"task '{self.name}' has the splits {given!r:.80}; give a dict of exactly train, validation and test (empty "
                "lists are allowed)"
            )
        for split, rows in self.splits.items():
            streamed = split == "train" and callable(getattr(rows, "first", None))  # a `stream.Stream`
            if not streamed and (isinstance(rows, str | bytes) or not isinstance(rows, Sequence)):
                raise ValueError(
                    f"task '{self.name}', split '{split}' is a {type(rows).__name__} ({rows!r:.60}); give a list of rows"
                )
        if not any(self.splits.values()):
            raise ValueError(f"task '{self.name}' has no rows in any split; give at least one row")
        named = isinstance(self.metrics, tuple | list) and all(isinstance(one, str | Mapping) for one in self.metrics)
        if not named or not self.metrics:
            raise ValueError(
                f"task '{self.name}' has metrics={self.metrics!r:.80}; give a list of names of metrics, or of "
                "{name: ..., kwargs: {...}}"
            )
        for split, rows in self.splits.items():
            if isinstance(rows, Sequence):
                _check_rows(rows, f"task '{self.name}', split '{split}'")


def _check_rows(rows: Sequence[Row], where: str) -> None:
    for number, row in enumerate(rows):
        label = f"{where}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{label} is {row!r:.80}; give an object with prompt and target")
        row.setdefault("id", str(number))
        for key in ("id", "prompt", "target"):
            value = row.get(key)
            value = flat(conversation(value, key, label)) if key == "prompt" and is_conversation(value) else value
            if not isinstance(value, str) or not value.strip():
                name = f" (id {row.get('id')!r})" if key != "id" else ""
                found = "is missing" if key not in row else f"is {value!r:.80}"
                raise ValueError(f"{label}{name}: '{key}' {found}; give a non-empty string or drop the row")
            if key != "id" and (half := HALF.search(value)):
                raise ValueError(
                    f"{label}: '{key}' holds half a character ({half[0]!r}); repair the text or drop the row"
                )


def rows_hash(rows: Iterable[Row]) -> str:
    """SHA-256 (64 hex digits) over id, prompt and target of the rows in their order.

    Two runs may be compared row by row only when this is equal; extras of the rows do not count.
    """
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps([row["id"], row["prompt"], row["target"]], ensure_ascii=False)
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def take(rows: Sequence[Item], size: int | None, seed: int, split: str) -> list[Item]:
    """The first `size` rows of a shuffle that depends on `seed` and `split` alone; all rows in their order for None.

    A smaller size is therefore always a part of a larger one.

    Raises:
        ValueError: if `size` is negative or larger than the number of rows.
    """
    if size is None:
        return list(rows)
    if not 0 <= size <= len(rows):
        raise ValueError(
            f"{split}_size={size}, but {len(rows)} rows are available; give 0 to {len(rows)}, or null for all"
        )
    order = list(range(len(rows)))
    random.Random(f"{seed}/{split}").shuffle(order)
    return [rows[i] for i in order[:size]]
