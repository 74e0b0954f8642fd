"""The one door to what other libraries do not document, and to trl, whose helpers move between versions.

Knows: transformers, accelerate, DeepSpeed, torch, trl, datasets, sacrebleu, bert-score from the inside. Must not know: anything
of ours. Each function says why there is no documented way, and with which version it was seen; `tests/test_compat.py` lists the
names. Libraries are imported when a function is called, so that this module costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

TRL_HINT = "trl is not installed: pip install 'trl>=1.9,<2'."

# Methods of transformers' Trainer that we override, or call, and that it does not document: name -> parameters relied on.
# Seen with transformers 5.23.0. A method renamed there would never be called, and its work left undone without a word.
TRAINER: dict[str, tuple[str, ...]] = {
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),  # the one place that sees all rows of an update
    "save_model": ("output_dir", "_internal_call"),
    "_determine_best_metric": ("metrics", "trial"),  # callbacks hear of a best model only after it is judged
    "_evaluate": ("trial", "skip_scheduler"),  # eval_on_start would evaluate a resumed run once more
    "_get_output_dir": ("trial",),  # checkpoints are written aside, and renamed when they are whole
    "_init_training_state": (),  # restores the path of the best checkpoint, which may have moved
    "_issue_warnings_after_load": ("load_result",),  # calls tied weights missing
    "_load_best_model": (),  # loads the weights of any checkpoint, by engine
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),  # raises all kinds of errors for damaged files
    "_load_optimizer_and_scheduler": ("checkpoint",),  # the same
    "_load_rng_state": ("checkpoint",),  # other processes than those that saved need new random streams
    "_maybe_log_save_evaluate": (),  # the last moment before weights are saved
    "_prepare_inputs": ("inputs",),  # the first moment after the random state is restored
    "_run_epoch": (),  # does one update too many after the last checkpoint of a run
    "_save": ("output_dir", "state_dict"),  # the one place that every engine's saving comes through
    "_save_checkpoint": ("model", "trial"),
}


def check_trainer(trainer: type) -> None:
    """That transformers' `Trainer` still has the methods of TRAINER, with the parameters that are relied on.

    Raises ImportError: naming what is gone.
    """
    gone = []
    for name, parameters in TRAINER.items():
        method = getattr(trainer, name, None)
        known = inspect.signature(method).parameters if method else {}
        gone += [f"{name}({', '.join(parameters)})"] if method is None or set(parameters) - set(known) else []
    if gone:
        version = importlib.import_module("transformers").__version__
        raise ImportError(
            f"transformers {version} has changed methods of Trainer that checkpoints and updates here hang on: "
            f"{', '.join(gone)}. Install a version that is known to work: pip install transformers==5.23.0"
        )


@contextmanager
def without_deepspeed_config() -> Iterator[None]:
    """Hide the DeepSpeed configuration that `from_pretrained` and `generate` look at, and put the same one back.

    transformers 5.23.0 documents how to set and how to unset it, but not how to get it.
    """
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def check_reporters(names: Sequence[str]) -> None:
    """Each one's package is there; transformers 5.23.0 has no list of all packages, and a callback says what it lacks when made.

    Raises ValueError: naming what cannot be reported to.
    """
    from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

    names = [names] if isinstance(names, str) else names
    known = {"none", "all", *(get_available_reporting_integrations() if set(names) - {"none"} else ())}
    for name in names:
        try:
            if name not in known:
                get_reporting_integration_callbacks([name])[0]()
        except Exception as error:
            raise ValueError(f"report_to: {name!r} cannot be used ({error}). Install it, or leave it out.") from None


@contextmanager
def without_remote_code() -> Iterator[None]:
    """Have code beside a model refused, where transformers 5.23.0 would ask at the terminal: it has 0 seconds for an answer."""
    from transformers import dynamic_module_utils

    before, dynamic_module_utils.TIME_OUT_REMOTE_CODE = dynamic_module_utils.TIME_OUT_REMOTE_CODE, 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def cache_argument(forward: Any) -> str:
    """The name of a forward's cache: a T5's `past_key_values` became `cache` in transformers 5.24."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def attention_implementation(model: Any) -> str:
    """The name of a model's attention function. transformers 5.23.0 documents how to set it, but not how to ask for it."""
    return model.config._attn_implementation


@contextmanager
def attention_replaced(model: Any, name: str) -> Iterator[None]:
    """Every part of a model calls this function of `AttentionInterface`; afterwards each its own again.

    The documented `set_attn_implementation` of transformers 5.23.0 checks and looks functions up at every call, and gives the
    parts of a model one implementation.
    """
    parts = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values()
    before = [config._attn_implementation for config in parts]
    for config in parts:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, implementation in zip(parts, before, strict=True):
            config._attn_implementation = implementation


def leave_out_shared_memory() -> None:
    """Keep DeepSpeed 0.19.8 from compiling its shared memory operator, for which it has no setting."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def elements_here(parameter: Any) -> int:
    """Elements of a parameter that this process keeps between steps. DeepSpeed 0.19.8 hangs a ZeRO-3 shard on the parameter."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.numel()
    return parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()


def optimizer_elements(optimizer: Any, sharded_weights: bool) -> int:
    """Elements of the float32 copies that this process's optimizer updates. DeepSpeed 0.19.8 does not tell otherwise."""
    name = "fp32_partitioned_groups_flat" if sharded_weights else "single_partition_of_fp32_groups"
    flat = getattr(optimizer, name, None)
    if flat is None:
        flat = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(p.numel() for p in flat)


