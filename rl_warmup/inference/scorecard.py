"""Tries rewards on a file of warmups before training: scores, spread, time, and faults.

Knows: rewards, a model if one is given, rows of a file. Must not know: training, flags.
Every row is a group of one, as a file may hold any number of warmups per prompt. Spread and correlation are computed within
prompts, because the posterior uses only these differences.
"""

from __future__ import annotations

import copy
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
from rl_warmup.models.chat import NONE
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
from rl_warmup.runtime.documents import records
from rl_warmup.tasks.conversations import conversation, flat

NEEDED = ("prompt", "target", "warmup")
TINY = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
Row = dict[str, Any]


@dataclass
class RewardResult:
    """The result of one reward on the rows of a file."""

    name: str
    values: list[float | None] = field(default_factory=list)  # by row; None = not scored
    faults: list[str] = field(default_factory=list)  # they would stop a run
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0  # in the function
    asked_seconds: float = 0.0  # for the arguments that it names: decoding, the baseline's forward, predictions


def read_warmups(path: str | Path) -> list[Row]:
    """Rows with `prompt`, `target` and `warmup`: one object a line, or a run's warmups.jsonl, one row for each warmup.

    Raises ValueError: no such file, a line that is no JSON object, or one whose values cannot be scored; names the line.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist. Give JSON lines with {', '.join(NEEDED)}, or a run's warmups.jsonl.")
    rows: list[Row] = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, record in records(lines, f"{path}, line ", f"Give an object with {', '.join(NEEDED)}."):
        group = record.pop("warmups", None)
        if group is not None and not (isinstance(group, list) and all(isinstance(one, dict) for one in group)):
            raise ValueError(
                f"{path}, line {number}: 'warmups' is no list of objects; give {{\"warmup\": a text}} for each."
            )
        for row in [record] if group is None else [{**record, **one} for one in group]:
            row.setdefault("id", f"line {number}")
            texts: tuple[str, ...] = NEEDED
            if isinstance(row.get("prompt"), list):
                row["prompt"], texts = conversation(row["prompt"], "prompt", f"{path}, line {number}"), NEEDED[1:]
            for key in texts:
                if not isinstance(row.get(key), str):
                    raise ValueError(f"{path}, line {number}: {key!r} is {row.get(key)!r:.80}; give a text.")
                if half := HALF.search(row[key]):
                    raise ValueError(f"{path}, line {number}: {key!r} holds half a character ({half[0]!r}). Remove it.")
            if not isinstance(row.get("target_logprob"), int | float | None):
                raise ValueError(f"{path}, line {number}: 'target_logprob' is no number. Remove it, or give nats.")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows. Give JSON lines with {', '.join(NEEDED)}.")
    return rows


def open_model(name: str | None, rows: Sequence[Row]) -> WarmupGenerator:
    """A run folder, any model that training could start from, or for None a tiny model whose tokens are the file's words."""
    if name is not None and read_layout(name):
        return WarmupGenerator.load(name)
    texts = [flat(row[key]) for row in rows for key in NEEDED]
    model, tokenizer = load_model(name or "scratch-t5", lambda: texts, TINY)
    tokens = declare_tokens(model, tokenizer)
    constraints = SamplingConstraints(tokens.separator_id, tokens.banned)
    template = None if tokenizer.chat_template else NONE  # of conversations
    settings = Inference(constraints, tokens.separator, max_target_length=128, chat_template=template)
    return WarmupGenerator(model.eval(), tokenizer, make_layout(model, tokens), settings)


class RewardTrial:
    """Rows of a file, encoded, and scored by a model; under the tiny random one (`has_model` False) rewards get no numbers."""

    def __init__(
        self, warmup_generator: WarmupGenerator, rows: Sequence[Row], has_model: bool, batch_size: int = 32
    ) -> None:
        self.warmup_generator, self.has_model, self.batch_size = warmup_generator, has_model, batch_size
        self.prediction_seconds = 0.0
        enable_scoring(warmup_generator.model)
        not_columns = ("warmup", "finish", "warmup_logprob", "target_logprob", "reward", "rewards", "posterior", "step")
        plain = [{k: v for k, v in row.items() if k not in not_columns} for row in rows]
        self.rows = warmup_generator.encoder().encode_all(plain, "file")
        self.warmups = [Warmup(self._ids(row), row.get("finish", "separator")) for row in rows]
        warmup_generator.check_room(self.rows, [warmup.ids for warmup in self.warmups])
        self.target_logprobs = [row.get("target_logprob") for row in rows]

    def _ids(self, row: Row) -> list[int]:
        ids = self.warmup_generator.tokenizer(row["warmup"], add_special_tokens=False)["input_ids"]
        kept = self.warmup_generator.constraints.allowed(ids)
        # it would be scored as no warmup; that is correct only for one that a model drew (`finish`)
        if row["warmup"].strip() and not kept and "finish" not in row:
            raise ValueError(
                f"{row['id']}: the warmup {row['warmup']!r:.60} has no token that a warmup may hold: all are unknown to this "
                f"tokenizer, or special. Remove it, or give the --model in whose vocabulary it is written."
            )
        return kept

    def run(self, specs: Sequence[Any]) -> list[RewardResult]:
        """A result for every reward; for one that cannot be loaded, a result with its fault."""
        results: list[RewardResult] = []
        loaded: list[tuple[Reward, RewardResult]] = []
        w = self.warmup_generator
        context: dict[str, Any] = {"tokenizer": w.tokenizer, "layout": w.layout, "constraints": w.constraints}
        for spec in specs:
            try:
                reward = RewardSet.load([spec], device=w.model.device, **context).rewards[0]
            except ValueError as error:
                name = spec.get("label", spec.get("name")) if isinstance(spec, dict) else spec
                results.append(RewardResult(str(name), [None] * len(self.rows), [str(error)]))
                continue
            result = RewardResult(reward.name)
            if any(result.name == other.name for other in results):
                result.faults.append(f"Another reward has the name {result.name!r}: give one of them a `label`.")
            results.append(result)
            loaded.append((reward, result))
        for begin in range(0, len(self.rows), self.batch_size):
            make = self._argument_maker(slice(begin, begin + self.batch_size), [reward for reward, _ in loaded])
            for reward, result in loaded:
                _score_part(reward, result, make, is_first=begin == 0)
        for result in results:
            if result.faults:
                continue
            if unscored := result.values.count(None):
                result.notes.append(f"leaves {unscored} of {len(result.values)} rows unscored (None)")
            if within(result.values, self.prompts()) == 0:
                result.notes.append("gives all warmups of a prompt the same number, so it cannot change the posterior")
        return results

    def prompts(self) -> list[tuple[str, str]]:
        """By row, prompt and target: equal for the warmups of one prompt."""
        return [(str(row["prompt"]), row["target"]) for row in self.rows]

    @torch.no_grad()
    def _argument_maker(self, part: slice, rewards: list[Reward]) -> Callable[[int | None], Arguments]:
        """A function that makes the arguments for the first rows of a part, or all of them; networks run once."""
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

        def make(count: int | None = None) -> Arguments:
            batch: WarmupBatch = whole
            if count is not None:
                batch = batch_of_groups(w.layout, rows[:count], [[warmup] for warmup in warmups[:count]])
            if scores is None:
                return Arguments(batch, w.tokenizer, None, None, None)
            tokens = scores.token_logps[:count, : batch.seq_ids.size(1)]
            logps = (scores.target_logprob[:count], tokens, scores.warmup_logprob[:count])
            return Arguments(batch, w.tokenizer, *logps, lambda: baseline()[:count])

        return make


