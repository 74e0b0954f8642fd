"""Knows how local files become rows of a task; must not know how a format is read (`formats`), hubs or data sets."""

import random
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from rl_warmup.tasks.columns import ColumnMap, Template, choice_map
from rl_warmup.tasks.formats import Table, read
from rl_warmup.tasks.rows import Row, Task, take
from rl_warmup.tasks.stream import SHUFFLE_BUFFER, Stream

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


def load(
    path: Paths | None = None, train: Paths | None = None, validation: Paths | None = None, test: Paths | None = None,
    validation_fraction: float = 0.1, test_fraction: float = 0.1, train_size: int | None = None,
    validation_size: int | None = None, test_size: int | None = None, prompt_column: str = "prompt",
    target_column: str | None = None, id_column: str | None = None, prompt_template: str = "{text}",
    choices_column: str | None = None, answer_column: str | None = None, target_style: str = "letter",
    metrics: Iterable[str] = ("exact_match",), seed: int = 0, stream: bool = False, shuffle_buffer: int = SHUFFLE_BUFFER,
    column_names: Sequence[str] | None = None, quoted: bool | None = None,
) -> Task:  # fmt: skip
    """A task from local files: one path per split, or a single `path` that is split here.

    A single path is split by `seed`; rows with the same prompt stay in one split, so no test prompt is in training.

    Args:
        path, train, validation, test: a file or a list of files; `path` excludes the other three.
        validation_fraction, test_fraction: shares of the distinct prompts of `path`; unused with one path per split.
        train_size, validation_size, test_size: None for all rows; a number takes the first rows of a shuffle by `seed`.
        prompt_column, target_column, id_column: columns, dotted paths allowed ("translation.de");
            target_column None takes "target", else "completion", and refuses a row where both differ; id_column None takes "id",
            else numbers the rows.
        prompt_template: {text} is the prompt column; other columns by their names. Columns stay in the row as extras.
        choices_column, answer_column, target_style: multiple choice instead of a target column (`columns.ChoiceMap`); the
            template then has the field {options}.
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
    choices = choice_map(choices_column, answer_column, target_style, target_column)
    columns = ColumnMap(prompt_column, target_column, id_column, Template.parse(prompt_template), choices)
    table = Table(column_names, quoted)
    given = {"train": train, "validation": validation, "test": test}
    if (path is None) == all(paths is None for paths in given.values()):
        raise ValueError("file: give either path, which is split here, or train (with validation and test)")
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    splits: dict[str, list[Row] | Stream] = {}
    if stream:
        splits["train"] = _stream(train, train_size, columns, shuffle_buffer, table)
        given = {"validation": validation, "test": test}
    if path is not None:
        read_whole = _split(list(_rows(path, columns, table)), validation_fraction, test_fraction, seed)
    else:
        read_whole = {
            split: [] if paths is None else list(_rows(paths, columns, table)) for split, paths in given.items()
        }
    splits |= {split: take(rows, sizes[split], seed, split) for split, rows in read_whole.items()}
    return Task("file", splits, tuple(metrics), columns.template.of_text(prompt_column))


def _stream(paths: Paths | None, size: int | None, columns: ColumnMap, shuffle_buffer: int, table: Table) -> Stream:
    if paths is None or size is not None:
        what = "train: one or more files, as `path` must be read whole" if paths is None else "no train_size"
        raise ValueError(f"file: stream reads the training rows on demand; give {what}, or set stream to false")
    for path in _as_list(paths):
        if ".json" in (path.suffix, Path(path.stem).suffix):
            raise ValueError(f"file {path}: a .json file is read whole; give .jsonl, or set stream to false")
    return Stream("file, split 'train'", lambda: _rows(paths, columns, table), shuffle_buffer)


def _split(rows: list[Row], validation_fraction: float, test_fraction: float, seed: int) -> dict[str, list[Row]]:
    fractions = f"validation_fraction={validation_fraction}, test_fraction={test_fraction}"
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise ValueError(f"file: {fractions}; give shares of at least 0 that add up to less than 1")
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    random.Random(f"split/{seed}").shuffle(prompts)
    num_test, num_validation = round(test_fraction * len(prompts)), round(validation_fraction * len(prompts))
    home = dict.fromkeys(prompts, "train")
    home.update(dict.fromkeys(prompts[:num_test], "test"))
    home.update(dict.fromkeys(prompts[num_test : num_test + num_validation], "validation"))
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        splits[home[row["prompt"]]].append(row)
    wanted = {"train": 1.0, "validation": validation_fraction, "test": test_fraction}
    empty = [split for split, rows_of_split in splits.items() if wanted[split] > 0 and not rows_of_split]
    if empty:
        raise ValueError(
            f"file: {len(prompts)} distinct prompts with {fractions} leave {' and '.join(empty)} empty; "
            "raise the fraction, set it to 0, or give one path per split"
        )
    return splits


def _as_list(paths: Paths) -> list[Path]:
    listed = isinstance(paths, Sequence) and all(isinstance(path, str | PathLike) for path in paths)
    if not listed and not isinstance(paths, PathLike):
        raise ValueError(f"file: {paths!r:.80} is no path; give a path, or a list of paths")
    return [Path(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]


def _rows(paths: Paths, columns: ColumnMap, table: Table) -> Iterator[Row]:
    number = 0
    for path in _as_list(paths):
        for where, record in read(path, table):
            try:
                row = columns.row(record, number, where)
            except ValueError as error:
                if table.names is None and not number and {".csv", ".tsv"} & set(path.suffixes):
                    raise ValueError(f"{error}; a file without a header line needs column_names") from None
                raise
            yield row
            number += 1
