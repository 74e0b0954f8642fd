"""Knows how a generator of reasoning-gym (github.com/open-thought/reasoning-gym) becomes a task; not how answers are scored.

Its rows come from seed + index, so near seeds share rows: each split has its own range of seeds, and a known prompt is
skipped. Rows hold what scoring needs besides prompt and target (`metrics/reasoning_gym.py`).
"""

import ast
import operator
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from rl_warmup.runtime.values import defaults_of
from rl_warmup.tasks.columns import nearest
from rl_warmup.tasks.rows import Row, Task

INSTALL = "pip install 'rl_warmup[reasoning_gym]'"
SEEDS_APART = 10_000_000  # from one split to the next
CHUNK = 500  # rows of a generator at a time, its default: with other sizes some generators make other rows
REPEATS = 1000  # known questions in a row, until a generator counts as exhausted
UNANSWERED = 20  # questions without an answer in a row, until it counts as one that only checks answers
OURS = ("seed", "size")  # settings of every generator that this module sets
STYLES = ("full", "last_line")
# In 0.1.25 these iterate over sets, whose order differs between processes.
BY_HASH = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
# Their `score_answer` runs the answer as Python, so it must be allowed (`metrics/reasoning_gym.py`).
BY_EVAL = (
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "number_sorting", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
)  # fmt: skip
PLAIN = (str, bool, int, float, bytes, type(None))


def load(
    name: str, train_size: int = 4000, validation_size: int = 300, test_size: int = 1000, seed: int = 0,
    prompt_style: str = "full", **knobs: Any,
) -> Task:  # fmt: skip
    """Questions and answers of one generator; no prompt occurs twice, in one split or across splits.

    Test rows are drawn first, then validation, then training, so they do not depend on `train_size`. Extras of a row:
    `generator`, `metadata` (as a Python literal, since JSON would lose tuples) and, if the prompt is a part of it, `question`.

    Args:
        name: of a generator, such as "leg_counting".
        prompt_style: "full" for the whole question; "last_line" for its last line that is not empty.
        knobs: settings of that generator, such as `max_animals`.

    Raises:
        ImportError: reasoning-gym is missing.
        ValueError: an unknown generator or knob, a wrong value, a negative size, too few questions, a generator without answers
            or with other rows each time.
    """
    sizes = {"test": test_size, "validation": validation_size, "train": train_size}
    for key, value in {**{f"{split}_size": size for split, size in sizes.items()}, "seed": seed}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"reasoning_gym: {key}={value!r}; give a whole number, 0 or more")
    if prompt_style not in STYLES:
        raise ValueError(f"reasoning_gym: prompt_style={prompt_style!r}; give one of {', '.join(STYLES)}")
    maker = _Generator(name, knobs)
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for place, (split, size) in enumerate(sizes.items(), start=1):
        entries = maker.entries((len(sizes) * seed + place) * SEEDS_APART)
        splits[split] = _rows(maker, entries, split, size, prompt_style, seen)
    metrics = ("exact_match",) if name in BY_EVAL else ("reasoning_gym_score", "exact_match")
    return Task(f"reasoning_gym {name}", splits, metrics)


class _Generator:
    """A generator with checked knobs."""

    def __init__(self, name: str, knobs: dict[str, Any]) -> None:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise ImportError(f"task 'reasoning_gym' needs the package reasoning-gym ({error}); {INSTALL}") from error
        known = sorted(set(DATASETS) - {"composite"})  # composite mixes others and has no rows of its own
        if name not in known:
            near = f"{nearest(str(name), known)}; known: {', '.join(known)}"
            raise ValueError(f"reasoning_gym: there is no generator {name!r}{near}")
        if name in BY_HASH and not os.environ.get("PYTHONHASHSEED", "random").isdigit():
            raise ValueError(
                f"reasoning_gym: {name} depends on Python's hashes and makes other rows in every process; set the environment "
                "variable PYTHONHASHSEED=0 before Python starts, or take another generator"
            )
        self.name, self.create = name, create_dataset
        self.knobs = _checked_knobs(name, DATASETS[name][1], knobs)
        if repr(next(self.entries(0))) != repr(next(self.entries(0))):
            raise ValueError(
                f"reasoning_gym: {name} makes another row each time for the same seed and index, so no run could be repeated; "
                "take another generator"
            )

    def entries(self, seed: int) -> Iterator[dict[str, Any]]:
        """Rows of the generator from that seed on, at most SEEDS_APART."""
        for start in range(seed, seed + SEEDS_APART, CHUNK):
            dataset = self._made(self.create, self.name, seed=start, size=CHUNK, **self.knobs)
            for index in range(CHUNK):
                yield self._made(operator.getitem, dataset, index)

    def _made(self, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except Exception as error:  # generators check settings by assert, or fail in any other way
            given = ", ".join(f"{key}={value!r}" for key, value in self.knobs.items()) or "its defaults"
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            message = f"{self.name} makes no rows with {given} ({cause}); change these settings, or the seed"
            raise ValueError(f"reasoning_gym: {message}") from error


def _checked_knobs(name: str, config: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The knobs in the generator's types: a list becomes a tuple if the default is a tuple."""
    defaults = {knob: default for knob, default in defaults_of([config]).items() if knob not in OURS}
    checked = {}
    for key, value in given.items():
        if key not in defaults:
            ours = "; seed and sizes are arguments of the task" if key in OURS else nearest(key, defaults)
            listed = ", ".join(f"{knob} ({default!r})" for knob, default in defaults.items()) or "none"
            raise ValueError(f"reasoning_gym: {name} has no knob {key!r}{ours}; its knobs and their defaults: {listed}")
        default = defaults[key]
        if not _fits(value, default):
            raise ValueError(
                f"reasoning_gym: {key}={value!r} for {name}; give a value of the type {type(default).__name__}, like its default "
                f"{default!r}"
            )
        checked[key] = tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
    return checked


def _fits(value: Any, default: Any) -> bool:
    """Whether the value has the type of its default; the generator itself checks values that are no text or number."""
    if value is None or not isinstance(default, str | int | float):
        return True
    if isinstance(default, str | bool) or isinstance(value, bool):
        return type(value) is type(default)
    return isinstance(value, int if isinstance(default, int) else int | float)


def _rows(
    maker: _Generator, entries: Iterator[dict[str, Any]], split: str, size: int, style: str, seen: set[str]
) -> list[Row]:
    rows: list[Row] = []
    repeats = unanswered = 0
    while len(rows) < size:
        entry = next(entries, None)
        if entry is None or repeats == REPEATS or unanswered == UNANSWERED:
            raise ValueError(_exhausted(maker.name, split, size, len(rows), unanswered == UNANSWERED, style))
        question, answer = entry["question"], entry["answer"]
        prompt = question if style == "full" else question.strip().splitlines()[-1]
        if not isinstance(answer, str) or not answer.strip():
            unanswered += 1
        elif prompt in seen:
            repeats += 1
        else:
            repeats = unanswered = 0
            seen.add(prompt)
            extras = {"generator": maker.name, "metadata": _literal(entry["metadata"], maker.name)}
            extras |= {} if prompt == question else {"question": question}
            rows.append({"id": f"{split}-{len(rows)}", "prompt": prompt, "target": answer, **extras})
    return rows


def _exhausted(name: str, split: str, size: int, found: int, unanswered: bool, style: str) -> str:
    where = f"reasoning_gym: {name} gave {found} of the {size} rows asked for in the {split} split"
    if unanswered:
        return f"{where}, then only questions without an answer, which is the row's target; take another generator"
    prompts = "questions" if style == "full" else f"prompts (prompt_style {style})"
    return f"{where}, then no new {prompts}; lower the sizes, or change its knobs to allow more"


def _literal(metadata: Any, name: str) -> str:
    """The metadata as text for `ast.literal_eval`."""
    text = repr(_plain(metadata))
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:  # such as nan
        message = f"the metadata of {name} is no Python literal ({error}); take another generator"
        raise ValueError(f"reasoning_gym: {message}") from error
    return text


def _plain(value: Any) -> Any:
    """The value in Python's own types, without numpy's and subclasses."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return next(kind for kind in (list, tuple, set) if isinstance(value, kind))(_plain(inner) for inner in value)
    if type(value) in PLAIN:
        return value
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Fraction):  # of gsm_symbolic, whose scorer does not read it
        return str(value)
    return next((kind(value) for kind in (str, int, float) if isinstance(value, kind)), value)
