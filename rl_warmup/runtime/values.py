"""Converts the values of a recipe to the types of their settings, with a sentence for each fault.

Knows: type hints of dataclasses, how YAML and flags write values. Must not know: torch, transformers, what a setting does.
"""

from __future__ import annotations

import difflib
import enum
import inspect
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from rl_warmup.runtime.other_names import IN_PYTHON, OURS
from rl_warmup.runtime.recipe_file import is_masked
from rl_warmup.runtime.settings import number_fault, shown

TYPE_NAMES = {
    int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping", list: "a list", tuple: "a list",
    str: "a text",
}  # fmt: skip
OR_TRUE = ("fsdp", "resume_from_checkpoint")  # texts that may also be true


def typed(values: Mapping[str, Any], classes: Iterable[type]) -> tuple[dict[str, Any], list[str]]:
    """The values, converted to the types of the dataclasses' fields.

    Returns:
        The values without faulty ones, and a sentence for every unknown name and every value of a wrong type, outside its
        choices or its range.
    """
    hints = {name: hint for cls in classes for name, hint in typing.get_type_hints(cls).items()}
    known = {f.name: f for cls in classes for f in fields(cls) if f.init}
    defaults = defaults_of(classes)
    faults: list[str] = []
    coerced: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str) or key not in known:
            faults.append(no_setting(key, known))
            continue
        if is_masked(key, value):
            continue  # a run's recipe.yaml does not hold its secrets; HF_TOKEN of the environment is used
        if value is False and (key.endswith("_strategy") or key == "guard"):
            value = "off" if key == "guard" else "no"  # YAML reads these words as false
        secret = key.endswith("_token")
        try:
            found = _coerce(value, hints[key], key)
        except (TypeError, ValueError, OverflowError):
            kind = _type_names(hints[key])
            keys = " with texts as keys" if isinstance(value, dict) and "mapping" in kind else ""
            what = f"{'its value' if secret else shown(value)} is not {kind}{keys}. Give one"
            if kind == TYPE_NAMES[str] and isinstance(value, str):  # the one text that is refused
                what = "is empty. Give a text"
            if "plugin" in known[key].metadata and callable(value):
                name = getattr(value, "__name__", "name")
                what = f"{shown(value)} is no text. A function of yours is named by its file, `mine.py:{name}`"
            leave = "" if defaults.get(key) is None else f", or leave it out for {shown(defaults[key])}"
            said = f"{key}: {what}{leave}."
            faults.append(f"{said} A flag without a value is true: write `--{key} VALUE`." if value is True else said)
            continue
        allowed = choices(hints[key], known[key].metadata)
        if allowed and found is not None and "plugin" not in known[key].metadata:
            wrong = [item for item in (found if isinstance(found, list) else [found]) if item not in allowed]
            if wrong:
                faults.append(unknown(key, wrong[0], allowed))
                continue
        if fault := number_fault(key, found):
            faults.append(fault)
            continue
        coerced[key] = found
    return coerced, faults


class Named:
    """A base of a dataclass of settings that answers unknown names as a recipe does; last of the bases, so that the dataclass
    keeps its signature."""

    elsewhere: ClassVar[str]  # where values go that are no settings of the class

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        known = inspect.signature(cls).parameters
        wrong = [
            f"{name}: is a recipe's; {IN_PYTHON[name]}." if name in IN_PYTHON else no_setting(name, known)
            for name in kwargs
            if name not in known
        ]
        if wrong and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            named = set(re.findall(r"\w+", " ".join(wrong))) & set(known)  # what they are called here
            raise ValueError("\n".join(wrong if named else [*wrong, cls.elsewhere]))
        return super().__new__(cls)


def settled(values: Mapping[str, Any], cls: type) -> tuple[dict[str, Any], list[str]]:
    """The settings of a config made in Python, as `typed` reads those of a recipe: (values, faults).

    numpy's numbers, tuples and paths count as Python's own. A faulty setting has its default among the values. Objects of
    transformers and accelerate are left to them.
    """
    defaults = defaults_of([cls])
    given = {name: _own(value) for name, value in values.items()}
    changed = {
        name: value for name, value in given.items()
        if (type(value) is not type(defaults[name]) or value != defaults[name])
        and type(value).__module__.partition(".")[0] not in ("transformers", "accelerate")
    }  # fmt: skip
    found, faults = typed(changed, [cls])
    return {**given, **{name: found.get(name, defaults[name]) for name in changed}}, faults


def _own(value: Any) -> Any:
    """A value as Python's own: of numpy, of torch, a whole float as a whole number, a path as text, a tuple as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def defaults_of(classes: Iterable[type]) -> dict[str, Any]:
    """The defaults of dataclasses' fields; None where a field has none."""
    known = [f for cls in classes for f in fields(cls)]
    made = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in known}
    return {name: None if value is MISSING else value for name, value in made.items()}


