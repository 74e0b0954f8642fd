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
    """(T,) log P of every token of one row, unpadded, from the stock logits; token 0 of a decoder-only row has none."""
    length = int(batch.seq_mask[row].sum())
    ids = batch.seq_ids[row, :length]
    if model.config.is_encoder_decoder:
        index = batch.prompt_index[row]
        prompt = batch.prompt_ids[index][batch.prompt_mask[index].bool()]
        start = torch.tensor([model.config.decoder_start_token_id])
        logits = model(input_ids=prompt[None], decoder_input_ids=torch.cat([start, ids[:-1]])[None]).logits[0]
        return logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return torch.cat([torch.zeros(1), logits.float().log_softmax(-1).gather(1, ids[1:, None])[:, 0]])


@pytest.fixture(scope="session")
def stock() -> Callable[..., Tensor]:
    return stock_logps
