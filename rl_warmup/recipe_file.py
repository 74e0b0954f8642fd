"""A recipe as text: one YAML file and the flags over it become one flat mapping.

Knows: YAML and how flags are written. Must not know: which settings there are (`config` checks them), torch, transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_values(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe by name, unchecked.

    Args:
        path: the YAML file; None for flags alone.
        overrides: `--key value`, `--key=value` or `key=value`; values are read as YAML.

    Raises:
        ValueError: there is no such file, it is no mapping, or a flag cannot be read.
    """
    return {**(read_yaml(Path(path)) if path is not None else {}), **_read_flags(list(overrides))}


def read_yaml(path: Path, what: str = "recipe", shipped: str = "recipes/") -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: there is no such file, it is no YAML, or no mapping.
    """
    if not path.is_file():
        raise ValueError(f"The {what} {path} does not exist. Shipped {what}s lie in {shipped}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The {what} {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"The {what} {path} must be a mapping of settings, `key: value` on every line.")
    return values


def _read_flags(flags: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    while flags:
        flag = flags.pop(0)
        key, sign, text = flag.removeprefix("--").partition("=")
        if not sign:
            if not flag.startswith("--") or not flags:
                raise ValueError(f"Cannot read {flag!r}: give settings as `--key value` or `key=value`.")
            text = flags.pop(0)
        values[key] = yaml.safe_load(text)
    return values
