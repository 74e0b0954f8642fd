"""Warmup generation: a model writes a short warmup and then the target; the target's likelihood is the warmup's reward."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "WarmupConfig": "config",
    "WarmupTrainer": "trainer",
    "WarmupGenerator": "inference.generation",
    "load_task": "tasks",
    "read_recipe": "config",
}
__all__ = ["WarmupConfig", "WarmupGenerator", "WarmupTrainer", "load_task", "read_recipe"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rl_warmup' has no attribute {name!r}")
    return getattr(import_module(f"rl_warmup.{_HOMES[name]}"), name)
