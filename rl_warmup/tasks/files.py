"""Knows how to read rows from local files - JSONL, JSON, CSV, TSV, Parquet; must not know hubs or any single data set.

The format follows the file's name: .jsonl, .json (a list of objects), .csv, .tsv, each also with .gz, and .parquet.
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from rl_warmup.tasks.columns import ColumnMap, Template, choice_map
from rl_warmup.tasks.rows import Row, Task, take

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
Located = tuple[str, dict[str, Any]]  # where the record stands ("rows.jsonl:3"), the record


def load(
    path: Paths | None = None,
    train: Paths | None = None,
    validation: Paths | None = None,
    test: Paths | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    prompt_column: str = "prompt",
    target_column: str | None = None,
    id_column: str | None = None,
    prompt_template: str = "{text}",
    choices_column: str | None = None,
    answer_column: str | None = None,
    target_style: str = "letter",
    metrics: Iterable[str] = ("exact_match",),
    seed: int = 0,
) -> Task:
    """A task from local files: one path per split, or a single `path` that is split here.

    A single path is split by `seed`; rows with the same prompt stay in one split, so no test prompt is trained on.

    Args:
        path, train, validation, test: a file or a list of files; `path` excludes the other three.
        validation_fraction, test_fraction: shares of the distinct prompts of `path`; unused with one path per split.
        train_size, validation_size, test_size: None for all rows; a number takes the first rows of a shuffle by `seed`.
        prompt_column, target_column, id_column: columns, dotted paths allowed ("translation.de");
            target_column None takes "target", else "completion"; id_column None takes "id", else numbers the rows.
        prompt_template: {text} is the prompt column; other columns by their names. Columns stay in the row as extras.
        choices_column, answer_column, target_style: multiple choice instead of a target column (`columns.ChoiceMap`); the
            template then knows {options}.
        metrics: names for `rl_warmup.metrics.compute`, the headline first.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for paths that contradict, an unknown format, unreadable content (with file and line), a missing or
            empty column, fractions that leave nothing.
        ImportError: for Parquet without pyarrow.
    """
    choices = choice_map(choices_column, answer_column, target_style, target_column)
    columns = ColumnMap(prompt_column, target_column, id_column, Template.parse(prompt_template), choices)
    given = {"train": train, "validation": validation, "test": test}
    if (path is None) == all(paths is None for paths in given.values()):
        raise ValueError(
            "file: give either path, which is split here, or train (with validation and test), and not both"
        )
    if path is not None:
        splits = _split(_read_rows(path, columns), validation_fraction, test_fraction, seed)
    else:
        splits = {split: [] if paths is None else _read_rows(paths, columns) for split, paths in given.items()}
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    return Task(
        "file", {split: take(rows, sizes[split], seed, split) for split, rows in splits.items()}, tuple(metrics)
    )


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


def _read_rows(paths: Paths, columns: ColumnMap) -> list[Row]:
    listed = [paths] if isinstance(paths, str | PathLike) else list(paths)
    located = (item for path in listed for item in read(Path(path)))
    return [columns.row(record, number, where) for number, (where, record) in enumerate(located)]


def read(path: Path) -> Iterator[Located]:
    """The records of one file with their places. Raises as `load` does."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"file {path} {what}; give the path of a file (current folder: {Path.cwd()})")
    packed = path.suffix == ".gz"
    suffix = Path(path.stem).suffix if packed else path.suffix
    reader = READERS.get(suffix.lower())
    if suffix.lower() == ".parquet" and not packed:
        return _parquet(path)
    if reader is None:
        raise ValueError(
            f"file {path}: unknown format '{suffix}'; known: .jsonl, .json, .csv, .tsv (also .gz), .parquet"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        text = content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"file {path} is not a whole gzip file ({error}); pack it again, or drop .gz") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"file {path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    return reader(path, text)


def _jsonl(path: Path, text: str) -> Iterator[Located]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{where}: not valid JSON ({error.msg}, column {error.colno}); mend or drop the line"
                ) from None
            yield where, _object(record, where)


def _json(path: Path, text: str) -> Iterator[Located]:
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object per line is .jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno}){hint}") from None
    if not isinstance(records, list):
        raise ValueError(f"{path}: holds a JSON {type(records).__name__}; give a list of objects, or .jsonl")
    for number, record in enumerate(records):
        where = f"{path}, item {number}"
        yield where, _object(record, where)


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: holds a JSON {type(record).__name__}; give an object with the columns as keys")
    return record


def _csv(path: Path, text: str, separator: str) -> Iterator[Located]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if cells and len(cells) != len(header):
                raise ValueError(
                    f"{where}: {len(cells)} cells, but the header has {len(header)}; quote cells with {separator!r}"
                )
            if cells:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not valid with separator {separator!r} ({error})") from None


def _parquet(path: Path) -> Iterator[Located]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"file {path}: reading Parquet needs pyarrow; pip install pyarrow") from error
    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise ValueError(f"file {path} is not a readable Parquet file ({str(error).splitlines()[0]})") from None
    for number, record in enumerate(records):
        yield f"{path}, row {number}", record


READERS: dict[str, Callable[[Path, str], Iterator[Located]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": partial(_csv, separator=","),
    ".tsv": partial(_csv, separator="\t"),
}
