"""Rebuild from the Debian archive the data of `recipes/local` that may not be shipped: summaries and translations.

Knows: apt's Packages and Translation-xx indices. Must not know: tasks, models. Package descriptions have each package's licence,
their translations none that is stated, so everybody makes these rows from the archive. The archive moves: rows made another
day are not the same rows, so compare runs on one copy only (`rows_hash` in metrics.json tells).

    python -m benchmarks.rebuild_data fetch --suite "deb MIRROR unstable main" --output apt    # apt-get update; no root needed
    python -m benchmarks.rebuild_data build apt --output data      # debian_sum/ and ddtp/, JSON lines, gzipped
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

LANGUAGES = ("de", "fr")
SPLITS = ("train", "validation", "test")
SHARES = (0.94, 0.03, 0.03)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])")
ITEM = re.compile(r"^\s*[-*+o]\s+")


@dataclass(frozen=True)
class Description:
    """A package's description: one line, then paragraphs and list items, each on one line."""

    synopsis: str
    paragraphs: tuple[str, ...]
    items: tuple[str, ...]


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The records of an apt index: fields by name, continued lines kept with their line breaks."""
    for block in re.split(r"\n\s*\n", text):
        record: dict[str, str] = {}
        field = None
        for line in block.split("\n"):
            if line[:1] in (" ", "\t") and field:
                record[field] += "\n" + line[1:]
            elif ":" in line:
                field, _, value = line.partition(":")
                record[field] = value.strip()
        if record:
            yield record


def describe(field: str) -> Description:
    """A Description field: its first line, then text whose paragraphs end at a line with a dot, and items that are indented.

    A line with one more leading space is verbatim in apt's format; such lines that begin like `- ` are items, the rest
    (tables, ASCII art) is left out.
    """
    synopsis, *lines = field.split("\n")
    paragraphs: list[str] = []
    items: list[str] = []
    target: list[str] | None = None
    for line in lines:
        if line.strip() == ".":
            target = None
        elif ITEM.match(line):
            items.append(ITEM.sub("", line).strip())
            target = items
        elif line.startswith((" ", "\t")):
            if target is items and items:
                items[-1] += " " + line.strip()
            else:
                target = None
        elif target is paragraphs:
            paragraphs[-1] += " " + line.strip()
        else:
            paragraphs.append(line.strip())
            target = paragraphs
    return Description(
        synopsis.strip(), *(tuple(" ".join(t.split()) for t in texts if t) for texts in (paragraphs, items))
    )


def family(source: str) -> str:
    """Source packages that share most of their text, such as linux-6.1 and linux-6.12, or llvm-17 and llvm-18."""
    return re.sub(r"[-.]?\d[\d.]*", "", source).strip("-") or source


def split_of(source: str) -> str:
    """The split of a source package: all of a family in one, whatever else is in the archive."""
    number = int(hashlib.sha256(family(source).encode()).hexdigest()[:8], 16) / 16**8
    for split, share in zip(SPLITS, SHARES, strict=True):
        number -= share
        if number < 0:
            return split
    return SPLITS[-1]


def likeness(text: str) -> str:
    """What two texts share that differ in case, numbers, spaces and punctuation only."""
    return re.sub(r"[\W\d_]+", " ", text.lower()).strip()


def summaries(packages: Iterable[Row], english: dict[str, Description]) -> Iterator[Row]:
    """Rows document -> summary, from a Packages index and the English descriptions by their md5.

    Packages built from one source often share their first paragraph (`-dev`, `-doc`, ...); the first of them stands for all.
    """
    leads: set[str] = set()
    for package in packages:
        found = english.get(package.get("Description-md5", ""))
        if found is None or not found.paragraphs:
            continue
        document = "\n".join(found.paragraphs)
        lead = likeness(found.paragraphs[0])
        if lead in leads:
            continue
        leads.add(lead)
        if 12 < len(document.split()) < 415 and 1 < len(found.synopsis.split()) < 17:
            yield {"document": document, "summary": found.synopsis, **_origin(package)}


def translations(
    packages: Iterable[Row], english: dict[str, Description], other: dict[str, Description], language: str
) -> Iterator[Row]:
    """Rows en -> `language`: synopses, sentences where both sides have as many, whole paragraphs otherwise, items."""
    for package in packages:
        ours, theirs = (side.get(package.get("Description-md5", "")) for side in (english, other))
        if ours is None or theirs is None:
            continue
        for kind, source, target in _aligned(ours, theirs):
            if source != target and source.strip() and target.strip():
                yield {"en": source, language: target, "kind": kind, **_origin(package)}


def _aligned(one: Description, other: Description) -> Iterator[tuple[str, str, str]]:
    yield "synopsis", one.synopsis, other.synopsis
    if len(one.paragraphs) == len(other.paragraphs):
        for pair in zip(one.paragraphs, other.paragraphs, strict=True):
            parts = [SENTENCE_END.split(paragraph) for paragraph in pair]
            if len(parts[0]) == len(parts[1]):
                yield from (("sentence", *both) for both in zip(*parts, strict=True))
            else:
                yield "paragraph", *pair
    if len(one.items) == len(other.items):
        yield from (("item", *both) for both in zip(one.items, other.items, strict=True))


def _origin(package: Row) -> Row:
    source = package.get("Source", package["Package"]).split(" ")[0]
    return {"package": package["Package"], "source": source, "section": package.get("Section", "")}


def split_rows(rows: Iterable[Row], columns: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by split, with ids. A text that was seen goes once only, and evaluation texts leave training.

    Two rows are alike when one of `columns` is (`likeness`); the test split is filled first, training last.
    """
    waiting: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        waiting[split_of(row["source"])].append(row)
    seen: set[tuple[str, str]] = set()
    found: dict[str, list[Row]] = {}
    for split in reversed(SPLITS):
        found[split] = []
        for row in waiting[split]:
            keys = {(column, likeness(row[column])) for column in columns}
            if keys & seen:
                continue
            seen |= keys
            text = "\n".join(row[column] for column in columns)
            found[split].append({"id": hashlib.sha256(text.encode()).hexdigest()[:12], **row})
    return found


