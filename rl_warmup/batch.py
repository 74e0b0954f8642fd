"""Every tensor that rollout, layouts, objectives and trainer exchange: names, shapes and units.

Knows: names, shapes, units and mask polarity. Must not know: how any of it is computed.

Letters: B prompts of a micro-batch; G warmups of one prompt (a *group*); N rows, of which the first B*G are the groups,
prompt by prompt, and the rest are single rows (empty warmups, anchors); T tokens of a row.
Masks: 1 = counts. Log-probabilities: natural logarithm (nats); `logps` per token, `logprob` summed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

FINISHES = ("separator", "length", "proposal", "empty")


class Warmup(NamedTuple):
    """One warmup: its token ids without the separator, and how it ended.

    `separator`: the policy wrote the separator. `length`: the limit was reached and the separator was forced, so it is
    not an action of the policy. `proposal`: a given warmup; the policy learns its separator too. `empty`: no warmup.
    """

    ids: list[int]
    finish: str
    logprob: float | None = None  # log P(c|x) in nats, if the sampler computed it
    target_logps: list[float] | None = None  # per target token, in nats, if the sampler scored the target too
    # by name, targets written after it (without end token), for rewards
    predictions: dict[str, list[int]] | None = None

    @property
    def separator_is_action(self) -> bool:
        """Whether log P(c|x) includes the separator."""
        return self.finish in ("separator", "proposal")


EMPTY_WARMUP = Warmup([], "empty")


class RowKind(IntEnum):
    """What a row is for."""

    GROUP = 0  # a member of a group: weighed by the objective
    EMPTY = 1  # the empty warmup: SFT inside the model, gives log P(y|x,∅)
    ANCHOR = 2  # a proposal that keeps its weight after the cold start


@dataclass
class WarmupBatch:
    """One micro-batch, ready for the network. `models.layouts.splice` makes it, `engine.score` reads it."""

    prompt_ids: Tensor  # (B, X) int64, padded on the right
    prompt_mask: Tensor  # as prompt_ids
    prompt_index: Tensor  # (N,) int64: the prompt a row belongs to
    row_kind: Tensor  # (N,) int64: RowKind
    seq_ids: Tensor  # (N, T) int64: what follows the prompt, `c [sep] y [eos]`
    seq_mask: Tensor  # (N, T) int64: real tokens, padded on the right
    warmup_mask: Tensor  # (N, T) int64: actions of the policy, i.e. c and the separator where the policy wrote it
    target_mask: Tensor  # (N, T) int64: y and its end-of-sequence token
    warmups: list[Warmup]  # N, in the order of the rows
    prompts: list[dict[str, Any]]  # B data rows: text columns, `prompt_ids`, `target_ids`
    group_size: int  # G; 0 when the batch has no groups (the SFT control)
    prefix_cache: Any = None  # of the prompts, with gradient, if they were read to sample: `engine.PrefixCache`

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    def select(self, rows: list[int]) -> WarmupBatch:
        """Only these rows, with all prompts; the new batch has no groups."""
        index = torch.tensor(rows, device=self.seq_ids.device)
        chosen = {name: getattr(self, name)[index] for name in ("prompt_index", "row_kind")}
        width = int(self.seq_mask[index].sum(1).max())
        wide = {
            name: getattr(self, name)[index, :width] for name in ("seq_ids", "seq_mask", "warmup_mask", "target_mask")
        }
        return replace(self, **chosen, **wide, warmups=[self.warmups[row] for row in rows], group_size=0)

    def distinct(self) -> tuple[Tensor, Tensor]:
        """(U,) rows with different warmups or prompts, and (N,) for every row the index of its equal among them."""
        keys = [
            (prompt, warmup.separator_is_action, *warmup.ids)
            for prompt, warmup in zip(self.prompt_index.tolist(), self.warmups, strict=True)
        ]
        first: dict[tuple[Any, ...], int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        number, device = {key: i for i, key in enumerate(first)}, self.seq_ids.device
        return torch.tensor([*first.values()], device=device), torch.tensor(
            [number[key] for key in keys], device=device
        )

    def to(self, device: torch.device) -> WarmupBatch:
        """The same batch with every tensor on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


@dataclass
class Scores:
    """The results of one forward. The gradient is in `objective` if the row weights were known before the forward, else in the
    log-probabilities."""

    warmup_logprob: Tensor  # (N,) log P(c|x), summed over the policy's actions
    target_logprob: Tensor  # (N,) log P(y|x,c), summed over the target's tokens
    token_logps: Tensor  # (N, T) per token, 0 where neither mask counts
    warmup_tokens: Tensor  # (N,) number of actions
    target_tokens: Tensor  # (N,) number of target tokens
    objective: Tensor | None = None  # scalar: Σ (a·log P(c|x) + b·log P(y|x,c)), see `RowWeights`

    @classmethod
    def of(cls, batch: WarmupBatch, token_logps: Tensor, objective: Tensor | None = None) -> Scores:
        """Sum (N, T) log-probabilities per token over warmup and target of every row."""
        actions, targets = batch.warmup_mask, batch.target_mask
        sums = (token_logps * actions).sum(1), (token_logps * targets).sum(1)
        return cls(*sums, token_logps, actions.sum(1), targets.sum(1), objective)

    def detach(self) -> Scores:
        """The same log-probabilities without gradient."""
        return Scores(**{f.name: getattr(self, f.name).detach() for f in fields(self) if f.name != "objective"})


@dataclass
class RowWeights:
    """The weights of every row: the loss is -Σ (policy·log P(c|x) + target·log P(y|x,c) - kl·KL of c)."""

    policy: Tensor  # (N,) a
    target: Tensor  # (N,) b
    posterior: Tensor  # (B, G) p, sums to 1 over a group; (B, 0) without groups
    ess: Tensor  # (B,) effective sample size 1/Σp², between 1 and G
    kl: Tensor  # (N,) weight of the KL of the row's warmup to the starting policy
