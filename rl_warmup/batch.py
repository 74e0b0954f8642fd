"""The legend of every tensor that travels between rollout, layouts, objectives and trainer.

Knows: names, shapes, units and mask polarity. Must not know: how any of it is computed.

Letters: B prompts of a micro-batch; G warmups of one prompt (a *group*); N rows of the network, of which the first
B*G are the groups, prompt by prompt, and the rest are single rows (empty warmups, anchors); T tokens of a row.
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
    no action of the policy. `proposal`: made from the target; its separator is to be learned. `empty`: no warmup.
    """

    ids: list[int]
    finish: str
    logprob: float | None = None  # log P(c|x) in nats, where the sampler told it while drawing
    target_logps: list[float] | None = None  # per target token, in nats, where the sampler went on to the target
    predictions: dict[str, list[int]] | None = None  # targets written after it (ids without the end), where rewards ask

    @property
    def separator_is_action(self) -> bool:
        """Whether log P(c|x) includes the separator."""
        return self.finish in ("separator", "proposal")


class RowKind(IntEnum):
    """What a row of the network is for."""

    GROUP = 0  # a member of a group: weighed by the objective
    EMPTY = 1  # the empty warmup: SFT inside the model, gives log P(y|x,∅)
    ANCHOR = 2  # a proposal that keeps its weight after the cold start


@dataclass
class WarmupBatch:
    """One micro-batch, ready for the network. Built by `rollout.py`, consumed by `engine.scoring`."""

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
    prefix_cache: Any = (
        None  # what the network made of the prompts before it sampled, with gradient; see `engine.fast.passes`
    )

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    def select(self, rows: list[int]) -> WarmupBatch:
        """These rows alone, of the same prompts; they count as groups of no fixed size."""
        index = torch.tensor(rows, device=self.seq_ids.device)
        chosen = {name: getattr(self, name)[index] for name in ("prompt_index", "row_kind")}
        width = int(self.seq_mask[index].sum(1).max())
        wide = {
            name: getattr(self, name)[index, :width] for name in ("seq_ids", "seq_mask", "warmup_mask", "target_mask")
        }
        return replace(self, **chosen, **wide, warmups=[self.warmups[row] for row in rows], group_size=0)

    def distinct(self) -> tuple[Tensor, Tensor]:
        """Rows (U,) of which no two are the same warmup of the same prompt, and (N,) which of these U every row repeats."""
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
    """What one forward says about the rows of a batch. Carries gradient: in `objective` where the weights of the rows were
    known before the forward, in the log-probabilities otherwise."""

    warmup_logprob: Tensor  # (N,) log P(c|x), summed over the policy's actions
    target_logprob: Tensor  # (N,) log P(y|x,c), summed over the target's tokens
    token_logps: Tensor  # (N, T) per token, 0 where neither mask counts
    warmup_tokens: Tensor  # (N,) number of actions
    target_tokens: Tensor  # (N,) number of target tokens
    objective: Tensor | None = None  # scalar: Σ (a·log P(c|x) + b·log P(y|x,c)), see `RowWeights`

    def detach(self) -> Scores:
        """The same log-probabilities without the graph behind them."""
        return Scores(**{f.name: getattr(self, f.name).detach() for f in fields(self) if f.name != "objective"})


@dataclass
class RowWeights:
    """The constants of every row: the loss is -Σ (policy·log P(c|x) + target·log P(y|x,c) - hold·KL of c)."""

    policy: Tensor  # (N,) a
    target: Tensor  # (N,) b
    posterior: Tensor  # (B, G) p, sums to 1 over a group; (B, 0) without groups
    ess: Tensor  # (B,) effective sample size 1/Σp², between 1 and G
    hold: Tensor  # (N,) weight of the KL of the row's warmup to the starting policy
