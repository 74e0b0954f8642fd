"""Rewards tried on a file of warmups before they train anything: scores, spread, time, and mistakes.

Knows: rewards, a model where one is given, rows of a file. Must not know: training, flags.
Every row stands alone here (a group of one), as a file may hold any number of warmups per prompt; spread and correlation are
then taken within the prompts, because that is all the posterior sees.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_warmup.batch import Warmup, WarmupBatch
from rl_warmup.engine import enable_scoring, score
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.method.rollout import add_predictions, prediction_limit
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.encoding import HALF
from rl_warmup.models.inference_settings import Inference, read_layout
from rl_warmup.models.layouts import make_layout
from rl_warmup.models.layouts.splice import batch_of_groups, empty_rows
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens
from rl_warmup.rewards import PREDICTIONS, Reward, RewardSet
from rl_warmup.rewards.arguments import Arguments
from rl_warmup.rewards.calling import start
from rl_warmup.tasks.formats import Twice, once

NEEDED = ("prompt", "target", "warmup")
TINY = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
Row = dict[str, Any]


@dataclass
class Card:
    """What one reward did with the rows of a file."""

    name: str
    values: list[float | None] = field(default_factory=list)  # by row; None = not scored
    faults: list[str] = field(default_factory=list)  # what would stop a run
    notes: list[str] = field(default_factory=list)  # what is worth knowing
    seconds: float = 0.0  # in the function
    asked_seconds: float = 0.0  # for the arguments that it names: decoding, the baseline's forward, predictions


def read_warmups(path: str | Path) -> list[Row]:
    """Rows with `prompt`, `target` and `warmup`: one object a line, or a run's warmups.jsonl, whose groups are spread out.

    Raises:
        ValueError: no such file, a line that is no JSON object, or one whose values cannot be scored; names the line.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist. Give JSON lines with {', '.join(NEEDED)}, or a run's warmups.jsonl.")
    rows: list[Row] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=once)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: is no JSON ({error}).") from error
        except Twice as error:
            raise ValueError(
                f"{path}, line {number}: the key {str(error)!r} stands there twice. Remove one."
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: is no JSON object. Give one with {', '.join(NEEDED)}.")
        map_over_processes = [{**record, **w} for w in record.pop("warmups")] if "warmups" in record else [record]
        for row in map_over_processes:
            row.setdefault("id", f"line {number}")
            for key in NEEDED:
                if not isinstance(row.get(key), str):
                    raise ValueError(f"{path}, line {number}: {key!r} is {row.get(key)!r}; give a text.")
                if half := HALF.search(row[key]):
                    raise ValueError(
                        f"{path}, line {number}: {key!r} holds half a character ({half[0]!r}). Repair or remove it."
                    )
            if not isinstance(row.get("target_logprob"), int | float | None):
                raise ValueError(f"{path}, line {number}: 'target_logprob' is no number. Remove it, or give nats.")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows. Give JSON lines with {', '.join(NEEDED)}.")
    return rows


def open_model(name: str | None, rows: Sequence[Row]) -> WarmupGenerator:
    """A run folder, any model that training could start from, or for None a tokenizer of the file's words alone."""
    if name is not None and read_layout(name):
        return WarmupGenerator.load(name)
    texts = [row[key] for row in rows for key in NEEDED]
    model, tokenizer = load_model(name or "scratch-t5", lambda: texts, TINY)
    tokens = declare_tokens(model, tokenizer)
    settings = Inference(
        SamplingConstraints(tokens.separator_id, tokens.banned), tokens.separator, max_target_length=128
    )
    return WarmupGenerator(model.eval(), tokenizer, make_layout(model, tokens), settings)


class Bench:
    """Rows of a file, encoded and scored by a model where there is one.

    Args:
        has_model: whether the writer's network means anything; without, nothing that needs log-probabilities is on offer.
    """

    def __init__(
        self, warmup_generator: WarmupGenerator, rows: Sequence[Row], has_model: bool, batch_size: int = 32
    ) -> None:
        self.warmup_generator, self.has_model, self.batch_size = warmup_generator, has_model, batch_size
        self.prediction_seconds = 0.0
        enable_scoring(warmup_generator.model)
        not_columns = ("warmup", "finish", "warmup_logprob", "target_logprob", "posterior", "step")
        plain = [{k: v for k, v in row.items() if k not in not_columns} for row in rows]
        self.rows = warmup_generator.encoder().encode_all(plain, "file")
        self.warmups = [Warmup(self._ids(row), row.get("finish", "separator")) for row in rows]
        warmup_generator.check_room(self.rows, [warmup.ids for warmup in self.warmups])
        self.target_logprobs = [row.get("target_logprob") for row in rows]

    def _ids(self, row: Row) -> list[int]:
        ids = self.warmup_generator.tokenizer(row["warmup"], add_special_tokens=False)["input_ids"]
        kept = [
            i
            for i in ids
            if not self.warmup_generator.constraints.banned[i] and i != self.warmup_generator.constraints.separator_id
        ]
        # it would be scored as no warmup; one that a model drew (`finish`) may be so
        if row["warmup"].strip() and not kept and "finish" not in row:
            raise ValueError(
                f"{row['id']}: the warmup {row['warmup']!r:.60} has no token that a warmup may hold: to this tokenizer it is "
                f"unknown or special. Remove it, or give the --model in whose vocabulary it is written."
            )
        return kept

    def run(self, specs: Sequence[Any]) -> list[Card]:
        """A card for every reward; a reward that cannot be loaded gets one with its fault."""
        cards: list[Card] = []
        loaded: list[tuple[Reward, Card]] = []
        w = self.warmup_generator
        for spec in specs:
            try:
                board = RewardSet.load(
                    [spec], tokenizer=w.tokenizer, layout=w.layout, constraints=w.constraints, device=w.model.device
                )
            except ValueError as error:
                named = spec.get("label", spec.get("name")) if isinstance(spec, dict) else spec
                cards.append(Card(str(named), [None] * len(self.rows), [str(error)]))
                continue
            card = Card(board.rewards[0].name)
            if any(card.name == other.name for other in cards):
                card.faults.append(f"The name {card.name!r} is taken by another reward: give one of them a `label`.")
            cards.append(card)
            loaded.append((board.rewards[0], card))
        for begin in range(0, len(self.rows), self.batch_size):
            offer = self._offer(slice(begin, begin + self.batch_size), [reward for reward, _ in loaded])
            for reward, card in loaded:
                _judge(reward, card, offer, thorough=begin == 0)
        for _, card in loaded:
            _look_at_spread(card, self.prompts())
        return cards

    def prompts(self) -> list[tuple[str, str]]:
        """By row, what the warmups of one prompt share."""
        return [(str(row["prompt"]), row["target"]) for row in self.rows]

    @torch.no_grad()
    def _offer(self, part: slice, rewards: list[Reward]) -> Callable[[int | None], Arguments]:
        """Makes the arguments for the first so many rows of a part, or all of them; networks run once."""
        w, rows, warmups = self.warmup_generator, self.rows[part], self.warmups[part]
        wanted = tuple(n for n in PREDICTIONS if self.has_model and any(n in reward.asks_for for reward in rewards))
        began = time.perf_counter()
        ids = [row["prompt_ids"] for row in rows]
        limit = prediction_limit(rows, w.settings.max_target_length)
        warmups = add_predictions(w.model, w.layout, w.constraints, ids, warmups, limit, wanted)
        self.prediction_seconds += (time.perf_counter() - began) if wanted else 0.0
        whole = batch_of_groups(w.layout, rows, [[warmup] for warmup in warmups])
        scores = score(w.model, whole.to(w.model.device), w.constraints) if self.has_model else None
        if scores is not None:
            self.target_logprobs[part] = scores.target_logprob.tolist()

        def baseline() -> Tensor:
            empty = batch_of_groups(w.layout, rows, [], empty_rows(rows))
            return score(w.model, empty.to(w.model.device), w.constraints).target_logprob

        def offer(count: int | None = None) -> Arguments:
            batch: WarmupBatch = whole
            if count is not None:
                batch = batch_of_groups(w.layout, rows[:count], [[warmup] for warmup in warmups[:count]])
            if scores is None:
                return Arguments(batch, w.tokenizer, None, None, None)
            tokens = scores.token_logps[:count, : batch.seq_ids.size(1)]
            logps = (scores.target_logprob[:count], tokens, scores.warmup_logprob[:count])
            return Arguments(batch, w.tokenizer, *logps, lambda: baseline()[:count])

        return offer


def _judge(reward: Reward, card: Card, offer: Callable[..., Arguments], thorough: bool) -> None:
    """Call a reward on a part of the file; the first part also shows whether it is fit for the protocol."""
    offered = offer()
    size = len(offered.batch.warmups)
    began = time.perf_counter()
    try:
        arguments = reward.arguments(offered)
    except ValueError as error:
        if str(error) not in card.faults:
            card.faults.append(str(error))
        card.values += [None] * size
        return
    ready = time.perf_counter()
    texts = {k: copy.deepcopy(v) for k, v in arguments.items() if k not in ("batch", "trainer_state")}
    called = time.perf_counter()
    outcome = start(reward, arguments, offered)()
    card.seconds += time.perf_counter() - called
    card.asked_seconds += ready - began
    if outcome.fault is not None:
        card.faults.append(outcome.fault)
    values = outcome.values.tolist()
    card.values += [None if math.isnan(value) else value for value in values]
    if changed := [name for name, before in texts.items() if arguments[name] != before]:
        card.faults.append(f"Reward {card.name!r} changes its argument {changed[0]!r} in place, which others get too.")
    if not thorough or outcome.fault is not None:
        return
    function = getattr(reward.function, "func", reward.function)  # under the kwargs of a recipe
    if not reward.takes_everything and not str(getattr(function, "__module__", "")).startswith("rl_warmup."):
        card.notes.append("takes no **kwargs, so TRL's trainers need it through `load_reward`; here that is fine")
    again = start(reward, reward.arguments(offer()), offered)().values
    if not _same(again, outcome.values):
        card.notes.append("two calls with the same rows gave different numbers")
    elif size > 1:
        half = offer(size // 2)
        part = start(reward, reward.arguments(half), half)().values
        if not _same(part, outcome.values[: size // 2]):
            card.notes.append("a row's number depends on the rows beside it")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _look_at_spread(card: Card, prompts: Sequence[Any]) -> None:
    unscored = sum(value is None for value in card.values)
    if unscored and not card.faults:
        card.notes.append(f"leaves {unscored} of {len(card.values)} rows unscored (None)")
    if within(card.values, prompts) == 0 and not card.faults:
        card.notes.append("gives the warmups of one prompt the same number, so it cannot move the posterior")


def _centred(values: Sequence[float | None], prompts: Sequence[Any]) -> dict[int, float]:
    """By row, the difference to the mean of the prompt's scored rows; rows that are alone are left out."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        if value is not None:
            groups[prompts[i]].append(i)
    out: dict[int, float] = {}
    for members in groups.values():
        if len(members) > 1:
            mean = statistics.fmean(values[i] or 0.0 for i in members)
            out |= {i: (values[i] or 0.0) - mean for i in members}
    return out


def within(values: Sequence[float | None], prompts: Sequence[Any]) -> float | None:
    """Root mean square difference to the mean of the own prompt; None where no prompt has two scored warmups."""
    centred = list(_centred(values, prompts).values())
    return math.sqrt(statistics.fmean(c * c for c in centred)) if centred else None


def correlation(values: Sequence[float | None], others: Sequence[float | None], prompts: Sequence[Any]) -> float | None:
    """Pearson's correlation within prompts; None where one of both does not vary there."""
    both = [i for i, (v, o) in enumerate(zip(values, others, strict=True)) if v is not None and o is not None]
    keep = set(both)
    left, right = (
        _centred([v if i in keep else None for i, v in enumerate(side)], prompts) for side in (values, others)
    )
    pairs = [(left[i], right[i]) for i in left]
    xx, yy = sum(x * x for x, _ in pairs), sum(y * y for _, y in pairs)
    return sum(x * y for x, y in pairs) / math.sqrt(xx * yy) if xx and yy else None