@contextmanager
def zero3_hooks_off(engine: Any) -> Iterator[None]:
    """Within it a ZeRO-3 engine neither gathers nor releases weights. DeepSpeed 0.19.8 has no switch for it.

    The hooks of its modules go by trl 1.16.0, which leaves the model's own on; that compares processes at the first forwards
    after a change of hooks, and torch 2.13.0 gives a hook back to nobody but the module.
    """
    trl = _trl("trl.models.utils")
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    begin = offload.module._forward_pre_hooks[offload.fwd_pre_hook.id]
    offload.fwd_pre_hook.remove()
    trl.remove_hooks(engine)
    try:
        yield
    finally:
        offload.fwd_pre_hook = offload.module.register_forward_pre_hook(begin)  # before the others, as it was
        trl.add_hooks(engine)


@contextmanager
def whole_fsdp2(engine: Any) -> Iterator[None]:
    """Every weight gathered, and kept after each forward.

    torch 2.13.0 documents how to set the latter (`set_reshard_after_forward`), but not how to ask for it, and accelerate sets
    root, tail and the rest differently. Its lazy beginning has no public name: without it the first layer that runs would take
    itself for the whole model.
    """
    from torch.distributed.fsdp import FSDPModule

    engine._get_fsdp_state()._lazy_init()
    sharded = [module for module in engine.modules() if isinstance(module, FSDPModule)]
    groups = [group for module in sharded for group in module._get_fsdp_state()._fsdp_param_groups]
    after_forward = [group.post_forward_mesh_info for group in groups]
    for module in sharded:
        module.unshard()
    for group in groups:
        group.post_forward_mesh_info = None
    try:
        yield
    finally:
        for group, mesh in zip(groups, after_forward, strict=True):
            group.post_forward_mesh_info = mesh
        if hasattr(engine, "reset_iter_state"):  # of torch 2.13: a group of which not every module ran would stay whole
            engine.reset_iter_state()
        for module in sharded:
            module.reshard()


def is_split_over_processes(stream: Any) -> bool:
    """Whether `split_dataset_by_node` made this stream, which datasets keeps to itself. Seen with datasets 5.2.0."""
    return getattr(stream, "_distributed", None) is not None


def corpus_counts(metric: Any, predictions: Sequence[str], targets: Sequence[str]) -> tuple[list[Any], Any]:
    """What a sacrebleu metric counts in every row, and its score of their sum, as its own significance tests take them.

    Seen with sacrebleu 2.6.0.
    """
    counts = metric._extract_corpus_statistics(list(predictions), [list(targets)])
    return counts, lambda sums: float(metric._compute_score_from_stats(list(sums)).score)


def limit_bertscore(scorer: Any, unlimited: int) -> None:
    """Cut texts at what the model can read where its folder states no limit: bert-score 0.3.13 asks the tokenizer alone."""
    if scorer._tokenizer.model_max_length > unlimited:
        positions = getattr(scorer._model.config, "max_position_embeddings", 514)  # RoBERTa counts them from 2
        scorer._tokenizer.model_max_length = positions - 2


def _trl(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{TRL_HINT} ({error})") from error


def model_config_class() -> type:
    """TRL's `ModelConfig`: model_name_or_path, dtype, LoRA fields. From its own module, as trl's others import pandas."""
    return _trl("trl.trainer.model_config").ModelConfig


def peft_config(model_config: Any) -> Any:
    """The LoRA configuration a ModelConfig asks for, or None."""
    if not model_config.use_peft:
        return None
    config = _trl("trl").get_peft_config(model_config)
    named = getattr(config, "target_modules", None)
    if isinstance(named, str) and named != "all-linear" and named.isidentifier():
        # trl makes text of a list of one name, which peft takes for a pattern of whole paths
        config.target_modules = {named}
    return config


def quantization(model_config: Any) -> dict[str, Any]:
    """What `from_pretrained` has to be told for `load_in_4bit` and `load_in_8bit`, by TRL's own helpers; empty without them.

    Raises ValueError: bitsandbytes is not installed.
    """
    asked = next((name for name in ("load_in_4bit", "load_in_8bit") if getattr(model_config, name)), None)
    if asked is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"{asked}: needs the package bitsandbytes, which is not installed. Install it, or leave {asked} out."
        )
    return {"quantization_config": _trl("trl").get_quantization_config(model_config)}


def prepare_deepspeed(model: Any, accelerator: Any) -> Any:
    """A frozen model under DeepSpeed's inference engine: sharded under ZeRO-3, whole otherwise. Seen with trl 1.16.0."""
    return _trl("trl.models.utils").prepare_deepspeed(model, accelerator)


def prepare_fsdp(model: Any, accelerator: Any) -> Any:
    """A frozen model in FSDP shards. Seen with trl 1.16.0."""
    return _trl("trl.models.utils").prepare_fsdp(model, accelerator)


def missing_flop_counts() -> dict[Any, Any]:
    """Operators that torch's FlopCounterMode does not count: a CPU's attention, and products that add in place.

    Functions from shapes of arguments to operations, as `custom_mapping` takes them. torch 2.13 has no public name for the first.
    """
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
        aten.addmm_: lambda total, a, b, *_, **__: 2 * a[0] * a[1] * b[1],
        aten.baddbmm_: lambda total, a, b, *_, **__: 2 * a[0] * a[1] * a[2] * b[2],
    }
