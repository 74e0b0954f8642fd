"""From prompts to weighted warmups: which rows an update trains on, and with which weights.

Knows: layouts, proposals, objectives. Must not know: how rewards are computed, the optimizer, processes, files.
One update's rollout happens before its micro-batches: `choose_rows` samples for all its prompts, `batch` makes the tensors of
a micro-batch, and after the forward `weigh` turns rewards into the weights a and b of every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rl_warmup.batch import EMPTY_WARMUP, RowKind, RowWeights, Warmup, WarmupBatch
from rl_warmup.engine import PrefixCache, cache_prompts, generate_targets, sample_warmups
from rl_warmup.method import objectives
from rl_warmup.method.proposals import (
    COLUMNS,
    DRAFT,
    DRAWN,
    OTHER_REFERENCE,
    REFERENCE,
    Proposal,
    ProposalContext,
    Word,
    load_proposal,
    propose,
)
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.inference_settings import LONGEST
from rl_warmup.models.layouts import Layout
from rl_warmup.models.layouts.splice import batch_of_groups, empty_rows
from rl_warmup.options import WarmupOptions

# default beta after reading: without a KL a run on sums of six to ten numbers collapsed (docs/log.md)
READING_BETA = 0.1
PromptRows = list[tuple[RowKind, Warmup]]  # the rows of one prompt


@dataclass
class Rollout:
    """The settings of a rollout; no state."""

    layout: Layout
    constraints: SamplingConstraints
    objective: str
    num_warmups: int
    proposals: list[str]
    context: ProposalContext
    max_target_length: int
    empty_share: float = 0.0
    anchor_weight: float = 0.0
    settings: objectives.ObjectiveSettings = objectives.ObjectiveSettings()
    backward_samples: int | None = None
    imitates_all: bool = False  # in the cold start the policy imitates all of a group equally, not by the posterior
    beta: float = 0.0  # weight of the KL to the starting policy while the policy writes
    predictions: tuple[str, ...] = ()  # arguments of rewards to generate: `predictions`, `sampled_predictions`

    @cached_property
    def _rule(self) -> objectives.Rule:
        return objectives.load_objective(self.objective)

    @cached_property
    def _proposal_functions(self) -> dict[str, Proposal]:
        return {name: load_proposal(name) for name in self.proposals if name not in (DRAFT, *DRAWN)}

    @classmethod
    def of(
        cls, options: WarmupOptions, layout: Layout, constraints: SamplingConstraints, tokenizer: Any, rows: list[dict[str, Any]],
        count: Callable[[], Counter[Word]],
    ) -> Rollout:  # fmt: skip
        """The rollout of these options. Each proposal is tried on the first training row.

        Args:
            count: counts the words of the training targets, for proposals that need that.

        Raises:
            ValueError: a proposal fails.
        """
        context = ProposalContext(options.max_warmup_length, count=count, decode=tokenizer.decode)
        filler = tokenizer("...", add_special_tokens=False)["input_ids"]
        context.filler_ids = tuple(i for i in filler if not constraints.banned[i])
        for name in set(options.proposals) - {DRAFT, *DRAWN} if rows else ():
            propose(name, rows[0], context)
        names = [one.name for one in fields(objectives.ObjectiveSettings)]
        settings = objectives.ObjectiveSettings(**{name: getattr(options, name) for name in names})
        reads = REFERENCE in options.proposals
        beta = options.beta if options.beta is not None else READING_BETA if reads else 0.0
        return cls(
            layout, constraints, options.objective, options.num_warmups, list(options.proposals), context,
            options.max_target_length or LONGEST, options.empty_share, options.anchor_weight, settings, options.backward_samples,
            reads and options.imitation == "all", beta,
        )  # fmt: skip

    def cache_prompts(self, model: Any, prompts: list[dict[str, Any]], cold_start: bool) -> PrefixCache | None:
        """Read the prompts once, with gradient, for sampling and for training; None if nothing is sampled."""
        if cold_start or self.objective == "sft":
            return None
        ids, targets = ([row[part] for row in prompts] for part in ("prompt_ids", "target_ids"))
        return cache_prompts(model, self.layout, self.constraints, ids, targets)

    def choose_rows(
        self,
        model: Any,
        prompts: list[dict[str, Any]],
        cold_start: bool,
        prefix_cache: PrefixCache | None = None,
    ) -> list[PromptRows]:
        """Choose the rows of every prompt of an update; samples if the policy writes. `model` is in eval mode.

        - `sft`: the empty warmup alone.
        - cold start: the group is the proposals; `reference` and `stored` give `num_warmups` each.
        - afterwards: the group is `num_warmups` samples of the policy; proposals are anchors if `anchor_weight` is not 0.
        A share of the prompts also gets an empty warmup, which then replaces the group in the target's loss.
        """
        if self.objective == "sft":
            return [[(RowKind.EMPTY, EMPTY_WARMUP)] for _ in prompts]
        if cold_start:
            groups = self._proposals(model, prompts)
        else:
            targets = [p["target_ids"] for p in prompts] if self.draws_rows(self.num_warmups) else None
            ids = [p["prompt_ids"] for p in prompts]
            size = self.num_warmups
            sampled = sample_warmups(
                model, self.layout, self.constraints, ids, size, targets=targets, prefix_cache=prefix_cache
            )
            groups = [sampled[i : i + size] for i in range(0, len(sampled), size)]
        groups = self._with_predictions(model, prompts, groups)
        chosen: list[PromptRows] = [[(RowKind.GROUP, warmup) for warmup in group] for group in groups]
        for rows, is_empty in zip(chosen, (torch.rand(len(prompts)) < self.empty_share).tolist(), strict=True):
            if is_empty:
                rows.append((RowKind.EMPTY, EMPTY_WARMUP))
        if self.anchor_weight and not cold_start:
            for rows, anchors in zip(chosen, self._proposals(model, prompts), strict=True):
                rows.extend((RowKind.ANCHOR, warmup) for warmup in anchors)
        return chosen

    def batch(self, prompts: list[dict[str, Any]], chosen: list[PromptRows]) -> WarmupBatch:
        """The chosen rows of a micro-batch: groups first, prompt by prompt, then the single rows."""
        groups = [[warmup for kind, warmup in rows if kind == RowKind.GROUP] for rows in chosen]
        single_rows = [(i, kind, w) for i, rows in enumerate(chosen) for kind, w in rows if kind != RowKind.GROUP]
        return batch_of_groups(self.layout, prompts, groups, single_rows)

    def without_warmups(self, prompts: list[dict[str, Any]], other_groups: bool = False) -> WarmupBatch:
        """An empty warmup for every prompt; before them, if `other_groups`, the starting model's warmups of another prompt."""
        groups = [row[OTHER_REFERENCE] for row in prompts] if other_groups else []
        return batch_of_groups(self.layout, prompts, groups, empty_rows(prompts))

    def weigh(
        self, batch: WarmupBatch, rewards: Tensor, warmup_logprobs: Tensor, tau: float, cold_start: bool
    ) -> RowWeights:
        """The weights a and b of every row, without gradient.

        Args:
            rewards: (B*G,) the score R of every group row, in nats. In groups of one the values have no influence.
            warmup_logprobs: (N,) log P(c|x) of every row, in nats; (B*G,) is enough.
            tau: temperature of the posterior weights.
            cold_start: the group holds proposals. The generator's weights are their posterior. The policy's weights are the
                posterior too, or (`imitates_all`) 1/G: samples of the starting model are what the policy writes already, so
                it does not change while the generator learns to read. Both sum to 1; there is no control variate, as
                proposals are not samples of the policy.
        """
        size, groups = batch.group_size, batch.num_prompts * batch.group_size
        grouped = rewards.detach().view(batch.num_prompts, size)
        settings = replace(self.settings, tau=tau)
        p = objectives.posterior(grouped, tau)
        if not size:
            policy = target = grouped
        elif cold_start:
            share = settings.uniform_target_share
            policy = torch.full_like(p, 1 / size) if self.imitates_all else p
            target = share / size + (1 - share) * p
        else:
            policy, target = self._rule(grouped, warmup_logprobs.detach()[:groups].view_as(grouped), settings)
        a = torch.zeros(len(batch.warmups), dtype=rewards.dtype, device=rewards.device)
        b = torch.zeros_like(a)
        has_empty = torch.zeros(batch.num_prompts, dtype=torch.bool, device=a.device)
        is_empty, is_anchor = batch.row_kind == RowKind.EMPTY, batch.row_kind == RowKind.ANCHOR
        has_empty[batch.prompt_index[is_empty]] = True
        a[:groups] = policy.flatten()
        b[:groups] = target.masked_fill(has_empty[:, None], 0.0).flatten()
        b[is_empty] = 1.0
        a[is_anchor] = b[is_anchor] = self.anchor_weight / max(1, int(is_anchor.sum()) // batch.num_prompts)
        kl = torch.zeros_like(a)
        if self.beta and not cold_start:
            kl[:groups] = self.beta / max(1, size)
        return RowWeights(policy=a, target=b, posterior=p, ess=objectives.effective_sample_size(p), kl=kl)

    def draws_rows(self, group_size: int) -> bool:
        """Whether only some warmups of a group get a gradient."""
        return self.backward_samples is not None and self.backward_samples < group_size

    def draw_rows(self, batch: WarmupBatch, weights: RowWeights) -> tuple[WarmupBatch, RowWeights]:
        """The rows that get a gradient, and their weights: `backward_samples` draws from every group, and all single rows.

        The expectation of their weighted sum is the weighted sum over all rows (`objectives.resample`).
        """
        size, prompts = batch.group_size, batch.num_prompts
        a, b = (values[: prompts * size].view(prompts, size) for values in (weights.policy, weights.target))
        uniforms = torch.rand(prompts, dtype=torch.float64).to(a.device)
        factor = torch.ones_like(weights.policy)
        assert self.backward_samples is not None
        kl = weights.kl[: prompts * size].view(prompts, size)
        factor[: prompts * size] = objectives.resample(a, b.abs() + kl, self.backward_samples, uniforms).flatten()
        rows = [row for row, times in enumerate(factor.tolist()) if times]
        drawn = {name: (getattr(weights, name) * factor)[rows] for name in ("policy", "target", "kl")}
        return batch.select(rows), replace(weights, **drawn)

    def _with_predictions(
        self, model: Any, prompts: list[dict[str, Any]], groups: list[list[Warmup]]
    ) -> list[list[Warmup]]:
        """The same warmups with the predictions that rewards ask for."""
        flat = [warmup for group in groups for warmup in group]
        ids = [row["prompt_ids"] for row, group in zip(prompts, groups, strict=True) for _ in group]
        limit = prediction_limit(prompts, self.max_target_length)
        rest = iter(add_predictions(model, self.layout, self.constraints, ids, flat, limit, self.predictions))
        return [[next(rest) for _ in group] for group in groups]

    def _proposals(self, model: Any, prompts: list[dict[str, Any]]) -> list[list[Warmup]]:
        """B groups of proposals: made from the targets, or stored in the rows."""
        drafts: list[Warmup] = []
        if DRAFT in self.proposals:
            ids = [p["prompt_ids"] for p in prompts]
            empty: list[list[int]] = [[] for _ in prompts]
            written = generate_targets(
                model, self.layout, self.constraints, ids, self.max_target_length, empty, sample_target=True
            )
            drafts = [Warmup(w.target, "proposal") for w in written]
        groups: list[list[Warmup]] = []
        for i, row in enumerate(prompts):
            groups.append([])
            for name in self.proposals:
                if name in DRAWN:
                    groups[-1] += row[COLUMNS[name]]
                elif name == DRAFT:
                    groups[-1].append(self._allowed(drafts[i]))
                else:
                    groups[-1].append(self._allowed(propose(self._proposal_functions[name], row, self.context)))
        return groups

    def _allowed(self, proposal: Warmup) -> Warmup:
        """The proposal without banned tokens (an unknown word, a special token of a draft), cut at the limit."""
        return Warmup(self.constraints.allowed(proposal.ids)[: self.constraints.max_length], "proposal")


def prediction_limit(rows: list[dict[str, Any]], max_target_length: int) -> int:
    """Tokens of a prediction: twice the longest target of these rows, as a network that has not learned to end always
    writes up to the limit, which would make every update slow."""
    return min(max_target_length, 2 * max(len(row["target_ids"]) for row in rows))


def add_predictions(
    model: Any, layout: Layout, constraints: SamplingConstraints, prompts: list[list[int]], warmups: list[Warmup],
    max_target_length: int, wanted: tuple[str, ...],
) -> list[Warmup]:  # fmt: skip
    """The warmups, each with targets that the model writes after it.

    Args:
        prompts: ids, one per warmup.
        wanted: names among `rewards.arguments.PREDICTIONS`: `predictions` is greedy, `sampled_predictions` sampled.
    """
    written: list[dict[str, list[int]]] = [{} for _ in warmups]
    for name in wanted:
        forced = [warmup.ids for warmup in warmups]
        sampled = name == "sampled_predictions"
        both = generate_targets(model, layout, constraints, prompts, max_target_length, forced, sample_target=sampled)
        for predictions, (_, target, _) in zip(written, both, strict=True):
            predictions[name] = target
    return [w._replace(predictions=p) for w, p in zip(warmups, written, strict=True)] if wanted else warmups
