"""Rewards under which the second of two processes goes wrong at the third update."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def _second(trainer_state: Any) -> bool:
    return trainer_state.global_step == 2 and os.environ["RANK"] == "1"


def raises(completions: list, trainer_state: Any, **kwargs: Any) -> list[float]:
    """An error of the reward itself."""
    if _second(trainer_state):
        raise RuntimeError("the judge is out of cards")
    return [0.0] * len(completions)


def dies(completions: list, trainer_state: Any, **kwargs: Any) -> list[float]:
    """As when the machine runs out of memory."""
    if _second(trainer_state):
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.0] * len(completions)


def hangs(completions: list, trainer_state: Any, **kwargs: Any) -> list[float]:
    """A service that never answers."""
    if _second(trainer_state):
        time.sleep(10_000)
    return [0.0] * len(completions)
