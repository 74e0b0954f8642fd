"""Compares a loaded model with weight files: those of its checkpoint, of which it reads only a few rows, or those of a run.

Knows: safetensors, PyTorch's pickles, and their indices. Must not know: how a model is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers.utils.hub import cached_file

from rl_warmup.runtime.documents import read_json
from rl_warmup.runtime.ownership import WEIGHTS

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
FLOATS = ("F16", "BF16", "F32", "F64", *(f"torch.{kind}" for kind in ("float16", "bfloat16", "float32", "float64")))
ROWS = 64  # of the head that are compared: a tied head differs in nearly every one


def check_head(model: Any, name: str, revision: str | None = None) -> None:
    """Check that the output head is the checkpoint's: its stored head, or the embeddings if it stores none.

    transformers decides by comparing weights while it loads them. If they are not there yet (ZeRO-3), it silently ties a head
    that is not tied: the loss of an mT5-like model was 33.4 nats at step 1 instead of 12.5.

    Args:
        name: folder or hub name from which the model was loaded.

    Raises:
        ValueError: the head is another one.
    """
    head = model.get_output_embeddings()
    embeddings = model.get_decoder().get_input_embeddings()  # a T5Gemma's encoder has its own
    key = next(f"{path}.weight" for path, module in model.named_modules(remove_duplicate=False) if module is head)
    found, rows = stored_rows(name, key, revision)
    if not found:
        return
    if rows is None:
        if head.weight is not embeddings.weight:
            raise ValueError(
                f"model_name_or_path: {name} stores no {key}, so the output head must be the embeddings, but transformers "
                f"gave this {type(model).__name__} a head of its own, with random weights. Check tie_word_embeddings in its "
                f"config.json."
            )
        return
    here = head.weight[: len(rows)].detach()
    if not torch.equal(here.cpu(), rows.to(here.dtype)):
        tied = " It is tied to the embeddings instead." if head.weight is embeddings.weight else ""
        raise ValueError(
            f"model_name_or_path: {name} stores an output head ({key}) that this {type(model).__name__} does not have after "
            f"loading.{tied} Check tie_word_embeddings in its config.json, and load it before DeepSpeed starts."
        )


def stored_rows(name: str, key: str, revision: str | None = None) -> tuple[bool, Tensor | None]:
    """The first rows of a tensor in a checkpoint's files, as stored.

    Returns:
        Whether any weight file was found, and (up to 64, ...) rows, or None if the files hold no such tensor.
    """
    paths = _weight_files(name, revision)
    for path in paths:
        with open_tensors(path) as tensors:
            if (stored := _matching(tensors, key)) is not None:
                return True, tensors[stored][:ROWS]
    return bool(paths), None


def check_numbers(model: Any, name: str, revision: str | None = None) -> None:
    """Refuse integers stored in place of weights: a quantization with unknown scales. transformers would use them as weights.

    Raises ValueError: names the first such tensor, and its dtype.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return
    weights = {key for key, weight in model.named_parameters(remove_duplicate=False)}
    for path in _weight_files(name, revision):
        with open_tensors(path) as tensors:
            for key, tensor in tensors.items():
                kind = str(tensor.get_dtype() if hasattr(tensor, "get_dtype") else tensor.dtype)
                if kind not in FLOATS and (_matching(weights, key) or any(_matching([key], w) for w in weights)):
                    raise ValueError(
                        f"model_name_or_path: {name} stores {key} as {kind}, which is no kind of weight without a "
                        f"quantization_config in its config.json. Give the checkpoint as it was before it was quantized, or its "
                        f"own config."
                    )


def changed_tensor(model: Any, folder: Path) -> str | None:
    """The first tensor in a folder's weight files that has other numbers in the model; None without one, or without files.

    Of an adapter, its own tensors are compared. Tensors that only one of the two knows are not.
    """
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        here = get_peft_model_state_dict(model)
    else:
        here = model.state_dict()
    for path in sorted(path for name in WEIGHTS for path in folder.glob(name)):
        with open_tensors(str(path)) as stored:
            for key in sorted(stored.keys() & here.keys()):
                there = stored[key][...]
                if there.shape != here[key].shape or not torch.equal(here[key].detach().cpu().to(there.dtype), there):
                    return key
    return None


def _weight_files(name: str, revision: str | None) -> list[str]:
    """The files that hold the weights: safetensors if there are any, else pickles."""
    for single in (SAFE, PICKLED):
        index = stored_file(name, f"{single}.index.json", revision)
        parts = [single] if index is None else sorted(set(read_json(index)["weight_map"].values()))
        if found := [path for part in parts if (path := stored_file(name, part, revision))]:
            return found
    return []


@contextmanager
def open_tensors(path: str) -> Iterator[dict[str, Any]]:
    """The tensors of a weight file by name, read only when they are indexed (of safetensors: slices)."""
    if path.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            yield {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    else:
        yield torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _matching(stored: Iterable[str], key: str) -> str | None:
    """The stored name of a tensor, which in some checkpoints is part of a larger model."""
    return next((name for name in stored if name == key or name.endswith(f".{key}")), None)


def stored_file(name: str, file: str, revision: str | None = None) -> str | None:
    """A file of a folder or of the hub's cache; None for a name that no hub can have. Nothing is downloaded here."""
    try:
        return cached_file(
            name, file, revision=revision, local_files_only=True,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    except OSError as error:
        if isinstance(error.__cause__, HFValidationError):
            return None
        raise
