"""Refuses incomplete and damaged checkpoints: a model of the wrong kind, missing or surplus tensors, no tokenizer, no numbers.

Knows: transformers' loaders and their reports. Must not know: recipes, training. transformers replaces what is missing, with a
warning only (random tensors, a tokenizer that knows `<unk>` alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from rl_warmup.models.weight_files import open_tensors, stored_file
from rl_warmup.runtime.damage import first_damaged, size_fault
from rl_warmup.runtime.documents import read_json

WRITES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")  # endings of classes that write text
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "source.spm",
    "tekken.json", "vocab.bpe",
)  # fmt: skip
CONFIG_FILES = ("config.json",)
WEIGHT_FILES = (
    "config.json",
    "generation_config.json",
    "model*.json",
    "pytorch_model*.json",
    "model*.safetensors",
    "pytorch_model*.bin",
)
UNSAID = ("generation_config.json", "tokenizer_config.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SAVE = "Save the model's tokenizer into that folder: tokenizer.save_pretrained({name!r})."
SHOWN = 4  # names in an error


@contextmanager
def explained(name: str, files: tuple[str, ...], revision: str | None = None) -> Iterator[None]:
    """Raises ValueError for whatever a library raises: one sentence that names the damaged file, else the likely one.

    Args:
        files: names or patterns of what is read inside; a hub's cache is searched for the names alone.
    """
    try:
        yield
    except (
        Exception
    ) as error:  # libraries raise every kind: KeyError, SafetensorError, RecursionError, UnpicklingError, ...
        if str(error).startswith("model_name_or_path:"):
            raise
        raise ValueError(f"model_name_or_path: {_cause(name, files, error, revision)}") from error


def _cause(name: str, files: tuple[str, ...], error: Exception, revision: str | None) -> str:
    here = _stored(name, files, revision)
    if found := first_damaged(here):
        return found
    lines = str(error).splitlines() or [""]
    said = " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])
    why = f"{type(error).__name__}: {said}"[:300].rstrip(".: ")
    config = next((path for path in here if path.endswith("config.json")), None)
    asked = {} if config is None else read_json(config)
    if fault := size_fault(asked):
        return f"{config}: {fault}. Give the config.json that belongs to the weights."
    if isinstance(error, ImportError):
        key = "quantization_config" if "quantization_config" in asked else "its settings"
        return (
            f"{config or name} ({key}) needs a package that is missing here ({why}). Install it, or give another model."
        )
    looks_local = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
    what = f"{name!r} is no folder" if looks_local and not Path(name).is_dir() else f"{name!r} could not be loaded"
    if Path(name).is_dir() and config is None:
        what += f", as it holds no {files[0]}"
    likely = None
    if config is not None and not isinstance(error, OSError):
        likely = next((path for path in here if path.endswith(".bin")), config)  # a pickle is read after config.json
        what += f", probably for {likely}"
    if "custom code" in str(error):
        what += ", as it needs code of its own, which is never run"
    hint = "a folder that holds config.json and weights, a name on the hub, scratch-t5, scratch-llama or start:NAME"
    reason = lines[0] if isinstance(error, OSError) else why
    return f"{what} ({reason}). {'Mend that file, or give' if likely else 'Give'} {hint}."


def _stored(name: str, files: tuple[str, ...], revision: str | None) -> list[str]:
    """The paths of those files of a folder, or of the hub's cache, that are there."""
    if Path(name).is_dir():
        return list(dict.fromkeys(str(path) for file in files for path in sorted(Path(name).glob(file))))
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        return []  # no name of the hub
    return [path for file in files if "*" not in file and (path := stored_file(name, file, revision))]


def check_config(name: str, revision: str | None = None) -> None:
    """Raises ValueError for a size in config.json that no model can have, and for damaged files that count as missing."""
    for path in _stored(name, CONFIG_FILES, revision):
        if fault := size_fault(read_json(path)):
            raise ValueError(f"model_name_or_path: {path}: {fault}. Give the config.json that belongs to the weights.")
    if found := first_damaged(_stored(name, UNSAID, revision)):
        raise ValueError(f"model_name_or_path: {found}")


def check_finite(model: Any, name: str) -> None:
    """Raises ValueError for weights that are not finite; names the first of them."""
    for key, weight in model.named_parameters():
        # a sum is finite where all its terms are, and costs a fifth of a check of each
        if weight.dtype in FLOATS and not weight.detach().sum(dtype=torch.float32).isfinite():
            raise ValueError(
                f"model_name_or_path: {name} stores values in {key} that are not finite (nan or inf), so it can write nothing. "
                f"Its training diverged, or a file is damaged: take an earlier checkpoint, or copy the weights again."
            )


def check_kind(config: Any, name: str) -> None:
    """Raises ValueError for a network that was not trained to write text; names the class of the checkpoint."""
    known = {
        *map(str, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()),
        *map(str, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()),
    }
    kinds = getattr(config, "architectures", None) or ()
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(
            f"model_name_or_path: {name}: architectures in its config.json is {kinds!r}, not a list of names. Correct it, or "
            f"leave it out."
        )
    for kind in kinds:
        reads_alone = "For" in kind or kind.endswith(("EncoderModel", "Encoder"))
        if reads_alone and not kind.endswith(WRITES) and kind not in known:
            raise ValueError(
                f"model_name_or_path: {name} holds a {kind} (architectures in its config.json), which was not trained to write "
                f"text. Give a model that ends in {', '.join(WRITES)}."
            )


