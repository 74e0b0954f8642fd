"""Log-probabilities of given tokens without ever holding a (tokens x vocabulary) tensor for a whole batch.

Knows: hidden states of the counted positions, and a function that turns a slice of them into logits.
Must not know: models, layouts, devices. Always float32: bf16 logits were measured off by 0.07 nats on a small sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 1 << 25  # 128 MiB of float32: 134 rows of mT5's 250k; smaller chunks repeat the cast of the head

Logits = Callable[[Tensor], Tensor]
Restrict = Callable[[Tensor, Tensor, Tensor], Tensor]


def token_logps(
    hidden: Tensor,
    token_ids: Tensor,
    logits: Logits,
    vocab_size: int,
    restrict: Restrict | None = None,
    steps: Tensor | None = None,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Tensor:
    """log P(token | what came before) for M positions.

    Args:
        hidden: (M, d) states that predict the tokens. Only counted positions: padding never reaches the head.
        token_ids: (M,) the tokens.
        logits: (m, d) float32 -> (m, V); called on slices of at most `logits_per_chunk` / V rows.
        vocab_size: V.
        restrict: (m, V) logits, (m,) steps, (m,) chosen tokens -> (m, V); the law of the policy (`layouts.law`).
        steps: (M,) the index of each action within its warmup; needed with `restrict`.
        logits_per_chunk: the memory bound. Larger inputs are cut and their logits recomputed in the backward.

    Returns:
        (M,) float32, in nats.
    """
    if steps is None:
        steps = torch.zeros_like(token_ids)

    def slice_logps(h: Tensor, ids: Tensor, step: Tensor) -> Tensor:
        with torch.autocast(device_type=h.device.type, enabled=False):
            values = logits(h.float()).float()
            if restrict is not None:
                values = restrict(values, step, ids)
            return values.gather(1, ids[:, None])[:, 0] - values.logsumexp(1)

    rows = max(1, logits_per_chunk // vocab_size)
    if len(token_ids) <= rows:
        return slice_logps(hidden, token_ids, steps)
    pieces = zip(hidden.split(rows), token_ids.split(rows), steps.split(rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([slice_logps(*piece) for piece in pieces])
    return torch.cat(
        [checkpoint(slice_logps, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    )
