"""A sweep file, read and checked: the question in words, what varies, and the metric that answers it."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rl_warmup.runtime.recipe_file import read_yaml
from rl_warmup.runtime.shipped import find_recipe
from rl_warmup.runtime.values import unknown

OWN = ""  # a run's own warmups, in metrics.json
WARMUPS = {
    "own": OWN, "shuffled": "shuffled", "none": "empty_warmup", "empty_warmup": "empty_warmup", "filler": "filler",
    "sampled": "sampled", "rerank": "rerank",
}  # fmt: skip
SAMPLERS = ("random", "tpe")
PRUNERS = ("median", "percentile", "halving", "hyperband")
# settings that every run of a sweep is given its own value of, so that one in the file would be overwritten
GIVEN = {
    "output_dir": "every run has a folder of its own", "seed": "list seeds under `seeds`",
    "resume_from_checkpoint": "a run that was cut off goes on by itself", "show_progress": "the sweep shows its own line",
}  # fmt: skip
MANY = 10_000  # arms or seeds; more are a slip of the pen
ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]*")
HELP = {
    "question": "what the sweep is to find out, in words",
    "base": "the recipe every run starts from, relative to this file",
    "seeds": "[seed, ...] of every arm, or how many; or {arm: such a list or number}, for every arm",
    "metric": "the metric that answers the question, e.g. exact_match",
    "control": "the arm that all others are compared with",
    "launch": "how a run is started, e.g. `accelerate launch --num_processes 2`",
    "grid": "{setting: [value, ...]}; every combination is an arm",
    "runs": "{arm: {setting: value, ...}}; arms one by one",
    "equal_compute": "{arm: {like: ARM, seconds_of: ARM}}; `like` again, with as many updates as take 1.1 times the seconds",
    "random": "{setting: [value, ...] or {low, high, log, step}}; `trials` arms are drawn",
    "settings": "settings of the recipe that every run changes",
}
NEEDED, TEXTS = ("question", "base", "seeds", "metric"), ("question", "base", "metric", "control", "launch")
MAPPINGS = ("grid", "runs", "equal_compute", "random", "settings")


@dataclass
class Question:
    """One sweep file. Fields are its keys, but for `name`, which is the file's, and `seeds_by_arm`."""

    name: str
    question: str
    base: Path
    metric: str
    seeds: list[int]  # of any arm
    seeds_by_arm: dict[str, list[int]] = field(default_factory=dict)  # where the arms have different ones
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    equal_compute: dict[str, dict[str, str]] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    trials: int = 0  # how many arms `random` draws
    sampler: str = "random"  # all arms drawn beforehand; tpe: each from what is known so far
    pruner: dict[str, Any] | None = None  # ends runs without prospects early
    direction: str | None = None  # None: as the metric is usually read
    warmups: list[str] = field(default_factory=lambda: [OWN])  # as metrics.json names them
    control: str | None = None
    launch: str | None = None

    def seeds_of(self, arm: str) -> list[int]:
        return self.seeds_by_arm.get(arm, self.seeds)


KEYS = [f.name for f in fields(Question) if f.name not in ("name", "seeds_by_arm")]


def read_question(path: str | Path) -> Question:
    """A sweep file; ValueError names every key that is unknown (with the nearest known one), missing, or of a wrong kind."""
    path = find_recipe(path, "sweep file")
    values = read_yaml(path, "sweep file")
    faults = [*_faults_of_kinds(values)]
    if all(isinstance(values[key], dict) for key in MAPPINGS if key in values):
        faults += _faults_of_variation(values)
    faults += [*_faults_of_choices(values), *_faults_of_given(values)]
    base = path.parent / str(values.get("base", ""))
    if isinstance(values.get("base"), str) and not base.is_file():
        try:
            base = find_recipe(values["base"])
        except ValueError as error:
            faults.append(f"base: {error} A path may be relative to {path}.")
    asked = values.get("seeds") or 1
    by_arm = {arm: _seeds(some) for arm, some in asked.items()} if isinstance(asked, dict) else {}
    seeds = list(dict.fromkeys(itertools.chain(*by_arm.values()))) if by_arm else _seeds(asked)
    if not seeds or not all(by_arm.values()):
        said = f"seeds: {asked!r:.80} must be a list of different whole numbers from 0 to {2**32 - 1}"
        faults.append(f"{said}, or how many (1 to {MANY}), or a mapping of such lists or numbers by arm.")
    if faults:
        several = " cannot be used:\n  - " if len(faults) > 1 else ": "
        raise ValueError(f"{path}{several}" + "\n  - ".join(faults))
    pruner, warmups = values.get("pruner"), values.get("warmups") or "own"
    read_here = ("question", "base", "metric", "seeds", "pruner", "warmups")
    return Question(
        name=path.stem, question=str(values["question"]).strip(), base=base,
        metric=str(values["metric"]), seeds=seeds, seeds_by_arm=by_arm,
        pruner={"name": pruner} if isinstance(pruner, str) else pruner,
        warmups=[WARMUPS[name] for name in (warmups if isinstance(warmups, list) else [warmups])],
        **{key: value for key, value in values.items() if value and key not in read_here},
    )  # fmt: skip


