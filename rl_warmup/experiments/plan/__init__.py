"""What a recipe would cost on some hardware, from shapes alone: nothing is loaded, downloaded or run, not even torch.

planned_cost(recipe.values)["flops_per_update"]     # for the dry run of a sweep
make_plan(recipe.values, read_hardware("8xA100-80GB")).choice
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rl_warmup.experiments.plan.cost import STRATEGIES, count_flops, count_memory
from rl_warmup.experiments.plan.work import Work, read_work

__all__ = ["Hardware", "Option", "Plan", "make_plan", "planned_cost", "read_hardware", "this_machine"]

GIB, TOLERANCE = 2**30, 1.25  # of peaks
CONTEXT = {True: 0.5, False: 1.0}  # GiB of the runtime: on a CPU interpreter and libraries (measured), on a GPU assumed
USABLE = 0.95  # of a device's memory; the allocator never gets the rest
LEAST = 0.1  # GB of a device's memory
SPELLING = "COUNTxNAME-MEMORY, e.g. 8xA100-80GB, 1xRTX4090-24GB, 2xCPU or 2xCPU-8GB (memory of each process)"
# GB of the vendors' data sheets
DEVICES = {
    "A100": (40, 80), "A30": (24,), "A10": (24,), "A6000": (48,), "L4": (24,), "L40S": (48,), "H100": (80,), "H200": (141,),
    "B200": (180,), "RTX3090": (24,), "RTX4090": (24,), "RTX5090": (32,), "MI300X": (192,),
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """Some equal devices in one machine; of a CPU each process counts as one."""

    count: int
    name: str
    memory: float  # GiB of each

    @property
    def is_cpu(self) -> bool:
        return self.name == "CPU"

    @property
    def spelled(self) -> str:
        return f"{self.count}x{self.name}-{self.memory:.0f}GB"


def this_machine() -> Hardware:
    """The GPUs that nvidia-smi lists, where all are equal, else one process on the CPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        if lines and len(set(lines)) == 1:
            name, _, memory = lines[0].rpartition(",")
            return Hardware(len(lines), name.replace("NVIDIA", "").strip().replace(" ", ""), float(memory) / 1024)
    return Hardware(1, "CPU", _memory())


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def read_hardware(text: str) -> Hardware:
    """`8xA100-80GB`, `1xH100`, `4xNAME-64GB`; ValueError where it cannot be read, or does not settle the memory."""
    spelling = r"(?:(\d{1,6})[x*])?([a-z][\w.]*)(?:-(\d{1,6}(?:\.\d+)?)\s*(?:GB|GiB|G)?)?"
    found = re.fullmatch(spelling, text.strip(), re.IGNORECASE | re.ASCII)
    if found is None or int(found[1] or 1) == 0 or float(found[3] or 1) < LEAST:
        least = f"at least one device of at least {LEAST:g} GB"
        raise ValueError(f"--hardware: cannot read {text[:80]!r} as {least}. Write {SPELLING}.")
    count, name = int(found[1] or 1), found[2].upper()
    sizes = DEVICES.get(name, ()) if name != "CPU" else (_memory() / count,)
    if not found[3] and len(sizes) != 1:
        known = " or ".join(f"{name}-{size}GB" for size in sizes)
        known = known or f"{name}-24GB or what it has; known without it: {', '.join(DEVICES)}"
        raise ValueError(f"--hardware: {text!r} says no memory; write {known}.")
    return Hardware(count, name, float(found[3] or sizes[0]))


@dataclass(frozen=True)
class Option:
    """One way to launch the recipe."""

    strategy: str
    work: Work
    memory: dict[str, float]
    fits: bool
    surely: bool  # also where the real peak lies above the estimate as far as it may


@dataclass(frozen=True)
class Plan:
    """Everything `page` shows."""

    work: Work
    hardware: Hardware
    flops: dict[str, float]  # of one process
    sft: dict[str, float]
    options: list[Option]  # the recipe as it is, under every strategy
    choice: Option | None  # its work may checkpoint, or cut the batch into more micro-batches


def make_plan(values: Mapping[str, Any], hardware: Hardware, lengths: Mapping[str, float] | None = None) -> Plan:
    """Plan a flat recipe (`Recipe.values`) on some hardware; ValueError where a setting or the model's shape cannot be read.

    `lengths`: tokens of `prompt`, `warmup` or `target` in the place of what the recipe and its rows say.
    """
    work, alone = read_work(values, lengths), hardware.count == 1
    return Plan(
        work=work,
        hardware=hardware,
        flops=count_flops(work, alone),
        sft=count_flops(work.sft(), alone),
        options=_options(work, hardware),
        choice=_choose(work, hardware),
    )


def planned_cost(values: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """An estimate of what one run of a recipe costs, for comparing runs; arguments and errors as of `make_plan`.

    Args:
        processes: that share an update.

    Returns:
        `parameters`; `tokens_per_update` and `flops_per_update` of all processes together; `sft_ratio`, operations over
        those of an SFT update of the same prompts; `updates`, `tokens` and `flops` of the run, None where the number of
        updates depends on rows that are not at hand.
    """
    work = read_work(values)
    flops = count_flops(work, processes == 1)["total"]
    tokens, updates = work.tokens()["trained_on"] * processes, work.updates_on(processes)
    return {
        "parameters": work.shape.parameters,
        "tokens_per_update": round(tokens),
        "flops_per_update": flops * processes,
        "sft_ratio": flops / count_flops(work.sft(), processes == 1)["total"],
        "updates": updates,
        "tokens": None if updates is None else round(tokens * updates),
        "flops": None if updates is None else flops * processes * updates,
    }


def _options(work: Work, hardware: Hardware) -> list[Option]:
    """The work under every strategy; on a CPU there is no other memory to offload anything to."""
    usable, found = USABLE * hardware.memory * GIB, []
    for strategy in [s for s in STRATEGIES if not (hardware.is_cpu and s.endswith("offload"))]:
        memory = count_memory(work, strategy, hardware.count, CONTEXT[hardware.is_cpu] * GIB)
        peak = memory["peak"]
        found.append(Option(strategy, work, memory, peak <= usable, peak * TOLERANCE <= usable))
    return found


def _choose(work: Work, hardware: Hardware) -> Option | None:
    """The first that surely fits, or may; the dearest changes last: offloading, then gradient checkpointing, then smaller
    micro-batches that make up the same update, then the order of STRATEGIES."""
    cuts = [2**i for i in range(work.prompts.bit_length()) if work.prompts % 2**i == 0]
    tried = []
    for offload, again, n in product((False, True), sorted({work.checkpointing, True}), cuts):
        way = replace(work, checkpointing=again, prompts=work.prompts // n, micro_batches=work.micro_batches * n)
        tried += [o for o in _options(way, hardware) if o.strategy.endswith("offload") == offload]
    return next((o for o in tried if o.surely), next((o for o in tried if o.fits), None))
