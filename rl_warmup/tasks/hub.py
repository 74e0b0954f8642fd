"""Knows how to fetch a data set by name through Hugging Face `datasets`; must not know file formats.

Code that a data set may carry is never run (`trust_remote_code` is not passed). A local folder of files works as a
name too.
"""

from collections.abc import Iterable
from typing import Any

from rl_warmup.tasks.columns import ColumnMap, Template, nearest
from rl_warmup.tasks.rows import Row, Task, take


def load(
    dataset_name: str,
    dataset_config: str | None = None,
    revision: str | None = None,
    train: str | None = "train",
    validation: str | None = "validation",
    test: str | None = "test",
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    prompt_column: str = "prompt",
    target_column: str | None = None,
    id_column: str | None = None,
    prompt_template: str = "{text}",
    metrics: Iterable[str] = ("exact_match",),
    cache_dir: str | None = None,
    seed: int = 0,
) -> Task:
    """A task from a data set of the Hugging Face hub, or from a local folder that `datasets.load_dataset` reads.

    Args:
        dataset_name, dataset_config, revision, cache_dir: passed to `datasets.load_dataset`.
        train, validation, test: which of the data set's splits serves as which of ours; None for none.
        train_size, validation_size, test_size: None for all rows; a number takes the first rows of a shuffle by `seed`.
        prompt_column, target_column, id_column: columns, dotted paths into nested ones allowed ("translation.de");
            target_column None takes "target", else "completion"; id_column None takes "id", else numbers the rows.
        prompt_template: {text} is the prompt column; other columns by their names. Columns stay in the row as extras.
        metrics: names for `rl_warmup.metrics.compute`, the headline first.

    Raises:
        ImportError: without the package `datasets`.
        ValueError: if the data set cannot be loaded, a split or column is missing, a prompt or target is empty.
    """
    columns = ColumnMap(prompt_column, target_column, id_column, Template.parse(prompt_template))
    source = _load_dataset(dataset_name, name=dataset_config, revision=revision, cache_dir=cache_dir)
    mapping = {"train": train, "validation": validation, "test": test}
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    splits: dict[str, list[Row]] = {}
    for ours, theirs in mapping.items():
        if theirs is not None and theirs not in source:
            raise ValueError(
                f"data set '{dataset_name}' has no split '{theirs}'{nearest(theirs, source)}; "
                f"available: {', '.join(source)}; set {ours} to one of them or to null"
            )
        where = f"data set '{dataset_name}', split '{theirs}', row"
        available = range(len(source[theirs])) if theirs is not None else range(0)
        numbers = take(available, sizes[ours], seed, ours)
        records = source[theirs].select(numbers) if theirs is not None else []
        splits[ours] = [columns.row(record, n, f"{where} {n}") for n, record in zip(numbers, records, strict=True)]
    return Task(f"hub {dataset_name}", splits, tuple(metrics))


def _load_dataset(dataset_name: str, **kwargs: Any) -> dict[str, Any]:
    """All splits, by their names. Whatever `datasets` raises becomes one sentence, with its own error as the cause."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "task 'hub' needs the package datasets; pip install datasets, or use the task 'file'"
        ) from error
    try:
        return dict(datasets.load_dataset(dataset_name, **kwargs))
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        raise ValueError(
            f"data set '{dataset_name}' could not be loaded ({reason}); check the name, the configuration "
            "and the network, or give a local folder, or use the task 'file'"
        ) from error
