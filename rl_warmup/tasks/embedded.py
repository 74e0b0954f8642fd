"""Knows how to read and filter the text data in the package; must not know how tasks use it.

Licence and attribution of each data set: `data/<folder>/LICENSE` and `data/<folder>/ATTRIBUTION.md`.
"""

import gzip
import logging
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from rl_warmup.runtime.documents import records
from rl_warmup.tasks.columns import Template
from rl_warmup.tasks.rows import Row, take

logger = logging.getLogger(__name__)


def read(folder: str, split: str) -> list[dict[str, Any]]:
    """The records of one split of `data/<folder>/`, in the order of the file."""
    packed = (files("rl_warmup.tasks") / "data" / folder / f"{folder}.{split}.jsonl.gz").read_bytes()
    return [record for _, record in records(gzip.decompress(packed).split(b"\n"), f"{folder}, line ", "Install again.")]


def text_rows(
    folder: str,
    sizes: dict[str, int | None],
    columns: Sequence[str],
    kept: Sequence[str],
    template: Template,
    seed: int,
    min_words: int = 0,
    max_words: int | None = None,
) -> dict[str, list[Row]]:
    """Every split of `sizes` as rows, cut to size, without records that have fewer or more words than these in a column.

    Args:
        columns: of the prompt's text, which the template frames, and of the target.
        kept: further columns of the rows.

    Raises:
        ValueError: if `max_words` is not positive or below `min_words`, or a size exceeds the number of remaining rows.
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words={max_words}: a limit on words must be at least 1; use null for none")
    if max_words is not None and max_words < min_words:
        raise ValueError(f"min_words={min_words}, max_words={max_words}: no row can have both; lower min_words")
    splits = {}
    for split, size in sizes.items():
        records = read(folder, split)
        for few, limit in ((True, min_words), (False, max_words)):
            if not limit:
                continue
            lengths = [[len(record[c].split()) for c in columns] for record in records]
            fits = [min(words) >= limit if few else max(words) <= limit for words in lengths]
            fitting = [record for record, fit in zip(records, fits, strict=True) if fit]
            lost, what = f"{len(records) - len(fitting)} of {len(records)} rows", "fewer" if few else "more"
            logger.info(f"{folder}, {split}: dropped {lost} with {what} than {limit} words in {' or '.join(columns)}")
            records = fitting
        splits[split] = [
            {
                "id": one["id"],
                "prompt": template.fill({"text": one[columns[0]]}, f"{folder} {one['id']}"),
                "target": one[columns[1]],
                **{name: one[name] for name in kept},
            }
            for one in take(records, size, seed, split)
        ]
    return splits
