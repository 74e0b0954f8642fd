"""A model and its tokenizer, from a folder, the hub, or from scratch.

Knows: transformers' loaders. Must not know: recipes, training. `trust_remote_code` stays off.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from rl_warmup.models.starts import PREFIX, resolve
from rl_warmup.models.stored import check_finite, check_head, check_numbers
from rl_warmup.models.tiny import TinySize, build_model, build_tokenizer
from rl_warmup.models.whole import check_adapter, check_kind, load_tokenizer, load_weights
from rl_warmup.runtime.documents import read_json
from rl_warmup.runtime.sharing import is_main, whole_on_every_process

ADAPTER_FILE = "adapter_config.json"
QUANTIZED_FILE = "quantization.json"  # beside an adapter whose base model was quantized while it was trained
SCRATCH = {"scratch-t5": "t5", "scratch-llama": "llama"}
NO_FP16 = ("t5", "mt5", "umt5", "longt5", "switch_transformers")


def load_model(
    name: str,
    texts: Callable[[], Iterable[str]] = tuple,
    scratch: dict[str, Any] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A model and its tokenizer. Under ZeRO-3 and FSDP too every process loads it whole; the engine shards it afterwards.

    Args:
        name: a folder, a hub name, `scratch-t5` / `scratch-llama` for random weights, or `start:<name>` for a small
            pretrained model of this package.
        texts: returns the training texts from which the tokenizer of a scratch model is made.
        scratch: sizes of a scratch model (`models.tiny.TinySize`).
        seed: of the random weights.
        kwargs: passed to `from_pretrained` (dtype, revision, attn_implementation). The default dtype is float32, as bfloat16
            loses small steps of Adam; "auto" keeps the dtype of the checkpoint.

    Raises:
        ValueError: the model cannot be found, is of another kind, lacks tensors or its tokenizer, the sizes make no sense, or
            the output head is not the checkpoint's.
    """
    kwargs = {"dtype": "float32", **kwargs}
    if name in SCRATCH:
        size = TinySize.read(scratch or {})
        tokenizer = build_tokenizer(texts(), size, encoder_decoder=SCRATCH[name] == "t5")
        return _converted(build_model(SCRATCH[name], tokenizer, size, seed), name, **kwargs), tokenizer
    if "/" in str(kwargs.get("attn_implementation")):
        raise ValueError(
            f"attn_implementation: {kwargs['attn_implementation']!r} is code on the hub, which is never run. Use eager, sdpa or "
            f"flash_attention_2."
        )
    if name.startswith(PREFIX):
        name = resolve(name)
    if kwargs.get("revision") not in (None, "main") and Path(name).is_dir():
        raise ValueError(
            f"model_revision: {kwargs['revision']!r} is a revision on the hub, and {name} is a folder. Leave it out."
        )
    if Path(name, ADAPTER_FILE).is_file():
        return _load_adapted(name, texts, **kwargs)
    try:
        config = AutoConfig.from_pretrained(name, revision=kwargs.get("revision"), trust_remote_code=False)
        tokenizer = load_tokenizer(name, kwargs.get("revision"))
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        check_kind(config, name)
        with whole_on_every_process():
            model = load_weights(auto, name, **kwargs)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"model_name_or_path: the .bin files of {name} hold more than weights, such as code, which is never run. Give "
            f"a model in safetensors."
        ) from error
    except (OSError, ValueError) as error:
        if str(error).startswith("model_name_or_path:"):
            raise
        looks_local = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
        what = f"{name!r} is no folder" if looks_local and not Path(name).is_dir() else f"{name!r} could not be loaded"
        if "custom code" in str(error):
            what += ", as it needs code of its own, which is never run"
        hint = "a folder that holds config.json and weights, a name on the hub, scratch-t5 or scratch-llama"
        raise ValueError(f"model_name_or_path: {what} ({str(error).splitlines()[0]}). Give {hint}.") from error
    check_numbers(model, name, kwargs.get("revision"))
    check_head(model, name, kwargs.get("revision"))
    check_finite(model, name)
    return model, tokenizer


