"""Reads a recipe: one YAML file and flags become one flat mapping.

Knows: YAML, how flags are written, which values are secret.
Must not know: which settings there are (`config` checks them), torch, transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

VOCABULARY = tuple(f"{kind}_token" for kind in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "separator"))

UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)  # errors of reading YAML: also bad numbers and deep nesting


def read_values(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe by name, unchecked.

    Args:
        path: the YAML file; None for flags alone.
        overrides: `--key value`, `--key=value` or `key=value`; values are read as YAML.

    Raises:
        ValueError: there is no such file, it is no mapping, or a flag cannot be read.
    """
    return {**(read_yaml(Path(path)) if path is not None else {}), **_read_flags(list(overrides))}


class DuplicateKey(ValueError):
    """A mapping has the same key twice, so one of the two values would be lost."""


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.merged: set[int] = set()

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        own = [] if id(node) in self.merged else node.value  # `<<` is already replaced by the merged keys
        self.merged.add(id(node))
        for key, _ in own:
            name, line = str(key.value), key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and name in seen:
                raise DuplicateKey(
                    f"line {line}: the key {name!r} is given twice (first in line {seen[name]}). Remove one."
                )
            seen.setdefault(name, line)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """YAML of plain values.

    Raises:
        DuplicateKey: naming the key and its lines.
        yaml.YAMLError: the text is no YAML.
    """
    return yaml.load(text, _Loader)


def masked(values: Mapping[str, Any], inside: bool = False) -> dict[str, Any]:
    """The settings without secrets: the value of `*_token` (hub_token) is replaced by `<HUB_TOKEN>`.

    Inside other mappings (`task_kwargs`, the kwargs of a reward) passwords, secrets and API keys are replaced too, but not the
    tokens of a vocabulary.
    """
    out = {}
    for key, value in values.items():
        secret = _is_secret(str(key).lower(), inside) and (isinstance(value, str) or not inside)
        out[key] = f"<{str(key).upper()}>" if secret and value is not None else _masked_inside(value)
    return out


def is_masked(key: str, value: Any) -> bool:
    """Whether `masked` replaced this value."""
    return value == f"<{key.upper()}>"


def _masked_inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return masked(value, inside=True)
    return [_masked_inside(item) for item in value] if isinstance(value, list | tuple) else value


def _is_secret(name: str, inside: bool) -> bool:
    if not inside:
        return name.endswith("_token")
    return name.endswith(("token", "password", "secret", "api_key", "apikey")) and name not in VOCABULARY


def read_yaml(path: Path, what: str = "recipe", shipped: str = "recipes/") -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: there is no such file, it is no YAML, or no mapping.
    """
    if not path.is_file():
        raise ValueError(f"The {what} {path} does not exist. Shipped {what}s are in {shipped}.")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except DuplicateKey as error:
        raise ValueError(f"The {what} {path}, {error}") from None
    except UNREADABLE as error:
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
        if key in values:
            raise ValueError(f"--{key} is given twice. Remove one of the two.")
        try:
            values[key] = load_yaml(text)
        except DuplicateKey as error:
            raise ValueError(f"--{key} {text}: {error}") from None
        except UNREADABLE as error:
            shown, line = "..." if _is_secret(key, False) else repr(text)[:80], (str(error).splitlines() or [""])[0]
            raise ValueError(f"--{key} {shown} is not YAML ({line:.80}). Quote a text: --{key} '\"...\"'.") from error
    return values
