"""What is wrong with a file that a library cannot read: from its size, its first bytes and its own table of contents.

Knows: bytes, JSON, the heads of safetensors and zip files, sizes in a config.json. Must not know: torch, what a file is for.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rl_warmup.runtime.documents import Unreadable, kind, parse_json
from rl_warmup.runtime.settings import Range, number_fault, shown

AGAIN = "Copy or download the file again, or take it from an earlier checkpoint."
PAGES, POINTER = (b"<!doctype", b"<html", b"<?xml"), b"version https://git-lfs"
PICKLES = (".pt", ".pth", ".bin")
SIZES = (  # keys of a config.json that hold a whole number above 0 wherever they hold one number
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip
SIZE, LAYERS = Range(1, 1e8), Range(1, 4096)  # a model of a million layers would be built for hours


def damage(path: str | Path) -> str | None:
    """What is wrong with a file, to be said after its name; None if it looks whole, or is not there."""
    path = Path(path)
    if path.is_dir():
        return "is a folder, not a file"
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "is empty, as after a write or download that was cut off"
    if head.lstrip().lower().startswith(PAGES):
        return "is a web page, as after a download that failed"
    if head.startswith(POINTER):
        return "is a pointer of Git LFS, not the file itself, which `git lfs pull` fetches"
    if not head.strip(b"\0"):
        return "begins with zero bytes, as after a write that was cut off"
    if path.suffix == ".json":
        return _json_damage(path)
    if path.suffix == ".safetensors":
        return _safetensors_damage(path, size)
    return _pickle_damage(path, head) if path.suffix in PICKLES else None


def first_damaged(paths: Iterable[str | Path | None], remedy: str = AGAIN) -> str | None:
    """A sentence about the first damaged file, or None."""
    return next((f"{path} {what}. {remedy}" for path in paths if path and (what := damage(path))), None)


def size_fault(config: Mapping[str, Any]) -> str | None:
    """A sentence without end about the first size in a config.json that no model can have, or None."""
    for key in SIZES:
        value = config.get(key)
        if isinstance(value, str | bool):
            return f"{key} is {shown(value)}, not a whole number"
        if fault := number_fault(key, value, LAYERS if key.endswith("layers") else SIZE):
            return fault.rstrip(".")
    return None


def _json_damage(path: Path) -> str | None:
    try:
        found = parse_json(path.read_bytes())
    except Unreadable as error:
        return f"{error}{f' in line {error.line}' if error.line else ''}"
    if not isinstance(found, dict):
        return f"is a JSON {kind(found)}, no JSON object"
    lacks = [key for key in ("metadata", "weight_map") if not isinstance(found.get(key), dict)]
    return f"has no mapping {lacks[0]!r}" if lacks and path.name.endswith(".index.json") else None


def _safetensors_damage(path: Path, size: int) -> str | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > size - 8:
            return f"has {size} bytes that do not begin as a safetensors file does"
        try:
            tensors = parse_json(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return "has no readable table of tensors at its beginning"
    return None if needed == size else f"has {size} bytes, and its tensors need {needed}: it was cut off, or mixed up"


def _pickle_damage(path: Path, head: bytes) -> str | None:
    if head.startswith(b"\x80"):  # of old versions of torch
        return None
    if not head.startswith(b"PK"):
        return "does not begin as a file of torch.save does"
    try:
        zipfile.ZipFile(path).close()
    except (zipfile.BadZipFile, OSError):
        return "is cut off: its table of contents at the end is missing"
    return None