def _seeds(given: Any) -> list[int]:
    """The seeds that a list, or a number of them, names; none where it names none that can be used."""
    seeds = list(range(1, given + 1)) if type(given) is int and 0 < given <= MANY else given
    whole = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    return seeds if whole and len(set(seeds)) == len(seeds) <= MANY else []


def _faults_of_kinds(values: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are unknown, missing, or neither the text nor the mapping they have to be."""
    for key in [key for key in values if key not in KEYS]:
        near = difflib.get_close_matches(key, KEYS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(KEYS)}."
        yield f"{key!r} is no key of a sweep file. {hint}"
    yield from (f"{key} is missing: {HELP[key]}." for key in NEEDED if not values.get(key))
    for key in TEXTS:
        if values.get(key) and not isinstance(values[key], str):
            yield f"{key}: {values[key]!r:.80} is not a text; give {HELP[key]}."
    for key in MAPPINGS:
        if key in values and not isinstance(values[key], dict):
            yield f"{key}: must be a mapping, {HELP[key]}."


def _faults_of_variation(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with grid, runs, equal_compute and random, which are mappings."""
    grid, runs, compared, ranges = (values.get(key) or {} for key in ("grid", "runs", "equal_compute", "random"))
    if not (grid or runs or ranges):
        yield "nothing varies: give a grid, runs or random ranges that hold something."
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            yield f"grid: {key} has no list of values; write `{key}: [a, b]`."
        elif any(isinstance(choice, dict) for choice in choices):
            yield f"grid: {key} has mappings as values, which give no readable name; list such arms under runs."
    many = math.prod(len(choices) for choices in grid.values() if isinstance(choices, list))
    if many > MANY:
        yield f"grid: has {many:.3g} combinations, must be at most {MANY}. Give fewer values, or random ranges."
    for key, arms in (("runs", runs), ("equal_compute", compared)):
        wrong = [name for name in arms if not ARM.fullmatch(name)]
        yield from (f"{key}: {name!r} names a folder; use letters, digits and _ . = , + - only." for name in wrong)
    for name, changes in runs.items():
        if not isinstance(changes, dict):
            yield f"runs: {name} must be a mapping of settings; {{}} is the base itself."
    for name, rule in compared.items():
        known = isinstance(rule, dict) and rule.keys() == {"like", "seconds_of"}
        if not known or not all(isinstance(arm, str) and arm not in compared for arm in rule.values()):
            yield f"equal_compute: {name} must be {{like: ARM, seconds_of: ARM}}, with arms of runs or of the grid."
    yield from filter(None, (_range_fault(key, given) for key, given in ranges.items()))
    trials = values.get("trials")
    if ranges and not (type(trials) is int and 0 < trials <= MANY):
        yield f"trials: random ranges need a number of arms to draw, e.g. `trials: 12` (at most {MANY})."
    if trials and not ranges:
        yield "trials: is for random ranges; a grid and runs say by themselves how many there are."


def _range_fault(key: str, given: Any) -> str:
    if isinstance(given, list) and given:
        return ""
    if isinstance(given, dict) and {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        given = {"log": False, "step": None, **given}
        for name in ("low", "high") if given["step"] is None else ("low", "high", "step"):
            if not _is_number(given[name]):
                return f"random: {key} has {given[name]!r:.40} as {name}. Give a number."
        if not isinstance(given["log"], bool):
            return f"random: {key} has {given['log']!r:.40} as log. Give true or false."
        low, high, step = float(given["low"]), float(given["high"]), float(given["step"] or 1)
        if not 0 < step < math.inf or given["step"] == 0:
            return f"random: {key} has {given['step']!r:.40} as step. Give a number above 0."
        if not (math.isfinite(low) and math.isfinite(high)) or low > high or (given["log"] and low <= 0):
            return f"random: {key} runs from {low:g} to {high:g}; low must not exceed high, and be above 0 with log."
        return f"random: {key} cannot have both log and step." if given["log"] and given["step"] else ""
    return f"random: {key} must be a list of values or {{low, high}}, with log: true or step if wanted."


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or a text that is one, as YAML reads 1e-4."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool)


def _faults_of_choices(values: Mapping[str, Any]) -> Iterator[str]:
    """Words that are none of those allowed."""
    pruner, warmups = values.get("pruner"), values.get("warmups") or []
    asked = [
        ("sampler", values.get("sampler"), SAMPLERS),
        ("pruner", pruner.get("name") if isinstance(pruner, dict) else pruner, PRUNERS),
        ("direction", values.get("direction"), ("maximize", "minimize")),
        *(("warmups", name, tuple(WARMUPS)) for name in (warmups if isinstance(warmups, list) else [warmups])),
    ]
    for key, word, allowed in asked:
        if word not in allowed and (word is not None or key == "warmups"):
            yield unknown(key, word, allowed)
    if values.get("sampler") and not values.get("random"):
        yield "sampler: is for random ranges, and there are none."


def _faults_of_given(values: Mapping[str, Any]) -> Iterator[str]:
    """Settings that a sweep cannot vary or set, wherever they stand."""
    places = {key: values.get(key) for key in ("settings", "grid", "random")}
    if isinstance(values.get("runs"), dict):
        places |= {f"runs: {name}": changes for name, changes in values["runs"].items()}
    for place, changes in places.items():
        for key, why in GIVEN.items():
            if isinstance(changes, dict) and key in changes:
                yield f"{place}: {key} would have no effect, as {why}. Remove it."
