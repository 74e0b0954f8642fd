"""Knows how columns of records fill prompts and targets; must not know files, hubs or single tasks.

A column may be a dotted path: `translation.de` is column `de` inside column `translation`, unless a column has the name
`translation.de`.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, NamedTuple

from rl_warmup.tasks.conversations import conversation, flat, is_conversation, split_answer

Record = Mapping[str, Any]
CHOICES_STYLE = "choices_style"  # column of rows whose target is one of their `choices`: one of TARGET_STYLES
TARGET_STYLES = ("letter", "text")


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the nearest known name; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def column_names(record: Record) -> list[str]:
    """All names that `pick` finds in the record: its columns and, dotted, those inside them."""
    names = []
    for key, value in record.items():
        names.append(str(key))
        if isinstance(value, Mapping):
            names += [f"{key}.{inner}" for inner in column_names(value)]
    return names


def pick(record: Record, column: str, where: str) -> Any:
    """The value of a column, which may be a dotted path.

    Raises:
        ValueError: if there is no such column; names the nearest and the available ones. `where` begins the message.
    """
    found, value = _lookup(record, column)
    if not found:
        known = column_names(record)
        raise ValueError(f"{where}: no column '{column}'{nearest(column, known)}; available: {', '.join(known)}")
    return value


def _lookup(record: Record, column: str) -> tuple[bool, Any]:
    if column in record:
        return True, record[column]
    head, _, rest = column.partition(".")
    if rest and isinstance(record.get(head), Mapping):
        return _lookup(record[head], rest)
    return False, None


def is_empty(value: Any) -> bool:
    """Whether a value is missing or blank."""
    missing = value is None or (isinstance(value, float) and value != value)  # NaN: a missing number
    missing = missing or (isinstance(value, list | tuple) and not value)  # a conversation without messages
    return missing or (isinstance(value, str) and not value.strip())


def as_text(value: Any, column: str, where: str) -> str:
    """The value as text: strings stay, numbers are written out.

    Raises:
        ValueError: if the value is empty, or of a type that has no obvious text (a list, a mapping, a boolean).
    """
    if is_empty(value):
        raise ValueError(f"{where}: column '{column}' is empty; give it text or drop the row")
    if isinstance(value, int | float | str) and not isinstance(value, bool) and value not in (math.inf, -math.inf):
        return str(value)
    raise ValueError(f"{where}: column '{column}' holds a {type(value).__name__}, not text; choose a column of text")


class Part(NamedTuple):
    """Literal text of a template and the field after it; `before` is written before an optional field's text."""

    literal: str
    field: str | None
    before: str | None = None  # None: the field is required


PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Template:
    """A parsed prompt template: literal text and {fields}; `{{` and `}}` are literal braces.

    `{field?}` may be missing or empty: it disappears with the white space before it. Text after the question mark is written
    before the field only where the field has text: `{instruction}{input?\\nInput: }`.
    """

    text: str
    parts: tuple[Part, ...]

    @property
    def fields(self) -> list[str]:
        """All fields."""
        return [part.field for part in self.parts if part.field is not None]

    @property
    def required(self) -> list[str]:
        """The fields that every row needs."""
        return [part.field for part in self.parts if part.field is not None and part.before is None]

    @classmethod
    def parse(cls, text: str, allowed: Iterable[str] | None = None) -> "Template":
        """Parse a template; with `allowed`, refuse other fields.

        Raises:
            ValueError: for an unmatched brace, a field without a name or with a format, an unknown field, or none.
        """
        given = f"prompt_template {text!r}"
        parts, literal, place = [], "", 0
        for piece in PIECE.finditer(text):
            literal += text[place : piece.start()]
            place = piece.end()
            if piece[0] in ("{", "}"):
                raise ValueError(f"{given} has an unmatched brace; write {{{{ or }}}} for a literal one")
            if piece[0] in ("{{", "}}"):
                literal += piece[0][0]
                continue
            name, optional, before = piece[1].partition("?")
            if not name.strip() or ":" in name or "!" in name:
                raise ValueError(f"{given} has a field that is not a plain name; write {{text}}, without ':' or '!'")
            parts.append(Part(literal, name, before if optional else None))
            literal = ""
        template = cls(text, (*parts, Part(literal + text[place:], None)))
        if not template.fields:
            raise ValueError(f"{given} has no field, so all prompts would be the same; add {{text}}")
        known = template.fields if allowed is None else list(allowed)
        for field in template.fields:
            if field not in known:
                raise ValueError(f"{given}: unknown field '{field}'{nearest(field, known)}; known: {', '.join(known)}")
        return template

    def of_text(self) -> str | None:
        """The template with {text} in the place of its only required field, without optional ones; None with more."""
        if len(self.required) != 1:
            return None
        return self.fill({self.required[0]: "\0"}, "").replace("{", "{{").replace("}", "}}").replace("\0", "{text}")

    def fill(self, values: Record, where: str) -> str:
        """The template with each field replaced by that column's text. Raises ValueError as `pick` and `as_text`."""
        out, gone = "", False  # gone: the field before is
        for literal, field, before in self.parts:
            begins = gone and not out
            gone = field is not None and before is not None and is_empty(_lookup(values, field)[1])
            fixed = literal.rstrip() if gone else literal + (before or "")
            out += fixed.lstrip() if begins else fixed
            out += "" if gone or field is None else as_text(pick(values, field, where), field, where)
        return out


def lettered(choices: Iterable[str]) -> list[str]:
    """["A) Ada", "B) Ben", ...]"""
    return [f"{letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]


@dataclass(frozen=True)
class ChoiceMap:
    """The columns with the choices of a question and its answer.

    Args:
        choices: column with a list of 2 to 26 texts.
        answer: column with the right one: its number from 0, its letter, or its text.
        style: of the target: "letter" for "B", "text" for "B) Ada".
        labels: column with a label for each choice, which the answer is one of, as in ARC.
    """

    choices: str
    answer: str
    style: str = "letter"
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.style not in TARGET_STYLES:
            raise ValueError(f"target_style={self.style!r}; give one of {', '.join(TARGET_STYLES)}")

    def read(self, record: Record, where: str) -> tuple[list[str], int]:
        """The choices and the number of the right one. Raises ValueError for faulty columns; `where` begins the message."""
        given = pick(record, self.choices, where)
        if isinstance(given, str) or not isinstance(given, Sequence) or not 2 <= len(given) <= len(ascii_uppercase):
            raise ValueError(f"{where}: column '{self.choices}' is {given!r}; give a list of 2 to 26 texts")
        choices = [as_text(choice, self.choices, where) for choice in given]
        answer = pick(record, self.answer, where)
        if self.labels is not None:
            labels = pick(record, self.labels, where)
            if not isinstance(labels, list) or len(labels) != len(choices) or labels.count(answer) != 1:
                raise ValueError(
                    f"{where}: column '{self.answer}' is {answer!r} and '{self.labels}' is {labels!r}; give each choice a label, "
                    f"and as answer one of them"
                )
            return choices, labels.index(answer)
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
            return choices, answer
        if isinstance(answer, str):
            found = [i for i, choice in enumerate(choices) if answer in (choice, ascii_uppercase[i])]
            if len(found) == 1:
                return choices, found[0]
        raise ValueError(
            f"{where}: column '{self.answer}' is {answer!r}; give the number of a choice (0 to {len(choices) - 1}), "
            f"its letter (A to {ascii_uppercase[len(choices) - 1]}) or its text"
        )


@dataclass(frozen=True)
class ColumnMap:
    """The columns of a record that become prompt, target and id.

    Args:
        prompt: column for the template's field {text}, or a template of other columns for it.
        target: column of the target; None takes `target`, else `completion`.
        id: column of the row's id, a label that may occur twice; None takes `id`, else numbers the rows.
        template: may also use any column of the record by its name.
        choices: makes multiple-choice rows: the template has {options} ("A) ... B) ..."), the target is the answer, and
            `choices`, `answer` (a number) and `choices_style` become extras, as in the task multiple_choice.
        keep: columns that stay in the rows besides those used here; None keeps all.

    The prompt column may hold a conversation, a list of messages; it becomes the prompt as it is. If the target column holds
    one too, its last assistant turn is the target.
    """

    prompt: str | Template
    target: str | None
    id: str | None
    template: Template
    choices: ChoiceMap | None = None
    keep: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        named = {f"{part}_column": getattr(self, part) for part in ("prompt", "target", "id")}
        if self.choices is not None:
            named |= {"choices_column": self.choices.choices, "answer_column": self.choices.answer}
        for setting, column in named.items():
            if isinstance(column, str) or (setting == "prompt_column" and isinstance(column, Template)):
                continue
            if column is not None or setting == "prompt_column":
                raise ValueError(f"{setting}={column!r}; give the name of a column, a text")

    def row(self, record: Record, number: int, where: str) -> dict[str, Any]:
        """The record as a row; its other columns stay as extras.

        Raises:
            ValueError: for a missing or empty column; `where` begins the message.
        """
        named = {"text": self._text(record, where)} if "text" in self.template.fields else {}
        extras: dict[str, Any] = {}
        before: list[Any] = []  # messages of a completion before its answer
        if self.choices is None:
            before, value = self._answer(record, where)
            target = as_text(value, self.target_column(record, where), where)
        else:
            choices, answer = self.choices.read(record, where)
            named["options"] = " ".join(lettered(choices))
            target = lettered(choices)[answer] if self.choices.style == "text" else ascii_uppercase[answer]
            extras = {"choices": choices, "answer": answer, CHOICES_STYLE: self.choices.style}
        return {
            **self._kept(record),
            **extras,
            "id": self._label(record, number, where),
            "prompt": self._prompt(record, named, before, where),
            "target": target,
        }

    def _text(self, record: Record, where: str) -> Any:
        """The field {text}: a text, or the prompt's conversation; empty where it may be, as {text?}."""
        optional = "text" not in self.template.required
        if isinstance(self.prompt, Template):
            bare = optional and any(is_empty(pick(record, name, where)) for name in self.prompt.required)
            return "" if bare else self.prompt.fill(record, where)
        value = pick(record, self.prompt, where)
        if optional and is_empty(value):
            return ""
        return conversation(value, self.prompt, where) if is_conversation(value) else as_text(value, self.prompt, where)

    def _answer(self, record: Record, where: str) -> tuple[list[Any], Any]:
        """The messages of a completion before its answer, and the answer."""
        column = self.target_column(record, where)
        value = pick(record, column, where)
        if not is_conversation(value):
            return [], value
        messages = conversation(value, column, where)
        return split_answer(messages, column, where) if len(messages) > 1 else ([], flat(messages))

    def _prompt(self, record: Record, named: dict[str, Any], before: list[Any], where: str) -> Any:
        """The template, filled; or the prompt's conversation with the messages `before` the answer."""
        text = named.get("text")
        if isinstance(text, list) and self.template.text == "{text}":
            return text + before
        if isinstance(text, list):
            raise ValueError(
                f"{where}: column '{self.prompt}' holds a conversation, which prompt_template cannot hold; leave it out, and use "
                f"chat_template"
            )
        if before:
            raise ValueError(
                f"{where}: the completion has several messages, so the prompt must be a list of messages too"
            )
        return self.template.fill({**record, **named}, where)

    def _kept(self, record: Record) -> Record:
        if self.keep is None:
            return record
        heads = {name if name in record else name.partition(".")[0] for name in (*self.used(), *self.keep)}
        return {name: value for name, value in record.items() if name in heads}

    def _label(self, record: Record, number: int, where: str) -> str:
        """The id of the row, or its number if the id is no text or number."""
        if self.id is not None:
            return as_text(pick(record, self.id, where), self.id, where)
        given = record.get("id")
        usable = isinstance(given, str | int | float) and not isinstance(given, bool) and given == given
        return str(given) if usable and str(given).strip() else str(number)

    def texts(self, record: Record, where: str) -> list[Any]:
        """What a row cannot do without: every required column of the prompt, and the target, unless of choices."""
        of_text = [self.prompt] if isinstance(self.prompt, str) else self.prompt.required
        found = []
        for name in self.template.required:
            if self.choices and name == "options":
                continue
            for column in of_text if name == "text" else [name]:
                value = pick(record, column, where)
                found.append(flat(conversation(value, column, where)) if is_conversation(value) else value)
        return found if self.choices else [*found, self._answer(record, where)[1]]

    def used(self) -> list[str]:
        """Every column that `row` may read."""
        of_choices = [self.choices.choices, self.choices.answer, self.choices.labels or "id"] if self.choices else []
        of_prompt = [self.prompt] if isinstance(self.prompt, str) else self.prompt.fields
        of_target = [self.target] if self.target else ["target", "completion"]
        return [*of_prompt, *of_target, self.id or "id", *of_choices, *self.template.fields]

    def target_column(self, record: Record, where: str) -> str:
        """The name of the column that holds the target.

        Raises:
            ValueError: `target` and `completion` say different things, and nobody chose.
        """
        if self.target:
            return self.target
        target, completion = record.get("target"), record.get("completion")
        if target is not None and completion is not None and target != completion:
            raise ValueError(
                f"{where}: has the columns 'target' and 'completion', which differ; give target_column, one of the two"
            )
        return "completion" if target is None and completion is not None else "target"


def choice_map(
    choices_column: str | None,
    answer_column: str | None,
    target_style: str,
    target_column: str | None,
    labels_column: str | None = None,
) -> ChoiceMap | None:
    """The arguments of a task as a `ChoiceMap`, or None without any.

    Raises:
        ValueError: for one of the two columns without the other, or a target column beside them.
    """
    if choices_column is None and answer_column is None and labels_column is None:
        return None
    if choices_column is None or answer_column is None or target_column is not None:
        raise ValueError(
            f"choices_column={choices_column!r}, answer_column={answer_column!r}, target_column={target_column!r}; give "
            "choices_column and answer_column together (with them labels_column, if you like) and no target_column, which then "
            "follows from them"
        )
    return ChoiceMap(choices_column, answer_column, target_style, labels_column)
