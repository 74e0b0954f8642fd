"""Refuses incomplete checkpoints: a model of the wrong kind, missing or surplus tensors, a missing tokenizer.

Knows: transformers' loaders and their reports. Must not know: recipes, training. transformers replaces what is missing, with a
warning only (random tensors, a tokenizer that knows `<unk>` alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from rl_warmup.models.weight_files import open_tensors, stored_file

WRITES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")  # endings of classes that write text
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "source.spm",
    "tekken.json", "vocab.bpe",
)  # fmt: skip
SAVE = "Save the model's tokenizer into that folder: tokenizer.save_pretrained({name!r})."
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SHOWN = 4  # names in an error


def check_kind(config: Any, name: str) -> None:
    """Raises ValueError for a network that was not trained to write text; names the class of the checkpoint."""
    known = {
        *map(str, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()),
        *map(str, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()),
    }
    for kind in getattr(config, "architectures", None) or ():
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
    except (OSError, ValueError) as error:
        if "custom code" in str(error) or any(stored_file(name, file, revision) for file in TOKENIZER_FILES):
            raise
        files = ", ".join(TOKENIZER_FILES[:3])
        raise NoTokenizer(
            f"model_name_or_path: {name} holds no tokenizer (none of {files} or the like). {SAVE.format(name=name)}"
        ) from error
    except Exception as error:  # tokenizers, written in Rust, raises a bare Exception, and wrong shapes raise any kind
        raise ValueError(
            f"model_name_or_path: the tokenizer's files of {name} cannot be read ({type(error).__name__}: {error}). "
            f"{SAVE.format(name=name)}"
        ) from error
    check_tokenizer(tokenizer, name, revision)
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


def check_adapter(folder: str | Path, model: Any) -> None:
    """Raises ValueError for an adapter folder with missing or surplus tensors; names them."""
    from peft import get_peft_model_state_dict

    path = next(file for file in ADAPTER_WEIGHTS if file.endswith(".bin") or Path(folder, file).is_file())
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
