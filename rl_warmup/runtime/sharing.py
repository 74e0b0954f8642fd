"""Shares a list of work among processes and gathers the results in order.

Knows: torch.distributed, and how accelerate connects processes. Must not know: what the work is.
Sharing changes no result: whole batches are shared, and each is computed as in a single process.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rl_warmup.runtime.compat import without_deepspeed_config
from rl_warmup.runtime.faults import processes
from rl_warmup.runtime.terminal import progress as with_progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def initialize_distributed() -> torch.device:
    """Connect to the other processes of this launch, if any; returns the device of this process.

    Raises ValueError: the launcher started several processes, but they are not connected.
    """
    on_cpu = not torch.cuda.is_available()
    asked = processes()
    if asked == 1:
        return torch.device("cpu" if on_cpu else "cuda")
    from accelerate import PartialState

    device = PartialState(cpu=on_cpu).device  # without `cpu` it starts independent runs where there is no GPU
    if _rank_and_count()[1] != asked:
        raise ValueError(
            f"The launcher started {asked} processes, but they are not connected, so all would do the same work. Start them "
            f"with `torchrun --nproc_per_node {asked} -m rl_warmup.cli.main ...`."
        )
    return device


def is_main() -> bool:
    """Whether this process writes and prints: the first, or the only one."""
    return _rank_and_count()[0] == 0


def refuse_differences(facts: Mapping[str, str]) -> None:
    """Compare what all processes of a launch need alike, e.g. hashes of their rows.

    Args:
        facts: what something is called in a sentence -> text that identifies it.

    Raises ValueError: on every process, naming what differs and the process that has another.
    """
    _, processes = _rank_and_count()
    if processes == 1:
        return
    everywhere: list[Any] = [None] * processes
    dist.all_gather_object(everywhere, dict(facts))
    for name in everywhere[0]:
        others = [at for at, found in enumerate(everywhere) if found.get(name) != everywhere[0][name]]
        if others:
            raise ValueError(
                f"Process {others[0]} has other {name} than process 0, so they would work apart. Give all processes the same "
                f"files and settings."
            )


def map_over_processes(
    work: Callable[[Item], Result], items: Sequence[Item], shared: bool = True, progress: str = ""
) -> list[Result]:
    """`[work(item) for item in items]`, with the items shared among the processes; all processes get all results.

    Args:
        shared: False does all work in this process; the others need not call.
        progress: its title; the main process shows it, as a bar or lines; none by default.
    """
    rank, processes = _rank_and_count() if shared else (0, 1)
    shown = with_progress(range(rank, len(items), processes), progress, bool(progress) and rank == 0)
    done = [(place, work(items[place])) for place in shown]
    if processes > 1:
        parts: list[Any] = [None] * processes
        dist.all_gather_object(parts, done)
        done = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
    return [result for _, result in done]


@contextmanager
def seeded(*parts: Any) -> Iterator[None]:
    """Random draws inside depend on `parts` alone, and do not change those outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(random.Random("/".join(map(str, parts))).getrandbits(63))
        yield


def uniforms(purpose: str, seed: Any, places: Sequence[int], count: int, length: int) -> torch.Tensor:
    """Random numbers for sampling. Each row has its own stream, so its numbers do not depend on the batch or the process.

    Args:
        purpose, seed: streams of another purpose or seed are independent.
        places: of the rows in their data set.
        count: samples of a row.

    Returns:
        (len(places) * count, length) float64 in [0, 1), row by row.
    """
    generator, streams = torch.Generator(), []
    for place in places:
        generator.manual_seed(random.Random(f"{purpose}/{seed}/{place}").getrandbits(63))
        streams.append(torch.rand(count, length, generator=generator, dtype=torch.float64))
    return torch.cat(streams) if streams else torch.zeros(0, length, dtype=torch.float64)


@contextmanager
def whole_on_every_process() -> Iterator[None]:
    """Hide the training's ZeRO-3 and FSDP from `from_pretrained`, so that it loads a frozen network whole everywhere.

    Otherwise each process would get a shard, or all but one nothing. A T5 with a separate head would even lose it, as its
    empty shards equal those of the embeddings and get tied.
    """
    efficient = os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    try:
        with without_deepspeed_config():
            yield
    finally:
        if efficient is not None:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = efficient


def _rank_and_count() -> tuple[int, int]:
    """Rank of this process, number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
