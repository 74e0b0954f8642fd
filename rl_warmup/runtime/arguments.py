"""Values that TrainingArguments, or the libraries below it, would refuse in their own words: said here as ours.

Knows: names of schedules, optimizers and their packages, keys of engines' configurations. Must not know: recipes; it imports
torch and transformers only to try a schedule.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_warmup.runtime.documents import Unreadable, parse_json, read_json
from rl_warmup.runtime.settings import shown

FOLLOW_A_METRIC = ("reduce_lr_on_plateau", "greedy")
SCHEDULES = {  # what lr_scheduler_kwargs has to hold, one of
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"), "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}  # fmt: skip
OPTIMIZERS = (  # a part of the name, the module it needs, the package of that
    ("galore", "galore_torch", "galore-torch"), ("apollo_", "apollo_torch", "apollo-torch"), ("lomo", "lomo_optim", "lomo-optim"),
    ("grokadamw", "grokadamw", "grokadamw"), ("schedule_free", "schedulefree", "schedulefree"),
    ("stable_adamw", "optimi", "torch-optimi"), ("anyprecision", "torchdistx", "torchdistx"), ("_xla", "torch_xla", "torch_xla"),
    ("_npu", "torch_npu", "torch_npu"), ("adamw_torch_4bit", "torchao", "torchao"), ("adamw_torch_8bit", "torchao", "torchao"),
    ("bnb", "bitsandbytes", "bitsandbytes"), ("8bit", "bitsandbytes", "bitsandbytes"), ("paged", "bitsandbytes", "bitsandbytes"),
    ("lion", "bitsandbytes", "bitsandbytes"), ("ademamix", "bitsandbytes", "bitsandbytes"),
)  # fmt: skip
FSDP = ("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2", "offload", "auto_wrap")
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
FILES = ("deepspeed", "accelerator_config", "fsdp_config")  # a mapping, or the name of a JSON file with one
MAPPINGS = (*FILES, "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "lr_scheduler_kwargs")


def argument_faults(values: Mapping[str, Any]) -> list[str]:
    """A sentence for every inherited setting that other libraries would refuse, or ask a missing package for.

    Args:
        values: settings by name, of the right types.
    """
    faults = _schedule_faults(values)
    optimizer = str(getattr(values.get("optim"), "value", values.get("optim")))
    for part, module, package in OPTIMIZERS:
        if part in optimizer:  # the first that fits
            if importlib.util.find_spec(module) is None:
                needs = f"optim: {optimizer} needs the package {package}, which is not installed."
                faults.append(f"{needs} Install it, or use adamw_torch.")
            break
    fsdp = values.get("fsdp")
    if isinstance(fsdp, str) and (unknown := [word for word in fsdp.split() if word not in FSDP]):
        faults.append(f"fsdp: {shown(unknown[0])} is no option of it. Allowed: true, or words of {', '.join(FSDP)}.")
    if values.get("ddp_backend") and "RANK" not in os.environ:
        faults.append(
            f"ddp_backend: {values['ddp_backend']} connects processes, and there is one. Launch several, or leave it out."
        )
    for name in MAPPINGS:
        faults += _mapping_faults(name, values.get(name))
    return faults


def refused_arguments(values: Mapping[str, Any], defaults: Mapping[str, Any], error: Exception) -> str:
    """The sentence for what TrainingArguments refuses beyond `argument_faults`: the settings it speaks of, and its words."""
    said = " ".join(str(error).split())[:300]
    changed = [name for name, value in values.items() if name in defaults and value != defaults[name]]
    named = [name for name in changed if name in said.lower()] or [name for name in changed if name in FILES]
    what = ", ".join(f"{name}: {shown(values[name])}" for name in named if not name.endswith("_token"))
    return f"{what or 'The settings of the training'} cannot be used ({type(error).__name__}: {said})."


def try_scheduler(config: Any) -> None:
    """Make the learning rate schedule once, as transformers does when training begins.

    Raises:
        ValueError: lr_scheduler_kwargs does not fit this schedule.
    """
    import torch
    from transformers import get_scheduler

    kind = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        get_scheduler(kind, optimizer, 1, 10, scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs or {}))
    except Exception as error:
        given = shown(config.lr_scheduler_kwargs)
        raise ValueError(f"lr_scheduler_kwargs: {given} does not fit lr_scheduler_type {kind} ({error}).") from None


def _schedule_faults(values: Mapping[str, Any]) -> list[str]:
    schedule, evaluates = (
        str(getattr(values.get(name), "value", values.get(name))) for name in ("lr_scheduler_type", "eval_strategy")
    )
    if schedule in FOLLOW_A_METRIC and evaluates in ("no", "None"):
        return [
            f"lr_scheduler_type: {schedule} follows validation, and eval_strategy is no. Set eval_strategy to steps or epoch, or "
            f"use another schedule, e.g. cosine."
        ]
    needed, given = SCHEDULES.get(schedule), values.get("lr_scheduler_kwargs")
    if needed and (not given or isinstance(given, dict)) and not set(needed) & set(given or {}):
        example = f"{{{needed[0]}: {'100' if 'steps' in needed[0] else '1e-6'}}}"
        return [f"lr_scheduler_kwargs: {schedule} needs {' or '.join(needed)}, e.g. {example}."]
    return []


def _mapping_faults(name: str, given: Any) -> list[str]:
    """Faults of a setting that is a mapping, the JSON text of one, or (of FILES) the name of a JSON file."""
    found = given
    if isinstance(given, str):
        is_file = name in FILES and not given.lstrip().startswith("{")
        try:
            if is_file and not Path(given).is_file():
                return [f"{name}: there is no file {shown(given)}. Give a JSON file, or a mapping."]
            found = read_json(given, "Mend it.") if is_file else parse_json(given)
        except (OSError, Unreadable) as error:
            return [f"{name}: {error if is_file else f'{shown(given)} {error}.'} Give a mapping."]
    if found is None or not isinstance(found, dict):
        return [f"{name}: {shown(given)} is no mapping."] if isinstance(given, str) else []
    if name.endswith("checkpointing_kwargs") and (wrong := [key for key in found if key not in CHECKPOINTING]):
        return [f"{name}: {shown(wrong[0])} is no key of it. Allowed: {', '.join(CHECKPOINTING)}."]
    if name == "deepspeed" and found:
        zero = found.get("zero_optimization")
        stage = zero.get("stage") if isinstance(zero, dict) else None
        if type(stage) is not int or not 0 <= stage <= 3:
            said = (
                "holds no zero_optimization.stage"
                if stage is None
                else f"asks for zero_optimization.stage {shown(stage)}"
            )
            return [
                f"deepspeed: {shown(given)} {said}; give a stage from 0 to 3, as deepspeed_configs/zero2.json does."
            ]
    return []
