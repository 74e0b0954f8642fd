"""One reward: a name, a weight and a function, and which arguments the function takes.

Knows: signatures. Must not know: where functions come from, or what they compute.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rl_warmup.rewards.arguments import CHEAP, ON_REQUEST, Arguments

BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Reward:
    """A term `weight * function(...)` of the score of a warmup.

    `function` is called with keywords only (see `arguments`) and returns a list with one number or None per warmup; it
    may be a coroutine function. Where it is an object with a method `prepare(tokenizer, layout, law, device)`, that is
    called once before training.

    Raises:
        ValueError: a name, weight or function of the wrong type.
    """

    name: str
    weight: float
    function: Callable[..., Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"A reward's name has to be a non-empty string, not {self.name!r}.")
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not math.isfinite(self.weight):
            raise ValueError(
                f"The weight of reward {self.name!r} is {self.weight!r}; give a finite number (negative for a penalty)."
            )
        if not callable(self.function):
            raise ValueError(
                f"Reward {self.name!r} is {self.function!r}, which cannot be called; give a function or class."
            )

    @cached_property
    def is_async(self) -> bool:
        """Whether calling the function gives something to await."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    def arguments(self, offered: Arguments) -> dict[str, Any]:
        """The keyword arguments of one call: what the signature names; with **kwargs also everything that is cheap.

        Raises:
            ValueError: a parameter without a default that nothing on offer fills.
        """
        parameters = inspect.signature(self.function).parameters.values()
        fixed = self.function.keywords if isinstance(self.function, functools.partial) else {}
        on_offer = [name for name in (*CHEAP, *ON_REQUEST, *offered.columns) if name not in fixed]
        named = {p.name for p in parameters if p.kind in BY_KEYWORD}
        for p in parameters:
            needed = p.default is p.empty and p.kind not in VARIADIC
            if needed and p.name not in fixed and not (p.name in named and p.name in on_offer):
                raise ValueError(
                    f"Reward {self.name!r} needs an argument {p.name!r}, which is neither in its `kwargs`, nor a "
                    f"column of the data ({', '.join(offered.columns) or 'none'}), nor one of "
                    f"{', '.join((*CHEAP, *ON_REQUEST))}."
                )
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        return {name: offered[name] for name in on_offer if name in named or (takes_all and name not in ON_REQUEST)}
