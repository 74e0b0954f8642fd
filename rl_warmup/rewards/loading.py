"""Loads the reward that a recipe describes: `{name, weight, kwargs, ...}`, or the name alone.

Knows: the built-in rewards. Must not know: batches. `plugins.py` finds other functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import Any

from rl_warmup.plugins import OWN, build_plugin, find_plugin, nearest, short_name
from rl_warmup.rewards.arguments import CHEAP, ON_REQUEST
from rl_warmup.rewards.classifier import Classifier
from rl_warmup.rewards.prediction_metrics import (
    PredictionMetric,
    ReasoningGymScore,
    SampledPredictionMetric,
    SampledReasoningGymScore,
)
from rl_warmup.rewards.reward import TIMEOUT, Reward
from rl_warmup.rewards.shaping import FormatRegex, LengthPenalty, Repetition, prompt_overlap, target_overlap
from rl_warmup.rewards.target_logprob import TargetLogProb, gain, target_logprob_per_token

BUILT_IN: dict[str, Callable[..., Any]] = {
    "target_logprob": TargetLogProb,
    "target_logprob_per_token": target_logprob_per_token,
    "gain": gain,
    "prediction_metric": PredictionMetric,
    "sampled_prediction_metric": SampledPredictionMetric,
    "reasoning_gym_score": ReasoningGymScore,
    "sampled_reasoning_gym_score": SampledReasoningGymScore,
    "classifier": Classifier,
    "length_penalty": LengthPenalty,
    "repetition": Repetition,
    "prompt_overlap": prompt_overlap,
    "target_overlap": target_overlap,
    "format_regex": FormatRegex,
}
OFFERED = (*CHEAP, *ON_REQUEST)
KEYS = ("name", "weight", "kwargs", "label", "on_failure", "timeout", "messages")


def weighted(specs: Sequence[Any], weights: Sequence[float] | None) -> list[Any]:
    """Rewards with these weights in the place of their own, in order; None leaves them.

    Raises:
        ValueError: another number of weights than of rewards, or a weight that is no number.
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Iterable):
        raise ValueError(f"reward_funcs: {specs!r:.80} is no list. Put it into one: reward_funcs=[...].")
    if weights is None:
        return list(specs)
    if not isinstance(weights, Sized) or isinstance(weights, str | Mapping):
        raise ValueError(f"reward_weights: {weights!r:.80} is no list. Give a number for each reward.")
    if len(weights) != len(specs):
        raise ValueError(f"reward_weights: {len(weights)} weights for {len(specs)} rewards. Give one for each.")
    return [replace(load_reward(spec), weight=weight) for spec, weight in zip(specs, weights, strict=True)]


def function_of(spec: Any) -> Any:
    """The function of a mapping whose name is one; anything else unchanged."""
    return spec["name"] if isinstance(spec, Mapping) and callable(spec.get("name")) else spec


def load_reward(spec: Any) -> Reward:
    """The reward that a recipe's entry describes. Raises ValueError: with what was given, what is allowed, what to do.

    Args:
        spec: a name, `{"name": ..., "weight": 1.0, "kwargs": {}, "label": ..., "on_failure": "raise", "timeout": 600.0,
            "messages": False}` (see `Reward`; `label` is the name in the log; in Python the name may be a function), a
            callable, or a `Reward`. `build_plugin` makes classes and factories.
    """
    if isinstance(spec, Reward):
        return spec
    if callable(spec):
        name = short_name(spec)
        return Reward(name, 1.0, build_plugin("reward", name, spec, offered=OFFERED))
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise ValueError(f"A reward is {spec!r}; give a name, a mapping with keys {', '.join(KEYS)}, or a function.")
    for key in spec:
        if key not in KEYS:
            hint = nearest(str(key), KEYS)
            raise ValueError(f"The reward {dict(spec)} has the key {key!r}; allowed are {', '.join(KEYS)}.{hint}")
    place: Any = spec.get("name")
    if callable(place):
        spec = {"label": short_name(place), **spec, "name": f"function {short_name(place)}"}
    kwargs = {} if spec.get("kwargs") is None else spec["kwargs"]
    if not callable(place) and (not isinstance(place, str) or not place):
        raise ValueError(f"The reward {dict(spec)} needs a `name`, a text: one of {', '.join(BUILT_IN)}. {OWN}")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise ValueError(f"The kwargs of reward {place!r} are {kwargs!r}; give a mapping of argument names to values.")
    found, short = (place, spec["label"]) if callable(place) else find_plugin("reward", place, BUILT_IN)
    place = spec["name"]
    return Reward(
        spec.get("label", short), spec.get("weight", 1.0), build_plugin("reward", place, found, kwargs, OFFERED),
        spec.get("on_failure", "raise"), spec.get("timeout", TIMEOUT), spec.get("messages", False),
    )  # fmt: skip
