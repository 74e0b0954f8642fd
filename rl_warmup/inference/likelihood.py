"""Likelihood of the targets: the n-sample bound on log P(y|x), the gain of warmups, ranking of choices, mixtures.

Knows: a `WarmupGenerator`, encoded rows, scoring. Must not know: training, files. All numbers are nats, summed over a
target, unless named "per token".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_warmup.batch import Scores, Warmup, WarmupBatch
from rl_warmup.engine import enable_scoring, sample_warmups, score
from rl_warmup.inference.selection import mixture
from rl_warmup.method.diagnostics import token_overlap
from rl_warmup.method.objectives import log_mean_exp
from rl_warmup.models.layouts.splice import batch_of_groups, empty_rows
from rl_warmup.runtime.sharing import map_over_processes, uniforms

if TYPE_CHECKING:
    from rl_warmup.inference.generation import WarmupGenerator

COUNTS = (1, 2, 4, 8, 16)
LITTLE_OVERLAP, ENOUGH = 0.25, 0.05  # the gain at zero overlap is given if this share of warmups has so little overlap


@torch.no_grad()
def target_likelihood(
    warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]], counts: Sequence[int] = COUNTS, batch_size: int = 8,
    seed: int = 0, show_progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """log P(y|x) by the n-sample bound for every n, and without a warmup.

    Args:
        counts: group sizes n; each must divide the largest. The largest is sampled once; the smaller bounds are means over its
            disjoint parts, so that all use the same warmups.
        batch_size: prompts at a time. Each row has its own random stream, from `seed` and its place.

    Returns:
        `rows`, `tokens`; `without_warmup` and `bound[n]`: {mean, std_error (over rows), per_token}; `gain`: {mean, std_error,
        at_no_overlap, at_no_overlap_std_error}: the mean gain of a sampled warmup, and the intercept of a linear fit of gain on
        overlap with the target, the gain at zero overlap (None where too few warmups have little overlap). A model trained
        without warmups gets `without_warmup` alone.
    """
    enable_scoring(warmup_generator.model)
    largest = max(counts) if warmup_generator.mode == "policy" else 0
    if any(largest % n for n in counts):
        raise ValueError(f"counts: {list(counts)}: each must divide the largest.")

    def score_batch(start: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n) and (B,) log P(y|x,c) with sampled warmups and without; (B, n) overlap with the target."""
        places = range(start, min(start + batch_size, len(rows)))
        batch, scores = score_samples(warmup_generator, [rows[place] for place in places], places, largest, seed)
        logprob, drawn = scores.target_logprob.cpu(), batch.warmups[: len(places) * largest]
        targets = [rows[start + i // largest]["target_ids"] for i in range(len(drawn))]
        shares = [token_overlap(w.ids, target) if w.ids else 0.0 for w, target in zip(drawn, targets, strict=True)]
        shape = (len(places), largest)
        return logprob[: len(drawn)].view(shape), logprob[len(drawn) :], torch.tensor(shares).view(shape)

    starts = range(0, len(rows), batch_size)
    batches = map_over_processes(score_batch, starts, warmup_generator.shared, "Likelihood" if show_progress else "")
    grouped, empty, overlap = (torch.cat(parts) for parts in zip(*batches, strict=True))
    tokens = sum(len(row["target_ids"]) for row in rows)
    out: dict[str, Any] = {"rows": len(rows), "tokens": tokens, "without_warmup": _summary(empty, tokens)}
    if largest:
        bounds = {n: torch.stack([log_mean_exp(part) for part in grouped.split(n, 1)]).mean(0) for n in counts}
        out["bound"] = {n: _summary(bound, tokens) for n, bound in bounds.items()}
        out["gain"] = _gain(grouped - empty[:, None], overlap)
    return out


@torch.no_grad()
def rank_choices(
    warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]], warmups: Sequence[list[int]]
) -> list[int]:
    """The likeliest choice of every multiple-choice row: argmax_k log P(choice_k | x, c), one forward per row.

    Args:
        rows: encoded rows with `choices`; a choice is written in the style of the row's target (letter, `A) text` or text).
        warmups: ids of the warmup to read, one per row ([] is none).
    """
    enable_scoring(warmup_generator.model)

    def likeliest(place: int) -> int:
        row, ids = rows[place], warmups[place]
        texts = [_choice_text(row, k) for k in range(len(row["choices"]))]
        encoded = warmup_generator.tokenizer(texts, add_special_tokens=False)["input_ids"]
        prompts = [{**row, "target_ids": [*target, warmup_generator.layout.tokens.eos_id]} for target in encoded]
        warmup = Warmup(list(ids), "proposal" if ids else "empty")
        batch = batch_of_groups(warmup_generator.layout, prompts, [[warmup]] * len(prompts))
        return int(_score(warmup_generator, batch).target_logprob.argmax())

    return map_over_processes(likeliest, range(len(rows)), warmup_generator.shared)


