"""Knows how to load a data set by name with Hugging Face `datasets`; must not know file formats.

Code of a data set is never run (`trust_remote_code=False`). The name may be a local folder of files.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from rl_warmup.tasks.columns import Record, Template, choice_map, nearest
from rl_warmup.tasks.filters import RowFilter
from rl_warmup.tasks.forms import Columns, Languages, columns_of, notes_of
from rl_warmup.tasks.rows import Row, Task, take
from rl_warmup.tasks.stream import SHUFFLE_BUFFER, Stream

SET_KEYS = ("dataset_name", "dataset_config", "revision", "data_files")
COLUMN_KEYS = ("prompt_column", "target_column", "id_column")
Split = str | Mapping[str, Any] | None


def load(
    dataset_name: str, dataset_config: str | None = None, revision: str | None = None,
    data_files: str | Sequence[Any] | Mapping[str, Any] | None = None, train: Split = "train", validation: Split = "validation",
    test: Split = "test", train_size: int | None = None, validation_size: int | None = None,
    test_size: int | None = None, prompt_column: str | None = None, target_column: str | None = None,
    id_column: str | None = None, prompt_template: str = "{text}", messages_column: str | None = None,
    language_column: str | list[str] | None = None, source_language: str | None = None,
    target_language: str | None = None, choices_column: str | None = None, answer_column: str | None = None,
    labels_column: str | None = None, target_style: str = "letter", drop_empty: bool = False,
    max_chars: int | None = None, target_ratio: tuple[float, float] | None = None,
    keep_columns: Iterable[str] | None = None, metrics: Iterable[Any] = ("exact_match",),
    cache_dir: str | PathLike[str] | None = None, seed: int = 0, stream: bool = False, shuffle_buffer: int = SHUFFLE_BUFFER,
) -> Task:  # fmt: skip
    """A task from data sets of the Hugging Face hub, or from local folders that `datasets` reads or saved (`save_to_disk`).

    Arguments that are not listed here are as in `files.load`.

    Args:
        dataset_name, dataset_config, revision, data_files, cache_dir: passed to `datasets.load_dataset`.
        train, validation, test: the data set's split for each of ours; None for none. A mapping takes a split from another
            place: {split: devtest, dataset_name: ..., prompt_column: ...}, with any of dataset_name, dataset_config, revision,
            data_files, prompt_column, target_column, id_column for this split alone. Another dataset_name resets
            configuration, revision and data_files.
        drop_empty, max_chars, target_ratio: rows to leave out (`filters.RowFilter`); the last two only in training.
        keep_columns: as in `files.load`. Extras are written with every prediction, so choose a few of a set with many columns.
        stream: read the training rows on demand, without loading the data set first; not with `train_size` or languages.

    Raises:
        ImportError: without the package `datasets`.
        ValueError: if a data set cannot be loaded, a split or column is missing, a prompt or target is empty, or fewer
            rows pass the filters than `train_size` requires.
    """
    shared = {
        "dataset_name": dataset_name, "dataset_config": dataset_config, "revision": revision, "data_files": data_files,
        "prompt_column": prompt_column, "target_column": target_column, "id_column": id_column,
    }  # fmt: skip
    template = Template.parse(prompt_template)
    choices = choice_map(choices_column, answer_column, target_style, target_column, labels_column)
    spoken = partial(Languages.of, language_column, source_language, target_language)
    rules = RowFilter(drop_empty, max_chars, target_ratio)
    wanted = {"train": (train, train_size), "validation": (validation, validation_size), "test": (test, test_size)}
    sources: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[Row] | Stream] = {}
    notes: dict[str, None] = {}
    if stream and (train is None or train_size is not None or spoken(prompt_column, id_column)):
        what = "train: the name of a split" if train is None else "no train_size and no language_column"
        raise ValueError(f"hub: stream reads the training rows on demand; give {what}, or set stream to false")
    if shuffle_buffer != SHUFFLE_BUFFER and not stream:
        raise ValueError("hub: shuffle_buffer has no effect without stream: true; leave it out")
    for ours, (theirs, size) in wanted.items():
        if theirs is None:
            splits[ours] = take([], size, seed, ours)
            continue
        place = _place(ours, theirs, shared)
        key = json.dumps(place.source, sort_keys=True, default=str)
        if key not in sources:
            sources[key] = _load_dataset(**place.source, cache_dir=cache_dir, stream=stream)
        languages = spoken(place.columns[0], place.columns[2])
        named = place.columns[:2] if languages is None else languages.named(place.columns[1], choices)
        columns = columns_of(*named, place.columns[2], template, choices, messages_column, keep_columns)
        if place.split not in sources[key]:
            raise ValueError(
                f"data set '{place.source['dataset_name']}' has no split '{place.split}'{nearest(place.split, sources[key])}; "
                f"available: {', '.join(sources[key])}; set {ours} to one of them or to null"
            )
        records = sources[key][place.split]
        if stream and ours == "train":
            each = partial(_each, records, columns, rules, place.label)
            splits[ours] = Stream(place.label, each, shuffle_buffer)
        else:
            records, places = _whole(records, place.label, languages)
            if keep_columns is not None:  # a missing one raises when a row is made
                known, wanted_columns = records.column_names, [*columns.used(), *keep_columns]
                heads = {name if name in known else name.partition(".")[0] for name in wanted_columns}
                records = records.select_columns([name for name in known if name in heads])
            splits[ours] = _rows(place.label, ours, records, places, columns, rules.of_split(ours), size, seed)
        notes |= dict.fromkeys(notes_of(columns, languages))
    return Task(f"hub {dataset_name}", splits, tuple(metrics), template.of_text(), tuple(notes))


class _Place(NamedTuple):
    """The source of one of our splits."""

    split: str
    source: dict[str, Any]  # SET_KEYS
    columns: tuple[str | None, str | None, str | None]  # COLUMN_KEYS

    @property
    def label(self) -> str:
        return f"data set '{self.source['dataset_name']}', split '{self.split}'"


def _place(ours: str, theirs: str | Mapping[str, Any], shared: dict[str, Any]) -> _Place:
    own = {"split": theirs} if isinstance(theirs, str) else dict(theirs)
    allowed = ("split", *SET_KEYS, *COLUMN_KEYS)
    for key in own:
        if key not in allowed:
            raise ValueError(f"{ours}: no setting '{key}'{nearest(key, allowed)}; allowed: {', '.join(allowed)}")
    if "split" not in own:
        raise ValueError(f"{ours}: {own} names no split; add `split: ...`, a split of the data set")
    inherited = dict(shared)
    if own.get("dataset_name", shared["dataset_name"]) != shared["dataset_name"]:
        inherited |= dict.fromkeys(SET_KEYS)
    values = {**inherited, **own}
    prompt, target, label = (values[key] for key in COLUMN_KEYS)
    return _Place(values["split"], {key: values[key] for key in SET_KEYS}, (prompt, target, label))


def _located(records: Any, label: str) -> Iterator[tuple[int, str, Record]]:
    return ((number, f"{label}, row {number}", record) for number, record in enumerate(records))


def _each(records: Any, columns: Columns, rules: RowFilter, label: str) -> Iterator[Row]:
    return rules.each(_located(records, label), columns, label)


def _whole(records: Any, label: str, languages: Languages | None) -> tuple[Any, Sequence[str] | None]:
    """A `datasets.Dataset` with all records, of languages their pairs, and where each of these came from."""
    import datasets

    if languages is not None:
        pairs = list(languages.pairs(_located(records, label)))
        return datasets.Dataset.from_list([dict(record) for _, _, record in pairs]), [where for _, where, _ in pairs]
    whole = records if isinstance(records, datasets.Dataset) else datasets.Dataset.from_list(list(records))
    return whole, None


def _rows(
    label: str, ours: str, records: Any, places: Sequence[str] | None, columns: Columns, rules: RowFilter, size: int | None,
    seed: int,
) -> list[Row]:  # fmt: skip
    # only rows that pass the filters count, so with filters the whole shuffle may be needed
    numbers = take(range(len(records)), size if rules.idle or size is None else len(records), seed, ours)
    numbered = zip(numbers, records.select(numbers), strict=True)
    located = ((n, places[n] if places else f"{label}, row {n}", record) for n, record in numbered)
    rows = rules.rows(located, columns, size, label)
    if size is not None and len(rows) < size:
        available = f"{len(rows)} rows are available after the filters"
        raise ValueError(f"{ours}_size={size}, but {available}; give 0 to {len(rows)}, or null for all")
    return rows


def _is_tsv(dataset_name: str, data_files: Any) -> bool:
    """Whether a data set consists of .tsv files, as far as names show."""
    given = list(data_files.values()) if isinstance(data_files, Mapping) else [data_files] if data_files else []
    names = [str(name) for part in given for name in (part if isinstance(part, list | tuple) else [part])]
    if not names and Path(dataset_name).is_dir():
        names = [path.name for path in Path(dataset_name).rglob("*") if path.is_file()]
    tables = [name.removesuffix(".gz") for name in names if ".csv" in name or ".tsv" in name]
    return bool(tables) and all(name.endswith(".tsv") for name in tables)


def _is_saved(folder: str) -> bool:
    return Path(folder, "dataset_dict.json").is_file() or Path(folder, "state.json").is_file()


def _saved(folder: str) -> dict[str, Any] | None:
    """The splits of a folder that `save_to_disk` wrote: a DatasetDict, or one Dataset, which becomes `train`."""
    import datasets

    if not _is_saved(folder):
        return None
    found = datasets.load_from_disk(folder)
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _load_dataset(
    dataset_name: str, dataset_config: str | None, revision: str | None, data_files: Any, cache_dir: str | PathLike[str] | None,
    stream: bool
) -> dict[str, Any]:  # fmt: skip
    """All splits by name. Any error of `datasets` becomes a ValueError with one sentence."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("task 'hub' needs the package datasets; install it, or use the task 'file'") from error
    given = {"dataset_config": dataset_config, "revision": revision, "data_files": data_files}
    if _is_saved(dataset_name) and (named := [name for name, value in given.items() if value is not None]):
        raise ValueError(
            f"data set '{dataset_name}' is a folder of save_to_disk, which is read as it is; leave out {', '.join(named)}"
        )
    quoting = {"quoting": csv.QUOTE_NONE} if _is_tsv(dataset_name, data_files) else {}  # as the task file reads them
    settings = {"data_files": data_files, "cache_dir": cache_dir, "revision": revision, "streaming": stream, **quoting}
    try:
        if (saved := _saved(dataset_name)) is not None:
            return {name: part.to_iterable_dataset() if stream else part for name, part in saved.items()}
        return dict(datasets.load_dataset(dataset_name, name=dataset_config, trust_remote_code=False, **settings))
    except Exception as error:
        if type(error).__name__ == "DatasetGenerationError" and isinstance(error.__cause__, Exception):
            error = error.__cause__  # it has the details
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        raise ValueError(
            f"data set '{dataset_name}' could not be loaded ({reason}); check the name, the configuration "
            "and the network, or give a local folder, or use the task 'file'"
        ) from error
