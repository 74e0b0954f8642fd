"""Calls a reward function within its time limit, checks its result, and describes every failure in a sentence.

Knows: functions, coroutines, clocks and signals. Must not know: weights, groups, what happens after a failure.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_warmup.plugins import contained, return_to, working_folder
from rl_warmup.rewards.arguments import Arguments
from rl_warmup.rewards.reward import Reward

GRACE = 2.0  # seconds for the event loop to cancel a coroutine after its time limit
MAX_ABANDONED = 8  # threads that cannot be stopped


class TimeLimit(Exception):
    """A call took longer than its time limit."""


class _Alarm(BaseException):
    """Raised inside a function; not an Exception, as functions often catch those and retry."""

    of_rl_warmup = True


@dataclass
class Outcome:
    """The result of one call."""

    values: Tensor  # (M,) float32; nan where the function returned None, or failed
    failed: Tensor  # (M,) bool
    fault: str | None = None  # a sentence about the first failure
    cause: Exception | None = None


def start(reward: Reward, arguments: dict[str, Any], offered: Arguments) -> Callable[[], Outcome]:
    """A function that returns the outcome. Coroutines start at once and run concurrently."""
    folder = working_folder()
    result = _scheduled(reward, arguments) if reward.is_async else functools.partial(_call, reward, arguments)

    def outcome() -> Outcome:
        size = len(offered.batch.warmups)
        nothing = Outcome(torch.full((size,), math.nan), torch.ones(size, dtype=torch.bool))
        try:
            found = result()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}, line {last.lineno}"
            what = (
                f"{error}."
                if isinstance(error, TimeLimit)
                else f"failed with {type(error).__name__}: {error} ({where})"
            )
            nothing.fault, nothing.cause = f"Reward {reward.name!r} {what}", error
            return nothing
        finally:
            return_to(folder)
        return _checked(reward, found, offered, nothing)

    return outcome


def _checked(reward: Reward, result: Any, offered: Arguments, nothing: Outcome) -> Outcome:
    size = len(offered.batch.warmups)
    wanted = f"return a list of {size}, one finite number or None per warmup"
    if hasattr(result, "tolist"):  # a tensor or an array
        result = result.tolist()
    if inspect.iscoroutine(result):
        result.close()
        nothing.fault = f"Reward {reward.name!r} returned a coroutine; declare the function itself with `async def`."
    elif not isinstance(result, (list, tuple)):
        nothing.fault = f"Reward {reward.name!r} returned {type(result).__name__} {result!r:.80}; {wanted}."
    elif len(result) != size:
        nothing.fault = f"Reward {reward.name!r} returned {len(result)} values; {wanted}."
    if nothing.fault:
        return nothing
    numbers = [math.nan if value is None else _float32(value) for value in result]
    bad = [i for i, value in enumerate(result) if value is not None and not math.isfinite(numbers[i])]
    values = torch.tensor(numbers, dtype=torch.float32)
    failed = torch.zeros(size, dtype=torch.bool)
    if not bad:
        return Outcome(values, failed)
    failed[bad], values[bad] = True, math.nan
    others = f" and similar values for {len(bad) - 1} more" if len(bad) > 1 else ""
    fault = f"Reward {reward.name!r} returned {result[bad[0]]!r:.80} for {offered.row(bad[0])}{others}; {wanted}."
    return Outcome(values, failed, fault)


def _float32(value: Any) -> float:
    """The number rounded to float32; nan for what is no number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        return torch.tensor(float(value), dtype=torch.float32).item() if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf


def _call(reward: Reward, arguments: dict[str, Any]) -> Any:
    """Call a plain function within its time limit.

    In the main thread an alarm interrupts it, unless it runs C code that checks no signals. Other threads have no alarms:
    there the function runs in a thread of its own, which is abandoned at the time limit and ends with the process.
    """
    if reward.timeout is None:
        return _call_contained(reward, arguments)
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        try:
            with _alarm(reward.timeout):
                return _call_contained(reward, arguments)
        except _Alarm:
            raise _time_limit(reward, "it was interrupted") from None
    return _call_in_thread(reward, arguments)


def _call_contained(reward: Reward, arguments: dict[str, Any]) -> Any:
    with contained():
        return reward.function(**arguments)


def _time_limit(reward: Reward, then: str) -> TimeLimit:
    return TimeLimit(f"gave no answer within its `timeout` of {reward.timeout:g} s; {then}")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(signum: int, frame: Any) -> None:
        raise _Alarm

    before, began = signal.signal(signal.SIGALRM, ring), time.monotonic()
    others, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # rings again if the function catches it
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # may be interrupted by a last alarm, so it is repeated below
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        if others:
            signal.setitimer(signal.ITIMER_REAL, max(others - (time.monotonic() - began), 1e-3), interval)


_abandoned: list[threading.Thread] = []


def _call_in_thread(reward: Reward, arguments: dict[str, Any]) -> Any:
    _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
    if len(_abandoned) >= MAX_ABANDONED:
        raise TimeLimit(
            f"was not called: {MAX_ABANDONED} earlier calls of rewards are still running after their timeout"
        )
    answer: Future[Any] = Future()

    @torch.no_grad()  # a new thread starts with gradients on
    def work() -> None:
        try:
            answer.set_result(_call_contained(reward, arguments))
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=work, name=f"rl_warmup-reward-{reward.name}", daemon=True)
    thread.start()
    thread.join(reward.timeout)
    if not answer.done():
        _abandoned.append(thread)
        raise _time_limit(reward, "outside the main thread it cannot be stopped and was abandoned")
    return answer.result()


def _scheduled(reward: Reward, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Start a coroutine on the shared loop. It is cancelled at its time limit; if it blocks the loop, both are abandoned."""

    async def limited() -> Any:
        try:
            async with asyncio.timeout(reward.timeout) as scope:
                with contained(cancels=False):  # an exit would end the loop, and callers would wait forever
                    return await reward.function(**arguments)
        except TimeoutError:
            if scope.expired():
                raise _time_limit(reward, "it was cancelled") from None
            raise

    future = asyncio.run_coroutine_threadsafe(limited(), _event_loop())

    def result() -> Any:
        try:
            return future.result(None if reward.timeout is None else reward.timeout + GRACE)
        except TimeoutError:
            if future.done():
                raise  # by the function itself
            _event_loop.cache_clear()
            raise _time_limit(
                reward, "it blocks its event loop (`await` where it waits), which was abandoned"
            ) from None

    return result


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop in one thread for the whole process: connections stay open, and the caller may run its own loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rl_warmup-rewards", daemon=True).start()
    return loop
