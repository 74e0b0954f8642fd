"""Knows how columns of records fill prompts and targets; must not know files, hubs or single tasks.

A column may be a dotted path: `translation.de` is column `de` inside column `translation`, unless a column has the name
`translation.de`.
"""

import difflib
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

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


def as_text(value: Any, column: str, where: str) -> str:
    """The value as text: strings stay, numbers are written out.

    Raises:
        ValueError: if the value is empty, or of a type that has no obvious text (a list, a mapping, a boolean).
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN: a missing number
        raise ValueError(f"{where}: column '{column}' is empty; give it text or drop the row")
    if isinstance(value, int | float | str) and not isinstance(value, bool) and value not in (math.inf, -math.inf):
        return str(value)
    raise ValueError(f"{where}: column '{column}' holds a {type(value).__name__}, not text; choose a column of text")


@dataclass(frozen=True)
class Template:
    """A parsed prompt template: literal text and {fields}; `{{` and `}}` are literal braces."""

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> list[str]:
        return [field for _, field in self.parts if field is not None]

    @classmethod
    def parse(cls, text: str, allowed: Iterable[str] | None = None) -> "Template":
        """Parse a template; with `allowed`, refuse other fields.

        Raises:
            ValueError: for an unmatched brace, a field without a name or with a format, an unknown field, or none.
        """
        given = f"prompt_template {text!r}"
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"{given} has an unmatched brace ({error}); write {{{{ or }}}} for a literal one"
            ) from None
        for _, field, form, conversion in parsed:
            if field is not None and (not field.strip() or form or conversion):
                raise ValueError(f"{given} has a field that is not a plain name; write {{text}}, without ':' or '!'")
        template = cls(text, tuple((literal, field) for literal, field, _, _ in parsed))
        if not template.fields:
            raise ValueError(f"{given} has no field, so all prompts would be the same; add {{text}}")
        known = template.fields if allowed is None else list(allowed)
        for field in template.fields:
            if field not in known:
                raise ValueError(f"{given}: unknown field '{field}'{nearest(field, known)}; known: {', '.join(known)}")
        return template

    def of_text(self, column: str = "text") -> str | None:
        """The template with {text} as its only field (`column` is renamed to it); None with other fields."""
        if len(self.fields) > 1 or self.fields[0] not in ("text", column):
            return None
        escaped = ((part.replace("{", "{{").replace("}", "}}"), field) for part, field in self.parts)
        return "".join(literal + ("{text}" if field else "") for literal, field in escaped)

    def fill(self, values: Record, where: str) -> str:
        """The template with each field replaced by that column's text. Raises ValueError as `pick` and `as_text`."""
        out = []
        for literal, field in self.parts:
            out.append(literal)
            if field is not None:
                out.append(as_text(pick(values, field, where), field, where))
        return "".join(out)


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
    """

    choices: str
    answer: str
    style: str = "letter"

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
        prompt: column for the template's field {text}.
        target: column of the target; None takes `target`, else `completion`, if they do not differ.
        id: column of the row's id, a label that may occur twice; None takes `id`, else numbers the rows.
        template: may also use any column of the record by its name.
        choices: makes multiple-choice rows: the template has {options} ("A) ... B) ..."), the target is the answer, and
            `choices`, `answer` (a number) and `choices_style` become extras, as in the task multiple_choice.
    """

    prompt: str
    target: str | None
    id: str | None
    template: Template
    choices: ChoiceMap | None = None

    def __post_init__(self) -> None:
        named = {f"{part}_column": getattr(self, part) for part in ("prompt", "target", "id")}
        if self.choices is not None:
            named |= {"choices_column": self.choices.choices, "answer_column": self.choices.answer}
        for setting, column in named.items():
            if not isinstance(column, str) and (column is not None or setting == "prompt_column"):
                raise ValueError(f"{setting}={column!r}; give the name of a column, a text")

    def row(self, record: Record, number: int, where: str) -> dict[str, Any]:
        """The record as a row; its other columns stay as extras.

        Raises:
            ValueError: for a missing or empty column; `where` begins the message.
        """
        text = as_text(pick(record, self.prompt, where), self.prompt, where)
        named: dict[str, Any] = {"text": text}
        extras: dict[str, Any] = {}
        if self.choices is None:
            column = self.target_column(record, where)
            target = as_text(pick(record, column, where), column, where)
        else:
            choices, answer = self.choices.read(record, where)
            named["options"] = " ".join(lettered(choices))
            target = lettered(choices)[answer] if self.choices.style == "text" else ascii_uppercase[answer]
            extras = {"choices": choices, "answer": answer, CHOICES_STYLE: self.choices.style}
        return {
            **record,
            **extras,
            "id": self._label(record, number, where),
            "prompt": self.template.fill({**record, **named}, where),
            "target": target,
        }

    def _label(self, record: Record, number: int, where: str) -> str:
        """The id of the row, or its number if the id is no text or number."""
        if self.id is not None:
            return as_text(pick(record, self.id, where), self.id, where)
        given = record.get("id")
        usable = isinstance(given, str | int | float) and not isinstance(given, bool) and given == given
        return str(given) if usable and str(given).strip() else str(number)

    def used(self) -> list[str]:
        """Every column that `row` may read."""
        of_choices = [self.choices.choices, self.choices.answer] if self.choices else []
        of_target = [self.target] if self.target else ["target", "completion"]
        return [self.prompt, *of_target, self.id or "id", *of_choices, *self.template.fields]

    def target_column(self, record: Record, where: str) -> str:
        """The name of the column that holds the target.

        Raises:
            ValueError: `target` and `completion` say different things, and nobody chose.
        """
        if not self.target and record.get("target", other := record.get("completion")) != other and other is not None:
            raise ValueError(
                f"{where}: has the columns 'target' and 'completion', which differ; give target_column, one of the two"
            )
        return self.target or ("completion" if "target" not in record and "completion" in record else "target")


def choice_map(
    choices_column: str | None, answer_column: str | None, target_style: str, target_column: str | None
) -> ChoiceMap | None:
    """The arguments of a task as a `ChoiceMap`, or None without any.

    Raises:
        ValueError: for one of the two columns without the other, or a target column beside them.
    """
    if choices_column is None and answer_column is None:
        return None
    if choices_column is None or answer_column is None or target_column is not None:
        raise ValueError(
            f"choices_column={choices_column!r}, answer_column={answer_column!r}, target_column={target_column!r}; give "
            "choices_column and answer_column together and no target_column, which then follows from them"
        )
    return ChoiceMap(choices_column, answer_column, target_style)
