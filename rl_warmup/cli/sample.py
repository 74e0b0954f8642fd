"""`rl-warmup sample MODEL_OR_RUN --output FILE`: draw warmups for every row of a split, for `proposals: [stored]`.

Also `accelerate launch -m rl_warmup.cli.sample MODEL_OR_RUN ...`: the processes share the rows; the results stay the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rl_warmup.cli.evaluate import refuse_code
from rl_warmup.cli.main import OptionParser, count, place, quick_imports, run_command

EPILOG = """A run has its task in recipe.yaml and its sampling constraints in warmup_layout.json; any other model (a folder, a hub
name, start:NAME) needs --config or --task. Flags too are --dtype, --attn_implementation, --model_revision, --show_progress,
--max_prompt_length, --prompt_truncation and, of a model that is no run, --separator, --separator_init, --chat_template,
--chat_template_kwargs and --system. After an interruption, repeat the command to continue. FILE holds JSON lines:
  {"row": 0, "id": ..., "prompt": ..., "target": ..., "warmups": [{"warmup": text, "finish": ..., "logprob": nats}, ...]}
`rl-warmup train --proposals '[stored]' --stored_warmups FILE` trains on it (docs/stored-warmups.md)."""
SETTINGS = {
    "task": "the task's name; default: the run's or recipe's",
    "task_kwargs": "its arguments, e.g. '{train_size: 2000}'",
    "num_warmups": "warmups drawn for every row; default: the recipe's, else 4",
    "temperature": "of sampling; default: the run's, else the recipe's, else 1 (top_p, and the two below, likewise)",
    "top_p": "nucleus of sampling",
    "min_warmup_length": "tokens before a warmup may end",
    "max_warmup_length": "tokens at which it is cut",
    "seed": "of sampling; default: the recipe's, else 42",
}
ALSO_READ = (
    "dtype", "attn_implementation", "model_revision", "show_progress", "max_prompt_length", "prompt_truncation",
)  # fmt: skip
# Besides the settings of devices: what a run was trained on says nothing about what is drawn from it, and may be code.
NOT_FOR_SAMPLING = ("proposals", "stored_warmups", "anchor_weight", "proposal_only")


def command(args: list[str]) -> None:
    """Read the settings from the run, the recipe and the flags; draw the missing warmups; print a summary."""
    parser = OptionParser(
        prog="rl-warmup sample", description=__doc__, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=place, metavar="MODEL_OR_RUN", help="first of all: a run folder, or any model")
    parser.add_argument(
        "--config", type=place, metavar="RECIPE", help="recipe with the task and the sampling constraints"
    )
    parser.add_argument("--split", default="train", choices=["train", "validation", "test"], help="default train")
    parser.add_argument("--output", type=place, required=True, metavar="FILE", help="the file of warmups")
    parser.add_argument("--overwrite", action="store_true", help="replace a FILE of another drawing")
    parser.add_argument("--allow_code", "--allow-code", nargs="*", metavar="NAME",
                        help="run the code that the run's recipe names as its task; refused by default")  # fmt: skip
    parser.add_argument("--limit", type=count, help="only the first rows of the split")
    parser.add_argument("--batch-size", type=count, default=32, help="prompts at a time; what is drawn depends on it")
    for name, text in SETTINGS.items():
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text)
    options, further = parser.parse_known_args(args)
    given = [f"--{name}={getattr(options, name)}" for name in SETTINGS if hasattr(options, name)]

    with quick_imports():
        from rl_warmup.inference.samples import Sampler
        from rl_warmup.runtime.ownership import refuse_file
        from rl_warmup.runtime.recipe_file import read_values
        from rl_warmup.runtime.sharing import initialize_distributed, is_main

    path = Path(options.output)
    refuse_file(path)
    flags = read_values(None, [*given, *further])
    recipe, asked = _recipe(options.model, options.config, flags)
    _refuse_unread(asked)
    if options.config is None and "task" not in flags:
        refuse_code(Path(options.model, "recipe.yaml"), recipe.task, options.allow_code)
    device, shown = initialize_distributed(), recipe.task.show_progress
    rows, task = _rows(recipe, options.split, options.limit)
    kwargs: dict[str, Any] = {"dtype": recipe.model.dtype or "float32"}
    if recipe.model.attn_implementation:
        kwargs["attn_implementation"] = recipe.model.attn_implementation
    if not Path(options.model).is_dir():
        kwargs["revision"] = recipe.model.model_revision
    config, size = recipe.config, options.batch_size
    sampler = Sampler.open(options.model, config, asked, config.seed, size, device, **kwargs)
    about = {"model": options.model, "task": task, "task_kwargs": recipe.task.task_kwargs}
    records, before = sampler.fill(path, rows, options.split, options.overwrite, shown, **about)
    if is_main():
        if before == len(records):
            print(f"{path} was finished; nothing was drawn.")
        print(_summary(path, records, f"{options.split} of {task}"))


def _refuse_unread(flags: Iterable[str]) -> None:
    """Raises ValueError: a flag is a setting of training or evaluation."""
    from rl_warmup.inference.samples import OF_UNTRAINED

    known = (*SETTINGS, *ALSO_READ, *OF_UNTRAINED)
    if unread := sorted(set(flags) - set(known)):
        read = ", ".join(f"--{one}" for one in known)
        raise ValueError(f"--{unread[0]}: has no effect on what is drawn. Leave it out; what has one: {read}.")


def _recipe(model: str, config: str | None, flags: dict[str, Any]) -> tuple[Any, set[str]]:
    """The given recipe, else the run's, else flags alone; and the names of the flags.

    Raises:
        ValueError: no task is given, or a setting cannot be used.
    """
    from rl_warmup.config import OF_DEVICES, build_recipe
    from rl_warmup.runtime.recipe_file import read_values

    own = Path(model, "recipe.yaml")
    base = read_values(config) if config else _without_code(read_values(own)) if own.is_file() else {}
    if "task" not in {**base, **flags}:
        raise ValueError(f"{model} has no recipe.yaml with a task. Give --config RECIPE, or --task and --task_kwargs.")
    kept = {name: value for name, value in base.items() if name not in (*OF_DEVICES, *NOT_FOR_SAMPLING)}
    if flags.get("task", base.get("task")) != base.get("task"):
        kept.pop("task_kwargs", None)
    asked = {"proposals": [], **flags, "model_name_or_path": model}
    try:
        return build_recipe({**kept, **asked}), set(flags)
    except ValueError as error:
        raise ValueError(f"{config or own}, with the flags given: {error}" if base else str(error)) from error


def _without_code(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run, which may be untrusted, without settings that may name code; sampling does not need them."""
    kept = {name: value for name, value in values.items() if name not in ("rewards", "metrics")}
    if ":" in str(kept.get("objective")):
        del kept["objective"]
    return kept


def _rows(recipe: Any, split: str, limit: int | None) -> tuple[list[dict[str, Any]], str]:
    """Rows of the split in the order of the task, and the task's name."""
    from rl_warmup.experiments.run import recipe_task
    from rl_warmup.tasks.stream import Stream

    task = recipe_task(recipe)
    rows = task.splits[split]
    rows = rows.first(limit) if isinstance(rows, Stream) else rows[:limit]
    if not rows:
        raise ValueError(f"The task {task.name} has no rows in its {split} split.")
    return rows, task.name


def _summary(path: Path, records: list[dict[str, Any]], where: str) -> str:
    """Number of warmups, share of distinct ones, and share cut at the length limit."""
    drawn = [warmup for record in records for warmup in record["warmups"]]
    cut = sum(warmup["finish"] == "length" for warmup in drawn) / len(drawn)
    distinct = sum(len({w["warmup"] for w in record["warmups"]}) for record in records) / len(drawn)
    return (
        f"{path}: {len(drawn)} warmups for {len(records)} rows ({where}); distinct within their row: {distinct:.1%}; cut at the "
        f"length limit: {cut:.1%}"
    )


if __name__ == "__main__":
    sys.exit(run_command("sample", sys.argv[1:]))
