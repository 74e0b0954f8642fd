"""A plan as lines for a terminal, and as a mapping for other programs.

Knows: words, units and columns. Must not know: how any number is made.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rl_warmup.experiments.plan import GIB, Option, Plan
from rl_warmup.experiments.plan.cost import tokens_per_update
from rl_warmup.experiments.plan.duration import Seconds
from rl_warmup.experiments.plan.hardware import USABLE
from rl_warmup.experiments.plan.memory import plain_logits_bytes
from rl_warmup.experiments.plan.work import Work

PRECISIONS = {
    "float32": "float32", "autocast": "bf16 products, float32 weights (DeepSpeed: bf16 weights)", "bfloat16": "bf16",
}  # fmt: skip


def plan_text(plan: Plan, recipe: str, flags: list[str], unread: list[str]) -> str:
    """The whole page.

    Args:
        recipe: path as it was typed; part of the line that launches it.
        flags: that were given over it.
        unread: settings that changed nothing here.
    """
    parts = [
        [
            f"Plan of {recipe} on {plan.hardware.spelled}",
            "Every figure is an estimate from shapes: no weight was loaded, nothing was run.",
        ],
        _what(plan), _operations(plan), _memory(plan), _time(plan), _advice(plan, recipe, flags), _notes(plan, unread),
    ]  # fmt: skip
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _what(plan: Plan) -> list[str]:
    work, count = plan.work, plan.hardware.count
    shape, mean = work.shape, work.mean
    layers = f"{shape.encoder_layers} + {shape.layers}" if shape.kind == "t5" else str(shape.layers)
    of_each = f"{work.prompts} prompts" + (f" x {work.micro_batches} micro-batches" if work.micro_batches > 1 else "")
    tokens = {name: value * count for name, value in tokens_per_update(work).items()}
    warmups = "the target alone (sft)" if not work.warmups else f"{work.warmups} warmups each"
    if work.trained < work.warmups:
        warmups += f", {work.trained} of them with a gradient"
    lines = [
        f"model      {shape.name}, {shape.parameters:,} parameters",
        f"           {'encoder-decoder' if shape.kind == 't5' else 'decoder-only'}, {layers} layers, width {shape.width:,}, "
        f"vocabulary {shape.vocab:,}",
        f"update     {of_each} x {count} process{'es' if count > 1 else ''} = {work.prompts * work.micro_batches * count} "
        f"prompts, {warmups}",
        f"           {PRECISIONS[work.precision]}{', gradient checkpointing' if work.checkpointing else ''}",
        f"tokens     prompt {mean.prompt:.0f}, warmup {mean.warmup:.0f}, target {mean.target:.0f}: {work.lengths_from}",
        f"           an update reads {tokens['prompt']:,.0f}, writes {tokens['warmup']:,.0f} and trains on "
        f"{tokens['trained_on']:,.0f} ({tokens['target']:,.0f} of targets, once)",
    ]
    return lines


def _operations(plan: Plan) -> list[str]:
    flops, total = plan.flops, plan.flops.total
    power = 12 if total >= 1e11 else 9
    rows = [
        ("sampling", flops.sampling, "draw the warmups"),
        ("scoring", flops.scoring, "log P(y|x,c) of all warmups, without gradient"),
        ("forward", flops.forward, "of the rows with gradient"),
        ("backward", flops.backward, "of the same"),
    ]
    lines = [f"Operations of one update on each process, in 10^{power}"]
    lines += [
        f"  {name:<10}{_short(value / 10**power):>9}  {value / total:>4.0%}  {what}"
        for name, value, what in rows
        if value
    ]
    ratio = total / plan.sft.total
    lines.append(
        f"  {'total':<10}{_short(total / 10**power):>9}        {ratio:.1f} x an SFT update of the same prompts "
        f"({_short(plan.sft.total / 10**power)})"
    )
    return lines


def _memory(plan: Plan) -> list[str]:
    device = plan.hardware.device
    usable = USABLE * device.memory
    where = "process" if device.is_cpu else "device"
    names = ("parameters", "gradients", "optimizer", "activations", "logits", "sampling", "peak")
    lines = [
        f"Memory of one {where} at its fullest moment, in GiB; {usable:.1f} of {device.memory:.0f} can be used",
        f"  {'':<14}" + "".join(f"{name:>12}" for name in names) + ("" if device.is_cpu else f"{'host':>8}"),
    ]
    for option in plan.options:
        m = option.memory
        values = (
            m.parameters + m.gathered, m.gradients, m.optimizer, m.activations + m.recomputed, m.logits, m.cache, m.peak
        )  # fmt: skip
        host = "" if device.is_cpu else f"{_gib(m.host):>8}" if m.host else f"{'-':>8}"
        verdict = "  fits" if option.fits else "  too large"
        lines.append(f"  {option.strategy:<14}" + "".join(f"{_gib(value):>12}" for value in values) + host + verdict)
    m, work = plan.options[0].memory, plan.work
    lines.append(
        f"  peak = parameters + optimizer + {_gib(m.context)} for the runtime + the larger of sampling and the rest"
    )
    if plan.hardware.count == 1:
        lines.append("  ZeRO-1 to 3 have nothing to share on one device; offloading still moves state to the host.")
    lines.append(
        f"  logits     {_gib(m.logits)} with the head's hand-written gradient in chunks, {_gib(plain_logits_bytes(work))} as a "
        f"plain log-softmax of the same positions"
    )
    if plan.choice is not None and plan.choice.work.checkpointing and not work.checkpointing:
        kept = plan.choice.memory
        lines.append(
            f"  activations with gradient checkpointing ({plan.choice.work.prompts} prompts): {_gib(kept.activations)}, and "
            f"{_gib(kept.recomputed)} while a layer is computed again"
        )
    return lines


def _time(plan: Plan) -> list[str]:
    chosen = plan.choice
    shown = [option for option in plan.options if option.fits]
    if chosen is not None and chosen not in shown:
        shown.append(chosen)
    if not shown:
        return []
    lines = [
        "Seconds of one update, from data sheets and assumed shares of them (docs/plan.md); a range, not a measurement",
        f"  {'':<14}{'update':>16}{'sampling':>16}{'training':>16}{'optimizer':>16}{'exchange':>16}",
    ]
    for option in shown:
        cells = [(option.fast.total, option.slow.total)]
        cells += [
            (getattr(option.fast, part), getattr(option.slow, part))
            for part in ("sampling", "training", "optimizer", "communication")
        ]
        lines.append(
            f"  {option.strategy:<14}"
            + "".join(f"{_range(*cell):>16}" for cell in cells)
            + _changes(option, plan.work).replace(", ", "  ", 1)
        )
    if chosen is not None and plan.updates:
        fast, slow = (plan.updates * end.total for end in (chosen.fast, chosen.slow))
        size, unit = (3600, "hours") if slow >= 5400 else (60, "minutes")
        lines.append(
            f"  {plan.updates:,} updates with {chosen.strategy}: {_range(fast / size, slow / size)} {unit}, without evaluation"
        )
    return lines


def _advice(plan: Plan, recipe: str, flags: list[str]) -> list[str]:
    chosen = plan.choice
    if chosen is None:
        smallest = min(option.memory.peak for option in plan.options)
        return [
            f"Nothing fits, not even with gradient checkpointing and smaller micro-batches; as the recipe stands, the least is "
            f"{_gib(smallest)} GiB.",
            "Lower num_warmups or the token limits, set backward_samples, or take larger devices.",
        ]
    changed = _changes(chosen, plan.work)
    return [
        f"Quickest of what fits: {chosen.strategy}{changed or ', the recipe as it is'}; peak {_gib(chosen.memory.peak)} GiB",
        f"  {launch_line(plan, chosen, recipe, flags)}",
    ]


def launch_line(plan: Plan, option: Option, recipe: str, flags: list[str]) -> str:
    """The command that runs this option."""
    count, train = plan.hardware.count, f"--config {recipe}"
    extra = list(flags)
    if plan.hardware.device.is_cpu and "use_cpu" not in " ".join(flags):
        extra.append("--use_cpu true")
    if option.work.checkpointing and not plan.work.checkpointing:
        extra.append("--gradient_checkpointing true")
    if option.work.prompts != plan.work.prompts:
        extra.append(f"--per_device_train_batch_size {option.work.prompts}")
        extra.append(f"--gradient_accumulation_steps {option.work.micro_batches}")
    tail = " ".join([train, *extra])
    if count == 1 and option.strategy == "ddp":
        return f"rl-warmup train {tail}"
    if plan.hardware.device.is_cpu and option.strategy == "ddp":
        return f"torchrun --nproc_per_node {count} -m rl_warmup.cli.train {tail}"
    config = f"--config_file deepspeed_configs/{option.strategy}.yaml --num_processes {count}"
    return f"accelerate launch {config} -m rl_warmup.cli.train {tail}"


def _notes(plan: Plan, unread: list[str]) -> list[str]:
    notes = [*plan.work.notes]
    device = plan.hardware.device
    notes.append(
        f"{device.name}: {device.tflops:g} TFLOP/s bf16, {device.tflops_float32:g} float32, {device.bandwidth:g} GB/s "
        f"({device.source})"
    )
    if plan.work.precision == "float32" and not plan.hardware.device.is_cpu:
        notes.append("The recipe trains in float32; `bf16: true` is several times quicker on this device.")
    if unread:
        notes.append(f"Not looked at: {', '.join(unread)}")
    return notes


def plan_mapping(plan: Plan, recipe: str, flags: list[str]) -> dict[str, Any]:
    """The plan for other programs: bytes, operations, seconds."""

    def option(o: Option) -> dict[str, Any]:
        return {
            "strategy": o.strategy, "fits": o.fits, "gradient_checkpointing": o.work.checkpointing,
            "per_device_train_batch_size": o.work.prompts, "gradient_accumulation_steps": o.work.micro_batches,
            "memory_bytes": {**asdict(o.memory), "peak": o.memory.peak}, "seconds_fast": _seconds(o.fast),
            "seconds_slow": _seconds(o.slow), "launch": launch_line(plan, o, recipe, flags),
        }  # fmt: skip

    count = plan.hardware.count
    return {
        "estimate": True,
        "recipe": recipe,
        "hardware": {"count": count, **asdict(plan.hardware.device)},
        "shape": {**asdict(plan.work.shape), "parameters": plan.work.shape.parameters},
        "lengths": {
            "mean": asdict(plan.work.mean),
            "longest": asdict(plan.work.longest),
            "from": plan.work.lengths_from,
        },
        "tokens_per_update": {k: v * count for k, v in tokens_per_update(plan.work).items()},
        "flops_per_update_of_a_process": {**asdict(plan.flops), "total": plan.flops.total},
        "sft_ratio": plan.flops.total / plan.sft.total,
        "plain_logits_bytes": plain_logits_bytes(plan.work),
        "updates": plan.updates,
        "options": [option(o) for o in plan.options],
        "choice": None if plan.choice is None else option(plan.choice),
        "notes": list(plan.work.notes),
    }


def _seconds(seconds: Seconds) -> dict[str, float]:
    return {**asdict(seconds), "total": seconds.total}


def _changes(option: Option, work: Work) -> str:
    """What an option does otherwise than the recipe."""
    changes = []
    if option.work.checkpointing and not work.checkpointing:
        changes.append("with gradient checkpointing")
    if option.work.prompts != work.prompts:
        changes.append(f"{option.work.prompts} prompts at a time, {option.work.micro_batches} times")
    return f", {', '.join(changes)}" if changes else ""


def _gib(size: float) -> str:
    return _short(size / GIB)


def _short(value: float) -> str:
    """Two or three digits that mean something."""
    if value == 0:
        return "0"
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 1
        else f"{value:.2f}"
        if value >= 0.01
        else "<0.01"
    )


def _range(low: float, high: float) -> str:
    return f"{_short(low)} - {_short(high)}"