@torch.no_grad()
def written_logprobs(
    warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], batch_size: int
) -> list[tuple[float, float]]:  # fmt: skip
    """log P(c|x) and log P(y|x,c) of what was written for each row; nats. A forced separator or end is not counted.

    A warmup that was given has the probability with which the model would have written it.
    """
    w = warmup_generator
    enable_scoring(w.model)
    written = [_as_target(w, row, prediction) for row, prediction in zip(rows, predictions, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt_ids"]) + len(written[i]["target_ids"]))

    def measure(start: int) -> list[tuple[float, float]]:
        chosen = order[start : start + batch_size]
        warmups = [[Warmup(predictions[i]["warmup_ids"], predictions[i]["warmup_finish"])] for i in chosen]
        scores = _score(w, batch_of_groups(w.layout, [written[i] for i in chosen], warmups))
        return list(zip(scores.warmup_logprob.tolist(), scores.target_logprob.tolist(), strict=True))

    batches = map_over_processes(measure, range(0, len(rows), batch_size), w.shared)
    found = [pair for batch in batches for pair in batch]
    return [pair for _, pair in sorted(zip(order, found, strict=True))]


@torch.no_grad()
def mixtures(
    warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]], candidates: Sequence[Sequence[dict[str, Any]]],
    batch_size: int,
) -> list[list[float]]:  # fmt: skip
    """For each row, log mean_i P(y|x,c_i) of each candidate's target over the warmups of all: an estimate of log P(y|x).

    So a target that is likely only after its own warmup does not win.

    Args:
        candidates: n lists of predictions, each in the order of the rows.
    """
    w, num = warmup_generator, len(candidates)
    enable_scoring(w.model)
    step = max(1, batch_size // num)

    def measure(start: int) -> list[list[float]]:
        targets: list[list[dict[str, Any]]] = []
        distinct: dict[tuple[int, ...], dict[str, Any]] = {}
        groups: dict[tuple[int, ...], list[Warmup]] = {}
        for place in range(start, min(start + step, len(rows))):
            own = [drawn[place] for drawn in candidates]
            group = [Warmup(c["warmup_ids"], c["warmup_finish"]) for c in own]
            targets.append([{**_as_target(w, rows[place], c), "place": place} for c in own])
            for target in targets[-1]:
                distinct[key := (target["place"], *target["target_ids"])] = target
                groups[key] = group
        batch = batch_of_groups(w.layout, list(distinct.values()), list(groups.values()))
        found = dict(zip(distinct, mixture(_score(w, batch).target_logprob.view(-1, num)), strict=True))
        return [[found[target["place"], *target["target_ids"]] for target in row] for row in targets]

    starts = range(0, len(rows), step)
    return [scores for batch in map_over_processes(measure, starts, w.shared) for scores in batch]


@torch.no_grad()
def mixed_logprobs(
    warmup_generator: WarmupGenerator,
    rows: Sequence[dict[str, Any]],
    warmups: Sequence[Sequence[Warmup]],
    batch_size: int,
) -> list[float]:
    """log mean_i P(y|x,c_i) of each row's target over its n warmups; nats.

    Args:
        rows: with `prompt_ids` and `target_ids`, all of which are scored; an end token is one of them only if it is there.
        warmups: n for each row.
    """
    w = warmup_generator
    enable_scoring(w.model)
    step = max(1, batch_size // len(warmups[0])) if rows else 1

    def measure(start: int) -> list[float]:
        batch = batch_of_groups(w.layout, rows[start : start + step], warmups[start : start + step])
        return mixture(_score(w, batch).target_logprob.view(-1, len(warmups[0])))

    return [value for part in map_over_processes(measure, range(0, len(rows), step), w.shared) for value in part]


def _as_target(warmup_generator: WarmupGenerator, row: dict[str, Any], prediction: dict[str, Any]) -> dict[str, Any]:
    """The row with what was written as its target, ended if it ended."""
    end = [warmup_generator.layout.tokens.eos_id] if prediction["prediction_finish"] == "end" else []
    return {"prompt_ids": row["prompt_ids"], "target_ids": [*prediction["prediction_ids"], *end]}


@torch.no_grad()
def score_samples(
    warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]], places: Sequence[int], size: int, seed: int
) -> tuple[WarmupBatch, Scores]:
    """Score each row with `size` sampled warmups and without one: B * size group rows, then B empty ones.

    Args:
        places: of the rows in their data set; with `seed` they determine the samples.
    """
    w, prompts = warmup_generator, [row["prompt_ids"] for row in rows]
    draws = uniforms("likelihood", seed, places, size, w.constraints.max_length)
    drawn = []
    if size:
        drawn = sample_warmups(w.model, w.layout, w.constraints, prompts, size, draws=draws)
    groups = [drawn[i * size : (i + 1) * size] for i in range(len(rows))]
    batch = batch_of_groups(w.layout, rows, groups, empty_rows(rows))
    return batch, _score(warmup_generator, batch)


