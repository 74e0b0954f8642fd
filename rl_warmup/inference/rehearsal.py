"""Whatever prediction and scoring will need, tried on the rows themselves before anything long begins.

Knows: a task's rows and metrics, an encoder, a `WarmupGenerator`. Must not know: training, flags. What fails here would
fail after the training instead, when there is nothing left to repair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl_warmup.inference.evaluation import COSTLY, ceiling
from rl_warmup.inference.generation import WRITTEN, WarmupGenerator
from rl_warmup.metrics import compute
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.runtime.run_folder import json_line
from rl_warmup.runtime.sharing import is_main
from rl_warmup.tasks import Task

FEW = 8  # rows on which metrics also see predictions that say nothing


def rehearse(
    task: Task,
    split: str,
    encoder: RowEncoder,
    warmup_generator: WarmupGenerator | None = None,
    controls: Sequence[str] = (),
) -> None:
    """Encode the rows of a split, write them as JSON, and score their targets against themselves; says what cannot be reached.

    Args:
        encoder: the one that will be used; its counts stay as they are.
        writer: that will predict; None where no control is asked for.
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
    specs = [
        spec for spec in task.metrics if _name(spec) not in COSTLY
    ]  # those load networks, and checked their settings
    targets = [row["target"] for row in rows]
    if specs:
        compute(specs, targets, targets, rows)
        compute(specs, [""] * len(rows[:FEW]), targets[:FEW], rows[:FEW])
    if (said := trial.writable.say(split)) and is_main():
        highest = ceiling(task, rows, encoder.tokenizer) if warmup_generator is not None else {}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in highest.items())
        print(f"{said} The most that can be reached: {shown}." if shown else said)


def _name(spec: Any) -> str:
    return spec if isinstance(spec, str) else str(spec["name"])


def _check_json(row: dict[str, Any], where: str) -> None:
    """Predictions are written with the columns of their rows.

    Raises:
        ValueError: naming the column that JSON cannot hold, not even as text, or that predictions have themselves.
    """
    if taken := [column for column in WRITTEN if column in row]:
        raise ValueError(
            f"{where}: predictions.jsonl has a {taken[0]!r} of its own, beside which the column of that name would be lost. "
            f"Rename the column."
        )
    for column, value in row.items():
        try:
            json_line({column: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{where}: the column {column!r} cannot be written as JSON ({error}). Remove it, or make it a text."
            ) from error
