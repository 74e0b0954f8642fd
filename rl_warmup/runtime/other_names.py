"""What settings of TRL, of older transformers and of other trainers are called here: name -> what to write or do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_VLLM = "sampling is done by the trained model itself, without vLLM; leave it out"
_FIXED = "sampling here is exactly what is scored: temperature, top_p, min_warmup_length and max_warmup_length shape it"
_ROWS = "rows come from task and task_kwargs, e.g. `task: file` with `task_kwargs: {train: rows.jsonl}`, or `task: hub`"
_LIMITS = "use max_prompt_length, max_warmup_length and max_target_length"
_REWARDS = "use rewards, a list of names or {name: ..., weight: ..., kwargs: ...} (docs/rewards.md)"
_ONE_UPDATE = "every group of warmups is used for one update, so nothing is clipped or repeated; leave it out"
_OBJECTIVE = "use objective (`rl-warmup train --help` lists them)"
_TARGET = "the loss is always that of the target, and of warmups by their rewards; leave it out"
_TOKENS = "the tokenizer's own token is used; separator names the token that ends a warmup"
_MODEL = "use model_name_or_path, dtype, attn_implementation and model_revision"
_START = "the KL is to the starting model, weighed by beta; leave it out"
_BATCH = "use per_device_train_batch_size and gradient_accumulation_steps"

TABLES = "log_completions"  # TRL's name; of ours, log_warmups


def with_log_warmups(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings with TRL's `log_completions` as `log_warmups`: false is 0, true is its default; and what is wrong with it."""
    asked, ours = values.get(TABLES), {key: value for key, value in values.items() if key != TABLES}
    if asked is None:
        return ours, []
    if not isinstance(asked, bool):
        return ours, [f"{TABLES}: {asked!r} is not true or false; log_warmups takes a number."]
    if "log_warmups" in ours:
        return ours, [f"{TABLES}: is TRL's name of log_warmups, which is given too. Leave one of the two out."]
    return ours if asked else {**ours, "log_warmups": 0}, []


OURS: dict[str, str] = {
    "num_generations": "use num_warmups",
    "num_sample_generations": "use log_warmups, the sampled warmups that are shown at every log",
    "num_completions_to_print": "use log_warmups, the prompts whose warmups are shown at every log",
    "log_unique_prompts": "every prompt is shown once; leave it out",
    "log_completions_hub_repo": "tables go to wandb, trackio and tensorboard (report_to); leave it out",
    "use_vllm": _VLLM, "vllm_mode": _VLLM, "vllm_gpu_memory_utilization": _VLLM, "vllm_server_host": _VLLM,
    "packing": "rows go without padding where the model allows it (`scoring: auto`); leave it out",
    "max_length": _LIMITS, "max_seq_length": _LIMITS,
    "max_completion_length": "use max_warmup_length for warmups, and max_target_length for targets",
    "max_new_tokens": "use max_warmup_length for warmups, and max_target_length for targets",
    "response_length": "use max_warmup_length",
    "missing_eos_penalty": "a warmup that reaches max_warmup_length is ended by the separator; use rewards: [length_penalty]",
    "mask_truncated_completions": "a warmup that reaches max_warmup_length is ended by the separator; leave it out",
    "epsilon": _ONE_UPDATE, "epsilon_high": _ONE_UPDATE, "num_iterations": _ONE_UPDATE, "steps_per_generation": _ONE_UPDATE,
    "cliprange": _ONE_UPDATE, "num_ppo_epochs": _ONE_UPDATE,
    "generation_batch_size": _BATCH, "per_gpu_train_batch_size": _BATCH, "batch_size": _BATCH, "train_batch_size": _BATCH,
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "loss_type": _OBJECTIVE, "scale_rewards": _OBJECTIVE, "advantage_estimator": _OBJECTIVE,
    "reward_funcs": _REWARDS, "reward_model_path": _REWARDS,
    "dataset_name": _ROWS, "dataset_path": _ROWS, "dataset_config": _ROWS, "dataset_train_split": _ROWS,
    "dataset_test_split": _ROWS, "dataset_text_field": f"{_ROWS}, which names its columns by prompt_column and target_column",
    "train_file": _ROWS, "validation_file": _ROWS,
    "kl_coef": "use beta", "init_kl_coef": "use beta", "kl_coeff": "use beta",
    "top_k": _FIXED, "min_p": _FIXED, "repetition_penalty": _FIXED, "presence_penalty": _FIXED,
    "ref_model_mixup_alpha": _START, "sync_ref_model": _START, "ref_model_sync_steps": _START,
    "completion_only_loss": _TARGET, "assistant_only_loss": _TARGET,
    "eos_token": _TOKENS, "pad_token": _TOKENS,
    "chat_template_path": "use chat_template, a file with a Jinja template (docs/data.md)",
    "model_init_kwargs": _MODEL, "model_name": "use model_name_or_path", "model": "use model_name_or_path",
    "torch_dtype": "use dtype",
    "use_liger": "its fused loss replaces the forward that scores warmups; leave it out",
    "evaluation_strategy": "use eval_strategy",
    "warmup_ratio": "use warmup_steps; a number below 1 is a share of all updates",
    "group_by_length": "rows are not sorted by length; leave it out",
    "no_cuda": "use use_cpu",
    "logging_dir": "logs are in output_dir; report_to names other places",
    **dict.fromkeys(
        ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"),
        "it goes with --launch, e.g. `--launch ddp --num_processes 2`",
    ),
    "lr": "use learning_rate", "epochs": "use num_train_epochs", "steps": "use max_steps",
    "use_lora": "use use_peft", "max_new_warmup_tokens": "use max_warmup_length",
}  # fmt: skip

# settings of a recipe that Python has elsewhere
IN_PYTHON = {
    "show_progress": "in Python it is disable_tqdm, which says the opposite",
    "metrics": "in Python compute_metrics of the trainer takes a function, and evaluate_controls takes metrics",
}