def choices(hint: Any, metadata: Mapping[str, Any]) -> list[str]:
    """The values that a field allows, by its metadata or its enumeration; empty where any is allowed."""
    if metadata.get("choices"):
        return list(metadata["choices"])
    kinds = [option for option in alternatives(hint) if isinstance(option, type) and issubclass(option, enum.Enum)]
    return [str(member.value) for member in kinds[0]] if kinds else []


def no_setting(key: Any, known: Iterable[str]) -> str:
    """The sentence for an unknown setting."""
    if key in OURS:
        return f"{key}: is no setting here; {OURS[key]}."
    near = difflib.get_close_matches(str(key), list(known), n=1)
    return f"{key!r} is not a setting.{f' Did you mean {near[0]!r}?' if near else ' See `rl-warmup train --help`.'}"


def unknown(key: str, value: Any, allowed: Iterable[Any]) -> str:
    """The sentence for a value outside its choices."""
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"{key}: {shown(value)} is not one of {', '.join(names)}.{f' Did you mean {near[0]!r}?' if near else ''}"


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other annotation itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _bases(hint: Any) -> list[Any]:
    return [typing.get_origin(option) or option for option in alternatives(hint)]


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """A YAML value as the field's type: YAML reads 1e-4 as text, and a flag may give one item for a list.

    Raises TypeError, ValueError, OverflowError: it does not fit the type.
    """
    options, bases = alternatives(hint), _bases(hint)
    if hint is Any:
        return value
    if value is None:
        if type(None) not in options:
            raise TypeError
        return None
    if isinstance(value, bool):
        if bool in bases or typing.Literal in bases or (value and key in OR_TRUE):
            return value
        raise TypeError
    if isinstance(value, str) and any(isinstance(b, type) and issubclass(b, (str, enum.Enum)) for b in bases):
        if not value.strip():
            raise TypeError
        return value
    if int in bases and (isinstance(value, int) or (isinstance(value, str) and value.lstrip("-").isdigit())):
        return int(value)
    if float in bases and isinstance(value, int | float | str):
        return float(value)
    if dict in bases and isinstance(value, dict):
        _check_keys(value)
        return value
    if list in bases and not (isinstance(value, dict) and dict in bases):
        return _as_list(value, options)
    if str in bases and dict not in bases and isinstance(value, int | float):
        return str(value)
    raise TypeError


def _as_list(value: Any, options: tuple[Any, ...]) -> list[Any]:
    """A list of the type in the hint; one item counts as a list of one."""
    items = value if isinstance(value, list) else [value]
    inner = next(option for option in options if (typing.get_origin(option) or option) is list)
    if typing.get_args(inner) == (str,):
        if any(not isinstance(item, str) or not item for item in items):
            raise TypeError
        return items
    for item in items:
        if isinstance(item, dict):
            _check_keys(item)
    return items


def _check_keys(value: dict[Any, Any]) -> None:
    """Raises TypeError for keys that are no texts; they become names of arguments."""
    if not all(isinstance(key, str) for key in value):
        raise TypeError


def argument_fault(value: Any, hint: Any) -> str | None:
    """What a function's argument should be, by its annotation; None where the value fits."""
    if _fits(value, hint):
        return None
    return f"give {_type_names(hint)}{', or null' if type(None) in alternatives(hint) else ''}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, its items too; numbers must be finite and texts not empty."""
    options, base = alternatives(hint), typing.get_origin(hint) or hint
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    if base in (int, float):
        kinds = int if base is int else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and -1e18 <= value <= 1e18
    if base is str:
        return isinstance(value, str) and bool(value.strip())
    if base is Any or not isinstance(base, type):
        return True
    if base is tuple and isinstance(value, list | tuple):
        inner = typing.get_args(hint)  # of each place, as YAML has lists alone
        if not inner or inner[1:] == (...,):  # of any length
            return all(_fits(item, inner[0]) for item in value if inner)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(value, list | tuple) and issubclass(list, base):
        return all(_fits(item, inner) for inner in typing.get_args(hint)[:1] for item in value)
    if isinstance(value, Mapping) and issubclass(dict, base):
        return all(_fits(item, inner) for inner in typing.get_args(hint)[1:] for item in value.values())
    return isinstance(value, base) and not (isinstance(value, str | bytes | Mapping) and issubclass(list, base))


def _type_names(hint: Any) -> str:
    bases = [
        list if base not in (Any, object) and isinstance(base, type) and issubclass(list, base) else base
        for base in _bases(hint)
    ]
    bases = [dict if base is Mapping else base for base in bases]
    return " or ".join(TYPE_NAMES[base] for base in bases if base in TYPE_NAMES) or "allowed"