def _score_part(reward: Reward, result: RewardResult, make: Callable[..., Arguments], is_first: bool) -> None:
    """Call a reward on a part of the file; on the first part also check how it behaves."""
    offered = make()
    size = len(offered.batch.warmups)
    began = time.perf_counter()
    try:
        arguments = reward.arguments(offered)
    except ValueError as error:
        if str(error) not in result.faults:
            result.faults.append(str(error))
        result.values += [None] * size
        return
    ready = time.perf_counter()
    texts = {k: copy.deepcopy(v) for k, v in arguments.items() if k not in ("batch", "trainer_state")}
    called = time.perf_counter()
    outcome = start(reward, arguments, offered)()
    result.seconds += time.perf_counter() - called
    result.asked_seconds += ready - began
    if outcome.fault is not None:
        result.faults.append(outcome.fault)
    result.values += [None if math.isnan(value) else value for value in outcome.values.tolist()]
    if changed := [name for name, before in texts.items() if arguments[name] != before]:
        result.faults.append(
            f"Reward {result.name!r} changes its argument {changed[0]!r}, which other trainers give to all rewards."
        )
    if not is_first or outcome.fault is not None:
        return
    function = getattr(reward.function, "func", reward.function)  # under the kwargs of a recipe
    if not reward.takes_everything and not str(getattr(function, "__module__", "")).startswith("rl_warmup."):
        result.notes.append("takes no **kwargs, so TRL's trainers need it through `load_reward`; here that is fine")
    fixed = getattr(reward.function, "keywords", {})
    if unnamed := sorted(set(fixed) - {p.name for p in reward.parameters}):
        result.notes.append(
            f"takes {unnamed[0]!r} of its kwargs by **kwargs alone, so a misspelt name would go unnoticed"
        )
    again = start(reward, reward.arguments(make()), offered)().values
    if not _same(again, outcome.values):
        result.notes.append("two calls with the same rows gave different numbers")
    elif size > 1:
        half = make(size // 2)
        part = start(reward, reward.arguments(half), half)().values
        if not _same(part, outcome.values[: size // 2]):
            result.notes.append("a row's number depends on the other rows")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _centred(values: Sequence[float | None], prompts: Sequence[Any]) -> dict[int, float]:
    """By row, the difference to the mean of the prompt's scored rows; without prompts of one scored row."""
    groups: dict[Any, dict[int, float]] = defaultdict(dict)
    for i, (value, prompt) in enumerate(zip(values, prompts, strict=True)):
        if value is not None:
            groups[prompt][i] = value
    means = [(members, statistics.fmean(members.values())) for members in groups.values() if len(members) > 1]
    return {i: value - mean for members, mean in means for i, value in members.items()}


def within(values: Sequence[float | None], prompts: Sequence[Any]) -> float | None:
    """Standard deviation within prompts (root mean square); None where no prompt has two scored warmups."""
    centred = list(_centred(values, prompts).values())
    return math.sqrt(statistics.fmean(c * c for c in centred)) if centred else None


def correlation(values: Sequence[float | None], others: Sequence[float | None], prompts: Sequence[Any]) -> float | None:
    """Pearson's correlation within prompts; None where one of them does not vary there, or for two warmups (always 1 or -1)."""
    both = list(zip(values, others, strict=True))
    left = _centred([None if other is None else value for value, other in both], prompts)
    right = _centred([None if value is None else other for value, other in both], prompts)
    if len(left) < 3:
        return None
    try:
        return statistics.correlation(list(left.values()), [right[i] for i in left])
    except statistics.StatisticsError:  # a constant
        return None
