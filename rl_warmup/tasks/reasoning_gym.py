"""Knows how a generator of reasoning-gym (github.com/open-thought/reasoning-gym) becomes a task; not how answers are scored.

Its rows come from seed + index, so near seeds share rows: each split has a range of seeds of its own, and a prompt that came
before is passed over. What scoring reads of a row beside prompt and target goes with it (`metrics/reasoning_gym.py`).
"""

import ast
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from rl_warmup.tasks.columns import nearest
from rl_warmup.tasks.rows import Row, Task

INSTALL = "pip install 'rl_warmup[reasoning_gym]'"
SEEDS_APART = 10_000_000  # from one split to the next
CHUNK = 500  # rows asked of a generator at once, its own default: some make all of them first, or other ones for another number
REPEATS = 1000  # questions seen before, in a row, until a generator counts as exhausted
UNANSWERED = 20  # questions without an answer, in a row, until it counts as one that only checks answers
OURS = ("seed", "size")  # settings of every generator that follow from seed and sizes here
STYLES = ("full", "last_line")
# Seen in 0.1.25: these go through sets, whose order Python draws for every process.
BY_HASH = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
# Their `score_answer` runs the answer as Python, so it is only for those who ask for it (`metrics/reasoning_gym.py`).
BY_EVAL = (
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "number_sorting", "polynomial_multiplication",
    "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
)  # fmt: skip
PLAIN = (str, bool, int, float, bytes, type(None))


def load(
    name: str,
    train_size: int = 4000,
    validation_size: int = 300,
    test_size: int = 1000,
    seed: int = 0,
    prompt_style: str = "full",
    **knobs: Any,
) -> Task:
    """Questions and answers of one generator; no prompt occurs twice, in one split or across splits.

    Test rows are drawn first, then validation, then training: they stay the same when `train_size` changes. Extras of a row:
    `generator`, `metadata` (the generator's, as a Python literal, since JSON would lose tuples) and, where the prompt is not
    the whole of it, `question`.

    Args:
        name: of a generator, such as "leg_counting".
        prompt_style: "full" for the question as it is, boilerplate included; "last_line" for its last line that is not empty.
        knobs: settings of that generator, such as `max_animals`.

    Raises:
        ImportError: reasoning-gym is missing.
        ValueError: an unknown generator or knob, a value it does not take, a negative size, fewer questions than rows asked for,
            a generator that gives no answers, or other rows each time.
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
    """One generator with its knobs, both checked."""

    def __init__(self, name: str, knobs: dict[str, Any]) -> None:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise ImportError(f"task 'reasoning_gym' needs the package reasoning-gym ({error}); {INSTALL}") from error
        known = sorted(set(DATASETS) - {"composite"})  # that one mixes others and has no rows of its own
        if name not in known:
            raise ValueError(
                f"reasoning_gym: there is no generator {name!r}{nearest(str(name), known)}; known: {', '.join(known)}"
            )
        if name in BY_HASH and not os.environ.get("PYTHONHASHSEED", "random").isdigit():
            raise ValueError(
                f"reasoning_gym: {name} makes other rows in every process, as it depends on Python's hashes; set the environment "
                "variable PYTHONHASHSEED=0 before Python starts, or take another generator"
            )
        self.name, self.create = name, create_dataset
        self.knobs = _checked_knobs(name, DATASETS[name][1], knobs)
        if repr(next(self.entries(0))) != repr(next(self.entries(0))):
            raise ValueError(
                f"reasoning_gym: {name} makes another row each time it is asked for the same one, so no run could be repeated; "
                "take another generator"
            )

    def chunk(self, seed: int) -> Any:
        """CHUNK rows by index, made when they are asked for."""
        try:
            return self.create(self.name, seed=seed, size=CHUNK, **self.knobs)
        except Exception as error:  # generators check by assert, and what is compared may be of any type
            raise ValueError(self._refusal(error)) from error

    def entries(self, seed: int) -> Iterator[dict[str, Any]]:
        """Rows of the generator from that seed on, SEEDS_APART of them at most."""
        for start in range(seed, seed + SEEDS_APART, CHUNK):
            dataset = self.chunk(start)
            for index in range(CHUNK):
                try:
                    yield dataset[index]
                except Exception as error:
                    raise ValueError(self._refusal(error)) from error

    def _refusal(self, error: Exception) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.knobs.items()) or "its defaults"
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        return f"reasoning_gym: {self.name} makes no rows with {given} ({said}); change these settings, or the seed"


def _checked_knobs(name: str, config: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The knobs as the generator takes them: a list becomes a tuple where its default is one."""
    defaults = {field.name: _default(field) for field in dataclasses.fields(config) if field.name not in OURS}
    checked = {}
    for key, value in given.items():
        if key not in defaults:
            ours = "; seed and sizes are the task's own arguments" if key in OURS else nearest(key, defaults)
            listed = ", ".join(f"{knob} ({default!r})" for knob, default in defaults.items()) or "none"
            raise ValueError(f"reasoning_gym: {name} has no knob {key!r}{ours}; its knobs and their defaults: {listed}")
        default = defaults[key]
        if not _fits(value, default):
            raise ValueError(
                f"reasoning_gym: {key}={value!r} for {name}; give a value of the type {type(default).__name__}, as its default "
                f"{default!r} has"
            )
        checked[key] = tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
    return checked


def _default(field: Any) -> Any:
    made = field.default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


def _fits(value: Any, default: Any) -> bool:
    """Whether the value is of the kind of a plain default; where one is no plain value, the generator itself is the judge."""
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
        return (
            f"{where}, then questions without an answer alone: it only checks answers; take another generator, as a row needs a "
            "target"
        )
    prompts = "questions" if style == "full" else f"prompts (prompt_style {style})"
    return f"{where}, then no {prompts} that had not come before; lower the sizes, or let its knobs allow more of them"


def _literal(metadata: Any, name: str) -> str:
    """Text from which `ast.literal_eval` makes the same again."""
    text = repr(_plain(metadata))
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:  # such as nan
        raise ValueError(
            f"reasoning_gym: the metadata of {name} cannot be kept with a row ({error}); take another generator"
        ) from error
    return text


def _plain(value: Any) -> Any:
    """The same of Python's own types, in place of numpy's and other kin."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return next(kind for kind in (list, tuple, set) if isinstance(value, kind))(_plain(inner) for inner in value)
    if type(value) in PLAIN:
        return value
    if hasattr(value, "item"):
        return value.item()
    return next((kind(value) for kind in (str, int, float) if isinstance(value, kind)), value)
