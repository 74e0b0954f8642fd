"""Tries prediction and scoring on the rows before anything long begins, so that faults do not appear after training.

Knows: a task's rows and metrics, an encoder, a `WarmupGenerator`. Must not know: training, flags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl_warmup.inference.evaluation import COSTLY, ceiling
from rl_warmup.inference.generation import WRITTEN, WarmupGenerator
from rl_warmup.metrics import compute
from rl_warmup.models.encoding import ADDED, RowEncoder
from rl_warmup.runtime.run_folder import json_line
from rl_warmup.runtime.sharing import is_main
from rl_warmup.tasks import Task

FEW = 8  # rows on which metrics also get empty predictions


def rehearse(
    task: Task,
    split: str,
    encoder: RowEncoder,
    warmup_generator: WarmupGenerator | None = None,
    controls: Sequence[str] = (),
) -> None:
    """Encode the rows of a split, write them as JSON, and score their targets against themselves; prints the ceiling.

    Args:
        encoder: the one that will be used; its counts stay as they are.
        warmup_generator: the one that will predict; None if no control is requested.
        controls: that will be predicted.

    Raises:
        ValueError: naming the row, the column, the metric or the control that cannot be used.
        ImportError: the library of a metric is missing.
    """
    if not task.splits[split]:
        return
    trial = replace(encoder, counts=Counter())
    rows = trial.encode_all(task.splits[split], split)
    for number, row in enumerate(task.splits[split]):
        _check_json(row, f"{split} row {number} (id {row['id']})")
    if warmup_generator is not None and "filler" in controls and not warmup_generator.filler_ids():
        raise ValueError("controls: filler cannot be used, as the tokenizer cannot write '...'. Leave it out.")
    names = [spec if isinstance(spec, str) else str(spec["name"]) for spec in task.metrics]
    specs = [spec for spec, name in zip(task.metrics, names, strict=True) if name not in COSTLY]  # no networks here
    targets = [row["target"] for row in rows]
    if specs:
        compute(specs, targets, targets, rows)
        compute(specs, [""] * len(rows[:FEW]), targets[:FEW], rows[:FEW])
    if (unwritable := trial.writable.say(split)) and is_main():
        highest = ceiling(task, rows, encoder.tokenizer) if warmup_generator is not None else {}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in highest.items())
        print(f"{unwritable} The most that can be reached: {shown}." if shown else unwritable)


def _check_json(row: dict[str, Any], where: str) -> None:
    """Raises ValueError naming a column that JSON cannot hold, or that has the name of a column made here."""
    if taken := [column for column in (*WRITTEN, *ADDED) if column in row]:
        raise ValueError(
            f"{where}: {taken[0]!r} is the name of a column that is made here. Rename the column of that name."
        )
    for column, value in row.items():
        try:
            json_line({column: value})
        except (TypeError, ValueError, RecursionError) as error:
            message = f"the column {column!r} cannot be written as JSON ({error}). Remove it, or make it a text."
            raise ValueError(f"{where}: {message}") from error