def with_dtype(model: Any, dtype: Any) -> tuple[Any, Any]:
    """A model, given by name or as an object, with weights of this dtype; with the tokenizer if it was given by name (else None).

    By default transformers keeps the dtype of the checkpoint, and 16 bits lose small steps of Adam.

    Raises:
        ValueError: there is no such dtype; or as `load_model`.
    """
    dtype = str(dtype).removeprefix("torch.")
    wanted = model.dtype if dtype == "auto" and not isinstance(model, str) else getattr(torch, dtype, None)
    if dtype != "auto" and not isinstance(wanted, torch.dtype):
        raise ValueError(
            f"dtype: {dtype!r} is not a dtype of weights. Give float32, bfloat16, float16, or auto to change nothing."
        )
    if isinstance(model, str):
        return load_model(model, dtype=dtype)
    others = {p.dtype for p in model.parameters() if p.is_floating_point()} - {wanted, torch.float64}
    if others and dtype != "auto" and getattr(model.config, "quantization_config", None) is None:
        found = ", ".join(sorted(str(other).removeprefix("torch.") for other in others))
        if is_main():
            print(
                f"The model comes in {found} and is trained in {dtype}; WarmupTrainer(dtype='auto') leaves it as it is."
            )
        model.to(wanted)
    return model, None


def _converted(
    model: Any, name: str, dtype: Any, attn_implementation: str | None = None, revision: str | None = None,
    quantization_config: Any = None,
) -> Any:  # fmt: skip
    """A model with random weights in the requested dtype and with the requested attention.

    Raises:
        ValueError: a revision or a quantization is requested, which random weights do not have.
    """
    if quantization_config is not None or revision not in (None, "main"):
        asked = "load_in_4bit and load_in_8bit" if quantization_config is not None else f"model_revision: {revision!r}"
        raise ValueError(f"{asked} cannot be used with {name}, whose weights are random. Leave it out.")
    if attn_implementation:
        model.set_attn_implementation(attn_implementation)
    return model if dtype == "auto" else model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def save_quantization(model: Any, folder: str | Path) -> None:
    """Save beside an adapter how its base model was quantized in training; does nothing for other models."""
    config = getattr(model.config, "quantization_config", None)
    if hasattr(model, "peft_config") and config is not None:
        kept = {"quantization_config": config.to_dict(), "dtype": str(model.dtype).removeprefix("torch.")}
        Path(folder, QUANTIZED_FILE).write_text(json.dumps(kept, indent=2, default=str), encoding="utf-8")


