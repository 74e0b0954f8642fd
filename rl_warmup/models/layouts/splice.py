"""Rows of token ids from prompts, warmups and targets.

Knows: lists of ids and the declared separator. Must not know: text, tokenizers, networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_warmup.batch import RowKind, Warmup, WarmupBatch

if TYPE_CHECKING:
    from rl_warmup.models.layouts import Layout


def pad_right(rows: list[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """Lists of ids -> (len(rows), longest) int64 ids and mask. Lengths are carried by the mask, never read off the padding."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.int64)
    return ids.view(len(rows), width), mask.view(len(rows), width)


def splice(
    layout: Layout,
    prompts: list[dict[str, Any]],
    rows: list[tuple[int, RowKind, Warmup]],
    group_size: int,
) -> WarmupBatch:
    """Lay every (prompt, warmup) pair out: the prompts once, and one row `c [sep] y` for what follows.

    Args:
        layout: names the separator.
        prompts: B data rows with `prompt_ids` and `target_ids` (which ends with the end-of-sequence token).
        rows: (index of the prompt, kind, warmup) of the N rows; the groups come first, prompt by prompt.
        group_size: G.
    """
    ids: list[list[int]] = []
    warmup_marks: list[list[int]] = []
    target_marks: list[list[int]] = []
    for index, _, warmup in rows:
        target = prompts[index]["target_ids"]
        ids.append([*warmup.ids, layout.tokens.separator_id, *target])
        actions = [1] * len(warmup.ids) + [int(warmup.separator_is_action)]
        warmup_marks.append(actions + [0] * len(target))
        target_marks.append([0] * len(actions) + [1] * len(target))
    prompt_ids, prompt_mask = pad_right([prompt["prompt_ids"] for prompt in prompts], layout.tokens.pad_id)
    seq_ids, seq_mask = pad_right(ids, layout.tokens.pad_id)
    return WarmupBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_index=torch.tensor([i for i, _, _ in rows]),
        row_kind=torch.tensor([int(kind) for _, kind, _ in rows]),
        seq_ids=seq_ids,
        seq_mask=seq_mask,
        warmup_mask=pad_right(warmup_marks, 0)[0],
        target_mask=pad_right(target_marks, 0)[0],
        warmups=[warmup for _, _, warmup in rows],
        prompts=prompts,
        group_size=group_size,
    )
