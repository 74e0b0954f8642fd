"""One list of work, several processes: dealt out, done, and put together again in order.

Knows: torch.distributed, and how accelerate lets processes meet. Must not know: what the work is.
Nothing here changes a result: what is dealt out are whole batches, each computed as one process alone would compute it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from rl_warmup.runtime.compat import without_deepspeed_config

Item = TypeVar("Item")
Result = TypeVar("Result")


def initialize_distributed() -> torch.device:
    """Join the other processes of this launch, if there are any; the device of this one.

    Raises:
        ValueError: the launcher started several processes which cannot talk to each other.
    """
    on_cpu = not torch.cuda.is_available()
    asked = int(os.environ.get("WORLD_SIZE") or 1)
    if asked == 1:
        return torch.device("cpu" if on_cpu else "cuda")
    from accelerate import PartialState

    device = PartialState(cpu=on_cpu).device  # left to itself it starts independent runs where there is no GPU
    if _places()[1] != asked:
        raise ValueError(
            f"The launcher started {asked} processes, but each of them is alone, so all would do the same work. Start them with "
            f"`torchrun --nproc_per_node {asked} -m rl_warmup.cli.main ...`."
        )
    return device


def is_main() -> bool:
    """Whether this process writes and prints: the first, or the only one."""
    return _places()[0] == 0


def map_over_processes(
    work: Callable[[Item], Result], items: Sequence[Item], shared: bool = True, progress: str = ""
) -> list[Result]:
    """`[work(item) for item in items]`, the items dealt out to the processes in turn; all processes get all results.

    Args:
        shared: False does all of it here, and no other process need call.
        progress: title of a progress bar, which the main process shows; none by default.
    """
    rank, processes = _places() if shared else (0, 1)
    shown = tqdm(range(rank, len(items), processes), desc=progress, disable=not progress or rank > 0, leave=False)
    done = [(place, work(items[place])) for place in shown]
    if processes > 1:
        parts: list[Any] = [None] * processes
        dist.all_gather_object(parts, done)
        done = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
    return [result for _, result in done]


@contextmanager
def seeded(*parts: Any) -> Iterator[None]:
    """Random draws inside depend on `parts` alone, and disturb none outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(random.Random("/".join(map(str, parts))).getrandbits(63))
        yield


def uniforms(purpose: str, seed: Any, places: Sequence[int], count: int, length: int) -> torch.Tensor:
    """Numbers by which rows are drawn: each row has its own stream, whatever batch or process it comes to.

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
    """Hide the training's ZeRO-3 and FSDP from `from_pretrained`.

    They would leave every process with a shard, or all but one with nothing: no use for a frozen network that no engine ever
    gathers, and harmful to a T5 with a head of its own, whose empty shards are taken for equal to the embeddings' and tied.
    """
    efficient = os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    try:
        with without_deepspeed_config():
            yield
    finally:
        if efficient is not None:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = efficient


def _places() -> tuple[int, int]:
    """Number of this process, number of all."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
