"""A sweep file, read and checked: the question in words, what varies, and the metric that answers it.

Knows: the keys of a sweep file. Must not know: recipes beyond their path, runs, Optuna. All faults are reported together.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_warmup.runtime.recipe_file import read_yaml

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
TEXTS = ("question", "base", "metric", "control", "launch")
ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]*")
HELP = {
    "question": "what the sweep is to find out, in words",
    "base": "the recipe every run starts from, relative to this file",
    "settings": "settings of the recipe that every run changes",
    "grid": "{setting: [value, ...]}; every combination is an arm",
    "runs": "{arm: {setting: value, ...}}; arms one by one",
    "random": "{setting: [value, ...] or {low, high, log, step}}; `trials` arms are drawn",
    "trials": "how many arms `random` draws",
    "sampler": "random (all drawn beforehand) or tpe (drawn from what is known so far)",
    "pruner": "median, percentile, halving or hyperband, or {name, ...its arguments}; ends hopeless runs early",
    "equal_compute": "{arm: {like: ARM, seconds_of: ARM}}; `like` again, with as many updates as take 1.1 times the seconds",
    "seeds": "[seed, ...] of every arm, or how many; or {arm: such a list or number}, for every arm",
    "metric": "the metric that answers the question, e.g. exact_match",
    "direction": "maximize or minimize the metric",
    "warmups": "which warmups at test: own, shuffled, none, filler, sampled, rerank; one or a list",
    "control": "the arm that all others are compared with",
    "launch": "how a run is started, e.g. `accelerate launch --num_processes 2`",
}


@dataclass
class Question:
    """One sweep file. Fields are its keys (`HELP`); `name` is the file's."""

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
    trials: int = 0
    sampler: str = "random"
    pruner: dict[str, Any] | None = None
    direction: str | None = None  # None: as the metric is usually read
    warmups: list[str] = field(default_factory=lambda: [OWN])  # as metrics.json names them
    control: str | None = None
    launch: str | None = None

    def seeds_of(self, arm: str) -> list[int]:
        """The seeds of one arm."""
        return self.seeds_by_arm.get(arm, self.seeds)


