"""From a recipe's words to a reward: `{name, weight, kwargs}`, or the name alone.

Knows: the table of built-in rewards, modules, files, entry points. Must not know: batches.
A name is looked up in this order: built in; `package.module:function`; `path/to/file.py:function`; an entry point of
the group `rl_warmup.rewards` of any installed package.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from rl_warmup.rewards.reward import BY_KEYWORD, VARIADIC, Reward
from rl_warmup.rewards.shaping import LengthPenalty, prompt_overlap
from rl_warmup.rewards.target_logprob import TargetLogProb, gain, target_logprob_per_token

BUILT_IN: dict[str, Callable[..., Any]] = {
    "target_logprob": TargetLogProb,
    "target_logprob_per_token": target_logprob_per_token,
    "gain": gain,
    "length_penalty": LengthPenalty,
    "prompt_overlap": prompt_overlap,
}
ENTRY_POINTS = "rl_warmup.rewards"
KEYS = ("name", "weight", "kwargs")
OWN = "Own functions are named `package.module:function` or `path/to/file.py:function`."


def load_reward(spec: Any) -> Reward:
    """The reward that a recipe's entry describes.

    Args:
        spec: a name, `{"name": ..., "weight": 1.0, "kwargs": {}}`, a callable, or a finished `Reward`. A class is
            instantiated with kwargs, a function has them bound. A function that has no parameter left then cannot see
            any warmup, so it is taken for a factory (TRL's `get_soft_overlong_punishment`) and called.

    Raises:
        ValueError: saying what was given, what is allowed, what to do.
    """
    if isinstance(spec, Reward):
        return spec
    if callable(spec):
        name = _name_of(spec)
        return Reward(name, 1.0, _built(name, spec, {}))
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise ValueError(
            f"A reward is {spec!r}; give a name, a mapping with the keys {', '.join(KEYS)}, or a function."
        )
    if unknown := [key for key in spec if key not in KEYS]:
        raise ValueError(f"The reward {dict(spec)} has the key {unknown[0]!r}; allowed are {', '.join(KEYS)}.")
    if not isinstance(spec.get("name"), str) or not spec["name"]:
        raise ValueError(
            f"The reward {dict(spec)} needs a `name`: a non-empty string, one of {', '.join(BUILT_IN)}. {OWN}"
        )
    kwargs = spec.get("kwargs", {})
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise ValueError(
            f"The kwargs of reward {spec['name']!r} are {kwargs!r}; give a mapping of argument names to values."
        )
    found, name = _look_up(spec["name"])
    return Reward(name, spec.get("weight", 1.0), _built(name, found, dict(kwargs)))


def _look_up(name: str) -> tuple[Any, str]:
    """What a name stands for, and the short name under which it is logged."""
    if name in BUILT_IN:
        return BUILT_IN[name], name
    place, colon, attribute = name.rpartition(":")
    if colon and place and attribute:
        module = _file(place, name) if place.endswith(".py") else _module(place, name)
        if not hasattr(module, attribute):
            found = difflib.get_close_matches(attribute, dir(module), 1)
            hint = f" Did you mean {found[0]!r}?" if found else ""
            raise ValueError(f"The reward {name!r}: {place} has no {attribute!r}.{hint}")
        return getattr(module, attribute), attribute
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in points:
        known = sorted({*BUILT_IN, *points})
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"There is no reward {name!r}. {hint}Known are {', '.join(known)}. {OWN}")
    try:
        return points[name].load(), name
    except Exception as error:
        raise ValueError(
            f"The reward {name!r} is the entry point {points[name].value!r}, which fails to load "
            f"({type(error).__name__}: {error}). Repair or reinstall that package."
        ) from error


def _module(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:
        raise ValueError(
            f"The reward {name!r}: the module {place!r} cannot be imported ({type(error).__name__}: {error}). It has "
            f"to be installed or on PYTHONPATH; a file is named by its path, `path/to/file.py:function`."
        ) from error


def _file(place: str, name: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ValueError(
            f"The reward {name!r}: there is no file {path}. Give a path relative to the working directory."
        )
    module_name = f"rl_warmup_reward_file_{path.stem}_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"The reward {name!r}: {path} fails to run ({type(error).__name__}: {error}).") from error
    return module


def _built(name: str, found: Any, kwargs: dict[str, Any]) -> Any:
    """A class instantiated, a factory called, a function with its kwargs bound; anything else as it is."""
    if inspect.isclass(found):
        return _called(name, found, kwargs)
    if not callable(found):
        return found  # Reward says what is wrong
    parameters = inspect.signature(found).parameters.values()
    named = [p.name for p in parameters if p.kind in BY_KEYWORD]
    if not any(p.kind in VARIADIC for p in parameters):
        if unknown := [key for key in kwargs if key not in named]:
            raise ValueError(
                f"The reward {name!r} takes no argument {unknown[0]!r}; it takes {', '.join(named) or 'none'}. "
                f"Correct its `kwargs`."
            )
        if kwargs and set(named) == set(kwargs) and len(named) == len(parameters):
            return _called(name, found, kwargs)
    return functools.partial(found, **kwargs) if kwargs else found


def _called(name: str, found: Any, kwargs: dict[str, Any]) -> Any:
    try:
        return found(**kwargs)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "none"
        raise ValueError(
            f"The reward {name!r} cannot be made with the kwargs given ({given}): {type(error).__name__}: {error}"
        ) from error


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        return _name_of(function.func)
    return getattr(function, "__name__", type(function).__name__)
