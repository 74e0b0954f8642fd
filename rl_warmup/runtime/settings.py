"""Every setting of a recipe: whether it is effective or refused, what it needs, which numbers it allows.

Knows: names and numbers. Must not know: torch, transformers. `tests/test_settings.py` fails when transformers or trl adds a
setting that is not listed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The finite numbers that a setting allows."""

    low: float = 0
    high: float = 1e9
    above: bool = False  # `low` itself is not allowed
    below: bool = False  # `high` itself is not allowed
    also: str = ""  # what else is allowed, or the unit

    def fault(self, value: float) -> str | None:
        """What is allowed instead; None where the value is allowed."""
        within = self.low <= value <= self.high and not (self.above and value == self.low)
        if math.isfinite(value) and within and not (self.below and value == self.high):
            return None
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        high = f"below {self.high:g}" if self.below else f"at most {self.high:g}"
        if self.high == 1:
            words = f"{low} and {high}" if self.low or self.above or self.below else "between 0 and 1"
        else:
            words = high if value > self.high or self.high == 0 else low
        return words + self.also


# Settings of transformers.TrainingArguments and trl.ModelConfig that work as documented there, and the code that reads them:
# "Trainer" and "TrainingArguments" of transformers, or a file of ours.
EFFECTIVE: dict[str, str] = {
    **dict.fromkeys((
        "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
        "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1",
        "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "activation_checkpointing",
        "activation_checkpointing_kwargs", "torch_empty_cache_steps", "logging_strategy", "logging_first_step", "disable_tqdm",
        "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy",
        "eval_delay", "eval_on_start", "save_only_model", "save_strategy", "save_steps", "save_total_limit",
        "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_revision",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ignore_data_skip", "full_determinism", "seed",
        "data_seed", "accelerator_config", "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory",
        "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
        "dataloader_in_order", "train_sampling_strategy", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers", "ddp_static_graph", "fsdp", "fsdp_config", "deepspeed", "skip_memory_metrics",
    ), "Trainer"),
    **dict.fromkeys((
        "tf32", "gradient_checkpointing", "gradient_checkpointing_kwargs", "logging_steps", "log_on_each_node", "log_level",
        "log_level_replica", "eval_steps", "per_device_eval_batch_size", "use_cpu", "ddp_backend", "ddp_timeout", "do_eval",
    ), "TrainingArguments"),
    "resume_from_checkpoint": "run.py",
    "local_rank": "nothing: DeepSpeed's launcher passes it, and sets the variable LOCAL_RANK too",
    **dict.fromkeys(("do_train", "do_predict"), "run.py, which always does both"),
    **dict.fromkeys(("model_name_or_path", "model_revision", "dtype", "attn_implementation"), "run.py"),
    **dict.fromkeys((
        "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters",
        "lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type",
        "use_bnb_nested_quant", "bnb_4bit_quant_storage",
    ), "compat.py"),
}  # fmt: skip

