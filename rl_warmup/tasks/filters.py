"""Knows which rows of a data set are left out, and logs how many; must not know where rows come from.

Lengths are in characters, as Chinese has no white space between words. They limit training rows only, as a changed test split
would change what is measured.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from rl_warmup.tasks.columns import Record, is_empty
from rl_warmup.tasks.conversations import flat
from rl_warmup.tasks.forms import Columns
from rl_warmup.tasks.rows import Row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowFilter:
    """The rows to leave out. Raises ValueError for a limit that leaves nothing."""

    drop_empty: bool = False  # with an empty prompt or target, in every split; otherwise such a row is an error
    # Training rows with more characters in the prompt or in the target. The words of `prompt_template` itself do not count.
    max_chars: int | None = None
    # (least, greatest): training rows whose ratio of target characters to characters of the prompt, counted alike, is outside;
    # these are mostly wrong translations
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
        self, located: Iterable[tuple[int, str, Record]], columns: Columns, size: int | None, where: str
    ) -> list[Row]:
        """The first `size` records (None: all) that pass, as rows. As `each`."""
        return list(islice(self.each(located, columns, where), size))

    def each(self, located: Iterable[tuple[int, str, Record]], columns: Columns, where: str) -> Iterator[Row]:
        """The records that pass, as rows, on demand; the number left out is logged under `where`.

        Args:
            located: number, place and record.
        """
        dropped: Counter[str] = Counter()
        own = sum(len(part.literal) for part in columns.template.parts)
        try:
            for number, place, record in located:
                if self.drop_empty and any(is_empty(text) for text in columns.texts(record, place)):
                    dropped["empty"] += 1
                    continue
                row = columns.row(record, number, place)
                if why := self._why_not(row, own):
                    dropped[why] += 1
                else:
                    yield row
        finally:
            for why, count in dropped.items():
                logger.info("%s: left out %d rows: %s", where, count, why)

    def _why_not(self, row: Row, own: int) -> str | None:
        """Why a row is too long or too uneven, where so many characters are the template's own; None where it is neither."""
        prompt, target = len(flat(row["prompt"])) - own, len(row["target"])
        if self.max_chars is not None and max(prompt, target) > self.max_chars:
            return f"more than {self.max_chars} characters"
        if self.target_ratio is not None and prompt > 0:
            least, greatest = self.target_ratio
            if not least <= target / prompt <= greatest:
                return f"characters of target per character of prompt outside {least} to {greatest}"
        return None
