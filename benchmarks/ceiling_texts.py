"""Two questions about text for `rl-warmup ceiling`: rows, and warmups of them that are good because the data says so.

Knows: the data of `benchmarks.rebuild_data`. Must not know: tasks, models.

    python -m benchmarks.ceiling_texts data --output data/ceiling

*synopsis-fr*: an English package description -> its French one-line synopsis; the gold warmup is the English synopsis, which has
to be found in the description before it can be translated.
*drafts-en-de*: an English synopsis -> German; the warmups are drafts of falling quality, the German text with all, three, two or
one in four of its words, the others left out at random.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")
LONGEST_DESCRIPTION = 30  # words; the rest is cut, as a synopsis says what the first sentence does
LONGEST_SYNOPSIS = 10
QUALITIES = (100, 75, 50, 25)  # per cent of the words that a draft keeps


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ceiling_texts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder of debian_sum/ and ddtp/")
    parser.add_argument("--output", type=Path, default=Path("data/ceiling"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, make in {"synopsis-fr": synopses, "drafts-en-de": translations}.items():
        for split in SPLITS:
            rows = make(options.data, split)
            write(options.output / f"{name}.{split}.jsonl.gz", rows)
            print(f"{name} {split}: {len(rows):,} rows", flush=True)
    gold = [{"id": row["id"], "warmup": row["synopsis"]} for row in synopses(options.data, "train")]
    write(options.output / "synopsis-fr.gold.jsonl", gold)
    for quality in QUALITIES:
        drafts = [
            {"id": row["id"], "warmup": draft(row["de"], quality / 100)} for row in translations(options.data, "train")
        ]
        write(options.output / f"drafts-en-de.{quality}.jsonl", drafts)


def synopses(data: Path, split: str) -> list[Row]:
    """Descriptions whose synopsis has a French translation in the same split of ddtp: joined by package and English synopsis."""
    french = {
        (row["package"], row["en"].strip()): row["fr"]
        for row in read(data / "ddtp" / f"ddtp-en-fr.{split}.jsonl.gz")
        if row["kind"] == "synopsis"
    }
    rows = []
    for row in read(data / "debian_sum" / f"debian-sum.{split}.jsonl.gz"):
        synopsis = row["summary"].strip()
        if target := french.get((row["package"], synopsis)):
            words = row["document"].split()[:LONGEST_DESCRIPTION]
            rows.append({"id": row["id"], "description": " ".join(words), "synopsis": synopsis, "fr": target})
    return rows


def translations(data: Path, split: str) -> list[Row]:
    """Short synopses in both languages."""
    rows = read(data / "ddtp" / f"ddtp-en-de.{split}.jsonl.gz")
    short = (row for row in rows if row["kind"] == "synopsis" and len(row["en"].split()) <= LONGEST_SYNOPSIS)
    return [{"id": row["id"], "en": row["en"], "de": row["de"]} for row in short]


def draft(target: str, share: float) -> str:
    """The target with this share of its words, in their order, one at least; the same for the same target every time."""
    words = target.split()
    kept = random.Random(target).sample(range(len(words)), max(1, round(share * len(words))))
    return " ".join(words[place] for place in sorted(kept))


def read(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text, 9, mtime=0) if path.suffix == ".gz" else text)


if __name__ == "__main__":
    main()
