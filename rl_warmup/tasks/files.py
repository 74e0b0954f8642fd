"""Knows how local files become rows of a task; must not know how a format is read (`formats`), hubs or data sets."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rl_warmup.tasks.columns import Record, Template, choice_map
from rl_warmup.tasks.filters import RowFilter
from rl_warmup.tasks.formats import Table, read, read_lines
from rl_warmup.tasks.forms import Columns, Languages, columns_of, notes_of
from rl_warmup.tasks.rows import Row, Task, take
from rl_warmup.tasks.stream import SHUFFLE_BUFFER, Stream

TABLES = {".csv", ".tsv", ".txt"}
Name = str | PathLike[str]
Paths = Name | Sequence[Name] | Mapping[str, Name]


def load(
    path: Paths | None = None, train: Paths | None = None, validation: Paths | None = None, test: Paths | None = None,
    validation_fraction: float = 0.1, test_fraction: float = 0.1, train_size: int | None = None,
    validation_size: int | None = None, test_size: int | None = None, prompt_column: str | None = None,
    target_column: str | None = None, id_column: str | None = None, prompt_template: str = "{text}",
    messages_column: str | None = None, language_column: str | list[str] | None = None,
    source_language: str | None = None, target_language: str | None = None, choices_column: str | None = None,
    answer_column: str | None = None, labels_column: str | None = None, target_style: str = "letter",
    drop_empty: bool = False, keep_columns: Iterable[str] | None = None, metrics: Iterable[Any] = ("exact_match",),
    seed: int = 0, stream: bool = False, shuffle_buffer: int = SHUFFLE_BUFFER,
    column_names: Sequence[str] | None = None, quoted: bool | None = None,
) -> Task:  # fmt: skip
    """A task from local files: one path per split, or a single `path` that is split here.

    A single path is split by `seed`; rows with the same prompt stay in one split, so no test prompt is in training.

    Args:
        path, train, validation, test: a file, a list of files, or text files with a line per row by column: {prompt: FILE,
            target: FILE}; `path` excludes the other three.
        validation_fraction, test_fraction: shares of the distinct prompts of `path`; unused with one path per split.
        train_size, validation_size, test_size: None for all rows; a number takes the first rows of a shuffle by `seed`.
        prompt_column, target_column, id_column: columns, dotted paths allowed ("translation.de"). Without prompt_column and
            target_column the form is recognised by the columns (`forms.FORMS`); id_column None takes "id", else numbers the rows.
        prompt_template: {text} is the prompt column; other columns by their names (`columns.Template`).
        messages_column: column with a conversation whose last assistant turn is the target.
        language_column, source_language, target_language: rows with a language each (`forms.Languages`); prompt_column is
            their text (default "text"), id_column what translations have in common.
        choices_column, answer_column, labels_column, target_style: multiple choice instead of a target column
            (`columns.ChoiceMap`); the template then has the field {options}.
        drop_empty: leave out rows whose prompt or target is empty; otherwise they are an error.
        keep_columns: columns that stay in the rows as extras besides those used here; None keeps all.
        metrics: names for `rl_warmup.metrics.compute`, the main metric first.
        stream: read the training rows on demand instead of all at the start; not for `path`, `train_size` or .json.
        column_names: of .csv and .tsv files without a header line.
        quoted: whether cells may be in quotes; by default only in .csv.
        shuffle_buffer: of a stream (`Stream`).

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for contradicting paths, an unknown format, unreadable content (with file and line), a missing or empty
            column, fractions that leave a split empty.
        ImportError: for Parquet without pyarrow.
    """
    choices = choice_map(choices_column, answer_column, target_style, target_column, labels_column)
    languages = Languages.of(language_column, source_language, target_language, prompt_column, id_column)
    template = Template.parse(prompt_template)
    named = (prompt_column, target_column) if languages is None else languages.named(target_column, choices)
    columns = columns_of(*named, id_column, template, choices, messages_column, keep_columns)
    source = _Source(columns, languages, Table(column_names, quoted), RowFilter(drop_empty))
    given = {"train": train, "validation": validation, "test": test}
    if (path is None) == all(paths is None for paths in given.values()):
        raise ValueError("file: give either path, which is split here, or train (with validation and test)")
    files = [file for paths in (path, *given.values()) if paths is not None for file in _as_list(paths)]
    no_table = not any(TABLES & {suffix.lower() for suffix in file.suffixes} for file in files)
    idle = {
        "column_names": column_names is not None and no_table and "a .csv, .tsv or .txt file",
        "quoted": quoted is not None and no_table and "a .csv, .tsv or .txt file",
        "target_style": target_style != "letter" and choices is None and "choices_column",
        "shuffle_buffer": shuffle_buffer != SHUFFLE_BUFFER and not stream and "stream: true",
        "validation_fraction": validation_fraction != 0.1 and path is None and "path",
        "test_fraction": test_fraction != 0.1 and path is None and "path",
    }
    if alone := [f"{name} has no effect without {other}" for name, other in idle.items() if other]:
        raise ValueError(f"file: {alone[0]}; leave it out")
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    splits: dict[str, list[Row] | Stream] = {}
    if stream:
        splits["train"] = source.stream(train, train_size, shuffle_buffer)
        given = {"validation": validation, "test": test}
    if path is not None:
        read_whole = _split(list(source.rows(path, "path")), validation_fraction, test_fraction, seed)
    else:
        read_whole = {split: list(source.rows(paths, split)) for split, paths in given.items()}
        for split, rows in read_whole.items():
            if given[split] is not None and not rows:
                names = ", ".join(map(str, _as_list(given[split] or [])))
                raise ValueError(
                    f"file {names}: no rows for the {split} split; give a file that has some, or leave {split} out"
                )
    present = {name for rows in read_whole.values() for row in rows for name in row}
    unknown = [name for name in keep_columns or () if not {name, name.partition(".")[0]} & present]
    if unknown and present and not stream:
        raise ValueError(f"file: keep_columns: no row has a column {unknown[0]!r}; give columns of the files")
    splits |= {split: take(rows, sizes[split], seed, split) for split, rows in read_whole.items()}
    return Task("file", splits, tuple(metrics), template.of_text(), notes_of(columns, languages))


@dataclass(frozen=True)
class _Source:
    """How files become rows."""

    columns: Columns
    languages: Languages | None
    table: Table
    rules: RowFilter

    def rows(self, paths: Paths | None, split: str) -> Iterator[Row]:
        """The rows of these files, on demand."""
        if paths is None:
            return
        located = self._located(paths)
        if self.languages is not None:
            located = self.languages.pairs(located)
        begun = False
        try:
            for row in self.rules.each(located, self.columns, f"file, {split}"):
                begun = True
                yield row
        except ValueError as error:
            table = TABLES & set(_as_list(paths)[0].suffixes)
            if table and self.table.names is None and not begun and "no column" in str(error):
                raise ValueError(f"{error}; a file without a header line needs column_names") from None
            raise

    def _located(self, paths: Paths) -> Iterator[tuple[int, str, Record]]:
        if isinstance(paths, Mapping):
            records = read_lines({column: Path(path) for column, path in paths.items()})
        else:
            records = (located for path in _as_list(paths) for located in read(path, self.table))
        return ((number, where, record) for number, (where, record) in enumerate(records))

    def stream(self, paths: Paths | None, size: int | None, shuffle_buffer: int) -> Stream:
        """The training rows as a stream."""
        if paths is None or size is not None or self.languages is not None:
            what = "train: one or more files, as `path` must be read whole" if paths is None else "no train_size"
            what = "no language_column, as translations are looked for in all rows" if self.languages else what
            raise ValueError(f"file: stream reads the training rows on demand; give {what}, or set stream to false")
        for path in _as_list(paths):
            if ".json" in (path.suffix, Path(path.stem).suffix):
                raise ValueError(f"file {path}: a .json file is read whole; give .jsonl, or set stream to false")
        return Stream("file, split 'train'", lambda: self.rows(paths, "train"), shuffle_buffer)


def _split(rows: list[Row], validation_fraction: float, test_fraction: float, seed: int) -> dict[str, list[Row]]:
    fractions = f"validation_fraction={validation_fraction}, test_fraction={test_fraction}"
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise ValueError(f"file: {fractions}; give shares of at least 0 that add up to less than 1")
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in rows))
    random.Random(f"split/{seed}").shuffle(prompts)
    num_test, num_validation = round(test_fraction * len(prompts)), round(validation_fraction * len(prompts))
    home = dict.fromkeys(prompts, "train")
    home.update(dict.fromkeys(prompts[:num_test], "test"))
    home.update(dict.fromkeys(prompts[num_test : num_test + num_validation], "validation"))
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[home[str(row["prompt"])]].append(row)
    wanted = {"train": 1.0, "validation": validation_fraction, "test": test_fraction}
    empty = [split for split, rows_of_split in splits.items() if wanted[split] > 0 and not rows_of_split]
    if not prompts:
        raise ValueError("file: the file of `path` has no rows; give one that has")
    if empty:
        raise ValueError(
            f"file: {len(prompts)} distinct prompts with {fractions} leave {' and '.join(empty)} empty; "
            "raise the fraction, set it to 0, or give one path per split"
        )
    return splits


def _as_list(paths: Paths) -> list[Path]:
    paths = list(paths.values()) if isinstance(paths, Mapping) else paths
    listed = isinstance(paths, Sequence) and all(isinstance(path, str | PathLike) for path in paths)
    if not listed and not isinstance(paths, PathLike):
        raise ValueError(f"file: {paths!r:.80} is no path; give a path, or a list of paths")
    return [Path(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]
