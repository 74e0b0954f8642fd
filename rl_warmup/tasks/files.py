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
from typing import Any, TextIO

from rl_warmup.tasks.columns import ColumnMap, Template, choice_map
from rl_warmup.tasks.rows import Row, Task, take
from rl_warmup.tasks.stream import SHUFFLE_BUFFER, Stream

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
Located = tuple[str, dict[str, Any]]  # where the record stands ("rows.jsonl:3"), the record
Reader = Callable[[Path, TextIO], Iterator[Located]]
PARQUET_ROWS = 1024  # decoded at a time


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
    stream: bool = False,
    shuffle_buffer: int = SHUFFLE_BUFFER,
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
        stream: read the training rows as they are needed instead of all at the start; not for `path`, `train_size` or .json.
        shuffle_buffer: of a stream: how many rows are held to be shuffled among each other; 1 keeps the order of the files.

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
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    splits: dict[str, list[Row] | Stream] = {}
    if stream:
        splits["train"] = _stream(train, train_size, columns, shuffle_buffer)
        given = {"validation": validation, "test": test}
    if path is not None:
        read_whole = _split(list(_rows(path, columns)), validation_fraction, test_fraction, seed)
    else:
        read_whole = {split: [] if paths is None else list(_rows(paths, columns)) for split, paths in given.items()}
    splits |= {split: take(rows, sizes[split], seed, split) for split, rows in read_whole.items()}
    return Task("file", splits, tuple(metrics))


def _stream(paths: Paths | None, size: int | None, columns: ColumnMap, shuffle_buffer: int) -> Stream:
    if paths is None or size is not None:
        what = "train: one or more files, as splitting `path` would read it whole" if paths is None else "no train_size"
        raise ValueError(
            f"file: stream reads the training rows as they are needed; give {what}, or set stream to false"
        )
    for path in _listed(paths):
        if ".json" in (path.suffix, Path(path.stem).suffix):
            raise ValueError(
                f"file {path}: a .json file can only be read whole; give .jsonl (one object per line), or set stream to false"
            )
    return Stream("file, split 'train'", lambda: _rows(paths, columns), shuffle_buffer)


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


def _listed(paths: Paths) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]


def _rows(paths: Paths, columns: ColumnMap) -> Iterator[Row]:
    located = (item for path in _listed(paths) for item in read(path))
    return (columns.row(record, number, where) for number, (where, record) in enumerate(located))


def read(path: Path) -> Iterator[Located]:
    """The records of one file with their places, read as they are asked for. Raises as `load` does."""
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
    return _decoded(path, reader, packed, newline="\n" if suffix.lower() == ".jsonl" else "")


def _decoded(path: Path, reader: Reader, packed: bool, newline: str) -> Iterator[Located]:
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            yield from reader(path, io.TextIOWrapper(file, "utf-8-sig", newline=newline))
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"file {path} is not a whole gzip file ({error}); pack it again, or drop .gz") from None
        except UnicodeDecodeError as error:
            at = file.tell() - len(error.object) + error.start  # decoding went piece by piece
            raise ValueError(f"file {path} is not UTF-8 ({error.reason} at byte {at}); save it as UTF-8") from None


def _jsonl(path: Path, text: TextIO) -> Iterator[Located]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{where}: not valid JSON ({error.msg}, column {error.colno}); mend or drop the line"
                ) from None
            yield where, _object(record, where)


def _json(path: Path, text: TextIO) -> Iterator[Located]:
    try:
        records = json.load(text)
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


def _csv(path: Path, text: TextIO, separator: str) -> Iterator[Located]:
    reader = csv.reader(text, delimiter=separator, strict=True)
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
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for record in batch.to_pylist():
                    yield f"{path}, row {number}", record
                    number += 1
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise ValueError(f"file {path} is not a readable Parquet file ({str(error).splitlines()[0]})") from None


READERS: dict[str, Reader] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": partial(_csv, separator=","),
    ".tsv": partial(_csv, separator="\t"),
}
