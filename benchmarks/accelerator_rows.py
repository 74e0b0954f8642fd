"""Rows of `accelerator.sh` as files and as one table. Knows: what a row is. Must not know: torch, or how it was measured."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.results import grid

DIGITS = {"step_ms": 1, "tokens_per_s": 0, "peak_gb": 2, "floor_ms": 2, "updates": 0, "seconds": 0, "value": 4}


@dataclass
class DeviceRow:
    """One line. A step has the columns of time and memory, a trained arm those of its metric; what is not known is empty."""

    part: str
    device: str
    model: str
    task: str
    variant: str
    n: int | None = None  # warmups per prompt
    seed: int | None = None
    step_ms: float | None = None  # median over the timed steps
    tokens_per_s: float | None = None  # prompt and target tokens of the batch, whatever the variant makes of them
    peak_gb: float | None = None  # 10^9 bytes, weights and optimizer included
    floor_ms: float | None = None
    updates: float | None = None
    seconds: float | None = None  # of training
    metric: str = ""
    value: float | None = None
    note: str = ""


def write_rows(path: Path, rows: Iterable[DeviceRow]) -> None:
    """All rows or none: a part that is cut off leaves no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(DeviceRow)])
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in asdict(row).items()} for row in rows)
    unfinished.replace(path)


def read_rows(path: Path) -> list[DeviceRow]:
    """The rows of a file."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            values: dict[str, object] = dict(cells)
            for key in ("n", "seed"):
                values[key] = int(cells[key]) if cells[key] else None
            for key in DIGITS:
                values[key] = float(cells[key]) if cells[key] else None
            rows.append(DeviceRow(**values))  # type: ignore[arg-type]
    return rows


def table(rows: Iterable[DeviceRow]) -> str:
    """One Markdown table under each device's name: a line per variant, seeds as mean ± sample standard deviation."""
    by_device: dict[str, dict[tuple[object, ...], list[DeviceRow]]] = {}
    for row in rows:
        key = (row.model, row.task, row.n, row.variant, row.metric)
        by_device.setdefault(row.device, {}).setdefault(key, []).append(row)
    texts = []
    for device, groups in by_device.items():
        lines = []
        for (model, task, n, variant, metric), group in groups.items():
            cells = [_cell(group, key) for key in DIGITS]
            seeds = str(len({row.seed for row in group})) if group[0].seed is not None else ""
            label = "" if n is None else str(n)
            lines.append(
                [str(model), str(task), label, str(variant), seeds, *cells[:-1], str(metric), cells[-1], group[0].note]
            )
        header = ["model", "task", "n", "variant", "seeds", *list(DIGITS)[:-1], "metric", "value", "note"]
        texts.append(f"## {device}\n\n{grid(header, lines)}")
    return "\n\n".join(texts)


def _cell(group: list[DeviceRow], key: str) -> str:
    values = [value for value in (getattr(row, key) for row in group) if value is not None]
    if not values:
        return ""
    text = f"{statistics.mean(values):.{DIGITS[key]}f}"
    return f"{text} ± {statistics.stdev(values):.{DIGITS[key]}f}" if len(values) > 1 else text
