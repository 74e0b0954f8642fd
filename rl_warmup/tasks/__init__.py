"""Knows the tasks by name and loads them; must not know torch, tokenizers or trainers.

    task = load_task("ledger", length=8)
    task.splits["train"][0]  # {"id": "train-0", "prompt": "a+3 b+1 ...", "target": "... b=4 a=3"}

Your own task is a function that returns a `Task`; `plugins` finds it.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from rl_warmup.plugins import contained, find_plugin
from rl_warmup.runtime.settings import shown
from rl_warmup.runtime.values import alternatives, argument_fault
from rl_warmup.tasks.columns import nearest
from rl_warmup.tasks.rows import SPLITS, Row, Task, rows_hash

__all__ = ["SPLITS", "TASKS", "Row", "Task", "load_task", "rows_hash"]

_NAMES = ("ledger", "legs", "translation", "summarization", "multiple_choice", "file", "hub", "reasoning_gym")
TASKS = {name: f"rl_warmup.tasks.{'files' if name == 'file' else name}:load" for name in _NAMES}


def load_task(name: str, /, **task_kwargs: Any) -> Task:
    """The task of that name, with its keyword arguments (see `load` in the task's module).

    Args:
        name: a key of TASKS, or a plugin (see `plugins`): a function that returns a `Task`.

    Raises:
        ValueError: for an unknown name, an unknown or missing argument, faulty rows (see `Task`), or a plugin that fails or
            does not return a `Task`.
    """
    load, _ = find_plugin("task", name, TASKS)
    if name in TASKS:
        load, _ = find_plugin("task", TASKS[name], {})
    if not callable(load):
        raise ValueError(f"The task {name!r} is {load!r:.80}, which cannot be called; name a function or a class.")
    _check_kwargs(name, load, task_kwargs)
    try:
        with contained():
            task = load(**task_kwargs)
    except Exception as error:
        if name in TASKS and isinstance(error, ValueError | ImportError | OSError):
            raise  # has a sentence of its own
        raise ValueError(f"The task {name!r} failed with {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise ValueError(
            f"The task {name!r} returned {type(task).__name__} {task!r:.80}; return an rl_warmup.tasks.Task."
        )
    return task


def _check_kwargs(name: str, load: Callable[..., Any], given: dict[str, Any]) -> None:
    parameters = inspect.signature(load).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    allowed = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in given:
            if key not in allowed:
                raise ValueError(
                    f"task '{name}' has no argument '{key}'{nearest(key, allowed)}; "
                    f"allowed: {', '.join(allowed) or 'none'}"
                )
    _check_types(name, load, given)
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise ValueError(f"task '{name}' needs {', '.join(missing)}; allowed: {', '.join(allowed)}")


def _check_types(name: str, load: Callable[..., Any], given: dict[str, Any]) -> None:
    """Refuse what is not of the declared type; of a plugin only where that is a number or true/false."""
    try:
        hints = typing.get_type_hints(load)
    except Exception:  # a plugin may declare what it likes
        return
    for key, value in given.items():
        hint = hints.get(key, Any)
        plain = all(kind in (int, float, bool, type(None)) for kind in alternatives(hint))
        if (name in TASKS or plain) and (fault := argument_fault(value, hint)):
            raise ValueError(f"{name}: {key}={shown(value)}; {fault}")
