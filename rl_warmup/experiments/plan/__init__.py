"""What a recipe would cost on some hardware, from shapes alone: nothing is loaded, downloaded or run.

Knows: the parts (`shapes`, `work`, `cost`, `memory`, `duration`, `hardware`) and how to choose among the ways to launch. Must
not know: torch, or how a terminal looks (`page`).

    planned_cost(recipe.values)["flops_per_update"]     # for the dry run of a sweep
    make_plan(recipe.values, read_hardware("8xA100-80GB")).choice
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rl_warmup.experiments.plan.cost import Flops, count_flops, tokens_per_update
from rl_warmup.experiments.plan.duration import Seconds, estimate
from rl_warmup.experiments.plan.hardware import USABLE, Hardware, read_hardware
from rl_warmup.experiments.plan.memory import STRATEGIES, Memory, count_memory
from rl_warmup.experiments.plan.work import Work, read_work

__all__ = ["Hardware", "Option", "Plan", "make_plan", "planned_cost", "read_hardware"]

GIB = 2**30
ALIKE = 1.15  # times that differ by less are the same to such an estimate: the simpler way is taken
CONTEXT = {True: 0.5, False: 1.0}  # GiB of the runtime: on a CPU interpreter and libraries (measured), on a GPU assumed


@dataclass(frozen=True)
class Option:
    """One way to launch the recipe."""

    strategy: str
    work: Work
    memory: Memory
    fits: bool
    fast: Seconds
    slow: Seconds


@dataclass(frozen=True)
class Plan:
    """Everything `page` shows."""

    work: Work
    hardware: Hardware
    flops: Flops  # of one process
    sft: Flops
    options: list[Option]  # the recipe as it is, under every strategy
    choice: (
        Option | None
    )  # the simplest of the quickest that fit; its work may checkpoint, or cut the batch into more micro-batches
    updates: int | None


def make_plan(values: Mapping[str, Any], hardware: Hardware, lengths: Mapping[str, float] | None = None) -> Plan:
    """Plan a flat recipe on some hardware.

    Args:
        values: settings by name, as in a YAML recipe; `Recipe.values` has this form.
        lengths: tokens of `prompt`, `warmup`, `target` in the place of what the recipe says.

    Raises:
        ValueError: a setting or the model's shape cannot be read.
    """
    work = read_work(values, lengths)
    alone = hardware.count == 1
    options = [_option(work, strategy, hardware) for strategy in _strategies(hardware)]
    return Plan(
        work, hardware, count_flops(work, alone), count_flops(work.sft(), alone), options, _choose(work, hardware),
        work.updates_on(hardware.count),
    )  # fmt: skip


def planned_cost(values: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """What one run of a recipe costs, in operations and tokens; an estimate, for comparing runs before paying for them.

    Args:
        values: settings by name, as in a YAML recipe (`Recipe.values`).
        processes: that share an update.

    Returns:
        `parameters`; `tokens_per_update` and `flops_per_update` of all processes together; `sft_ratio`, operations over
        those of an SFT update of the same prompts; `updates`, `tokens` and `flops` of the run, None where the number of
        updates depends on rows that are not at hand.

    Raises:
        ValueError: a setting or the model's shape cannot be read.
    """
    work = read_work(values)
    flops = count_flops(work, processes == 1).total
    tokens, updates = tokens_per_update(work)["trained_on"] * processes, work.updates_on(processes)
    return {
        "parameters": work.shape.parameters,
        "tokens_per_update": round(tokens),
        "flops_per_update": flops * processes,
        "sft_ratio": flops / count_flops(work.sft(), processes == 1).total,
        "updates": updates,
        "tokens": None if updates is None else round(tokens * updates),
        "flops": None if updates is None else flops * processes * updates,
    }


def _strategies(hardware: Hardware) -> list[str]:
    """On a CPU there is no other memory to move anything to."""
    return [s for s in STRATEGIES if not (hardware.device.is_cpu and s.endswith("offload"))]


def _option(work: Work, strategy: str, hardware: Hardware) -> Option:
    device, count = hardware.device, hardware.count
    memory = count_memory(work, strategy, count, CONTEXT[device.is_cpu] * GIB)
    flops = count_flops(work, count == 1 and strategy == "ddp")
    fast, slow = estimate(work, flops, device, strategy, count)
    return Option(strategy, work, memory, memory.peak <= USABLE * device.memory * GIB, fast, slow)


def _choose(work: Work, hardware: Hardware) -> Option | None:
    """The quickest option that fits; where the recipe's own batch does not, among checkpointing and smaller micro-batches that
    make up the same update too. Of options that are about as quick, the one nearest to the recipe."""
    prompts, micro = work.prompts, work.micro_batches
    fitting = []
    while True:
        tried = replace(work, prompts=prompts, micro_batches=micro)
        ways = [tried] if work.checkpointing else [tried, replace(tried, checkpointing=True)]
        tries = [_option(way, strategy, hardware) for way in ways for strategy in _strategies(hardware)]
        fitting += [option for option in tries if option.fits]
        if prompts % 2 or any(option.work == work for option in fitting):
            break
        prompts, micro = prompts // 2, micro * 2
    if not fitting:
        return None
    quickest = min(option.slow.total for option in fitting)
    return next(option for option in fitting if option.slow.total <= ALIKE * quickest)
