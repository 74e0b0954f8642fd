"""The only module that imports trl, and only on use: `import rl_warmup.trainer` works without trl."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

HINT = "trl is not installed: pip install 'trl>=1.9,<2'."


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{HINT} ({error})") from error


def model_config_class() -> type:
    """TRL's `ModelConfig`: model_name_or_path, dtype, LoRA fields."""
    return _module("trl.trainer.model_config").ModelConfig  # trl's other modules import pandas and datasets


def peft_config(model_config: Any) -> Any:
    """The LoRA configuration a ModelConfig asks for, or None."""
    if not model_config.use_peft:
        return None
    config = _module("trl").get_peft_config(model_config)
    named = getattr(config, "target_modules", None)
    if isinstance(named, str) and named != "all-linear" and named.isidentifier():
        config.target_modules = {named}  # trl makes a list of one name a text, which peft reads as a pattern of paths
    return config


def quantization(model_config: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` for `load_in_4bit` and `load_in_8bit`, by TRL's helpers; empty without them.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    asked = next((name for name in ("load_in_4bit", "load_in_8bit") if getattr(model_config, name)), None)
    if asked is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"{asked}: needs the package bitsandbytes. Install it, or leave {asked} out.")
    return {"quantization_config": _module("trl").get_quantization_config(model_config)}


def remove_hooks(engine: Any) -> None:
    """Remove the hooks by which a ZeRO-3 engine gathers and releases weights."""
    _module("trl.models.utils").remove_hooks(engine)


def add_hooks(engine: Any) -> None:
    """Add these hooks again, without the recorded order of modules."""
    _module("trl.models.utils").add_hooks(engine)


def prepare_deepspeed(model: Any, accelerator: Any) -> Any:
    """A frozen model in DeepSpeed's inference engine: sharded under ZeRO-3, whole otherwise."""
    return _module("trl.models.utils").prepare_deepspeed(model, accelerator)


def prepare_fsdp(model: Any, accelerator: Any) -> Any:
    """A frozen model in FSDP shards."""
    return _module("trl.models.utils").prepare_fsdp(model, accelerator)
