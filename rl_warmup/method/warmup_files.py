"""Files of warmups as text: `proposals: [stored]` reads them, `rl-warmup sample` and anything else writes them.

Knows: the format (docs/stored-warmups.md), which line belongs to which row, a tokenizer. Must not know: networks, phases,
processes. A warmup is text here because its author may use another tokenizer, or none. Rows are numbered as the data set
gives them, before token limits drop any.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rl_warmup.batch import Warmup
from rl_warmup.method.proposals import COLUMNS, STORED
from rl_warmup.runtime.documents import records
from rl_warmup.runtime.settings import shown
from rl_warmup.tasks.rows import HALF

KEYS = ("row", "id", "prompt")  # name the row of a line; the first key that the line has counts
ONE_A_LINE = (
    "Write one object a line, with `row` and `warmups`; a file that `rl-warmup sample` left unfinished is finished by the same "
    "command."
)
LINES_PER_CALL = 256  # of the tokenizer
Columns = Callable[[int, str], dict[str, Any]]  # (number of a row, its label in errors) -> columns to add


class Line(NamedTuple):
    """One line of a file: the row it names, and its warmups as (text, whether a model sampled it)."""

    number: int
    kind: str
    value: Any
    prompt: Any
    warmups: list[tuple[str, bool]]

    def at(self, path: Path) -> str:
        """Its place in the file, for error messages."""
        return f"{path}, line {self.number}"


def record(number: int, row: dict[str, Any], warmups: Sequence[tuple[str, Warmup]]) -> str:
    """The line that `rl-warmup sample` writes for a row, with warmups given as (text, sampled warmup)."""
    sampled = [
        {"warmup": text, "finish": w.finish, "logprob": None if w.logprob is None else round(w.logprob, 4)}
        for text, w in warmups
    ]
    known = {"row": number, **{key: row[key] for key in ("id", "prompt", "target")}, "warmups": sampled}
    return json.dumps(known, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, each checked.

    Raises ValueError: the file is missing or empty, or a line has another format; names the line.
    """
    if not path.is_file():
        raise ValueError(
            f"stored_warmups: {path} does not exist. `rl-warmup sample MODEL --output {path}` writes such a file; "
            f"docs/stored-warmups.md says how to write one by other means."
        )
    with path.open("rb") as file:
        found = records(file, f"{path}, line ", ONE_A_LINE)
        lines = [_line(number, one, f"{path}, line {number}") for number, one in found]
    if not lines:
        raise ValueError(
            f"stored_warmups: {path} holds no lines. Give one JSON object a row, with `row` and `warmups`."
        )
    return lines


def _line(number: int, found: dict[str, Any], where: str) -> Line:
    kind = next((key for key in KEYS if found.get(key) is not None), None)
    if kind is None:
        raise ValueError(
            f"{where}: names no row. Add `row` (its number in the training split, from 0), `id` or `prompt`."
        )
    value = found[kind]
    if kind == "row" and (type(value) is not int or value < 0):
        raise ValueError(f"{where}: `row` is {shown(value)}. Give the row's number in the training split, from 0.")
    return Line(number, kind, value if kind == "row" else _label(value), found.get("prompt"), _texts(found, where))


def _texts(found: dict[str, Any], where: str) -> list[tuple[str, bool]]:
    """The warmups of a line. Only a model's samples may be empty."""
    given = [key for key in ("warmups", "warmup") if key in found]
    if len(given) != 1:
        what = "both `warmups` and `warmup`" if given else "neither `warmups` nor `warmup`"
        raise ValueError(f"{where}: has {what}. Give a list of texts as `warmups`, or one text as `warmup`.")
    listed = found["warmups"] if given == ["warmups"] else [found["warmup"]]
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{where}: `warmups` is {listed!r:.40}. Give a list of one text at least, or remove the line.")
    texts = []
    for place, one in enumerate(listed):
        text = one.get("warmup", one.get("text")) if isinstance(one, dict) else one
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: warmup {place} is {one!r:.60}. Give a text, or an object with a text as `warmup` or `text`."
            )
        if half := HALF.search(text):
            raise ValueError(f"{where}: warmup {place} holds half a character ({half[0]!r}). Remove it.")
        drawn = isinstance(one, dict) and "finish" in one
        if not text.strip() and not drawn:
            raise ValueError(f"{where}: warmup {place} is empty. Write one, or remove it from the list.")
        texts.append((text, drawn))
    return texts