_OTHER_LOSS = "belongs to a loss that is not computed here"
_TEXT_METRICS = "validation here scores texts and sums log-probabilities itself (`metrics`, `num_eval_warmups`)"
_HALF_EVAL = "validation uses the trained weights, and would leave them rounded. Use bf16 or `dtype: bfloat16`"
_COMPILED = "every update has other shapes, so the model would be compiled again each time"
# Settings that are refused where they differ from their default, and why.
REFUSED: dict[str, str] = {
    "label_smoothing_factor": f"{_OTHER_LOSS}; a smoothed target would not be the likelihood that rewards warmups",
    "neftune_noise_alpha": "noise in the embeddings would score warmups under another model than they were sampled from",
    "average_tokens_across_devices": f"{_OTHER_LOSS}; it is always divided by the target tokens of all processes",
    "bf16_full_eval": _HALF_EVAL,
    "fp16_full_eval": f"{_HALF_EVAL}; models of the T5 family overflow in float16",
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": "its fused loss replaces the forward that scores warmups",
    "liger_kernel_config": "use_liger_kernel is refused",
    "use_cache": "training needs no cache, and sampling always has one",
    "auto_find_batch_size": "it would change the rows of an update during the run; lower per_device_train_batch_size and "
    "raise gradient_accumulation_steps",
    "debug": "a loss or a weight that is not finite always ends the run, and TPUs are not supported",
    "logging_nan_inf_filter": "a loss that is not finite always ends the run",
    "include_num_input_tokens_seen": "it counts tensors that do not exist here; timing.jsonl has train_tokens",
    "prediction_loss_only": _TEXT_METRICS,
    "eval_do_concat_batches": _TEXT_METRICS,
    "eval_use_gather_object": _TEXT_METRICS,
    "eval_accumulation_steps": _TEXT_METRICS,
    "include_for_metrics": _TEXT_METRICS,
    "batch_eval_metrics": _TEXT_METRICS,
    "label_names": _TEXT_METRICS,
    "enable_jit_checkpoint": "SIGTERM always writes a checkpoint here (docs/checkpoints.md)",
    "restore_callback_states_from_checkpoint": "callbacks always get back what a checkpoint saved of them (docs/checkpoints.md)",
    "save_on_each_node": "only the main process completes a checkpoint (docs/checkpoints.md)",
    "parallelism_config": "it splits a prompt over processes, but warmups are sampled from whole prompts",
    "remove_unused_columns": "rewards and metrics read columns that the model does not take",
    "length_column_name": "rows are not sorted by length",
    "hub_strategy": "it uploads checkpoints while they are moved; push_to_hub uploads the model when training ends",
    "hub_always_push": "the model is uploaded once, when training ends",
}  # fmt: skip
# Values that TrainingArguments itself gives to a refused setting; they count as the default.
SAME: dict[str, tuple[Any, ...]] = {"include_num_input_tokens_seen": ("no", False), "debug": ([], None)}
# Settings that do nothing unless another one is on.
NEEDS: dict[str, str] = {
    **dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters",
                     "lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora", "load_in_8bit", "load_in_4bit"),
                    "use_peft"),
    **dict.fromkeys(("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"), "load_in_4bit"),
    **dict.fromkeys(("hub_model_id", "hub_revision"), "push_to_hub"),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "project"), "report_to"),
    **dict.fromkeys(("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
                     "dataloader_in_order"), "dataloader_num_workers"),
    **dict.fromkeys(("load_best_model_at_end", "eval_on_start", "do_eval", "eval_delay"), "eval_strategy"),
    "save_only_model": "save_strategy",
    "fsdp_config": "fsdp",
    "activation_checkpointing_kwargs": "activation_checkpointing", "gradient_checkpointing_kwargs": "gradient_checkpointing",
}  # fmt: skip
TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
# Refused values of effective settings.
REFUSED_VALUES: dict[tuple[str, str], str] = {
    **{("train_sampling_strategy", kind): "rows are not sorted by length; batches of the forward already are"
       for kind in ("group_by_length", "batch_rebalance")},
    **{("lora_task_type", kind): "the adapter's model has to write text; leave it out"
       for kind in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")},
}  # fmt: skip
ACCELERATOR_KEYS = (
    "split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking", "gradient_accumulation_kwargs",
    "use_configured_state",
)  # fmt: skip
ACCELERATOR = {  # keys of accelerator_config that may not be changed
    "split_batches": (False, "batches belong to one process"),
    "dispatch_batches": (False, "rows are no tensors, and every process reads its own"),
    "even_batches": (True, "processes would do different numbers of updates and hang"),
    "use_seedable_sampler": (True, "a run resumed after its first epoch would see other rows than the whole run"),
}
# (settings of optimizers, prefixes of `optim`, whether only these optimizers read the settings (or all others))
OPTIMIZERS: tuple[tuple[tuple[str, ...], tuple[str, ...], bool], ...] = (
    (("adam_beta1", "adam_beta2", "adam_epsilon"), ("sgd", "adagrad", "rmsprop", "adafactor"), False),
    (("optim_args",), ("adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu", "adamw_apex", "adafactor"), False),
    (("optim_target_modules",), ("galore", "apollo"), True),
)

# Arguments of `apply_chat_template` that are given to it anyway.
CHAT_ARGUMENTS = (
    "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "return_dict", "padding",
    "truncation", "max_length", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip

# Fields of a model card that no file of a run tells, as huggingface_hub's ModelCardData calls them.
CARD_LISTS = ("language", "datasets", "tags", "license", "base_model")
CARD_FIELDS = (*CARD_LISTS, "license_name", "license_link", "model_name", "pipeline_tag")

SEED, SHARE, EMPTY = Range(0, 2**32 - 1), Range(0, 1), ", or empty"
COUNT, AMOUNT = Range(1), Range(0, math.inf)
WEIGHT, SCALE = (
    Range(0, 1e6),
    Range(1e-4, 1e6),
)  # beyond, products with float32 log-probabilities are not finite, or all alike
BATCH = Range(1, 1e6)
RANGES: dict[str, Range] = {
    # ours
    "num_warmups": Range(1, 10_000), "num_eval_warmups": Range(1, 10_000), "temperature": SCALE, "top_p": Range(1e-6, 1),
    "min_warmup_length": Range(0, 1e6), "max_warmup_length": Range(1, 1e6), "tau": SCALE, "target_ess": Range(0, 10_000),
    "uniform_target_share": SHARE, "tsallis_q": SHARE, "empty_share": SHARE, "backward_samples": Range(0, 10_000),
    "min_reading_updates": Range(0), "max_reading_updates": COUNT, "reading_threshold": SHARE,
    "beta": Range(0, 1e6, also=EMPTY), "anchor_weight": WEIGHT,
    "readiness": Range(-1e9, 0, below=True, also=" (nats per token)"),
    "max_prompt_length": Range(2, 1e7, also=", or empty for no limit"),
    "max_target_length": Range(2, 1e7, also=", or empty for no limit"),
    "hang_timeout": Range(0, math.inf, True, also=", or empty to wait for ever"), "log_warmups": Range(0, 1e6),
    # TrainingArguments
    "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH, "gradient_accumulation_steps": BATCH,
    "num_train_epochs": Range(0, 1e9, True), "max_steps": Range(1, also=", or -1 for num_train_epochs"),
    "learning_rate": AMOUNT, "warmup_steps": Range(0), "weight_decay": AMOUNT, "adam_beta1": Range(0, 1, below=True),
    "adam_beta2": Range(0, 1, below=True), "adam_epsilon": AMOUNT, "max_grad_norm": AMOUNT, "torch_empty_cache_steps": COUNT,
    "logging_steps": Range(0, 1e9, True), "eval_steps": Range(0, 1e9, True), "save_steps": Range(0, 1e9, True),
    "eval_delay": Range(0), "save_total_limit": COUNT, "seed": SEED, "data_seed": SEED, "dataloader_num_workers": Range(0, 1024),
    "dataloader_prefetch_factor": Range(1, 10_000), "ddp_bucket_cap_mb": Range(1, 1e6), "ddp_timeout": COUNT,
    # ModelConfig
    "lora_r": Range(1, 1e5), "lora_alpha": COUNT, "lora_dropout": Range(0, 1, below=True),
}  # fmt: skip
ONLY_ALLOWED = {"max_steps": (-1,)}  # besides the range
# `scratch`, by the names of `models.tiny.TinySize`
SCRATCH: dict[str, Range | tuple[str, ...]] = {
    "width": Range(1, 65_536), "layers": Range(1, 1024), "encoder_layers": Range(1, 1024, also=EMPTY), "heads": Range(1, 1024),
    "feed_forward": Range(1, 1e6, also=EMPTY), "vocab_size": Range(8, 1e7), "tokenizer": ("words", "digits", "subwords"),
    "max_positions": Range(2, 1e7),
}  # fmt: skip
MOST_WEIGHTS = 1e10  # of a scratch model


def number_fault(name: str, value: Any, allowed: Range | None = None) -> str | None:
    """A sentence for a number outside its range; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    allowed = allowed or RANGES.get(name, Range(-1e18, 1e18))
    try:
        fault = None if value in ONLY_ALLOWED.get(name, ()) else allowed.fault(float(value))
    except OverflowError:
        fault = f"at most {allowed.high:g}{allowed.also}"
    return None if fault is None else f"{name}: is {shown(value)}, must be {fault}."


def shown(value: Any) -> str:
    """A value in an error message, at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write very long numbers
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _word(value: Any) -> str:
    """A setting as text; of an enumeration its value."""
    return str(getattr(value, "value", value))


def is_on(value: Any) -> bool:
    """Whether a setting that others need is on."""
    return bool(value) and _word(value) not in ("no", "none", "['none']")


def setting_faults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """A sentence for every inherited setting whose value is refused, or would do nothing.

    Args:
        values: settings by name, of the right types.
        defaults: of all inherited settings.
    """
    faults = []
    for name, value in values.items():
        if name not in defaults or value == defaults[name] or value in SAME.get(name, ()):
            continue
        why, needed = REFUSED.get(name), NEEDS.get(name)
        if why is None and isinstance(value, str):
            why = REFUSED_VALUES.get((name, _word(value)))
        if why is not None:
            faults.append(f"{name}: {shown(value)} cannot be used: {why}. Leave it out.")
        elif name not in EFFECTIVE:
            faults.append(f"{name}: is new in transformers or trl, and its effect here is unknown. Leave it out.")
        elif needed and not is_on(values.get(needed, defaults.get(needed))):
            faults.append(f"{name}: has no effect without {needed}. Set {needed}, or leave {name} out.")
    return faults + _faults_of_pairs(values, defaults)


def _faults_of_pairs(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """A sentence for every setting that has no effect because of another one."""
    faults, all_values = [], {**defaults, **given}
    scheduler, optimizer = (_word(all_values.get(name)) for name in ("lr_scheduler_type", "optim"))
    if given.get("warmup_steps") and scheduler == "constant":
        faults.append("warmup_steps: has no effect with lr_scheduler_type constant. Use constant_with_warmup.")
    if given.get("lr_scheduler_kwargs") and scheduler.startswith("constant"):
        faults.append("lr_scheduler_kwargs: has no effect with a constant lr_scheduler_type. Leave it out.")
    if given.get("lora_dropout") and all_values.get("use_peft") and all_values.get("disable_dropout", True):
        faults.append("lora_dropout: has no effect while disable_dropout is on. Set that to false, or leave it out.")
    if given.get("load_best_model_at_end") and _word(all_values.get("eval_strategy")) == "steps":
        every, updates = (
            all_values.get("eval_steps") or all_values.get("logging_steps") or 1,
            all_values.get("max_steps"),
        )
        first = every * max(1, math.ceil((all_values.get("eval_delay") or 0) / every))
        if updates and every >= 1 and 0 < updates < first:
            faults.append(
                f"load_best_model_at_end: the first validation would be at update {first:g} of {updates}, so there is nothing "
                f"to choose from. Lower eval_steps (or eval_delay)."
            )
    asked, refused = given.get("lora_task_type"), [kind for name, kind in REFUSED_VALUES if name == "lora_task_type"]
    if asked is not None and asked not in (*TASK_TYPES, *refused):
        faults.append(f"lora_task_type: {shown(asked)} is not one of {', '.join(TASK_TYPES)}. Leave it out.")
    if given.get("bf16") and given.get("fp16"):
        faults.append("fp16: is on beside bf16. Leave one of the two out.")
    for names, optimizers, only in OPTIMIZERS:
        faults += [
            f"{name}: has no effect with optim {optimizer}. Leave it out."
            for name in names
            if name in given and given[name] != defaults.get(name) and optimizer.startswith(optimizers) != only
        ]
    return faults + accelerator_faults(all_values.get("accelerator_config"))


def chat_faults(template: str, system: str | None, kwargs: Mapping[str, Any] | None) -> list[str]:
    """A sentence for every fault in the settings chat_template, system and chat_template_kwargs."""
    faults = []
    if template == "none" and (system or kwargs):
        faults.append("chat_template: is none, so system and chat_template_kwargs have no effect. Leave them out.")
    if taken := [name for name in kwargs or () if name in CHAT_ARGUMENTS]:
        faults.append(
            f"chat_template_kwargs: {', '.join(taken)} cannot be changed. Give arguments of the template itself."
        )
    return faults


def card_faults(given: Mapping[str, Any]) -> list[str]:
    """A sentence for every field of a model card's front matter that cannot be used."""
    faults = []
    if unknown := [str(key) for key in given if key not in CARD_FIELDS]:
        faults.append(f"model_card: unknown {', '.join(unknown)}. Allowed: {', '.join(CARD_FIELDS)}.")
    for key in (key for key in CARD_FIELDS if given.get(key) is not None):
        listed = given[key] if isinstance(given[key], list) and key in CARD_LISTS else [given[key]]
        if not listed or not all(isinstance(item, str) and item.strip() for item in listed):
            kinds = "a text or a list of texts" if key in CARD_LISTS else "a text"
            faults.append(f"model_card: {key} is {shown(given[key])}; give {kinds}.")
    return faults


def accelerator_faults(config: Any) -> list[str]:
    """A sentence for every key of accelerator_config that is unknown or may not be changed.

    Args:
        config: a mapping or transformers' AcceleratorConfig; the name of a file has no faults yet.
    """
    values = config if isinstance(config, dict) else {key: getattr(config, key, None) for key in ACCELERATOR_KEYS}
    faults = [
        f"accelerator_config: {shown(key)} is no key of it. Allowed: {', '.join(ACCELERATOR_KEYS)}."
        for key in values if key not in ACCELERATOR_KEYS
    ]  # fmt: skip
    for key, (allowed, why) in ACCELERATOR.items():
        value = values.get(key)
        if value is not None and value != allowed:
            faults.append(f"accelerator_config: {key} {shown(value)} cannot be used: {why}.")
    for key in ("non_blocking", "use_configured_state"):
        if values.get(key) is not None and not isinstance(values[key], bool):
            faults.append(f"accelerator_config: {key} {shown(values[key])} is not true or false.")
    inner = values.get("gradient_accumulation_kwargs")
    if inner is not None and not (isinstance(inner, dict) and inner.keys() <= {"sync_each_batch"}):
        why = "updates are as long as the setting gradient_accumulation_steps says; of its keys only sync_each_batch is allowed"
        faults.append(f"accelerator_config: gradient_accumulation_kwargs {shown(inner)} cannot be used: {why}.")
    return faults


def scratch_faults(given: Mapping[str, Any]) -> list[str]:
    """A sentence for every fault in the sizes of a scratch model."""
    faults = []
    if unknown := [key for key in given if key not in SCRATCH]:
        faults.append(f"scratch: unknown {', '.join(map(repr, unknown))}. Allowed: {', '.join(SCRATCH)}.")
    for key, value in given.items():
        allowed = SCRATCH.get(key)
        if isinstance(allowed, Range):
            if type(value) is not int and not (value is None and allowed.also):
                faults.append(f"scratch: {key} {shown(value)} is not a whole number.")
            elif fault := number_fault(key, value, allowed):
                faults.append(f"scratch: {fault}")
        elif allowed is not None and value not in allowed:
            faults.append(f"scratch: {key} is {shown(value)}; allowed: {', '.join(allowed)}.")
    width, heads, layers = given.get("width", 128), given.get("heads", 4), given.get("layers", 2)
    if not faults and width % heads:
        faults.append(f"scratch: width {width} is not a multiple of heads {heads}.")
    if not faults:
        rows, inner = given.get("vocab_size", 4000), given.get("feed_forward") or 4 * width
        layers += given.get("encoder_layers") or layers
        weights = rows * width + layers * (4 * width**2 + 2 * width * inner)
        if weights > MOST_WEIGHTS:
            faults.append(
                f"scratch: vocab_size {rows} x width {width}, and {layers} layers of 4 x width^2 + 2 x width x feed_forward, are "
                f"{weights:.2g} weights, {weights * 4e-9:,.0f} GB; at most {MOST_WEIGHTS:.2g} are made. Lower them."
            )
    return faults
