"""Reads a recipe: one YAML file and flags become one flat mapping.

Knows: YAML, how flags are written, which values are secret.
Must not know: which settings there are (`config` checks them), torch, transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_warmup.runtime.documents import Unreadable, parse_yaml

VOCABULARY = tuple(f"{kind}_token" for kind in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "separator"))


def read_values(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe by name, unchecked.

    Args:
        path: the YAML file; None for flags alone.
        overrides: `--key value`, `--key=value` or `key=value`; values are read as YAML.

    Raises:
        ValueError: there is no such file, it is no mapping, or a flag cannot be read.
    """
    return {**(read_yaml(Path(path)) if path is not None else {}), **_read_flags(list(overrides))}


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
    """The mapping in a YAML file. Raises ValueError: there is no such file, it is no YAML, or no mapping."""
    if not path.is_file():
        raise ValueError(f"The {what} {path} does not exist. Shipped {what}s are in {shipped}.")
    try:
        values = parse_yaml(path.read_bytes())
    except Unreadable as error:
        raise ValueError(f"{error.at(f'The {what} {path}')}.") from None
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
        values[key] = flag_value(key, text)
    return values


def flag_value(key: str, text: str) -> Any:
    """What a flag gives, read as YAML. Raises ValueError: it is none."""
    try:
        return parse_yaml(text)
    except Unreadable as error:
        shown = "..." if _is_secret(key, False) else repr(text)[:80]
        raise ValueError(f"--{key} {shown}: {error}. A text may need quotes: --{key} '\"...\"'.") from None
