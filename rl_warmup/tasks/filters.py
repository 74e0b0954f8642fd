"""Knows which rows of a data set are left out, and logs how many; must not know where rows come from.

Lengths are in characters, as Chinese has no white space between words. They limit training rows only, as a changed test split
would change what is measured.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rl_warmup.tasks.columns import ColumnMap, Record, pick
from rl_warmup.tasks.rows import Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowFilter:
    """The rows to leave out.

    Args:
        drop_empty: rows whose prompt or target column is empty, in every split; otherwise such a row is an error.
        max_chars: training rows with more characters in the prompt column or in the target.
        target_ratio: (least, greatest): training rows whose ratio of target characters to characters of the prompt column is
            outside; these are mostly wrong translations.

    Raises:
        ValueError: for a limit that leaves nothing.
    """

    drop_empty: bool = False
    max_chars: int | None = None
    target_ratio: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.max_chars is not None and self.max_chars < 1:
            raise ValueError(f"max_chars={self.max_chars}: a limit on characters must be at least 1; use null for none")
        ratio = self.target_ratio
        if ratio is not None and not (len(ratio) == 2 and 0 <= ratio[0] < ratio[1]):
            raise ValueError(f"target_ratio={ratio!r}; give the least and the greatest, as in [0.5, 2.0], or null")

    @property
    def idle(self) -> bool:
        """Whether no row is left out."""
        return not self.drop_empty and self.max_chars is None and self.target_ratio is None

    def of_split(self, split: str) -> "RowFilter":
        """The filter for one of our splits."""
        return self if split == "train" else replace(self, max_chars=None, target_ratio=None)

    def rows(
        self, located: Iterable[tuple[int, str, Record]], columns: ColumnMap, size: int | None, where: str
    ) -> list[Row]:
        """The first `size` records (None: all) that pass, as rows; the number left out is logged under `where`.

        Args:
            located: number, place and record.
        """
        rows: list[Row] = []
        dropped: Counter[str] = Counter()
        for number, place, record in located:
            if len(rows) == size:
                break
            why = None if self.idle else self._why_not(record, columns, place)
            if why is None:
                rows.append(columns.row(record, number, place))
            else:
                dropped[why] += 1
        for why, count in dropped.items():
            logger.info("%s: left out %d rows: %s", where, count, why)
        return rows

    def _why_not(self, record: Record, columns: ColumnMap, place: str) -> str | None:
        texts = [pick(record, columns.prompt, place)]
        if columns.choices is None:
            texts.append(pick(record, columns.target_column(record, place), place))
        if self.drop_empty and any(text is None or (isinstance(text, str) and not text.strip()) for text in texts):
            return "empty"
        lengths = [len(text) for text in texts if isinstance(text, str)]
        if self.max_chars is not None and any(length > self.max_chars for length in lengths):
            return f"more than {self.max_chars} characters"
        if self.target_ratio is not None and len(lengths) == 2 and lengths[0]:
            least, greatest = self.target_ratio
            if not least <= lengths[1] / lengths[0] <= greatest:
                return f"characters of target per character of prompt outside {least} to {greatest}"
        return None