def read_question(path: str | Path) -> Question:
    """Read a sweep file.

    Raises:
        ValueError: naming every key that is unknown (with the nearest known one), missing, or of a wrong kind.
    """
    path = Path(path)
    values = read_yaml(path, "sweep file", "recipes/sweeps/")
    known = f" Known: {', '.join(HELP)}."
    faults = [f"{key!r} is no key of a sweep file.{_hint(key, HELP) or known}" for key in values if key not in HELP]
    faults += [
        f"{key} is missing: {HELP[key]}." for key in ("question", "base", "seeds", "metric") if not values.get(key)
    ]
    faults += [
        f"{key}: {values[key]!r:.80} is not a text; give {HELP[key]}."
        for key in TEXTS
        if values.get(key) and not isinstance(values[key], str)
    ]
    faults += _fault_of_variation(values) + _faults_of_choices(values) + _faults_of_given(values)
    base = Path(str(values.get("base", "")))
    beside = path.parent / base
    if isinstance(values.get("base"), str) and not (beside.is_file() or base.is_file()):
        faults.append(f"base: the recipe {beside} does not exist. Give its path relative to {path}.")
    asked_seeds = values.get("seeds") or 1
    by_arm = {str(arm): _seeds(some) for arm, some in asked_seeds.items()} if isinstance(asked_seeds, dict) else {}
    seeds = list(dict.fromkeys(itertools.chain(*by_arm.values()))) if by_arm else _seeds(asked_seeds)
    if not seeds or not all(by_arm.values()):
        faults.append(
            f"seeds: {asked_seeds!r:.80} must be a list of different whole numbers from 0 to {2**32 - 1}, or how many (1 to "
            f"{MANY}), or a mapping of such lists or numbers by arm."
        )
    if faults:
        text = faults[0] if len(faults) == 1 else "\n".join(f"  - {fault}" for fault in faults)
        raise ValueError(f"{path}: {text}" if len(faults) == 1 else f"{path} cannot be used:\n{text}")
    pruner, warmups = values.get("pruner"), values.get("warmups") or "own"
    read_here = ("question", "base", "metric", "seeds", "pruner", "warmups")
    return Question(
        name=path.stem, question=str(values["question"]).strip(), base=beside if beside.is_file() else base,
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


def _hint(word: Any, allowed: Iterable[str]) -> str:
    """The nearest allowed word, as a question; empty where none is near."""
    near = difflib.get_close_matches(str(word), allowed, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _faults_of_given(values: Mapping[str, Any]) -> list[str]:
    """Settings that a sweep cannot vary or set, wherever they stand."""
    arms = values.get("runs") if isinstance(values.get("runs"), dict) else {}
    places = {key: values.get(key) for key in ("settings", "grid", "random")}
    places |= {f"runs: {name}": changes for name, changes in (arms or {}).items()}
    return [
        f"{place}: {key} would have no effect, as {why}. Remove it."
        for place, changes in places.items()
        for key, why in GIVEN.items()
        if isinstance(changes, dict) and key in changes
    ]


def _fault_of_variation(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with grid, runs, random and settings."""
    faults = []
    for key in ("grid", "runs", "equal_compute", "random", "settings"):
        if key in values and not isinstance(values[key], dict):
            faults.append(f"{key}: must be a mapping, {HELP[key]}.")
    if faults:
        return faults
    if not any(values.get(key) for key in ("grid", "runs", "random")):
        faults.append("nothing varies: give a grid, runs or random ranges that hold something.")
    for key, choices in (values.get("grid") or {}).items():
        if not isinstance(choices, list) or not choices:
            faults.append(f"grid: {key} has no list of values; write `{key}: [a, b]`.")
        elif any(isinstance(choice, dict) for choice in choices):
            faults.append(
                f"grid: {key} has mappings as values, which give no readable name; list such arms under runs."
            )
    many = math.prod(len(choices) for choices in (values.get("grid") or {}).values() if isinstance(choices, list))
    if many > MANY:
        faults.append(
            f"grid: has {many:.3g} combinations, must be at most {MANY}. Give fewer values, or random ranges."
        )
    names = [str(name) for name in values.get("runs") or {}]
    faults += [f"runs: two arms are called {name}. Rename one." for name in set(names) if names.count(name) > 1]
    faults += [
        f"{key}: {name!r} names a folder; use letters, digits and _ . = , + - only."
        for key in ("runs", "equal_compute")
        for name in values.get(key) or {}
        if not ARM.fullmatch(str(name))
    ]
    for name, changes in (values.get("runs") or {}).items():
        if not isinstance(changes, dict):
            faults.append(f"runs: {name} must be a mapping of settings; {{}} is the base itself.")
    compared = values.get("equal_compute") or {}
    for name, rule in compared.items():
        known = isinstance(rule, dict) and rule.keys() == {"like", "seconds_of"}
        if not known or not all(isinstance(arm, str) and arm not in compared for arm in rule.values()):
            faults.append(
                f"equal_compute: {name} must be {{like: ARM, seconds_of: ARM}}, with arms of runs or of the grid."
            )
    faults += [_range_fault(key, given) for key, given in (values.get("random") or {}).items()]
    trials = values.get("trials")
    if values.get("random") and not (type(trials) is int and 0 < trials <= MANY):
        faults.append(f"trials: random ranges need a number of arms to draw, e.g. `trials: 12` (at most {MANY}).")
    if trials and not values.get("random"):
        faults.append("trials: is for random ranges; a grid and runs say by themselves how many there are.")
    return [fault for fault in faults if fault]


def _range_fault(key: str, given: Any) -> str:
    if isinstance(given, list) and given:
        return ""
    if isinstance(given, dict) and {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        try:
            low, high = float(given["low"]), float(given["high"])
        except (TypeError, ValueError, OverflowError):
            return f"random: {key} has bounds that are no numbers: {given['low']!r:.40}, {given['high']!r:.40}."
        if not (math.isfinite(low) and math.isfinite(high)) or low > high or (given.get("log") and low <= 0):
            return f"random: {key} runs from {low:g} to {high:g}; low must not exceed high, and be above 0 with log."
        return f"random: {key} cannot have both log and step." if given.get("log") and given.get("step") else ""
    return f"random: {key} must be a list of values or {{low, high}}, with log: true or step if wanted."


def _faults_of_choices(values: Mapping[str, Any]) -> list[str]:
    """Words that are none of those allowed."""
    faults = []
    pruner = values.get("pruner")
    named = pruner.get("name") if isinstance(pruner, dict) else pruner
    asked = values.get("warmups") or []
    chosen = [("warmups", w, tuple(WARMUPS)) for w in (asked if isinstance(asked, list) else [asked])]
    for key, value, allowed in [
        ("sampler", values.get("sampler"), SAMPLERS), ("pruner", named, PRUNERS),
        ("direction", values.get("direction"), ("maximize", "minimize")), *chosen,
    ]:  # fmt: skip
        if value is not None and value not in allowed:
            faults.append(f"{key}: {value!r} is not one of {', '.join(allowed)}.{_hint(value, allowed)}")
    if values.get("sampler") and not values.get("random"):
        faults.append("sampler: is for random ranges, and there are none.")
    return faults