def _read_quantization(path: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load the base model as it was in training.

    Raises:
        ValueError: bitsandbytes is not installed, or the file cannot be read.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"{path.parent} holds an adapter of a quantized model, which needs the package bitsandbytes. Install it."
        )
    try:
        kept = read_json(path)
        return {**kept, "quantization_config": BitsAndBytesConfig(**kept["quantization_config"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say how the base model was quantized: {error}.") from error


def _load_adapted(folder: str, texts: Callable[[], Iterable[str]], **kwargs: Any) -> tuple[Any, Any]:
    """The base model an adapter folder names, with the adapter merged into it, and the folder's tokenizer."""
    from peft import PeftModel

    quantized = Path(folder, QUANTIZED_FILE)
    if quantized.is_file():
        kwargs |= _read_quantization(quantized)
    base = read_json(Path(folder, ADAPTER_FILE)).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip() or (Path(base).is_dir() and Path(base).samefile(folder)):
        raise ValueError(
            f"model_name_or_path: the adapter in {folder} names no base model, but {base!r}, so it cannot be loaded. Write the "
            f"base's folder or hub name as base_model_name_or_path into {Path(folder, ADAPTER_FILE)}."
        )
    try:
        model, _ = load_model(base, texts, **kwargs)
    except ValueError as error:
        if Path(base).is_dir():
            raise
        why = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"model_name_or_path: the adapter in {folder} names the base model {base!r}, which is no folder as seen from "
            f"{Path.cwd()}, and could not be loaded by that name ({why}). If it was moved, write its new place as "
            f"base_model_name_or_path into {Path(folder, ADAPTER_FILE)}; a relative one counts from where the command is started."
        ) from error
    shared = shared_weights(model)
    try:
        adapted = PeftModel.from_pretrained(model, folder, trust_remote_code=False)
    except (RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(
            f"model_name_or_path: the adapter in {folder} does not fit its {ADAPTER_FILE} or its base model {base!r} ({why}). "
            f"Give the files as they were saved together."
        ) from error
    _refuse_shared(adapted, shared, f"model_name_or_path: the adapter in {folder}")
    check_adapter(folder, adapted)
    if quantized.is_file():  # merging would round the adapter with the base model
        return adapted.eval(), load_tokenizer(folder)
    merged = adapted.merge_and_unload()
    check_finite(merged, folder)
    merged.name_or_path = folder  # its base is another model, and what the folder declares is true of this one alone
    return merged.requires_grad_(True), load_tokenizer(folder)  # peft has frozen the base model


def _base_of(name: str) -> str:
    """The folder or hub name of an adapter's base model, also through several adapters; other names are returned unchanged."""
    while Path(name, ADAPTER_FILE).is_file():
        name = read_json(Path(name, ADAPTER_FILE))["base_model_name_or_path"]
    return name


def add_adapter(model: Any, peft_config: Any) -> Any:
    """The model with a LoRA-like adapter in place. Raises as `check_adapters`."""
    from peft import get_peft_model

    adapted = get_peft_model(model, peft_config)
    check_adapters(adapted)
    return adapted


def check_adapters(model: Any) -> None:
    """Refuse adapters that could not be saved and loaded again unchanged.

    Raises:
        ValueError: an adapter adds tokens before the prompt, changes shared weights, or has a name other than "default"; or
            the base model is stored nowhere (random weights, or a vocabulary grown by the separator).
    """
    adapters = getattr(model, "peft_config", None)
    if not isinstance(adapters, dict) or not hasattr(model, "get_base_model"):
        return
    for name, config in adapters.items():
        if config.is_prompt_learning:
            raise ValueError(
                f"{config.peft_type} adapters put tokens of their own before the prompt, and warmups would be sampled "
                f"without them. Use LoRA or another adapter that changes layers."
            )
        if name != "default":
            raise ValueError(
                f"The adapter {name!r} of this model would be saved into a folder of that name, where nothing looks for it. Make "
                f"it without a name: get_peft_model(model, config)."
            )
    base = model.get_base_model()
    known = base.name_or_path and _base_of(base.name_or_path)
    saved = AutoConfig.from_pretrained(known, trust_remote_code=False) if known else None
    if saved is None or saved.get_text_config(decoder=True).vocab_size != base.get_input_embeddings().weight.size(0):
        why = "has random weights" if saved is None else "was grown by a separator token"
        raise ValueError(
            f"An adapter alone is saved, and this base model {why}, so it could not be loaded again. Save the base model to "
            f"a folder first, or name a reserved token as `separator`."
        )
    _refuse_shared(model, shared_weights(model), "lora_target_modules: the adapter")


def shared_weights(model: nn.Module) -> dict[int, list[str]]:
    """Weights that several modules share (tied embeddings): id of the weight -> names of the modules."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = dict(
            module.named_parameters(recurse=False)
        )  # an adapter's layer shows its base layer's weight as its own
        if "weight" in own:
            places.setdefault(id(own["weight"]), []).append(name)
    return {key: names for key, names in places.items() if len(names) > 1}


def _refuse_shared(adapted: nn.Module, shared: dict[int, list[str]], what: str) -> None:
    """Refuse adapters on shared weights: in training they change one module, and all of them after merging.

    Raises:
        ValueError: names the modules.
    """
    for name, module in adapted.named_modules():
        base = getattr(module, "base_layer", getattr(module, "original_module", None))
        names = shared.get(id(getattr(base, "weight", None)))
        if names:
            raise ValueError(
                f"{what} changes {name.removeprefix('base_model.model.')}, whose weight is shared by {', '.join(names)} (tied "
                f"embeddings): it would be trained as one model and loaded as another. Leave embeddings and head out of its "
                f"target and saved modules."
            )


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0: modules, and the numbers that attention layers use."""
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
