"""Knows how records are read from files - JSONL, JSON, CSV, TSV, Parquet; must not know what columns mean.

The format follows the file's name: .jsonl, .json (a list of objects), .csv, .tsv, .txt (JSON lines or TSV), each also with .gz
or .zst, and .parquet. A duplicate name in one object or header is an error, as one of the two values would be lost.
"""

import csv
import gzip
import io
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rl_warmup.runtime.documents import Unreadable, kind, parse_json, records, twice

Located = tuple[str, dict[str, Any]]  # the place of the record ("rows.jsonl:3"), the record
Reader = Callable[[Path, Any], Iterator[Located]]  # of a file and its text, or lines of it
PARQUET_ROWS = 1024  # decoded at a time
PACKED = {".gz": "gzip", ".zst": "zstd"}


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
    packing = _packing(path)
    suffix = (Path(path.stem).suffix if packing else path.suffix).lower()
    table = table or Table()
    tsv: Reader = partial(_table, separator="\t", table=table, quoted=bool(table.quoted))
    readers: dict[str, Reader] = {
        ".jsonl": _jsonl,
        ".txt": partial(_text, tsv=tsv),
        ".json": _json,
        ".csv": partial(_table, separator=",", table=table, quoted=table.quoted is not False),
        ".tsv": tsv,
    }
    if suffix == ".parquet" and not packing:
        return _parquet(path)
    if suffix not in readers:
        known = ".jsonl, .json, .csv, .tsv, .txt with JSON lines or tabs (also .gz, .zst), .parquet"
        raise ValueError(f"file {path}: unknown format '{suffix}'; known: {known}")
    return _decoded(path, readers[suffix], packing, newline="\n" if suffix in (".jsonl", ".txt") else "")


def read_lines(paths: Mapping[str, Path]) -> Iterator[Located]:
    """The records of text files with one text per line, a file for each column, as parallel corpora have them.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for unreadable content, or files of different lengths.
    """
    files = [_decoded(path, lambda _, text: text, _packing(path), newline="\n") for path in paths.values()]
    names = list(map(str, paths.values()))
    for number, lines in enumerate(itertools.zip_longest(*files), 1):
        if None in lines:
            raise ValueError(
                f"files {', '.join(names)}: line {number} is missing in {names[lines.index(None)]}; give files with as many lines"
            )
        texts = (line.removesuffix("\n").removesuffix("\r") for line in lines)
        yield f"{names[0]}:{number}", dict(zip(paths, texts, strict=True))


def _packing(path: Path) -> str:
    """The suffix of a packed file, or nothing. Raises FileNotFoundError for a missing file."""
    if not path.is_file():
        saved = " (a data set saved by save_to_disk is read by `task: hub`, as dataset_name)" if path.is_dir() else ""
        what = f"is a folder, not a file{saved}" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"file {path} {what}; give the path of a file (current folder: {Path.cwd()})")
    return path.suffix if path.suffix in PACKED else ""


def _open(path: Path, packing: str) -> Any:
    if packing != ".zst":
        return gzip.open(path) if packing else path.open("rb")
    try:
        import pyarrow  # before Python 3.14 the standard library cannot read zst
    except ImportError as error:
        raise ImportError(
            f"file {path}: reading .zst needs pyarrow; pip install pyarrow, or unpack the file"
        ) from error
    return pyarrow.input_stream(str(path), compression="zstd")


def _decoded(path: Path, reader: Callable[[Path, Any], Iterable[Any]], packing: str, newline: str) -> Iterator[Any]:
    with _open(path, packing) as file:
        try:
            yield from reader(path, io.TextIOWrapper(file, "utf-8-sig", newline=newline))
        except UnicodeDecodeError as error:
            at = file.tell() - len(error.object) + error.start  # error.object is the last block
            raise ValueError(f"file {path} is not UTF-8 ({error.reason} at byte {at}); save it as UTF-8") from None
        except (EOFError, OSError, zlib.error) as error:
            if not packing:
                raise
            form = PACKED[packing]
            raise ValueError(
                f"file {path} is not a whole {form} file ({error}); pack it again, or drop {packing}"
            ) from None


def _jsonl(path: Path, text: Iterable[str]) -> Iterator[Located]:
    remedy = "Mend or drop the line, or give an object with the columns as keys."
    return ((f"{path}:{number}", record) for number, record in records(text, f"{path}:", remedy))


def _text(path: Path, text: Iterable[str], tsv: Reader) -> Iterator[Located]:
    """JSON lines, as in some published data sets (LogiQA 2), or a table with tabs; other text has no columns."""
    begun = []
    for line in text:
        begun.append(line)
        if line.strip():
            break
    lines, first = itertools.chain(begun, text), begun[-1].strip() if begun else ""
    if "\t" in first and not first.startswith("{"):
        return tsv(path, lines)
    if first and not first.startswith("{"):
        raise ValueError(
            f"file {path}: a .txt file must be JSON lines, one object per line, or a table with tabs, but begins with "
            f"{first[:40]!r}; give a known format with columns: .jsonl, .json, .csv, .tsv or .parquet, or two files with a text "
            f"per line: {{prompt: FILE, target: FILE}}"
        )
    return _jsonl(path, lines)


def _json(path: Path, text: TextIO) -> Iterator[Located]:
    try:
        rows = parse_json(text.read())
    except Unreadable as error:
        hint = "; one object per line is .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{path}:{error.line or 1}: {error}; mend or copy the file again{hint}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds a JSON {kind(rows)}; give a list of objects, or .jsonl")
    for number, record in enumerate(rows):
        if not isinstance(record, dict):
            what = f"{path}, item {number}: is a JSON {kind(record)}"
            raise ValueError(f"{what}, no JSON object; give an object with the columns as keys")
        yield f"{path}, item {number}", record


def _table(path: Path, text: Iterable[str], separator: str, table: Table, quoted: bool) -> Iterator[Located]:
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


def _quoted(path: Path, text: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # of Python's 131,072 characters: a long document is no fault
    reader = csv.reader(text, delimiter=separator, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(
            f"{path}:{reader.line_num}: not valid with separator {separator!r} ({error}); mend the line, mostly a quote"
        ) from None


def _plain(text: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Lines end with LF or CRLF; any other character belongs to its cell."""
    if isinstance(text, io.TextIOWrapper):
        text.reconfigure(newline="\n")
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
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"file {path} is not a readable Parquet file ({first:.200}); copy or write it again") from None
