"""A model and its tokenizer, from a folder, the hub, or from scratch.

Knows: transformers' loaders. Must not know: recipes, training. `trust_remote_code` stays off.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from rl_warmup.models.pretrained import (
    ADAPTER_FILES,
    CONFIG_FILES,
    FLOATS,
    WEIGHT_FILES,
    adapter_fault,
    check_adapter,
    check_config,
    check_finite,
    check_kind,
    explained,
    load_tokenizer,
    load_weights,
)
from rl_warmup.models.starts import PREFIX, resolve
from rl_warmup.models.tiny import TinySize, build_model, build_tokenizer
from rl_warmup.models.weight_files import check_head, check_numbers
from rl_warmup.runtime.documents import read_json
from rl_warmup.runtime.settings import shown
from rl_warmup.runtime.sharing import is_main, whole_on_every_process

ADAPTER_FILE = "adapter_config.json"
QUANTIZED_FILE = "quantization.json"  # beside an adapter whose base model was quantized while it was trained
ATTENTION = ("eager", "sdpa", FLASH := "flash_attention_2")
SCRATCH = {"scratch-t5": "t5", "scratch-llama": "llama"}
ASKED = ("dtype", "attn_implementation", "revision", "quantization_config")
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
        kwargs: of ASKED, passed to `from_pretrained`. The default dtype is float32, as bfloat16
            loses small steps of Adam; "auto" keeps the dtype of the checkpoint.

    Raises:
        ValueError: the model cannot be found, is of another kind, lacks tensors or its tokenizer, the sizes make no sense, or
            the output head is not the checkpoint's.
    """
    if odd := [key for key in kwargs if key not in ASKED]:
        raise ValueError(
            f"{odd[0]}: is nothing that a model is loaded with here. Give {', '.join(ASKED)}, or leave it out."
        )
    kwargs = {"dtype": "float32", **kwargs}
    kwargs["dtype"] = "auto" if kwargs["dtype"] is None else _dtype(kwargs["dtype"])
    check_attention(kwargs.get("attn_implementation"))
    if name in SCRATCH:
        size = TinySize.read(scratch or {})
        tokenizer = build_tokenizer(texts(), size, encoder_decoder=SCRATCH[name] == "t5")
        return _converted(build_model(SCRATCH[name], tokenizer, size, seed), name, kwargs), tokenizer
    if name.startswith(PREFIX):
        name = resolve(name)
    if name.startswith("scratch-") and not Path(name).is_dir():  # a slip of the pen, which the hub would be asked for
        raise ValueError(f"model_name_or_path: there is no {name!r}. Give {' or '.join(SCRATCH)} for random weights.")
    if kwargs.get("revision") not in (None, "main") and Path(name).is_dir():
        raise ValueError(
            f"model_revision: {kwargs['revision']!r} is a revision on the hub, and {name} is a folder. Leave it out."
        )
    if Path(name, ADAPTER_FILE).is_file():
        return _load_adapted(name, texts, **kwargs)
    revision = kwargs.get("revision")
    with explained(name, CONFIG_FILES, revision):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_config(name, revision)
        check_kind(config, name)
        tokenizer = load_tokenizer(name, revision)
    with explained(name, WEIGHT_FILES, revision), whole_on_every_process():
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = load_weights(auto, name, **kwargs)
    check_finite(model, name)
    check_numbers(model, name, revision)
    check_head(model, name, revision)
    return model, tokenizer


def check_attention(name: Any) -> None:
    """Raises ValueError for an attention that is unknown, is not installed, is code on the hub, or compiles for minutes."""
    if name is not None and name not in ATTENTION:
        why = "is code on the hub, which is never run" if "/" in str(name) else "cannot be used"
        raise ValueError(f"attn_implementation: {name!r} {why}. Use {', '.join(ATTENTION[:-1])} or {ATTENTION[-1]}.")
    if name == FLASH and importlib.util.find_spec("flash_attn") is None:
        raise ValueError(f"attn_implementation: {name} needs the package flash_attn, which is not installed. Use sdpa.")


def with_dtype(model: Any, dtype: Any) -> tuple[Any, Any]:
    """A model, given by name or as an object, with weights of this dtype; with the tokenizer if it was given by name (else None).

    By default transformers keeps the dtype of the checkpoint, and 16 bits lose small steps of Adam.

    Raises:
        ValueError: there is no such dtype; or as `load_model`.
    """
    wanted = _dtype(dtype)
    if isinstance(model, str):
        return load_model(model, dtype=wanted)
    others = {p.dtype for p in model.parameters() if p.is_floating_point()} - {wanted, torch.float64}
    if others and wanted != "auto" and getattr(model.config, "quantization_config", None) is None:
        found = ", ".join(sorted(str(other).removeprefix("torch.") for other in others))
        if is_main():
            print(
                f"The model comes in {found} and is trained in {str(wanted).removeprefix('torch.')}; "
                f"WarmupTrainer(dtype='auto') leaves it as it is."
            )
        model.to(wanted)
    return model, None


