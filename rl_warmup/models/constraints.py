"""The sampling constraints: the same when a warmup is sampled and when it is scored.

Knows: logits of one step, the index of that step, which tokens a warmup may hold. Must not know: models or prompts.
If sampling and scoring differ, every negative weight moves probability to tokens that are never sampled: in a prototype that
banned the end token only while sampling, log P(c|x) fell to -48 within a hundred updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConstraints:
    """Temperature, nucleus, lengths and banned tokens of the policy P(c|x)."""

    separator_id: int
    banned: Tensor  # (V,) bool: pad, end, other special tokens, rows of the embedding without a token
    temperature: float = 1.0
    top_p: float = 1.0
    min_length: int = 0
    max_length: int = 32

    @cached_property
    def banned_ids(self) -> Tensor:
        """Ids of the banned tokens: filling a few columns is faster than masking whole rows."""
        return self.banned.nonzero()[:, 0]

    def allowed(self, ids: Sequence[int]) -> list[int]:
        """The ids that a warmup may hold: without banned tokens and the separator."""
        return [i for i in ids if not self.banned[i] and i != self.separator_id]

    def ended_by(self, token: int) -> SamplingConstraints:
        """The same with another token as the end of a warmup, and without the separator."""
        banned = self.banned.clone()
        banned[self.separator_id], banned[token] = True, False
        return replace(self, separator_id=token, banned=banned)

    def restrict(self, logits: Tensor, steps: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Logits of the policy: divided by the temperature, with every impossible token at -inf.

        Args:
            logits: (M, V) of the network; V = len(banned).
            steps: (M,) number of warmup tokens before.
            chosen: (M,) tokens of the warmup. They are never masked, so that rounding at the edge of the nucleus, or a
                proposal shorter than the minimum, cannot make log P(c|x) infinite.

        Returns:
            (M, V) float32; softmax over dim 1 is P(c_t | x, c_<t).
        """
        return self.restrict_(logits.to(torch.float32, copy=True), steps, chosen)

    @torch.no_grad()
    def restrict_(self, logits: Tensor, steps: Tensor, chosen: Tensor | None = None) -> Tensor:
        """`restrict` in place, for float32 logits. Returns them."""
        if self.temperature != 1:
            logits /= self.temperature
        kept = None if chosen is None else logits.gather(1, chosen[:, None])
        logits.index_fill_(1, self.banned_ids.to(logits.device), -torch.inf)
        if self.min_length:
            logits[:, self.separator_id].masked_fill_(steps.to(logits.device) < self.min_length, -torch.inf)
        if self.top_p < 1:
            logits.masked_fill_(_outside_nucleus(logits, self.top_p), -torch.inf)
        return logits if chosen is None or kept is None else logits.scatter_(1, chosen[:, None], kept)


def _outside_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(M, V) bool: tokens outside the smallest set of likeliest tokens whose probability reaches `top_p`."""
    ordered, index = logits.sort(1, descending=True)
    probs = ordered.softmax(1)
    outside = probs.cumsum(1) - probs >= top_p  # probability of likelier tokens; the first is always kept
    return outside.scatter(1, index, outside)