def _score(warmup_generator: WarmupGenerator, batch: WarmupBatch) -> Scores:
    return score(warmup_generator.model, batch.to(warmup_generator.model.device), warmup_generator.constraints)


def _summary(values: Tensor, tokens: int) -> dict[str, float | None]:
    """Mean over rows with its standard error (None for a single row), and the sum per target token."""
    numbers = values.tolist()
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return {"mean": statistics.mean(numbers), "std_error": error, "per_token": sum(numbers) / tokens}


def _gain(gain: Tensor, overlap: Tensor) -> dict[str, float | None]:
    """The mean gain, and the intercept of a least-squares fit of gain on overlap, both with errors over rows."""
    mean = _summary(gain.mean(1), 1)
    out = {"mean": mean["mean"], "std_error": mean["std_error"], "at_no_overlap": None, "at_no_overlap_std_error": None}
    rows, x, y = len(gain), overlap.double(), gain.double()
    measured = (x < LITTLE_OVERLAP).double().mean() >= ENOUGH  # otherwise the intercept would be an extrapolation
    if rows > 2 and measured and (x - x.mean()).square().sum() > 1e-9:
        features = torch.stack([torch.ones_like(x), x], 2)  # (rows, n, 2)
        flat = features.flatten(0, 1)
        inverse = torch.linalg.inv(flat.T @ flat)
        line = inverse @ flat.T @ y.flatten()
        residual = y - features @ line
        per_row = (features * residual[:, :, None]).sum(1)  # a row's samples are not independent of each other
        covariance = inverse @ (per_row.T @ per_row) @ inverse * rows / (rows - 1)
        out["at_no_overlap"], out["at_no_overlap_std_error"] = line[0].item(), covariance[0, 0].sqrt().item()
    return out


def _choice_text(row: dict[str, Any], k: int) -> str:
    """Choice k in the row's `choices_style`, else in the style of its target."""
    letter, target, style = ascii_uppercase[k], row["target"], row.get("choices_style")
    if style is not None:
        return letter if style == "letter" else f"{letter}) {row['choices'][k]}"
    if len(target) == 1:
        return letter
    return f"{letter}) {row['choices'][k]}" if target[1:3] == ") " else row["choices"][k]
