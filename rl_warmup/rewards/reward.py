"""One reward: a name, a weight, a function and its arguments, and what to do when it fails.

Knows: signatures. Must not know: where functions come from, or what they compute.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from rl_warmup.plugins import BY_KEYWORD, VARIADIC
from rl_warmup.rewards.arguments import CHEAP, ON_REQUEST, Arguments, as_messages

POLICIES = ("raise", "skip", "zero")
TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class Reward:
    """A term `weight * function(...)` of the score of a warmup.

    `function` is called with keywords only (see `protocol`) and returns a list with one number or None per warmup; it
    may be a coroutine function. If it has a method `prepare(tokenizer, layout, constraints, device)`, that is called once
    before training. A Reward can be called like TRL's reward functions, so TRL's trainers accept it; TRL then applies weights.

    Raises ValueError for a field of the wrong type or outside its range.
    """

    name: str
    weight: float
    function: Callable[..., Any]
    # What to do with NaN, infinity, a wrong number of values, an exception or a time-out. `raise` stops the run; `skip` leaves
    # this term out for all warmups of the prompts concerned, so that a group stays comparable; `zero` counts 0.
    on_failure: str = "raise"
    timeout: float | None = TIMEOUT  # seconds for one call; None for no limit
    messages: bool = False  # give prompts and completions as messages, to functions that expect conversations

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"A reward's name has to be a non-empty string, not {self.name!r}.")
        if not callable(self.function):
            raise ValueError(
                f"Reward {self.name!r} is {self.function!r}, which cannot be called; give a function or class."
            )
        timed = self.timeout is None or (_is_number(self.timeout) and self.timeout > 0)
        for what, value, fine, remedy in (
            ("The weight", self.weight, _is_number(self.weight), "give a finite number (negative: penalty)"),
            ("on_failure", self.on_failure, self.on_failure in POLICIES, f"allowed are {', '.join(POLICIES)}"),
            ("The timeout", self.timeout, timed, "give seconds above 0, or null for none"),
            ("messages", self.messages, isinstance(self.messages, bool), "give true or false"),
        ):
            if not fine:
                raise ValueError(f"{what} of reward {self.name!r} is {value!r}; {remedy}.")

    @cached_property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    @cached_property
    def parameters(self) -> list[inspect.Parameter]:
        """Parameters of the function; those that the recipe's kwargs fill have a default."""
        try:
            return list(inspect.signature(self.function).parameters.values())
        except ValueError as error:  # some functions written in C have no signature
            raise ValueError(f"Reward {self.name!r} has no signature; wrap it in a function of your own.") from error

    @cached_property
    def asks_for(self) -> frozenset[str]:
        """Names of the parameters, without those that the recipe's kwargs fill."""
        return frozenset(p.name for p in self.parameters if p.kind in BY_KEYWORD and p.name not in self._fixed)

    @property
    def takes_everything(self) -> bool:
        """Whether it has **kwargs: then it also gets all cheap arguments."""
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters)

    @property
    def _fixed(self) -> dict[str, Any]:
        return self.function.keywords if isinstance(self.function, functools.partial) else {}

    def arguments(self, offered: Arguments) -> dict[str, Any]:
        """The keyword arguments of one call: those in the signature; with **kwargs also all cheap ones.

        Raises ValueError: a parameter without a default that no argument fills.
        """
        on_offer = [name for name in (*offered.names, *offered.columns) if name not in self._fixed]
        for p in self.parameters:
            needed = p.default is p.empty and p.kind not in VARIADIC
            if needed and p.name not in self._fixed and not (p.name in self.asks_for and p.name in on_offer):
                if p.name in offered.absent:
                    needs = f"Reward {self.name!r} needs {p.name!r}, which needs a model, and none is given."
                    raise ValueError(f"{needs} Give one (--model).")
                near = get_close_matches(p.name, (*offered.columns, *CHEAP, *ON_REQUEST), 1, 0.8)
                raise ValueError(
                    f"Reward {self.name!r} needs an argument {p.name!r}, which is neither in its `kwargs`, nor a column of the "
                    f"data ({', '.join(offered.columns) or 'none'}), nor one of {', '.join((*CHEAP, *ON_REQUEST))}."
                    + (f" Did you mean {near[0]!r}?" if near else "")
                )
        wanted = [n for n in on_offer if n in self.asks_for or (self.takes_everything and n not in ON_REQUEST)]
        values = {name: _own(offered[name]) for name in wanted}
        if self.messages:
            roles = {"prompts": "user", "completions": "assistant"}
            values |= {n: as_messages(values[n], role) for n, role in roles.items() if n in values}
        return values

    @property
    def __name__(self) -> str:
        """The name in TRL's log."""
        return self.name

    def __call__(self, **given: Any) -> Any:
        """Call the function as TRL does, with those of the given arguments that it takes."""
        names = self.asks_for | (given.keys() - self._fixed.keys() if self.takes_everything else set())
        return self.function(**{name: value for name, value in given.items() if name in names})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _own(value: Any) -> Any:
    """Lists, and all that is in them, as copies: what a reward changes, no other reward and no log must see."""
    return [copy.deepcopy(one) for one in value] if isinstance(value, list) else value
