"""Metrics of a rollout: gain, effective sample size, lengths, variety.

Knows: batches, scores and weights. Must not know: how they were computed, or what follows from the metrics.
Every value is a (sum, count) pair, so means are exact over micro-batches and processes. What compares the warmups of several
prompts (`variety`) is counted over a whole update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rl_warmup.batch import RowKind, RowWeights, Scores, Warmup, WarmupBatch
from rl_warmup.method.objectives import log_mean_exp
from rl_warmup.tasks.conversations import flat

Sums = dict[str, tuple[float, float]]
MAX_LETTERS = 60  # of a text in the terminal


class Means(TrainerCallback, ExportableState):
    """Sums and counts by name, turned into means at every log; a checkpoint between two logs saves them."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.collected: list[dict[str, list[float]]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get("Means") if state.global_step else None
        self.sums.clear()
        for rank, sums in enumerate(saved["attributes"]["sums"] if saved else []):
            if rank % args.world_size == args.process_index:  # fewer processes take over the others' sums
                self.add(sums)

    def collect(self, gather: Callable[[Any], list[Any]]) -> None:
        """Gather the sums of all processes, as the main process saves them for all."""
        self.collected = gather(dict(self.sums))

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves: the sums of every process."""
        return {"args": {}, "attributes": {"sums": self.collected or [dict(self.sums)]}}

    def add(self, values: Mapping[str, Sequence[float]]) -> None:
        """Add (sum, count) pairs."""
        for name, (total, count) in values.items():
            self.sums[name][0] += total
            self.sums[name][1] += count

    def flush(self, reduce: Callable[[list[float]], list[float]] = lambda values: values) -> dict[str, float]:
        """Means over everything added since the last flush, by name; names without a count are left out.

        Args:
            reduce: sums a list of floats over processes; every process must have added the same names.
        """
        names = sorted(self.sums)
        flat = reduce([number for name in names for number in self.sums[name]])
        self.sums.clear()
        pairs = zip(names, flat[::2], flat[1::2], strict=True)
        return {name: total / count for name, total, count in pairs if count}


def rollout_metrics(
    batch: WarmupBatch, scores: Scores, weights: RowWeights, rewards: torch.Tensor, by_name: dict[str, torch.Tensor],
    failed: dict[str, int] | None = None,
) -> Sums:  # fmt: skip
    """The metrics of one micro-batch, under TRL's names where TRL has the same metric.

    `target_logprob` is log P(y|x,c) in nats, summed over the target and averaged over warmups; `target_bound` the n-sample
    bound on log P(y|x); `gain` = log P(y|x,c) - log P(y|x,∅) on the prompts that have both.
    """
    size, prompts = batch.group_size, batch.num_prompts
    groups = prompts * size
    target = scores.target_logprob.detach()
    empty = batch.row_kind == RowKind.EMPTY
    out: Sums = {
        "empty_target_logprob": (target[empty].sum().item(), int(empty.sum())),
        "gain": (0.0, 0),
    }
    if not size:
        out["target_logprob"] = out.pop("empty_target_logprob")
        return out
    grouped = target[:groups].view(prompts, size)
    out["target_logprob"] = (grouped.sum().item(), groups)
    if empty.any():
        gain = grouped[batch.prompt_index[empty]] - target[empty][:, None]
        out["gain"] = (gain.sum().item(), gain.numel())
    out["target_bound"] = (log_mean_exp(grouped).sum().item(), prompts)
    out["target_logprob_std"] = (grouped.std(1).sum().item(), prompts) if size > 1 else (0.0, 0)
    out["ess"] = (weights.ess.sum().item(), prompts)
    out["reward"] = (rewards.sum().item(), groups)
    grouped_rewards = rewards.view(prompts, size)
    out["reward_std"] = (grouped_rewards.std(1).sum().item(), prompts) if size > 1 else (0.0, 0)
    for name, values in by_name.items():
        scored = values[~values.isnan()]
        out[f"rewards/{name}/mean"] = (scored.sum().item(), len(scored))
    for name, rows in (failed or {}).items():
        out[f"rewards/{name}/failed"] = (rows, groups)
    warmup_tokens = scores.warmup_tokens[:groups].sum().item()
    out["warmup_logp"] = (scores.warmup_logprob[:groups].sum().item(), warmup_tokens)
    return out


def variety(
    prompts: Sequence[dict[str, Any]], warmups: Sequence[Warmup], size: int,
    gather: Callable[[list[Any]], list[Any]] = list, processes: int = 1,
) -> Sums:  # fmt: skip
    """Lengths, ends, distinctness and overlaps of groups of `size` warmups, prompt by prompt.

    While training, of an update: of less, one warmup for all prompts would not show. Quantiles are means over updates and
    processes.

    Args:
        gather: joins the lists of that many processes, each of which has other prompts.
    """
    groups = len(warmups)
    lengths = sorted(len(warmup.ids) for warmup in warmups)
    by_prompt: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    overlaps: dict[str, list[float]] = {"prompt": [], "target": []}
    for index, warmup in ((i // size, warmup) for i, warmup in enumerate(warmups)):
        by_prompt[index].add(tuple(warmup.ids))
        if warmup.ids:
            for part, shares in overlaps.items():
                shares.append(token_overlap(warmup.ids, prompts[index][f"{part}_ids"]))
    everywhere = set(gather(list(set().union(*by_prompt.values()))))  # the same on every process
    return {
        **{f"completions/{part}_overlap": (sum(shares), len(shares)) for part, shares in overlaps.items()},
        "completions/p10_length": (lengths[groups // 10], 1),
        "completions/median_length": (lengths[groups // 2], 1),
        "completions/p90_length": (lengths[min(groups - 1, 9 * groups // 10)], 1),
        "completions/distinct_across_prompts": (len(everywhere) / processes, groups),
        "completions/mean_length": (sum(lengths), groups),
        "completions/clipped_ratio": (sum(warmup.finish == "length" for warmup in warmups), groups),
        "completions/empty_ratio": (sum(length == 0 for length in lengths), groups),
        "completions/distinct_ratio": (sum(map(len, by_prompt.values())), groups),
    }


def step_cost(batch: WarmupBatch, trained: WarmupBatch, num_parameters: int, sampled: bool) -> tuple[int, float]:
    """Tokens a micro-batch trains on, and an estimate of its floating point operations.

    Per parameter: six for every token of the rows with gradient and, once each, of their prompts (forward and backward), and
    two for every token that was read to sample a warmup or to choose rows. Repeated rows cost nothing. Attention is ignored.

    Args:
        batch: all rows.
        trained: the rows with gradient; `batch` itself if no rows were drawn.
        sampled: whether the group is the policy's own.
    """
    prompts = int(batch.prompt_mask.sum())
    tokens = int(trained.seq_mask.sum()) + prompts
    computed = int(trained.seq_mask[trained.distinct()[0]].sum()) + prompts
    group = batch.warmups[: batch.num_prompts * batch.group_size]
    forward = prompts + sum(len(warmup.ids) for warmup in group) if sampled else 0
    if trained is not batch:
        scored = [warmup.target_logps is not None for warmup in batch.warmups]  # the sampler has read prompt and warmup
        forward += int(batch.seq_mask.sum()) + (0 if all(scored) else prompts)
        forward -= sum(len(warmup.ids) for warmup, known in zip(batch.warmups, scored, strict=True) if known)
    return tokens, float(num_parameters) * (6 * computed + 2 * forward)


def token_overlap(warmup: list[int], other: list[int]) -> float:
    """Share of a warmup's distinct tokens that occur in another sequence of ids; the warmup must not be empty."""
    return len(set(warmup) & set(other)) / len(set(warmup))


