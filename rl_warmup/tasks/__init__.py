"""Knows the tasks by name and makes any of them a checked `Task`; must not know torch, tokenizers or trainers.

    task = load_task("ledger", length=8)
    task.splits["train"][0]  # {"id": "train-0", "prompt": "a+3 b+1 ...", "target": "... b=4 a=3"}

A task of one's own is a function that returns a `Task`, found by `plugins`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from rl_warmup.plugins import contained, find_plugin
from rl_warmup.tasks.columns import nearest
from rl_warmup.tasks.rows import SPLITS, Row, Task, rows_hash

__all__ = ["SPLITS", "TASKS", "Row", "Task", "load_task", "rows_hash"]

TASKS = {
    "ledger": "rl_warmup.tasks.ledger:load",
    "legs": "rl_warmup.tasks.legs:load",
    "translation": "rl_warmup.tasks.translation:load",
    "summarization": "rl_warmup.tasks.summarization:load",
    "multiple_choice": "rl_warmup.tasks.multiple_choice:load",
    "file": "rl_warmup.tasks.files:load",
    "hub": "rl_warmup.tasks.hub:load",
    "reasoning_gym": "rl_warmup.tasks.reasoning_gym:load",
}


def load_task(name: str, /, **task_kwargs: Any) -> Task:
    """The task of that name, with its own keyword arguments (see `load` in the task's module).

    Args:
        name: a key of TASKS, or an own one's (see `plugins`): a function that returns a `Task`.

    Raises:
        ValueError: for an unknown name, an unknown or missing argument, rows that are not fit (see `Task`).
        ValueError: if a function of one's own fails, or returns something else than a `Task`.
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
    except (ValueError, ImportError, OSError):
        raise  # has a sentence of its own
    except Exception as error:
        raise ValueError(f"The task {name!r} failed with {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise ValueError(
            f"The task {name!r} returned {type(task).__name__} {task!r:.80}; return a rl_warmup.tasks.Task."
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
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise ValueError(f"task '{name}' needs {', '.join(missing)}; allowed: {', '.join(allowed)}")