def load_weights(auto: Any, name: str, **kwargs: Any) -> Any:
    """`auto.from_pretrained(name)`; the files must hold exactly the tensors of the model, except heads tied to embeddings.

    Raises ValueError: tensors are missing, surplus, or have another shape; names them.
    """
    with _quietly():
        model, found = auto.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **kwargs
        )
    faults = []
    if missing := sorted(found["missing_keys"]):
        faults.append(f"does not store {_few(missing)}, which would be made up at random")
    if other := sorted(found["mismatched_keys"], key=str):
        shapes = [f"{key} (stored {tuple(stored)}, config {tuple(wanted)})" for key, stored, wanted in other]
        faults.append(f"stores other shapes than its config.json says: {_few(shapes)}")
    if surplus := sorted(found["unexpected_keys"]):
        faults.append(f"stores {_few(surplus)}, for which this {type(model).__name__} has no place")
    faults += [str(message).splitlines()[0] for message in found.get("error_msgs") or ()]
    if faults:
        raise ValueError(
            f"model_name_or_path: {name} {'; and it '.join(faults)}. Give a whole checkpoint, or the config.json that belongs to "
            f"these weights."
        )
    return model


class NoTokenizer(ValueError):
    """The files of a tokenizer are missing."""


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or a hub name. Raises ValueError where there is none, or it cannot be read."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_tokenizer(tokenizer, name, revision)
        tokenizer("a")  # some faults show only when it is used: an empty vocabulary, a limit that is no number
    except NoTokenizer:
        raise
    except Exception as error:  # tokenizers, written in Rust, raises a bare Exception, and wrong shapes raise any kind
        if "custom code" in str(error):
            raise
        found = _stored(name, (*TOKENIZER_FILES, *TOKENIZER_SETTINGS), revision)
        if not any(Path(path).name in TOKENIZER_FILES for path in found) and isinstance(error, OSError | ValueError):
            files = ", ".join(TOKENIZER_FILES[:3])
            raise NoTokenizer(
                f"model_name_or_path: {name} holds no tokenizer (none of {files} or the like). {SAVE.format(name=name)}"
            ) from error
        why = f"the tokenizer's files of {name} cannot be read ({type(error).__name__}: {error})"
        if found:
            why = f"{why[:-1]}; {', '.join(Path(path).name for path in found)})"
        remedy = SAVE.format(name=name)
        raise ValueError(f"model_name_or_path: {first_damaged(found, remedy) or f'{why}. {remedy}'}") from error
    return tokenizer


def check_tokenizer(tokenizer: Any, name: str, revision: str | None = None) -> None:
    """Raises NoTokenizer for a tokenizer that transformers made without files of a tokenizer; names the missing ones."""
    names = {file for file in (getattr(tokenizer, "vocab_files_names", None) or {}).values() if isinstance(file, str)}
    if not names:
        return  # bytes need no files
    if not any(stored_file(name, file, revision) for file in {*names, *TOKENIZER_FILES}):
        raise NoTokenizer(
            f"model_name_or_path: {name} holds no tokenizer (none of {', '.join(sorted({*names, 'tokenizer.json'}))}), so all "
            f"text would be unknown. {SAVE.format(name=name)}"
        )


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """Raises ValueError for a tokenizer with ids beyond the `rows` of the embedding; names the first such token."""
    vocabulary = tokenizer.get_vocab()
    beyond = [(index, token) for token, index in vocabulary.items() if index >= rows]
    if beyond:
        index, token = min(beyond)
        raise ValueError(
            f"The tokenizer has {len(beyond)} tokens beyond the model's {rows} embedding rows, the first of them {token!r} "
            f"({index}). Give the tokenizer that belongs to the model, or enlarge the model: "
            f"model.resize_token_embeddings({max(vocabulary.values()) + 1})."
        )


def adapter_fault(folder: str | Path) -> str | None:
    """A sentence about a damaged file of an adapter folder, or a value in its config that no adapter can have, or None."""
    from peft import PeftType

    path = Path(folder, ADAPTER_FILES[0])
    if found := first_damaged(Path(folder, file) for file in ADAPTER_FILES):
        return found
    asked, kinds = read_json(path), [kind.value for kind in PeftType]
    modules = "null, a text or a list of texts"
    wanted = {"peft_type": f"one of {', '.join(kinds)}", "r": "a whole number above 0", "lora_alpha": "a number",
              "target_modules": modules, "modules_to_save": modules}  # fmt: skip
    fits = {
        "peft_type": lambda value: value in kinds,
        "r": lambda value: value is None or (type(value) is int and value > 0),
        "lora_alpha": lambda value: value is None or type(value) in (int, float),
    }
    for key, words in wanted.items():
        value = asked.get(key)
        listed = value if isinstance(value, list) else [value or ""]
        if not fits.get(key, lambda _, texts=listed: all(isinstance(text, str) for text in texts))(value):
            return f"{path}: {key} is {value!r}, not {words}. Give the file as it was saved with the adapter."
    return None


def check_adapter(folder: str | Path, model: Any) -> None:
    """Raises ValueError for an adapter folder with missing or surplus tensors; names them."""
    from peft import get_peft_model_state_dict

    path = next(file for file in ADAPTER_FILES[1:] if file.endswith(".bin") or Path(folder, file).is_file())
    with open_tensors(str(Path(folder, path))) as tensors:
        stored = set(tensors)
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    missing, surplus = sorted(wanted - stored), sorted(key for key in stored - wanted if "lora_" in key)
    if missing or surplus:
        what = f"does not store {_few(missing)}" if missing else f"stores {_few(surplus)}, for which there is no place"
        raise ValueError(
            f"model_name_or_path: the adapter in {folder} {what}. Give a whole adapter and its own config."
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the table that transformers prints about faults; this module raises one sentence instead."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
