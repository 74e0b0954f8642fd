"""Knows the forms in which others keep their rows, and recognises them by their columns; must not know files, tokenizers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rl_warmup.tasks.columns import ChoiceMap, ColumnMap, Record, Template, as_text, is_empty, pick
from rl_warmup.tasks.conversations import conversation, split_answer

ALPACA = Template.parse("{instruction}{input?\n\n}")
CONVERSATIONS = ("messages", "conversations")
# Columns of a form -> what is said of it.
FORMS: dict[tuple[str, ...], str] = {
    ("prompt", "target"): "prompt and target",
    ("prompt", "completion"): "prompt and completion",
    ("messages",): "conversations (messages), their last assistant turn is the target",
    ("conversations",): "conversations (ShareGPT), their last assistant turn is the target",
    ("instruction", "output"): "instruction and output (alpaca), with the input where there is one",
}
COLUMNS = sorted({name for columns in FORMS for name in columns} | {"input"})


@dataclass(frozen=True)
class AutoColumns:
    """Finds the columns of each record by their names, where the user names none; used like a `ColumnMap`.

    Args:
        messages: the column with a conversation; None looks for any form.
        id, template, keep: as in `ColumnMap`.
        taken: collects what was recognised.
    """

    id: str | None
    template: Template
    keep: tuple[str, ...] | None = None
    messages: str | None = None
    taken: set[str] = field(default_factory=set, compare=False)

    def __post_init__(self) -> None:
        ColumnMap("prompt", None, self.id, self.template, keep=self.keep)  # checks the id
        if not isinstance(self.messages, str | None):
            raise ValueError(f"messages_column={self.messages!r}; give the name of a column, a text")

    def row(self, record: Record, number: int, where: str) -> dict[str, Any]:
        """The record as a row. Raises ValueError as `ColumnMap.row`, and for a record of two forms."""
        columns, record = self._fit(record, where)
        return columns.row(record, number, where)

    def texts(self, record: Record, where: str) -> list[Any]:
        """As `ColumnMap.texts`; of a conversation without messages, one empty text."""
        column = self.messages or self._form(record, where)
        if column in (self.messages, *CONVERSATIONS) and is_empty(pick(record, column, where)):
            return [None]
        columns, record = self._fit(record, where)
        return columns.texts(record, where)

    def used(self) -> list[str]:
        """Every column that `row` may read."""
        return [*COLUMNS, self.id or "id", *([self.messages] if self.messages else []), *self.template.fields]

    @cached_property
    def _pairs(self) -> ColumnMap:
        return ColumnMap("prompt", None, self.id, self.template, keep=self.keep)

    @cached_property
    def _alpaca(self) -> ColumnMap:
        return ColumnMap(ALPACA, "output", self.id, self.template, keep=self.keep)

    def _fit(self, record: Record, where: str) -> tuple[ColumnMap, Record]:
        """The columns of this record; of a conversation, the record with `prompt` and `target` in its place."""
        column = self.messages or self._form(record, where)
        if column == "instruction":
            return self._alpaca, record
        if column != self.messages and column not in CONVERSATIONS:
            return self._pairs, record
        value = pick(record, column, where)
        if is_empty(value):
            as_text(value, column, where)  # raises
        prompt, answer = split_answer(conversation(value, column, where), column, where)
        return self._pairs, {**_without(record, column), "prompt": prompt, "target": answer}

    def _form(self, record: Record, where: str) -> str:
        """The first column of the record's form.

        Raises:
            ValueError: the record has columns of two forms.
        """
        given = {name for name in COLUMNS if record.get(name) not in (None, [])}
        found = [form for form in FORMS if given.issuperset(form)]
        begun = [name for name in ("prompt", *CONVERSATIONS) if name in given]
        begun += ["instruction"] if {"instruction", "output"} <= given else []
        if len(begun) > 1:
            raise ValueError(
                f"{where}: the columns {' and '.join(map(repr, begun))} could both be meant; name yours with prompt_column and "
                f"target_column, or with messages_column"
            )
        if found:
            self.taken.add(FORMS[found[0]])
        elif not begun and "text" in self.template.fields:
            if empty := [form for form in FORMS if all(name in record for name in form)]:
                return empty[0][0]
            try:
                pick(record, "prompt", where)
            except ValueError as error:
                raise ValueError(f"{error}; name yours with prompt_column and target_column") from None
        return found[0][0] if found else "prompt"


def _without(record: Record, column: str) -> dict[str, Any]:
    """The record without a column, which may be a dotted path; what it stands in goes where nothing else is left."""
    head, _, rest = column.partition(".")
    if column in record or not rest:
        return {name: value for name, value in record.items() if name != column}
    kept = {name: _without(value, rest) if name == head else value for name, value in record.items()}
    return {name: value for name, value in kept.items() if name != head or value}


Columns = ColumnMap | AutoColumns


def columns_of(
    prompt: str | None, target: str | None, id: str | None, template: Template, choices: ChoiceMap | None = None,
    messages: str | None = None, keep: Iterable[str] | None = None,
) -> Columns:  # fmt: skip
    """The columns that a user names, or those that are found.

    Raises:
        ValueError: messages beside other columns, or keep is no list.
    """
    if isinstance(keep, str):
        raise ValueError(f"keep_columns={keep!r}; give a list of columns")
    kept = None if keep is None else tuple(keep)
    if messages is not None and (prompt, target, choices) != (None, None, None):
        raise ValueError(
            f"messages_column={messages!r} holds prompt and target; leave out prompt_column, target_column and choices"
        )
    if (prompt, target, choices) == (None, None, None):
        return AutoColumns(id, template, kept, messages)
    return ColumnMap("prompt" if prompt is None else prompt, target, id, template, choices, kept)


@dataclass(frozen=True)
class Languages:
    """Rows with one text in one language each, as FLORES+ has them; the texts of one id are translations of each other.

    Args:
        column: column of the language; of several, their values are joined by `_`, as in `deu_Latn`.
        source, target: languages of prompt and target.
        text, id: columns of the text and of what translations have in common.
    """

    column: str | list[str]
    source: str
    target: str
    text: str = "text"
    id: str = "id"
    notes: set[str] = field(default_factory=set, compare=False)  # filled by `pairs`

    @classmethod
    def of(
        cls, column: Any, source: str | None, target: str | None, text: str | None, id: str | None
    ) -> "Languages | None":
        """The arguments of a task; None without any.

        Raises:
            ValueError: only some of the three are given, or one language twice.
        """
        given = {"language_column": column, "source_language": source, "target_language": target}
        if not any(given.values()):
            return None
        if missing := [name for name, value in given.items() if not value]:
            raise ValueError(f"rows with a language each need {', '.join(given)}; add {' and '.join(missing)}")
        if source == target:
            raise ValueError(f"source_language and target_language are both {source!r}; give two languages")
        return cls(column, str(source), str(target), text or "text", id or "id")

    def named(self, target_column: str | None, choices: ChoiceMap | None) -> tuple[str, str]:
        """The columns that `pairs` fills. Raises ValueError if the task's arguments name others."""
        if target_column is not None or choices is not None:
            raise ValueError("language_column finds the target by target_language; leave out target_column and choices")
        return "prompt", "target"

    def pairs(self, located: Iterable[tuple[int, str, Record]]) -> Iterator[tuple[int, str, Record]]:
        """The records of the source language, with `prompt` and `target`, in their order. Reads all records.

        Raises:
            ValueError: a text occurs twice, or no id has both languages.
        """
        texts: dict[str, dict[str, tuple[str, Record]]] = {self.source: {}, self.target: {}}
        languages = set()
        for _, where, record in located:
            names = [self.column] if isinstance(self.column, str) else self.column
            language = "_".join(as_text(pick(record, name, where), name, where) for name in names)
            languages.add(language)
            key = as_text(pick(record, self.id, where), self.id, where)
            if language in texts and key in texts[language]:
                known = texts[language][key][0]
                raise ValueError(
                    f"{where}: {self.id} {key} has a text of {language} already ({known}); remove one of them"
                )
            if language in texts:
                texts[language][key] = (where, record)
        theirs = texts[self.target]
        both = [key for key in texts[self.source] if key in theirs]
        if not both:
            raise ValueError(
                f"no {self.id} has texts of both {self.source!r} and {self.target!r}; the languages found are "
                f"{', '.join(sorted(languages)) or 'none'}. Give the files of both languages"
            )
        if alone := len(texts[self.source].keys() | theirs.keys()) - len(both):
            self.notes.add(f"{alone} texts have no translation and are left out")
        for number, key in enumerate(both):
            where, record = texts[self.source][key]
            other, translation = theirs[key]
            text, target = pick(record, self.text, where), pick(translation, self.text, other)
            yield number, f"{where} with {other}", {**record, "prompt": text, "target": target}


def notes_of(columns: Columns, languages: Languages | None) -> tuple[str, ...]:
    """What was recognised in the rows read so far, and what is left out, as sentences."""
    taken = columns.taken if isinstance(columns, AutoColumns) else set()
    return (*(f"rows are read as {form}" for form in sorted(taken)), *sorted(languages.notes if languages else ()))
