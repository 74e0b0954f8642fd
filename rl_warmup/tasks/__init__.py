"""Knows the tasks by name and makes any of them a checked `Task`; must not know torch, tokenizers or trainers.

    task = load_task("ledger", length=8)
    task.splits["train"][0]  # {"id": "train-0", "prompt": "a+3 b+1 ...", "target": "... b=4 a=3"}

A task of one's own is a function that returns a `Task`, named `package.module:function`.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from rl_warmup.tasks.columns import nearest
from rl_warmup.tasks.rows import SPLITS, Row, Task, rows_hash

__all__ = ["SPLITS", "TASKS", "Row", "Task", "load_task", "rows_hash"]

TASKS = {
    "ledger": "rl_warmup.tasks.ledger:load",
    "translation": "rl_warmup.tasks.translation:load",
    "summarization": "rl_warmup.tasks.summarization:load",
    "multiple_choice": "rl_warmup.tasks.multiple_choice:load",
    "file": "rl_warmup.tasks.files:load",
    "hub": "rl_warmup.tasks.hub:load",
}


def load_task(name: str, /, **task_kwargs: Any) -> Task:
    """The task of that name, with its own keyword arguments (see `load` in the task's module).

    Args:
        name: a key of TASKS, or `package.module:function` for a function that returns a `Task`.

    Raises:
        ValueError: for an unknown name, an unknown or missing argument, rows that are not fit (see `Task`).
        TypeError: if a function of one's own returns something else than a `Task`.
    """
    if ":" not in name and name not in TASKS:
        raise ValueError(
            f"unknown task '{name}'{nearest(name, TASKS)}; known: {', '.join(TASKS)}, or "
            "'package.module:function' for your own"
        )
    load = _function(TASKS.get(name, name))
    _check_kwargs(name, load, task_kwargs)
    task = load(**task_kwargs)
    if not isinstance(task, Task):
        raise TypeError(f"task '{name}' returned a {type(task).__name__}; let it return a rl_warmup.tasks.Task")
    return task


def _function(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        raise ValueError(
            f"task '{path}': no module '{error.name}'; give 'package.module:function' importable here"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"task '{path}': no function '{function_name}' in {module_name}{nearest(function_name, vars(module))}"
        )
    return function


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
