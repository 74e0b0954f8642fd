"""Predictions and sampled groups as compact lists for the page's browser.

Knows: keys of predictions*.jsonl and warmups.jsonl. Must not know: how they are shown. Prompts and targets are stored
once, however many runs answered them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rl_warmup.experiments.collect import Run, Section
from rl_warmup.tasks.conversations import flat

Numbers = dict[tuple[Any, ...], int]  # texts of a row, each kept once -> its number
LIMIT = 20_000  # predictions in one page; a browser stays quick well beyond 10,000
GROUPS = 200  # of one run, at most


def example_data(sections: Sequence[Section], limit: int = LIMIT) -> dict[str, Any]:
    """What the browser shows.

    Returns:
        `rows`: [section, id, prompt, target]; `files`: {section, arm, seed, control, items}, with items [row, warmup,
        finish, prediction, right (0 or 1), likeness (0 to 100)]; `groups`: [section, arm, seed, step, row, warmups],
        with warmups [warmup, finish, log P(c|x), log P(y|x,c), posterior]; `left_out`: how many predictions were.
    """
    found = [
        (index, arm.name, run, control, predictions)
        for index, section in enumerate(sections)
        for arm in sorted(section.arms, key=lambda arm: arm.objective == "sft")  # those with warmups come first
        for run in arm.runs
        for control, predictions in run.predictions.items()
    ]
    share = _share([len(predictions) for *_, predictions in found], limit)
    rows: Numbers = {}
    files = [
        {
            "section": index, "arm": arm, "seed": run.seed, "control": control,
            "items": [_item(rows, index, row) for row in predictions[:share]],
        }
        for index, arm, run, control, predictions in found
    ]  # fmt: skip
    groups = [
        [index, arm.name, run.seed, *_group(rows, index, group)]
        for index, section in enumerate(sections)
        for arm in section.arms
        for run in arm.runs
        for group in _some_groups(run)
    ]
    left_out = sum(max(0, len(predictions) - share) for *_, predictions in found)
    return {"rows": list(rows), "files": files, "groups": groups, "left_out": left_out}


def likeness(prediction: str, target: str) -> int:
    """How much two texts share, 0 to 100: the F1 of their words, or of characters where the target has no spaces."""
    split = str.split if len(target.split()) > 1 else list
    one, other = Counter[str](split(prediction)), Counter[str](split(target))
    total = one.total() + other.total()
    return round(200 * (one & other).total() / total) if total else 100 * (prediction == target)


def _number(rows: Numbers, section: int, row: dict[str, Any]) -> int:
    """The number of a row, which is the next one where its texts are new."""
    key = (section, *(str(flat(row.get(name, ""))) for name in ("id", "prompt", "target")))
    return rows.setdefault(key, len(rows))


def _share(sizes: Sequence[int], limit: int) -> int:
    """How many rows of each file fit into the limit: the first rows of all of them, so that they can be compared."""
    low, high = 0, max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes) <= limit else (low, middle - 1)
    return low


def _item(rows: Numbers, section: int, row: dict[str, Any]) -> list[Any]:
    prediction, target = str(row.get("prediction", "")), str(row.get("target", ""))
    right = int(prediction.split() == target.split())  # as the metric exact_match has it
    number = _number(rows, section, row)
    return [number, row.get("warmup"), row.get("warmup_finish"), prediction, right, likeness(prediction, target)]


def _some_groups(run: Run) -> list[dict[str, Any]]:
    """Groups of a run, evenly thinned where it sampled very many."""
    groups = run.groups
    return groups if len(groups) <= GROUPS else [groups[i * len(groups) // GROUPS] for i in range(GROUPS)]


def _group(rows: Numbers, section: int, group: dict[str, Any]) -> list[Any]:
    keys = ("warmup", "finish", "warmup_logprob", "target_logprob", "posterior")
    warmups = [[_short(warmup.get(key)) for key in keys] for warmup in group.get("warmups", ())]
    return [group.get("step"), _number(rows, section, group), warmups]


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