def _dtype(given: Any) -> Any:
    """The torch.dtype of that name, or auto. Raises ValueError: weights cannot be computed with in it."""
    found = (
        given if isinstance(given, str) and given == "auto" else getattr(torch, str(given).removeprefix("torch."), None)
    )
    if found not in ("auto", *FLOATS):
        raise ValueError(
            f"dtype: {shown(given)} is not a dtype of weights. Give float32, bfloat16, float16, or auto to change nothing."
        )
    return found


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of the folder or hub name that a model object was loaded from.

    Raises ValueError: the model has no such name, or nothing there is a tokenizer.
    """
    name = getattr(model, "name_or_path", "")
    remedy = "Give its tokenizer: WarmupTrainer(..., processing_class=AutoTokenizer.from_pretrained(...))."
    if not name:
        raise ValueError(f"processing_class: the model was made in Python, so no tokenizer is known. {remedy}")
    try:
        return load_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"processing_class: {name} has no tokenizer that could be loaded ({error}). {remedy}"
        ) from error


def _converted(model: Any, name: str, asked: dict[str, Any]) -> Any:
    """A model with random weights in the requested dtype and with the requested attention (`kwargs` of `load_model`).

    Raises ValueError: a revision or a quantization is requested, which random weights do not have.
    """
    quantized, revision = asked.get("quantization_config") is not None, asked.get("revision")
    if quantized or revision not in (None, "main"):
        what = "load_in_4bit and load_in_8bit" if quantized else f"model_revision: {revision!r}"
        raise ValueError(f"{what} cannot be used with {name}, whose weights are random. Leave it out.")
    if asked.get("attn_implementation"):
        model.set_attn_implementation(asked["attn_implementation"])
    return model if asked["dtype"] == "auto" else model.to(asked["dtype"])


def save_quantization(model: Any, folder: str | Path) -> None:
    """Save beside an adapter how its base model was quantized in training; does nothing for other models."""
    config = getattr(model.config, "quantization_config", None)
    if hasattr(model, "peft_config") and config is not None:
        kept = {"quantization_config": config.to_dict(), "dtype": str(model.dtype).removeprefix("torch.")}
        Path(folder, QUANTIZED_FILE).write_text(json.dumps(kept, indent=2, default=str), encoding="utf-8")


def _read_quantization(path: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` that load the base model as it was in training.

    Raises ValueError: bitsandbytes is not installed, or the file cannot be read.
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
    _base_of(folder)  # refuses a circle
    if not any(Path(folder, file).exists() for file in ADAPTER_FILES[1:]):
        raise ValueError(
            f"model_name_or_path: {folder} holds no {' or '.join(ADAPTER_FILES[1:])}, which are the weights of its adapter. Copy "
            f"them beside {ADAPTER_FILE}."
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
    _keep_peft_quiet()
    with _fitting(folder, base):
        adapted = PeftModel.from_pretrained(model, folder, trust_remote_code=False)
    check_finite(adapted, folder)
    _refuse_shared(adapted, shared, f"model_name_or_path: the adapter in {folder}")
    check_adapter(folder, adapted)
    if quantized.is_file():  # merging would round the adapter with the base model
        return adapted.eval(), load_tokenizer(folder)
    with _fitting(folder, base):
        merged = adapted.merge_and_unload()
    merged.name_or_path = folder  # its base is another model, and what the folder declares is true of this one alone
    return merged.requires_grad_(True), load_tokenizer(folder)  # peft has frozen the base model


@contextmanager
def _fitting(folder: str, base: str) -> Iterator[None]:
    """Raises ValueError for whatever peft raises, by the setting every kind: names the folder, its config, and the fault."""
    try:
        yield
    except Exception as error:
        if found := adapter_fault(folder):
            raise ValueError(f"model_name_or_path: {found}") from error
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"model_name_or_path: the adapter in {folder} does not fit its {ADAPTER_FILE} or its base model {base!r} ({why}). "
            f"Give the files as they were saved together."
        ) from error


def _base_of(name: str) -> str:
    """The folder or hub name of an adapter's base model, also through several adapters; other names are returned unchanged.

    Raises ValueError: an adapter is its own base model.
    """
    seen: list[Path] = []
    while Path(name, ADAPTER_FILE).is_file():
        if Path(name).resolve() in seen:
            raise ValueError(
                f"model_name_or_path: the adapter in {name} is its own base model, by base_model_name_or_path in {ADAPTER_FILE}. "
                f"Write the folder or hub name of the model there that it was trained on."
            )
        seen.append(Path(name).resolve())
        name = str(read_json(Path(name, ADAPTER_FILE)).get("base_model_name_or_path"))
    return name


def _keep_peft_quiet() -> None:
    """Silence its use of a name that transformers 5.24 deprecates, of which no user can change anything."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def add_adapter(model: Any, peft_config: Any) -> Any:
    """The model with a LoRA-like adapter in place. Raises as `check_adapters`, and ValueError for layers that are not there."""
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ValueError(f"peft_config: is {peft_config!r:.80}. Give a configuration of peft, such as LoraConfig(r=8).")
    if peft_config.inference_mode:
        raise ValueError("peft_config: inference_mode is on, so nothing would be trained. Leave it out.")
    _keep_peft_quiet()
    try:
        adapted = get_peft_model(model, peft_config)
    except ValueError as error:
        names = sorted({key.rpartition(".")[2] for key, part in model.named_modules() if isinstance(part, nn.Linear)})
        raise ValueError(
            f"lora_target_modules, lora_target_parameters or lora_modules_to_save does not fit this model ({error}). Its linear "
            f"layers are called {', '.join(names)}; all-linear takes them all."
        ) from error
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
        own = dict(module.named_parameters(recurse=False))  # not `module.weight`: an adapter's is its base layer's
        if "weight" in own:
            places.setdefault(id(own["weight"]), []).append(name)
    return {key: names for key, names in places.items() if len(names) > 1}


def _refuse_shared(adapted: nn.Module, shared: dict[int, list[str]], what: str) -> None:
    """Raises ValueError for adapters on shared weights: they would change one module in training, and all after merging."""
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
    """Raises ValueError for the T5 family in float16, in which it overflows."""
    if model_type in NO_FP16 and dtype_name in ("fp16", "float16", "torch.float16"):
        raise ValueError(f"{model_type} overflows in float16. Use bf16 (`bf16: true`, `dtype: bfloat16`) or float32.")
