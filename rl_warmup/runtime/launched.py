"""Checks that the setup that runs (processes, engine, shards) is the one requested.

Knows: the variables that launchers set, accelerate, DeepSpeed's and FSDP's engines. Must not know: recipes, warmups, how
anything is trained. Most wrong launch commands train something else and end with exit code 0 (docs/distributed.md lists
them), so the checks look at engines and shards, not at settings.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm
from transformers import TrainerCallback

from rl_warmup.runtime import compat
from rl_warmup.runtime.faults import processes
from rl_warmup.runtime.run_folder import tells
from rl_warmup.runtime.sharing import whole_on_every_process

SHARDED_STAGE = 3  # the ZeRO stage that shards the parameters
# Only accelerate's launcher sets it; the first trainer of a process sets ACCELERATE_USE_DEEPSPEED too.
LAUNCHED_DEEPSPEED = "ACCELERATE_CONFIG_DS_FIELDS"


def asks_deepspeed(args: Any) -> bool:
    """Whether the settings or the launcher request DeepSpeed."""
    return bool(args.deepspeed) or _is_on("ACCELERATE_USE_DEEPSPEED")


def asks_fsdp(args: Any) -> bool:
    """Whether the settings or the launcher request FSDP."""
    return bool(args.fsdp) or _is_on("ACCELERATE_USE_FSDP")


def keep_quiet_without_accelerator() -> None:
    """Keep two libraries from warning in every run that there is no accelerator."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would find that too
        warnings.filterwarnings("ignore", "'pin_memory' argument is set as true")  # transformers' default


def initialize_distributed_on_cpu(args: Any) -> None:
    """Connect processes on a machine without an accelerator over gloo. Call it before TrainingArguments is made.

    Without `use_cpu` accelerate starts independent runs there, each with rank 0. DeepSpeed is initialized first, as ZeRO-3
    from `deepspeed: zero3.json` needs the number of processes early. Its shared memory operator is off, as compiling it takes
    most of a minute.
    """
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    keep_quiet_without_accelerator()
    if "RANK" not in os.environ or not on_cpu or asks_fsdp(args):
        return
    args.use_cpu = True
    if not asks_deepspeed(args):
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    compat.leave_out_shared_memory()
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def refuse_quantized(args: Any, quantized: bool) -> None:
    """Raises ValueError for 4 or 8 bit weights under DeepSpeed or FSDP: untested."""
    if quantized and (asks_deepspeed(args) or asks_fsdp(args)):
        engine = "DeepSpeed" if asks_deepspeed(args) else "FSDP"
        raise ValueError(
            f"load_in_4bit, load_in_8bit: quantized weights under {engine} are untested. Train in one process without {engine}, "
            f"or leave them out."
        )


def refuse_launch(args: Any, model: Any) -> None:
    """Check the launch before the model is wrapped. Raises ValueError: with one sentence per fault."""
    refuse_quantized(args, getattr(model, "is_quantized", False))
    faults = _process_faults(args)
    if asks_fsdp(args) and model.config.is_encoder_decoder:
        faults.append(
            f"FSDP cannot train {model.config.model_type}: encoder and decoder share their embeddings, and accelerate's "
            f"FSDP2 stops at parameters that belong to two groups. Use ZeRO (deepspeed_configs/zero2.yaml or zero3.yaml)."
        )
    json, by_launcher = args.deepspeed, os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if json and LAUNCHED_DEEPSPEED in os.environ:
        faults.append(
            f"Two DeepSpeed configurations are given, `deepspeed: {json}` and the launcher's ({by_launcher or 'its own keys'}); "
            f"the second would be ignored. Give one of them."
        )
    if model.config.is_encoder_decoder and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        faults.append(
            "This model was loaded in shards (zero.Init). transformers then finds the empty shards of output head and "
            "embeddings equal and ties them, so a separate head is lost (T5 v1.1, FLAN, mT5). Load the model before "
            "WarmupConfig is made, or give its name and let WarmupTrainer load it."
        )
    _raise(faults)


