"""Reads a recipe: one YAML file and flags become one flat mapping.

Knows: YAML, how flags are written, which values are secret.
Must not know: which settings there are (`config` checks them), torch, transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rl_warmup.runtime.documents import Unreadable, parse_yaml
from rl_warmup.runtime.shipped import find_recipe

VOCABULARY = tuple(f"{kind}_token" for kind in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "separator"))


def read_values(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe by name, unchecked.

    Args:
        path: the YAML file, or the name of a shipped recipe; None for flags alone.
        overrides: `--key value`, `--key=value` or `key=value`, values being read as YAML; or `--key`, `--no_key` alone.

    Raises:
        ValueError: there is no such file, it is no mapping, it is a sweep file, or a flag cannot be read.
    """
    values = read_yaml(find_recipe(path)) if path is not None else {}
    if {"question", "base"} <= set(values):
        raise ValueError(f"{path} is a sweep file, not a recipe: rl-warmup sweep {path}")
    if not isinstance(overrides, list | tuple) or not all(isinstance(one, str) for one in overrides):
        raise ValueError(f"overrides: {overrides!r:.80}; give a list of texts, such as ['--seed', '1'].")
    return {**values, **_read_flags(list(overrides))}


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


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError: there is no such file, it is no YAML, or no mapping."""
    if not path.is_file():
        raise ValueError(f"The {what} {path} is no file. Give the path of a YAML file.")
    try:
        values = parse_yaml(path.read_bytes())
    except Unreadable as error:
        raise ValueError(f"{error.at(f'The {what} {path}')}. Mend it there.") from None
    if not isinstance(values, dict):
        raise ValueError(f"The {what} {path} must be a mapping of settings, `key: value` on every line.")
    return values


def split_config(args: Iterable[str]) -> tuple[str | None, list[str]]:
    """The path of the recipe, as `--config FILE`, `--config=FILE` or the first word, and the other flags.

    Raises ValueError: there are two, or none follows `--config`.
    """
    rest, found = list(args), []
    if rest and not rest[0].startswith("-") and "=" not in rest[0] and not rest[0].endswith(":"):
        found.append(rest.pop(0))
    flags, rest = rest, []
    while flags:
        name, sign, value = flags.pop(0).partition("=")
        if name not in ("--config", "config") or (name == "config" and not sign):
            rest.append(f"{name}{sign}{value}")
            continue
        if not sign and (not flags or flags[0].startswith("--")):
            raise ValueError("--config needs the path of a recipe.")
        found.append(value if sign else flags.pop(0))
    if len(found) > 1:
        raise ValueError(f"--config is given twice, {' and '.join(found)}. Remove one of the two.")
    if found and not found[0].strip():
        raise ValueError("--config is empty. Give the path of a recipe.")
    return (found[0] if found else None), rest


def _read_flags(flags: list[str]) -> dict[str, Any]:
    """Settings by name. A flag without a value is true, and false where it begins with `no_`; dashes count as underscores."""
    values: dict[str, Any] = {}
    while flags:
        flag = flags.pop(0)
        name, sign, text = flag.removeprefix("--").partition("=")
        key = name.replace("-", "_")
        if not key.strip("_ ") or name.startswith("-") or not (sign or flag.startswith("--")):
            raise ValueError(_no_flag(flag, flags))
        bare = not sign and (not flags or flags[0].startswith("--"))
        negated = bare and key.startswith("no_") and key != "no_cuda"
        key = key.removeprefix("no_") if negated else key
        if key in values:
            raise ValueError(f"--{key} is given twice. Remove one of the two.")
        values[key] = not negated if bare else flag_value(key, text if sign else flags.pop(0))
    return values


def _no_flag(word: str, after: list[str]) -> str:
    """The sentence for a word that stands where a flag should."""
    name, _, value = word.lstrip("-\u2013\u2014").partition(":" if ":" in word else "=")
    name = "config" if name == "c" else name
    value = value.strip() or (after[0] if after else "VALUE")
    if word.endswith((".yaml", ".yml")):
        return f"Cannot read {word!r}: a recipe is given as `--config {word}`, once, and settings as `--key value`."
    if name.isidentifier() and (word != name or "=" in word):
        return f"Cannot read {word!r}: write `--{name} {value}`."
    if word.startswith("--"):
        return f"{word!r} names no setting: give settings as `--key value` or `key=value`."
    return (
        f"Cannot read {word!r}: give settings as `--key value` or `key=value`, and several values as `--key '[a, b]'`."
    )


def flag_value(key: str, text: str) -> Any:
    """What a flag gives, read as YAML. Raises ValueError: it is none."""
    try:
        return parse_yaml(text)
    except Unreadable as error:
        shown = "..." if _is_secret(key, False) else repr(text)[:80]
        raise ValueError(f"--{key} {shown}: {error}. A text may need quotes: --{key} '\"...\"'.") from None