def write(splits: dict[str, list[Row]], folder: Path, name: str) -> None:
    """`<folder>/<name>.<split>.jsonl.gz`, the same bytes for the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=lambda row: row["id"]))
        (folder / f"{name}.{split}.jsonl.gz").write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
        print(f"{folder / name}.{split}.jsonl.gz: {len(rows)} rows")


def read_index(folder: Path, ending: str) -> str:
    """The text of the one index in apt's folder of lists whose name, without its compression, ends so.

    Raises:
        ValueError: there is none, or more than one.
    """
    files = [
        file for file in folder.rglob(f"*{ending}*") if re.fullmatch(r"(\.(gz|xz|lz4))?", file.name.split(ending)[-1])
    ]
    if len(files) != 1:
        raise ValueError(
            f"{folder} holds {len(files)} indices named *{ending}, and one is needed. Fetch them with "
            f"`python -m benchmarks.rebuild_data fetch --suite 'deb MIRROR unstable main' --output {folder}`."
        )
    if files[0].suffix == ".gz":
        return gzip.decompress(files[0].read_bytes()).decode("utf-8")
    if files[0].suffix in (".xz", ".lz4"):  # apt keeps lz4, and brings a reader of its own
        command = ["/usr/lib/apt/apt-helper", "cat-file", str(files[0])]
        return subprocess.run(command, check=True, capture_output=True).stdout.decode("utf-8")
    return files[0].read_text(encoding="utf-8")


def descriptions(text: str, language: str) -> dict[str, Description]:
    """A Translation-xx index: descriptions by md5 of the English one, the first of each."""
    found: dict[str, Description] = {}
    for record in stanzas(text):
        if f"Description-{language}" in record and "Description-md5" in record:
            found.setdefault(record["Description-md5"], describe(record[f"Description-{language}"]))
    return found


def build(folder: Path, output: Path) -> None:
    """All data sets from a folder of indices."""
    packages = list(stanzas(read_index(folder, "_Packages")))
    english = descriptions(read_index(folder, "_Translation-en"), "en")
    write(split_rows(summaries(packages, english), ("document", "summary")), output / "debian_sum", "debian-sum")
    for language in LANGUAGES:
        other = descriptions(read_index(folder, f"_Translation-{language}"), language)
        rows = translations(packages, english, other, language)
        write(split_rows(rows, ("en", language)), output / "ddtp", f"ddtp-en-{language}")


def fetch(output: Path, suite: str) -> None:
    """`apt-get update` with lists, cache and settings in `output`; the system's own are not touched.

    Raises:
        ValueError: this is no system with apt.
    """
    if shutil.which("apt-get") is None:
        raise ValueError(
            "apt-get is not here. Run this on Debian, or copy its lists of Packages and Translation-xx here."
        )
    root = output.resolve()
    for part in ("lists/partial", "cache/archives/partial"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "sources.list").write_text(suite + "\n", encoding="utf-8")
    (root / "status").touch()
    settings = {
        "Dir::Etc::sourcelist": root / "sources.list", "Dir::Etc::sourceparts": "-", "Dir::State": root,
        "Dir::State::lists": root / "lists", "Dir::State::status": root / "status", "Dir::Cache": root / "cache",
        "Acquire::Languages": ",".join(("en", *LANGUAGES)), "APT::Update::Post-Invoke-Success::": "", "APT::Sandbox::User": "",
    }  # fmt: skip
    subprocess.run(["apt-get", "update", *(f"-o{key}={value}" for key, value in settings.items())], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebuild_data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="get the indices")
    fetching.add_argument("--output", type=Path, required=True)
    fetching.add_argument("--suite", required=True, help="a line of sources.list: `deb MIRROR unstable main`")
    building = commands.add_parser("build", help="make the rows")
    building.add_argument("indices", type=Path, help="the folder that fetch wrote, or apt's own lists")
    building.add_argument("--output", type=Path, default=Path("data"))
    options = parser.parse_args()
    if options.command == "fetch":
        fetch(options.output, options.suite)
    else:
        build(options.indices, options.output)


if __name__ == "__main__":
    main()
