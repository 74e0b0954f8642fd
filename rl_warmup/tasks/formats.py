"""Knows how records are read from files - JSONL, JSON, CSV, TSV, Parquet; must not know what columns mean.

The format follows the file's name: .jsonl, .json (a list of objects), .csv, .tsv, .txt (JSON lines), each also with .gz, and
.parquet. A duplicate name in one object or header is an error, as one of the two values would be lost.
"""

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rl_warmup.runtime.documents import Unreadable, parse_json, records, twice

Located = tuple[str, dict[str, Any]]  # the place of the record ("rows.jsonl:3"), the record
Reader = Callable[[Path, TextIO], Iterator[Located]]
PARQUET_ROWS = 1024  # decoded at a time


@dataclass(frozen=True)
class Table:
    """The format of .csv and .tsv files."""

    names: Sequence[str] | None = None  # of the columns, if the file has no header line; None takes the first line
    quoted: bool | None = None  # whether quotes hide separators and line ends in cells; None: yes in .csv, no in .tsv

    def __post_init__(self) -> None:
        names = self.names
        if names is not None and (isinstance(names, str) or not names or not all(isinstance(n, str) for n in names)):
            raise ValueError(f"column_names={names!r}; give a list of names, one for each column of the file")
        if names is not None and (again := _duplicate(names)) is not None:
            raise ValueError(f"column_names={list(names)!r} name {again!r} twice; give every column a name of its own")
        if self.quoted is not None and not isinstance(self.quoted, bool):
            raise ValueError(f"quoted={self.quoted!r}; give true or false, or leave it out")


def read(path: Path, table: Table | None = None) -> Iterator[Located]:
    """The records of one file with their places, read on demand.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for an unknown format, unreadable content or a duplicate name, with file and line.
        ImportError: for Parquet without pyarrow.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"file {path} {what}; give the path of a file (current folder: {Path.cwd()})")
    packed = path.suffix == ".gz"
    suffix = (Path(path.stem).suffix if packed else path.suffix).lower()
    table = table or Table()
    readers: dict[str, Reader] = {
        ".jsonl": _jsonl,
        ".txt": _text,
        ".json": _json,
        ".csv": partial(_table, separator=",", table=table, quoted=table.quoted is not False),
        ".tsv": partial(_table, separator="\t", table=table, quoted=bool(table.quoted)),
    }
    if suffix == ".parquet" and not packed:
        return _parquet(path)
    if suffix not in readers:
        known = ".jsonl, .json, .csv, .tsv, .txt with JSON lines (also .gz), .parquet"
        raise ValueError(f"file {path}: unknown format '{suffix}'; known: {known}")
    return _decoded(path, readers[suffix], packed, newline="\n" if suffix in (".jsonl", ".txt") else "")


def _decoded(path: Path, reader: Reader, packed: bool, newline: str) -> Iterator[Located]:
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            yield from reader(path, io.TextIOWrapper(file, "utf-8-sig", newline=newline))
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"file {path} is not a whole gzip file ({error}); pack it again, or drop .gz") from None
        except UnicodeDecodeError as error:
            at = file.tell() - len(error.object) + error.start  # error.object is the last block
            raise ValueError(f"file {path} is not UTF-8 ({error.reason} at byte {at}); save it as UTF-8") from None


def _jsonl(path: Path, text: TextIO) -> Iterator[Located]:
    remedy = "Mend or drop the line, or give an object with the columns as keys."
    return ((f"{path}:{number}", record) for number, record in records(text, f"{path}:", remedy))


def _text(path: Path, text: TextIO) -> Iterator[Located]:
    """JSON lines, as in some published data sets (LogiQA 2); other text has no columns."""
    first = next((line for line in iter(text.readline, "") if line.strip()), "")
    if first and not first.lstrip().startswith("{"):
        raise ValueError(
            f"file {path}: a .txt file must be JSON lines, one object per line, but begins with {first.strip()[:40]!r}; give "
            "a known format with columns: .jsonl, .json, .csv, .tsv or .parquet"
        )
    text.seek(0)
    return _jsonl(path, text)


def _json(path: Path, text: TextIO) -> Iterator[Located]:
    try:
        rows = parse_json(text.read())
    except Unreadable as error:
        hint = "; one object per line is .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{path}:{error.line or 1}: {error}{hint}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds a JSON {type(rows).__name__}; give a list of objects, or .jsonl")
    for number, record in enumerate(rows):
        if not isinstance(record, dict):
            what = f"{path}, item {number}: is a JSON {type(record).__name__}"
            raise ValueError(f"{what}, no JSON object; give an object with the columns as keys")
        yield f"{path}, item {number}", record


def _table(path: Path, text: TextIO, separator: str, table: Table, quoted: bool) -> Iterator[Located]:
    lines = _quoted(path, text, separator) if quoted else _plain(text, separator)
    header = table.names
    for number, cells in lines:
        where = f"{path}:{number}"
        if header is None:
            header = cells
            if (again := _duplicate([name.strip() for name in header])) is not None:
                raise ValueError(f"{where}: {twice(again, 'column')}")
            continue
        if len(cells) != len(header):
            what = "the header" if table.names is None else "column_names"
            raise ValueError(
                f"{where}: {len(cells)} cells, but {what} has {len(header)}; "
                + (f"quote cells with {separator!r}" if quoted else "a tab inside a cell needs quotes and quoted: true")
            )
        yield where, dict(zip(header, cells, strict=True))


def _quoted(path: Path, text: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(text, delimiter=separator, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not valid with separator {separator!r} ({error})") from None


def _plain(text: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Lines end with LF or CRLF; any other character belongs to its cell."""
    text.reconfigure(newline="\n")  # type: ignore[attr-defined]
    for number, line in enumerate(text, start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split(separator)


def _duplicate(names: Sequence[str]) -> str | None:
    """The first name that occurs a second time."""
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _parquet(path: Path) -> Iterator[Located]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"file {path}: reading Parquet needs pyarrow; pip install pyarrow") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if (again := _duplicate(file.schema_arrow.names)) is not None:
                raise ValueError(f"file {path}: {twice(again, 'column')}")
            for batch in file.iter_batches(PARQUET_ROWS):
                for record in batch.to_pylist():
                    yield f"{path}, row {number}", record
                    number += 1
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise ValueError(f"file {path} is not a readable Parquet file ({str(error).splitlines()[0]})") from None