def sample_table(
    batch: WarmupBatch, scores: Scores, weights: RowWeights, rewards: Any, decode: Any, count: int
) -> list[dict[str, Any]]:
    """The groups of the first `count` prompts as text, with log-probabilities, rewards and posterior weights.

    Args:
        rewards: `rewards.RewardScores` of the group rows.
    """
    several = rewards.by_name if len(rewards.by_name) > 1 else {}
    shown = []
    for b in range(min(count, batch.num_prompts) if batch.group_size else 0):
        rows = range(b * batch.group_size, (b + 1) * batch.group_size)
        prompt = batch.prompts[b]
        warmups = [
            {
                "warmup": decode(batch.warmups[row].ids),
                "finish": batch.warmups[row].finish,
                "warmup_logprob": scores.warmup_logprob[row].item(),
                "target_logprob": scores.target_logprob[row].item(),
                "reward": rewards.total[row].item(),
                **({"rewards": {name: values[row].item() for name, values in several.items()}} if several else {}),
                "posterior": weights.posterior[b, i].item(),
            }
            for i, row in enumerate(rows)
        ]
        text = {"id": prompt["id"], "prompt": prompt["prompt"], "target": prompt["target"]}
        shown.append({**text, "warmups": sorted(warmups, key=lambda w: -w["posterior"])})
    return shown


def table_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of warmups.jsonl as a flat table for trackers: a row per warmup, the same columns in each."""
    rows = []
    for group in records:
        known = {"step": group["step"], "prompt": flat(group["prompt"]), "target": group["target"]}
        for w in group["warmups"]:
            by_name = {f"rewards/{name}": value for name, value in w.get("rewards", {}).items()}
            numbers = {key: w[key] for key in ("target_logprob", "posterior")}
            rows.append({**known, "warmup": w["warmup"], "reward": w["reward"], **by_name, **numbers})
    return rows


def format_sample(sample: dict[str, Any]) -> str:
    """One group of `sample_table` as text for the terminal, highest posterior weight first."""

    def short(text: str) -> str:
        text = " ".join(text.split())
        return text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 1] + "…"

    lines = [f"  prompt  {short(flat(sample['prompt']))}\n  target  {short(sample['target'])}"]
    names = [name for name in sample["warmups"][0].get("rewards", {}) if name != "target_logprob"]
    lines.append("  ".join(["  posterior  log P(y|x,c)  log P(c|x)", *names, "warmup"]))
    for w in sample["warmups"]:
        forced = " (cut)" if w["finish"] == "length" else ""
        rewards = "".join(f"  {w['rewards'][name]:>{len(name)}.2f}" for name in names)
        numbers = f"{w['posterior']:>9.2f}  {w['target_logprob']:>12.2f}  {w['warmup_logprob']:>10.2f}{rewards}"
        lines.append(f"  {numbers}  {short(w['warmup'])}{forced}")
    return "\n".join(lines)
