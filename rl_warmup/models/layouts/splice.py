"""The one place that makes rows of token ids from prompts, warmups and targets.

Knows: lists of ids and the declared separator. Must not know: text, tokenizers, networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_warmup.batch import EMPTY_WARMUP, RowKind, Warmup, WarmupBatch

if TYPE_CHECKING:
    from rl_warmup.models.layouts import Layout

Row = tuple[int, RowKind, Warmup]  # index of the prompt, kind, warmup


def pad_right(rows: list[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """Lists of ids -> (len(rows), longest) int64 ids and mask. Only the mask tells lengths: a pad token may be real."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.int64)
    return ids.view(len(rows), width), mask.view(len(rows), width)


def batch_of_groups(
    layout: Layout,
    prompts: Sequence[dict[str, Any]],
    groups: Sequence[Sequence[Warmup]],
    single_rows: Iterable[Row] = (),
) -> WarmupBatch:
    """A batch of B groups of the same size, prompt by prompt, and single rows after them. Arguments as `splice`.

    Args:
        groups: the warmups of every prompt; empty lists, or no list at all, for a batch of single rows.
    """
    rows = [(index, RowKind.GROUP, warmup) for index, group in enumerate(groups) for warmup in group]
    return splice(layout, prompts, [*rows, *single_rows], len(rows) // len(prompts))


def empty_rows(prompts: Sequence[dict[str, Any]]) -> list[Row]:
    """A single row without a warmup for every prompt."""
    return [(index, RowKind.EMPTY, EMPTY_WARMUP) for index in range(len(prompts))]


def splice(layout: Layout, prompts: Sequence[dict[str, Any]], rows: Sequence[Row], group_size: int) -> WarmupBatch:
    """Make a batch: the prompts once, and for every row the tokens `c [sep] y` that follow its prompt.

    Args:
        layout: names the separator.
        prompts: B data rows with `prompt_ids` and `target_ids` (which ends with the end-of-sequence token).
        rows: N rows; the groups come first, prompt by prompt.
        group_size: G.
    """
    ids: list[list[int]] = []
    action_marks: list[list[int]] = []
    target_marks: list[list[int]] = []
    for index, _, warmup in rows:
        target = prompts[index]["target_ids"]
        ids.append([*warmup.ids, layout.tokens.separator_id, *target])
        actions = [1] * len(warmup.ids) + [int(warmup.separator_is_action)]
        action_marks.append(actions + [0] * len(target))
        target_marks.append([0] * len(actions) + [1] * len(target))
    prompt_ids, prompt_mask = pad_right([prompt["prompt_ids"] for prompt in prompts], layout.tokens.pad_id)
    seq_ids, seq_mask = pad_right(ids, layout.tokens.pad_id)
    return WarmupBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_index=torch.tensor([index for index, _, _ in rows]),
        row_kind=torch.tensor([int(kind) for _, kind, _ in rows]),
        seq_ids=seq_ids,
        seq_mask=seq_mask,
        warmup_mask=pad_right(action_marks, 0)[0],
        target_mask=pad_right(target_marks, 0)[0],
        warmups=[warmup for _, _, warmup in rows],
        prompts=list(prompts),
        group_size=group_size,
    )