class LaunchCheck(TrainerCallback):
    """Checks the engine when training begins, prints the setup, and refuses one that was not requested."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        engine = self.trainer.model_wrapped
        found = describe(engine)
        _raise([*_process_faults(args), *engine_faults(args, engine, found)])
        self.trainer.run_folder.processes = found
        # DeepSpeed 0.19 under torch 2.13 gives this warning at every collective
        warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
        if state.is_world_process_zero and tells(args) and (found["count"] > 1 or "zero_stage" in found):
            tqdm.write("Training on " + sentence(found))


def describe(engine: nn.Module) -> dict[str, Any]:
    """Number of processes, engine, and elements of the model and optimizer that this process holds."""
    parameters = list(engine.parameters())
    found: dict[str, Any] = {
        "count": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "engine": type(engine).__name__,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        "parameters_here": sum(compat.elements_here(p) for p in parameters),
    }
    if found["count"] > 1:
        found["backend"] = torch.distributed.get_backend()
    if found["engine"] == "DeepSpeedEngine":
        found["zero_stage"] = engine.zero_optimization_stage()  # type: ignore[operator]
        found["trained_parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in parameters if p.requires_grad)
        found["optimizer_elements_here"] = compat.optimizer_elements(
            engine.optimizer, found["zero_stage"] == SHARDED_STAGE
        )
    return found


def sentence(found: dict[str, Any]) -> str:
    """The result of `describe` as a sentence."""
    words = f"{found['count']} process{'es' if found['count'] > 1 else ''}: {found['engine']}"
    if "zero_stage" in found:
        words += f", ZeRO stage {found['zero_stage']}, optimizer state of {found['optimizer_elements_here']:,} of "
        words += f"{found['trained_parameters']:,} trained parameters here"
    return f"{words}, {found['parameters_here']:,} of {found['parameters']:,} parameters here."


def engine_faults(args: Any, engine: nn.Module, found: dict[str, Any]) -> list[str]:
    """One sentence for every difference between the engine and the request."""
    name = found["engine"]
    if asks_deepspeed(args):
        return _deepspeed_faults(args, found)
    if asks_fsdp(args) and not isinstance(engine, FSDPModule):
        return [
            f"FSDP was requested, but the model is wrapped in {name}, so nothing is sharded. accelerate silently ignores FSDP "
            f"on a CPU; only version 2 (`fsdp_version: 2`) on accelerators is supported."
        ]
    if not asks_fsdp(args) and found["count"] > 1 and name != "DistributedDataParallel":
        return [
            f"{found['count']} processes train, but the model is not wrapped in DistributedDataParallel (it is a {name}), so "
            f"gradients would never be averaged. On a machine without accelerators set `use_cpu: true` in place of "
            f"ddp_backend; elsewhere launch with deepspeed_configs/ddp.yaml."
        ]
    return []


@contextmanager
def whole_weights(engine: nn.Module) -> Iterator[None]:
    """Under ZeRO-3 and FSDP2: gather every weight on every process, so that each can generate alone.

    All processes must enter; inside, they may do different numbers of steps. An exception inside also restores shards and
    hooks. Does nothing under other engines, whose weights are whole.
    """
    stage = getattr(engine, "zero_optimization_stage", None)
    if isinstance(engine, FSDPModule):
        with compat.whole_fsdp2(engine):
            yield
    elif stage is not None and stage() == SHARDED_STAGE:
        import deepspeed

        # the engine's hooks would release weights after each forward, and `generate` synchronizes processes whenever it finds a
        # ZeRO-3 configuration
        whole = deepspeed.zero.GatheredParameters(list(engine.parameters()))
        with whole, whole_on_every_process(), compat.zero3_hooks_off(engine):
            yield
    else:
        yield


def _process_faults(args: Any) -> list[str]:
    """A fault where the processes are not connected."""
    asked, found = processes(), args.world_size
    rank = int(os.environ.get("RANK") or 0)
    if asked != found or rank != args.process_index:
        return [
            f"The launcher started {asked} processes (WORLD_SIZE), this is number {rank}, but accelerate counts {found} and "
            f"this as number {args.process_index}: every process would train alone and write the same files. On a machine "
            f"without accelerators set `use_cpu: true`; elsewhere check distributed_type in the launch file."
        ]
    # accelerate's simple launcher sets MASTER_PORT for several processes and then starts one
    alone = "MASTER_PORT" in os.environ and "RANK" not in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    if alone and found == 1:
        return [
            "Several processes were requested of `accelerate launch`, but it started one: --cpu and the distributed types NO "
            "and MULTI_CPU ignore --num_processes. Launch with `rl-warmup train --launch cpu --num_processes N`, or unset "
            "MASTER_PORT if you want one process."
        ]
    return []


def _deepspeed_faults(args: Any, found: dict[str, Any]) -> list[str]:
    if found["engine"] != "DeepSpeedEngine":
        cause = "ACCELERATE_USE_CPU=true turns DeepSpeed off; unset it and set `use_cpu: true` instead"
        if not _is_on("ACCELERATE_USE_CPU"):
            cause = "give `distributed_type: DEEPSPEED` to the launcher, or `deepspeed: FILE.json` in the settings"
        return [f"DeepSpeed was requested, but the model is wrapped in {found['engine']}: {cause}."]
    stage, wanted = found["zero_stage"], args.deepspeed_plugin.zero_stage
    if stage != wanted:
        return [f"ZeRO stage {wanted} was requested, but the engine runs stage {stage}. Check the DeepSpeed JSON."]
    if found["count"] == 1 or stage == 0:
        return []
    faults, share = [], 1 / found["count"]
    if found["optimizer_elements_here"] > _uneven(found["trained_parameters"], share):
        faults.append(
            f"ZeRO stage {stage} on {found['count']} processes should keep about {share:.0%} of the optimizer's state on each, "
            f"but this one holds {found['optimizer_elements_here']:,} of {found['trained_parameters']:,} elements."
        )
    if stage == SHARDED_STAGE and found["parameters_here"] > _uneven(found["parameters"], share):
        faults.append(
            f"ZeRO stage 3 on {found['count']} processes should keep about {share:.0%} of the parameters on each, but this "
            f"one holds {found['parameters_here']:,} of {found['parameters']:,}."
        )
    return faults


def _uneven(elements: int, share: float) -> float:
    """An upper bound of one process's shard, with room for padding."""
    return elements * (1 + share) / 2 + 4096


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "on")


def _raise(faults: list[str]) -> None:
    if faults:
        raise ValueError("\n".join(faults))
