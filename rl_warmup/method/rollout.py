"""From prompts to weighed warmups: which rows an update trains on, and how much each of them counts.

Knows: layouts, proposals, objectives. Must not know: how rewards are made, the optimizer, processes, files.
One update's rollout happens before its micro-batches: `choose_rows` samples for all its prompts, `batch` lays a micro-batch
out, and after the forward `weigh` turns log-probabilities into the constants a and b of every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rl_warmup.batch import RowKind, RowWeights, Warmup, WarmupBatch
from rl_warmup.engine import PrefixCache, cache_prompts, generate_targets, sample_warmups
from rl_warmup.method.objectives import (
    ObjectiveSettings,
    Rule,
    effective_sample_size,
    load_objective,
    posterior,
    resample,
)
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
from rl_warmup.models.layouts.splice import splice
from rl_warmup.options import WarmupOptions

EMPTY = Warmup([], "empty")
HOLD = 0.1  # beta after reading: without it a run on sums of six to ten numbers lost everything (docs/log.md)
PromptRows = list[tuple[RowKind, Warmup]]  # the rows of one prompt


@dataclass
class Rollout:
    """The recipe's choices that shape a rollout; no state."""

    layout: Layout
    constraints: SamplingConstraints
    objective: str
    num_warmups: int
    proposals: list[str]
    context: ProposalContext
    max_target_length: int
    empty_share: float = 0.0
    anchor_weight: float = 0.0
    settings: ObjectiveSettings = ObjectiveSettings()
    backward_samples: int | None = None
    imitates_all: bool = False  # in the cold start the policy imitates the whole group, not its posterior
    beta: float = 0.0  # weight of the KL to the starting policy while the policy writes
    predictions: tuple[str, ...] = ()  # what rewards read besides: `predictions`, `sampled_predictions`

    @cached_property
    def _rule(self) -> Rule:
        return load_objective(self.objective)

    @cached_property
    def _makers(self) -> dict[str, Proposal]:
        return {name: load_proposal(name) for name in self.proposals if name not in (DRAFT, *DRAWN)}

    @classmethod
    def of(
        cls, options: WarmupOptions, layout: Layout, constraints: SamplingConstraints, tokenizer: Any, rows: list[dict[str, Any]],
        count: Callable[[], Counter[Word]],
    ) -> Rollout:  # fmt: skip
        """The rollout that options ask for; a proposal that cannot work on these training rows says so here.

        Args:
            count: counts the words of the training targets, for a proposal that looks at them.
        """
        context = ProposalContext(options.max_warmup_length, count=count, decode=tokenizer.decode)
        filler = tokenizer("...", add_special_tokens=False)["input_ids"]
        context.filler_ids = tuple(i for i in filler if not constraints.banned[i])
        for name in set(options.proposals) - {DRAFT, *DRAWN} if rows else ():
            propose(name, rows[0], context)
        settings = ObjectiveSettings(options.tau, options.uniform_target_share, options.tsallis_q)
        reads = REFERENCE in options.proposals
        beta = options.beta if options.beta is not None else HOLD if reads else 0.0
        return cls(
            layout, constraints, options.objective, options.num_warmups, list(options.proposals), context,
            options.max_target_length or LONGEST, options.empty_share, options.anchor_weight, settings, options.backward_samples,
            reads and options.imitation == "all", beta,
        )  # fmt: skip

    def read(self, model: Any, prompts: list[dict[str, Any]], cold_start: bool) -> PrefixCache | None:
        """One reading of the prompts, with gradient, to sample from and to train on; None where nothing is sampled."""
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
        """Choose the rows of every prompt of an update. Samples where the phase asks for it; `model` in eval mode.

        - `sft`: the empty warmup alone.
        - cold start: the group is the proposals, of which `reference` and `stored` are `num_warmups` each.
        - afterwards: the group is `num_warmups` samples of the policy; the proposals stay as anchors if they have weight.
        A share of the prompts gets an empty warmup besides, which then takes the group's place in the target's loss.
        """
        if self.objective == "sft":
            return [[(RowKind.EMPTY, EMPTY)] for _ in prompts]
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
        groups = self._followed(model, prompts, groups)
        plans: list[PromptRows] = [[(RowKind.GROUP, warmup) for warmup in group] for group in groups]
        for plan, is_empty in zip(plans, (torch.rand(len(prompts)) < self.empty_share).tolist(), strict=True):
            if is_empty:
                plan.append((RowKind.EMPTY, EMPTY))
        if self.anchor_weight and not cold_start:
            for plan, anchors in zip(plans, self._proposals(model, prompts), strict=True):
                plan.extend((RowKind.ANCHOR, warmup) for warmup in anchors)
        return plans

    def batch(self, prompts: list[dict[str, Any]], plans: list[PromptRows]) -> WarmupBatch:
        """Lay the planned rows of a micro-batch out: groups first, prompt by prompt, then the single rows."""
        rows = [(i, kind, warmup) for i, plan in enumerate(plans) for kind, warmup in plan]
        rows.sort(key=lambda row: row[1] != RowKind.GROUP)  # stable
        groups = sum(kind == RowKind.GROUP for _, kind, _ in rows)
        return splice(self.layout, prompts, rows, groups // len(prompts))

    def against(self, prompts: list[dict[str, Any]], with_group: bool) -> WarmupBatch:
        """These prompts with an empty warmup each; `with_group`: behind the starting model's warmups of another prompt."""
        plans: list[PromptRows] = [
            [
                *((RowKind.GROUP, warmup) for warmup in (row[OTHER_REFERENCE] if with_group else ())),
                (RowKind.EMPTY, EMPTY),
            ]
            for row in prompts
        ]
        return self.batch(prompts, plans)

    def weigh(
        self, batch: WarmupBatch, rewards: Tensor, warmup_logprobs: Tensor, tau: float, cold_start: bool
    ) -> RowWeights:
        """The constants a and b of every row, without gradient.

        Args:
            rewards: (B*G,) the score R of every group row, in nats. Of a group of one nothing but the length is read.
            warmup_logprobs: (N,) log P(c|x) of every row, in nats; the groups' alone where q(c|x,y) draws nothing.
            tau: temperature of the posterior weights.
            cold_start: the group holds proposals. The generator learns from them by the posterior among them; the policy
                imitates them by the posterior too, or, where they are samples of the starting model, all alike: that is
                what the policy writes already, so it stays where it is while the generator learns to read. Both weights
                sum to 1; no control variate, as they are no samples of the policy.
        """
        size, groups = batch.group_size, batch.num_prompts * batch.group_size
        grouped = rewards.detach().view(batch.num_prompts, size)
        settings = replace(self.settings, tau=tau)
        p = posterior(grouped, tau)
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
        hold = torch.zeros_like(a)
        if self.beta and not cold_start:
            hold[:groups] = self.beta / max(1, size)
        return RowWeights(policy=a, target=b, posterior=p, ess=effective_sample_size(p), hold=hold)

    def draws_rows(self, group_size: int) -> bool:
        """Whether only some warmups of a group get a gradient."""
        return self.backward_samples is not None and self.backward_samples < group_size

    def draw(self, batch: WarmupBatch, weights: RowWeights) -> tuple[WarmupBatch, RowWeights]:
        """The rows that get a gradient, and their weights: `backward_samples` draws from every group, and all single rows.

        On average over the draws the weighted sum over these rows is the one over all (`objectives.weights.resample`).
        """
        size, prompts = batch.group_size, batch.num_prompts
        a, b = (values[: prompts * size].view(prompts, size) for values in (weights.policy, weights.target))
        uniforms = torch.rand(prompts, dtype=torch.float64).to(a.device)
        factor = torch.ones_like(weights.policy)
        assert self.backward_samples is not None
        hold = weights.hold[: prompts * size].view(prompts, size)
        factor[: prompts * size] = resample(a, b.abs() + hold, self.backward_samples, uniforms).flatten()
        rows = [row for row, times in enumerate(factor.tolist()) if times]
        drawn = {name: (getattr(weights, name) * factor)[rows] for name in ("policy", "target", "hold")}
        kept = replace(weights, **drawn)
        return batch.select(rows), kept

    def _followed(self, model: Any, prompts: list[dict[str, Any]], groups: list[list[Warmup]]) -> list[list[Warmup]]:
        """The same warmups with the predictions that rewards ask for."""
        flat = [warmup for group in groups for warmup in group]
        ids = [row["prompt_ids"] for row, group in zip(prompts, groups, strict=True) for _ in group]
        limit = prediction_limit(prompts, self.max_target_length)
        followed = follow(model, self.layout, self.constraints, ids, flat, limit, self.predictions)
        left = iter(followed)
        return [[next(left) for _ in group] for group in groups]

    def _proposals(self, model: Any, prompts: list[dict[str, Any]]) -> list[list[Warmup]]:
        """B groups of warmups: made from the targets, or at hand with the rows."""
        drafts: list[Warmup] = []
        if DRAFT in self.proposals:
            ids = [p["prompt_ids"] for p in prompts]
            nothing: list[list[int]] = [[] for _ in prompts]
            written = generate_targets(
                model, self.layout, self.constraints, ids, self.max_target_length, nothing, sample_target=True
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
                    groups[-1].append(self._allowed(propose(self._makers[name], row, self.context)))
        return groups

    def _allowed(self, proposal: Warmup) -> Warmup:
        """A proposal without tokens that a warmup may not hold (an unknown word, a special token of a draft)."""
        banned = self.constraints.banned[proposal.ids].tolist()
        ids = [i for i, no in zip(proposal.ids, banned, strict=True) if not no and i != self.constraints.separator_id]
        return Warmup(ids[: self.constraints.max_length], "proposal")


def prediction_limit(rows: list[dict[str, Any]], max_target_length: int) -> int:
    """Tokens of a prediction: twice the longest target of these rows. A network that has not learned to end goes on to the
    limit every time, and would make each update as long as the longest answer that is allowed."""
    return min(max_target_length, 2 * max(len(row["target_ids"]) for row in rows))


def follow(
    model: Any, layout: Layout, constraints: SamplingConstraints, prompts: list[list[int]], warmups: list[Warmup],
    max_target_length: int, wanted: tuple[str, ...],
) -> list[Warmup]:  # fmt: skip
    """Warmups, each with the targets that the model writes after it: the likeliest, or one that is drawn.

    Args:
        prompts: ids, one per warmup.
        wanted: names of `rewards.arguments.PREDICTIONS`; the names of what is written.
    """
    written: list[dict[str, list[int]]] = [{} for _ in warmups]
    for name in wanted:
        forced = [warmup.ids for warmup in warmups]
        drawn = name == "sampled_predictions"
        both = generate_targets(model, layout, constraints, prompts, max_target_length, forced, sample_target=drawn)
        for kept, (_, target) in zip(written, both, strict=True):
            kept[name] = target
    return [w._replace(predictions=kept) for w, kept in zip(warmups, written, strict=True)] if wanted else warmups
