"""What a call costs: processor time, floating point operations, peak memory.

Knows: clocks and counters of torch. Must not know: what it measures.

Times are taken in interleaved rounds (A B C, A B C, ...) within one process, so that what disturbs a machine disturbs
all variants alike; ratios are ratios of medians. Operations and memory are counted in calls of their own, which also
serve as the warm-up round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import Row
from rl_warmup.runtime.compat import missing_flop_counts

Call = Callable[[], Any]
Name = TypeVar("Name", bound=Hashable)


@dataclass
class Cost:
    """What one variant costs per call."""

    ms: list[float]  # of every round: processor time on a CPU, time of the stream on CUDA
    flops: int | None
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.ms)


def measure(
    calls: dict[Name, Call], repeats: int, memory: bool = True, slow: Collection[Name] = ()
) -> dict[Name, Cost]:
    """Count every call's operations and memory, then time all of them in interleaved rounds.

    Args:
        calls: what to measure, by variant. Round i of every variant starts from random seed i.
        repeats: timed rounds.
        memory: False saves a call per variant and leaves `peak_bytes` None.
        slow: variants to be called as rarely as can be: not counted, warmed up by the first round, timed in the last alone.
            (TRL's very first step was measured a third dearer than its third.)
    """
    costs = {}
    for name, call in calls.items():
        counted = name not in slow
        torch.manual_seed(0)
        flops = count_flops(call) if counted else None
        torch.manual_seed(0)
        costs[name] = Cost([], flops, peak_bytes(call) if counted and memory else None)
    for i in range(repeats):
        for name, call in calls.items():
            if name in slow and 0 < i < repeats - 1:
                continue
            torch.manual_seed(i)
            spent = milliseconds(call)
            if name not in slow or i == repeats - 1:
                costs[name].ms.append(spent)
    return costs


def rows(bench: str, shape: str, n: int | None, costs: dict[str, Cost], reference: str) -> list[Row]:
    """A line of results per variant; ratios are to `reference`."""
    base = costs[reference]
    return [
        Row(
            bench, shape, n, variant, ratio=cost.median / base.median,
            flop_ratio=cost.flops / base.flops if cost.flops and base.flops else None, cpu_ms=cost.median,
            peak_mb=None if cost.peak_bytes is None else cost.peak_bytes / 1e6,
        )
        for variant, cost in costs.items()
    ]  # fmt: skip


def milliseconds(call: Call) -> float:
    """Time of one call: the whole process's processor time, which other jobs stretch less than wall time; on CUDA, from
    one event to another in the stream."""
    if torch.cuda.is_available():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1e3


def count_flops(call: Call) -> int:
    """Floating point operations of the matrix products of one call (an addition and a multiplication are two)."""
    with FlopCounterMode(display=False, custom_mapping=missing_flop_counts()) as counter:
        call()
    return counter.get_total_flops()


def peak_bytes(call: Call) -> int:
    """How far one call raises allocated memory above where it began, in bytes.

    On a CPU torch's profiler reports every allocation and every release of its allocator, those inside operators too;
    the peak is the largest running sum. It does not depend on the machine's other jobs or on what the C library keeps.
    (The profiler does not see the release of what was allocated before it started: that counts as still held.)
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        call()
    results = profile.kineto_results
    assert results is not None, "the profiler has kept no events"
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    peak = held = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak
