"""Reads the files of a run and checks the kinds of their values, so that what compares runs can rely on them.

Knows: keys of docs/formats.md. Must not know: what is done with them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl_warmup.runtime.documents import read_json, read_jsonl
from rl_warmup.runtime.recipe_file import read_yaml
from rl_warmup.runtime.settings import shown

REMEDY = "Remove the file, or repeat the run."


def require_folder(folder: str | Path) -> None:
    """Raises ValueError: there is no such folder; names one beside it that is written alike."""
    if not isinstance(folder, str | Path) or not str(folder):
        raise ValueError(f"{shown(folder)} is no folder. Give the path of one that training wrote.")
    path = Path(folder)
    if path.is_dir():
        return
    what = "is a file" if path.exists() else "does not exist"
    beside = [one.name for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 1, 0.5)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{path} {what}.{meant} Give a folder that training wrote.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e300


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(number is None or _is_number(number) for number in value.values())


def _is_likelihood(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    bounds, parts = value.get("bound", {}), (value.get("without_warmup", {}), value.get("gain", {}))
    return (
        isinstance(bounds, dict)
        and all(map(_are_numbers, parts))
        and all(key.isdecimal() and _are_numbers(one) for key, one in bounds.items())
    )


Kind = tuple[str, Callable[[Any], bool]]
NUMBER: Kind = ("number", _is_number)
WHOLE: Kind = ("whole number", lambda value: type(value) is int and abs(value) < 10**18)
TEXT: Kind = ("text", lambda value: isinstance(value, str))
TEXTS: Kind = ("object of texts", lambda value: isinstance(value, dict) and all(map(TEXT[1], value.values())))
OBJECT: Kind = ("object", lambda value: isinstance(value, dict))
METRICS: Kind = (
    "object of numbers by control", lambda value: isinstance(value, dict) and all(map(_are_numbers, value.values()))
)  # fmt: skip
WARMUPS: Kind = (
    "list of objects, `warmup` being a text",
    lambda value: isinstance(value, list) and all(isinstance(w, dict) and TEXT[1](w.get("warmup", "")) for w in value),
)
PROMPT: Kind = (
    "text or list of messages",
    lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, dict) for one in value)),
)
MEASURED = {
    "split": TEXT, "rows": WHOLE, "rows_hash": TEXT, "weights": TEXT, "signatures": TEXTS, "metrics": METRICS,
    "likelihood": ("object of numbers", _is_likelihood), "metric_specs": ("list", lambda value: isinstance(value, list)),
}  # fmt: skip
RESULT = {
    **MEASURED,
    "task": TEXT,
    "model": TEXT,
    "objective": TEXT,
    "seed": WHOLE,
    "updates": NUMBER,
    "train_seconds": NUMBER,
}
NEEDED = ("task", "model", "metrics", "updates", "train_seconds")  # of RESULT
COST = {"step": NUMBER, "train_seconds": NUMBER, "train_tokens": NUMBER, "train_flops": NUMBER}
LOGGED = ("loss", "gain", "ess", "completions/", "eval_")  # what curves are drawn of, or begins like it


def read_result(folder: str | Path) -> dict[str, Any]:
    """metrics.json of a finished run. Raises ValueError: it is not there, cannot be read, or a value is of another kind; all
    functions here do where they cannot read, or find another kind."""
    path = Path(folder, "metrics.json")
    if not path.is_file():
        raise ValueError(f"{folder} holds no {path.name}: the run is not finished, or this is not a run folder.")
    return _checked(read_json(path, REMEDY), RESULT, str(path), REMEDY, NEEDED)


def read_evaluation(path: Path) -> dict[str, Any]:
    """metrics.json of an evaluation."""
    remedy = "Remove the file, or repeat the evaluation."
    return _checked(read_json(path, remedy), MEASURED, str(path), remedy, ("metrics",))


def metric_name(spec: Any) -> str:
    """The name of an entry of `metric_specs`."""
    return str(spec.get("name") if isinstance(spec, Mapping) else spec)


def scored_with(result: Mapping[str, Any]) -> dict[str, str]:
    """Metric -> the settings it was computed with: its signature, or what metrics.json has beside its name."""
    given = {
        metric_name(spec): spec.get("kwargs") for spec in result.get("metric_specs") or () if isinstance(spec, Mapping)
    }
    settings = {name: json.dumps(kwargs, sort_keys=True, default=str) for name, kwargs in given.items() if kwargs}
    return settings | (result.get("signatures") or {})


def read_environment(folder: Path) -> dict[str, Any]:
    """environment.json of a run; empty where there is none."""
    path = folder / "environment.json"
    return (
        _checked(read_json(path, REMEDY), {"versions": OBJECT, "settings": OBJECT}, str(path), REMEDY)
        if path.is_file()
        else {}
    )


def read_run_recipe(folder: Path) -> dict[str, Any]:
    """recipe.yaml of a run."""
    path = folder / "recipe.yaml"
    found = read_yaml(path)
    if not found:
        raise ValueError(f"{path} holds no settings. {REMEDY}")
    return _checked(found, {"seed": WHOLE, "model_name_or_path": TEXT}, str(path), REMEDY)


def read_records(path: Path, rows: int | None = None) -> list[dict[str, Any]]:
    """A file of JSON lines in a run's folder, by its name; empty where there is none.

    Args:
        rows: of predictions, how many there should be.
    """
    remedy = "Mend or remove the line."
    predicted = path.name.startswith("predictions")
    kinds = {
        "timing.jsonl": COST,
        "metrics.jsonl": {"step": NUMBER},
        "warmups.jsonl": {"warmups": WARMUPS, "prompt": PROMPT},
    }.get(path.name, {})
    needed: tuple[str, ...] = tuple(key for key in ("step", "warmups") if key in kinds)
    if predicted:
        kinds, needed = {"prediction": TEXT, "target": TEXT, "warmup": TEXT, "prompt": PROMPT}, ("prediction", "target")
    found = read_jsonl(path)
    for number, record in enumerate(found, 1):
        more = {key: NUMBER for key in record if path.name == "metrics.jsonl" and key.startswith(LOGGED)}
        _checked(record, {**kinds, **more}, f"{path}, record {number}", remedy, needed)
    if predicted and rows is not None and path.is_file() and len(found) < rows:
        raise ValueError(
            f"{path} holds {len(found)} predictions, and metrics.json says {rows} rows: it was cut. {REMEDY}"
        )
    return found


def _checked(
    found: dict[str, Any], kinds: Mapping[str, Kind], place: str, remedy: str, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values as they were found. Raises ValueError: a needed key is null or not there, or a value is not of its kind."""
    for key, (name, fits) in kinds.items():
        if key in needed and found.get(key) is None:
            raise ValueError(f"{place}: has no `{key}`. {remedy}")
        if found.get(key) is not None and not fits(found[key]):
            raise ValueError(f"{place}: `{key}` is {shown(found[key])}, no {name}. {remedy}")
    return found
