"""Knows how to read the real text that ships in the package and cut it to size; must not know what a task makes of it.

Licence and attribution lie beside each data set: `data/<folder>/LICENSE` and `data/<folder>/ATTRIBUTION.md`.
"""

import gzip
import json
import logging
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from rl_warmup.tasks.rows import take

logger = logging.getLogger(__name__)


def read(folder: str, split: str) -> list[dict[str, Any]]:
    """The records of one split of `data/<folder>/`, in the order of the file."""
    packed = (files("rl_warmup.tasks") / "data" / folder / f"{folder}.{split}.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").split("\n") if line]


def read_splits(
    folder: str, sizes: dict[str, int | None], *, columns: Sequence[str], max_words: int | None, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Every split of `sizes`, cut to size, without records that have more than `max_words` words in one of `columns`.

    How many records were dropped for their length is logged.

    Raises:
        ValueError: if `max_words` is not positive, or a size exceeds what is left after dropping (it is named).
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words={max_words}: a limit on words must be at least 1; use null for none")
    splits = {}
    for split, size in sizes.items():
        records = read(folder, split)
        if max_words is not None:
            kept = [record for record in records if all(len(record[c].split()) <= max_words for c in columns)]
            logger.info(
                "%s, %s: dropped %d of %d rows with more than %d words in %s",
                folder, split, len(records) - len(kept), len(records), max_words, " or ".join(columns),
            )  # fmt: skip
            records = kept
        splits[split] = take(records, size, seed, split)
    return splits