def _label(value: Any) -> str:
    """An id or a prompt as text, to compare; a prompt may be a list of messages."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


@dataclass
class StoredWarmups:
    """The warmups of a file as ids: a group of `num_warmups` for every row.

    If a row has more, the first ones count; if it has fewer, they repeat. Ids that a warmup may not hold (unknown words, special
    tokens) are removed and the rest is cut at the limit, as in every proposal.
    """

    path: Path
    tokenizer: Any
    forbidden: set[int]  # ids that no warmup may hold, including the separator
    num_warmups: int
    max_length: int  # tokens of a warmup
    counts: Counter[str] = field(default_factory=Counter)  # of tokens and warmups, for `losses`

    @classmethod
    def of(cls, args: Any, tokenizer: Any, tokens: Any) -> StoredWarmups | None:
        """The file for a run with these `WarmupOptions` and `LayoutTokens`; None if it does not train on one."""
        if STORED not in args.proposals or args.objective == "sft":
            return None
        forbidden = {*tokens.banned_ids, tokens.separator_id}
        path = Path(str(args.stored_warmups))
        return cls(path, tokenizer, forbidden, args.num_warmups, args.max_warmup_length)

    def columns(self, rows: Iterable[Any], complete: bool = False) -> Columns:
        """A function that gives a row, by its number, its group as column `COLUMNS[STORED]`.

        Args:
            rows: the training rows as the data set gives them; read once and not kept.
            complete: refuse a row without a line now, not only when its group is needed.

        Raises:
            ValueError: the file cannot be read, or does not fit these rows; names the line or row, and what to do. The
                returned function raises it for a row without a line.
        """
        lines = read_lines(self.path)
        places, total = self._match(lines, rows, complete)
        groups = self._groups(lines)
        without = total - len(places)

        def of(number: int, where: str) -> dict[str, Any]:
            if number not in places:
                others = f", and for {without} of {total} rows in all" if without > 1 else ""
                raise ValueError(f"{where}: {self.path} has no warmups for it{others}. {_complete(self.path)}")
            return {COLUMNS[STORED]: groups[places[number]]}

        return of

    def losses(self) -> str:
        """A sentence about removed tokens and cut or ignored warmups; empty if there are none."""
        lost = [
            f"{self.counts[name]} of {self.counts[total]} {words}"
            for name, total, words in (
                ("left out", "tokens", "tokens removed, as a warmup may not hold them"),
                ("cut", "warmups", "warmups cut at max_warmup_length"),
                ("empty", "warmups", "warmups ignored, as the model wrote nothing"),
            )
            if self.counts[name]
        ]
        return f"{self.path}: {'; '.join(lost)}." if lost else ""

    # ------------------------------------------------------------------ rows of the lines

    def _match(self, lines: list[Line], rows: Iterable[Any], complete: bool) -> tuple[dict[int, int], int]:
        """Number of a row -> index of its line; and the number of rows."""
        by: dict[str, dict[Any, int]] = {key: {} for key in KEYS}
        for place, line in enumerate(lines):
            first = by[line.kind].setdefault(line.value, place)
            if first != place:
                raise ValueError(
                    f"{line.at(self.path)}: {line.kind} {line.value!r:.60} already has line {lines[first].number}. Put all "
                    f"warmups of a row into one list."
                )
        places: dict[int, int] = {}
        row_of: dict[int, int] = {}  # index of a line -> its first row
        total = 0
        for number, row in enumerate(rows):
            total += 1
            labels = {key: _label(row[key]) for key in ("id", "prompt") if by[key] and row.get(key) is not None}
            found = [by[key][value] for key, value in (("row", number), *labels.items()) if value in by[key]]
            if found:
                self._check(number, row, [lines[place] for place in found], row_of.get(found[0]))
                places[number] = found[0]
                row_of.setdefault(found[0], number)
            elif complete:
                raise ValueError(f"train row {number}: {self.path} has no warmups for it. {_complete(self.path)}")
        foreign = [line for place, line in enumerate(lines) if place not in row_of]
        if foreign:
            line, many = foreign[0], f"; so are {len(foreign)} of {len(lines)} lines" if len(foreign) > 1 else ""
            raise ValueError(
                f"{line.at(self.path)}: {line.kind} {line.value!r:.60} is none of the {total} training rows{many}. Give the file "
                f"of this task and split, with the same sizes and seed, or remove such lines."
            )
        return places, total

    def _check(self, number: int, row: Any, found: list[Line], earlier: int | None) -> None:
        """Raise unless the row has exactly one line, which is not another row's."""
        line, where = found[0], found[0].at(self.path)
        if len(found) > 1:
            raise ValueError(
                f"{found[1].at(self.path)}: {found[1].kind} {found[1].value!r:.60} is row {number}, which already has line "
                f"{line.number}. Put all warmups of a row into one list."
            )
        if line.kind == "id" and earlier is not None:
            raise ValueError(
                f"{where}: id {line.value!r:.60} is that of the training rows {earlier} and {number}. Name them by `row`."
            )
        if line.prompt is not None and _label(line.prompt) != _label(row.get("prompt")):
            raise ValueError(
                f"{where}: its prompt is {_label(line.prompt)!r:.60}, but that of row {number} is "
                f"{_label(row.get('prompt'))!r:.60}. Give the file of these rows, or take `prompt` out of its lines."
            )

    # ------------------------------------------------------------------ text to ids

    def _groups(self, lines: list[Line]) -> list[list[Warmup]]:
        """The group of every line."""
        groups, rest = [], iter(lines)
        while together := list(islice(rest, LINES_PER_CALL)):
            texts = [text for line in together for text, _ in line.warmups]
            ids = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
            groups += [self._group(line, [next(ids) for _ in line.warmups]) for line in together]
        return groups

    def _group(self, line: Line, written: list[list[int]]) -> list[Warmup]:
        kept = []
        for (text, drawn), ids in zip(line.warmups, written, strict=True):
            allowed = [i for i in ids if i not in self.forbidden]
            if not allowed and not drawn:
                raise ValueError(
                    f"{line.at(self.path)}: {text!r:.60} has no token that a warmup may hold: to this tokenizer it is unknown or "
                    f"special. Write it in words of the tokenizer, or remove it."
                )
            self.counts["tokens"] += len(ids)
            self.counts["left out"] += len(ids) - len(allowed)
            self.counts["warmups"] += 1
            self.counts["cut"] += len(allowed) > self.max_length
            self.counts["empty"] += not allowed
            kept += [Warmup(allowed[: self.max_length], "proposal")] if allowed else []
        if not kept:
            raise ValueError(
                f"{line.at(self.path)}: all {len(written)} warmups are empty. Draw them with a min_warmup_length of 1 at least, "
                f"or write one."
            )
        return [kept[i % len(kept)] for i in range(self.num_warmups)]


def _complete(path: Path) -> str:
    return (
        f"Write a line for every training row (`rl-warmup sample MODEL --split train --output {path}` does), or train on "
        f"fewer rows."
    )
