"""The law under which a warmup is drawn - and, exactly the same, scored.

Knows: logits of one step, the index of that step, which tokens a warmup may hold. Must not know: models or prompts.
If sampling and scoring disagree, every negative weight pushes mass onto tokens that are never drawn: banning the end
token only while sampling once drove log P(c|x) to -48 within a prototype's first hundred updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WarmupLaw:
    """Temperature, nucleus, lengths and bans of the policy P(c|x)."""

    separator_id: int
    banned: Tensor  # (V,) bool: pad, end, other special tokens, rows of the embedding without a token
    temperature: float = 1.0
    top_p: float = 1.0
    min_length: int = 0
    max_length: int = 32

    def restrict(self, logits: Tensor, steps: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Logits of the policy: tempered, with every impossible token at -inf.

        Args:
            logits: (M, V) of the network; V may exceed `banned` by nothing.
            steps: (M,) how many warmup tokens were written before.
            chosen: (M,) tokens that were drawn. They are never masked, so that rounding at the edge of the nucleus, or a
                proposal shorter than the minimum, cannot make log P(c|x) infinite.

        Returns:
            (M, V) float32; softmax over dim 1 is P(c_t | x, c_<t).
        """
        logits = logits.float() / self.temperature
        drop = self.banned.to(logits.device)[None].repeat(len(logits), 1)
        drop[:, self.separator_id] |= steps.to(logits.device) < self.min_length
        if self.top_p < 1:
            drop |= _outside_nucleus(logits.masked_fill(drop, -torch.inf), self.top_p)
        if chosen is not None:
            drop.scatter_(1, chosen[:, None], False)
        return logits.masked_fill(drop, -torch.inf)


@torch.no_grad()
def _outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(M, V) bool: outside the smallest set of likeliest tokens whose probability reaches `top_p`."""
    ordered, index = logits.sort(1, descending=True)
    probs = ordered.softmax(1)
    outside = probs.cumsum(1) - probs >= top_p  # mass of strictly likelier tokens; the first is always kept
    return outside.scatter(1, index, outside)
