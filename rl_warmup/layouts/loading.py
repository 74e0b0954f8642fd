"""A model and its tokenizer, from a folder, the hub, or from scratch.

Knows: transformers' loaders. Must not know: recipes, training. `trust_remote_code` stays off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from rl_warmup.layouts.tiny import TinySize, build_model, build_tokenizer

SCRATCH = {"scratch-t5": "t5", "scratch-llama": "llama"}
NO_FP16 = ("t5", "mt5", "umt5", "longt5", "switch_transformers")


def load_model(
    name: str,
    texts: Callable[[], Iterable[str]] = tuple,
    scratch: dict[str, Any] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A model and its tokenizer.

    Args:
        name: a folder, a hub name, or `scratch-t5` / `scratch-llama` for random weights.
        texts: gives the training text from which the tokenizer of a scratch model is made.
        scratch: sizes of a scratch model (`layouts.tiny.TinySize`).
        seed: of the random weights.
        kwargs: passed to `from_pretrained` (dtype, revision, attn_implementation).

    Raises:
        ValueError: the model cannot be found, or the sizes make no sense.
    """
    if name in SCRATCH:
        size = TinySize.read(scratch or {})
        tokenizer = build_tokenizer(texts(), size, encoder_decoder=SCRATCH[name] == "t5")
        return build_model(SCRATCH[name], tokenizer, size, seed), tokenizer
    try:
        config = AutoConfig.from_pretrained(name, revision=kwargs.get("revision"))
        tokenizer = AutoTokenizer.from_pretrained(name, revision=kwargs.get("revision"))
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return auto.from_pretrained(name, **kwargs), tokenizer
    except (OSError, ValueError) as error:
        looks_local = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
        what = f"{name!r} is no folder" if looks_local and not Path(name).is_dir() else f"{name!r} could not be loaded"
        hint = "a folder that holds config.json and weights, a name on the hub, scratch-t5 or scratch-llama"
        raise ValueError(f"model_name_or_path: {what} ({str(error).splitlines()[0]}). Give {hint}.") from error


def add_adapter(model: Any, peft_config: Any) -> Any:
    """The model with a LoRA-like adapter in place.

    Raises:
        ValueError: for adapters that put tokens of their own before the prompt.
    """
    from peft import get_peft_model

    if peft_config.is_prompt_learning:
        raise ValueError(
            f"{peft_config.peft_type} adapters put tokens of their own before the prompt, and warmups would be sampled "
            f"without them. Use LoRA or another adapter that changes layers."
        )
    return get_peft_model(model, peft_config)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0, modules and the plain numbers that attention layers read."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_rate", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def refuse_fp16(model_type: str, dtype_name: str) -> None:
    """T5 overflows in float16.

    Raises:
        ValueError: for the T5 family in float16.
    """
    if model_type in NO_FP16 and dtype_name in ("fp16", "float16", "torch.float16"):
        raise ValueError(f"{model_type} overflows in float16. Use bf16 (`bf16: true`, `dtype: bfloat16`) or float32.")
