"""A plan as text for a terminal, and as a mapping for other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rl_warmup.experiments.plan import GIB, USABLE, Option, Plan

COLUMNS = ("parameters", "gradients", "optimizer", "activations", "logits", "sampling", "peak", "host")
UNCHECKED = "Settings were checked as by train. Not checked: output_dir, devices, launch, rewards, own functions, weights, rows."


def plan_text(plan: Plan, recipe: str, flags: list[str], unread: list[str]) -> str:
    """The whole page of a recipe, whose path stands as it was typed, with `flags` given over it; `unread` changed nothing."""
    advice = [
        "Nothing fits, not even with gradient checkpointing and smaller micro-batches.",
        "Lower num_warmups or the token limits, set backward_samples, or take larger devices.",
    ]
    if option := plan.choice:
        fits = "fits" if option.surely else "may fit"
        best = f"First way that {fits}: {option.strategy}, peak {option.memory['peak'] / GIB:.2f} GiB"
        advice = [best, f"  {launch_line(plan, option, recipe, flags)}"]
    notes = {"Not counted": plan.work.not_counted, "Without effect on the cost": unread}
    said = [f"{what}: {', '.join(names)}" for what, names in notes.items() if names]
    said.append(UNCHECKED)
    title = f"Plan of {recipe} on {plan.hardware.spelled}: estimates from shapes (docs/plan.md)"
    return "\n\n".join("\n".join(lines) for lines in ([title], _work(plan), _memory(plan), advice, said) if lines)


def _work(plan: Plan) -> list[str]:
    work, count, sft, parts = plan.work, plan.hardware.count, plan.sft["total"], dict(plan.flops)
    total = parts.pop("total")
    tokens = {name: f"{value * count:,.0f}" for name, value in work.tokens().items()}
    numbers = {"prompt": work.prompts, "micro-batch": work.micro_batches, "process": count}
    size = " x ".join(_plural(number, noun) for noun, number in numbers.items())
    return [
        f"model      {work.shape.name}, {work.shape.parameters:,} parameters",
        f"update     {size}, {work.precision}{', gradient checkpointing' if work.checkpointing else ''}",
        f"           {_plural(work.warmups, 'warmup')} for each prompt, {work.trained} of them with a gradient",
        f"tokens     prompt {work.mean.prompt:.0f}, warmup {work.mean.warmup:.0f}, target {work.mean.target:.0f}: "
        f"{work.lengths_from}",
        f"           an update reads {tokens['prompt']}, writes {tokens['warmup']} and trains on {tokens['trained_on']} "
        f"({tokens['target']} of targets, once)",
        f"operations {total / 1e12:,.3g} x 10^12 of each process: {total / sft:.1f} x an SFT update of the same prompts",
        f"           {', '.join(f'{name} {part / total:.0%}' for name, part in parts.items() if part)}",
    ]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith(('ch', 's')) else 's'}"


def _memory(plan: Plan) -> list[str]:
    memory, context = plan.hardware.memory, plan.options[0].memory["context"] / GIB
    lines = [
        f"Memory of one device at its fullest moment, in GiB; {USABLE * memory:.1f} of {memory:.0f} can be used",
        " " * 15 + "".join(f"{name:>12}" for name in COLUMNS),
    ]
    advised = [plan.choice] if plan.choice and plan.choice not in plan.options else []
    for option in plan.options + advised:
        m = {**option.memory, "sampling": option.memory["cache"]}
        m["parameters"] += m["gathered"]
        m["activations"] += m["recomputed"]
        verdict = "fits" if option.surely else "may fit" if option.fits else "too large"
        cells = "".join(f"{m[name] / GIB:>12.2f}" for name in COLUMNS)
        lines.append(f"  {option.strategy:<13}{cells}  {verdict}{', changed as below' if option in advised else ''}")
    lines.append(f"  peak = parameters + optimizer + {context} for the runtime + the larger of sampling and the rest")
    return lines


def launch_line(plan: Plan, option: Option, recipe: str, flags: list[str]) -> str:
    """The command that runs this option, with what it changes in the recipe."""
    count, on_cpu, words = plan.hardware.count, plan.hardware.is_cpu, [f"--config {recipe}", *flags]
    work = option.work
    if on_cpu and "use_cpu" not in " ".join(flags):
        words.append("--use_cpu true")
    if work.checkpointing and not plan.work.checkpointing:
        words.append("--gradient_checkpointing true")
    if work.prompts != plan.work.prompts:
        words.append(f"--per_device_train_batch_size {work.prompts} --gradient_accumulation_steps {work.micro_batches}")
    if count == 1 and option.strategy == "ddp":
        return " ".join(["rl-warmup train", *words])
    launcher = f"accelerate launch --config_file deepspeed_configs/{option.strategy}.yaml --num_processes {count}"
    if on_cpu and option.strategy == "ddp":
        launcher = f"torchrun --nproc_per_node {count}"
    return " ".join([launcher, "-m rl_warmup.cli.train", *words])


def plan_mapping(plan: Plan, recipe: str, flags: list[str]) -> dict[str, Any]:
    """The plan for other programs: bytes, operations and launch lines."""

    def option(o: Option) -> dict[str, Any]:
        return {
            "strategy": o.strategy, "fits": o.fits, "gradient_checkpointing": o.work.checkpointing,
            "per_device_train_batch_size": o.work.prompts, "gradient_accumulation_steps": o.work.micro_batches,
            "memory_bytes": o.memory, "launch": launch_line(plan, o, recipe, flags),
        }  # fmt: skip

    work, count = plan.work, plan.hardware.count
    return {
        "estimate": True, "recipe": recipe, "hardware": asdict(plan.hardware),
        "shape": {**asdict(work.shape), "parameters": work.shape.parameters},
        "lengths": {"mean": work.mean._asdict(), "longest": work.longest._asdict(), "from": work.lengths_from},
        "tokens_per_update": {k: v * count for k, v in work.tokens().items()},
        "flops_per_update_of_a_process": plan.flops, "sft_ratio": plan.flops["total"] / plan.sft["total"],
        "updates": work.updates_on(count), "not_counted": list(work.not_counted),
        "options": [option(o) for o in plan.options], "choice": plan.choice and option(plan.choice),
    }  # fmt: skip


def measured_text(measured: Any, plan: Plan) -> str:
    """What was measured (`measurement.Measured`) beside a plan of the same settings for one process."""
    flops, peak = plan.flops["total"], plan.options[0].memory["peak"] - plan.options[0].memory["context"]
    return (
        f"Measured here ({measured.device}, one process): {measured.seconds:.2g} seconds for an update\n"
        f"  operations {measured.flops / 1e12:,.3g} x 10^12; the estimate is {flops / measured.flops:.2f} of them\n"
        f"  peak {measured.peak_bytes / GIB:.2f} GiB; the estimate, without runtime, is {peak / measured.peak_bytes:.2f} of it"
    )
