"""Naive twins for the layouts: one row at a time, through a stock model that was never patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_warmup.batch import WarmupBatch


@torch.no_grad()
def stock_logps(model: Any, batch: WarmupBatch, row: int) -> Tensor:
    """(T,) log P of every token of one row, unpadded, from the stock logits."""
    length = int(batch.seq_mask[row].sum())
    ids, index = batch.seq_ids[row, :length], batch.prompt_index[row]
    prompt = batch.prompt_ids[index][batch.prompt_mask[index].bool()]
    if model.config.is_encoder_decoder:
        start = torch.tensor([model.config.decoder_start_token_id])
        logits = model(input_ids=prompt[None], decoder_input_ids=torch.cat([start, ids[:-1]])[None]).logits[0]
    else:
        logits = model(input_ids=torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]


@pytest.fixture(scope="session")
def stock() -> Callable[..., Tensor]:
    return stock_logps
