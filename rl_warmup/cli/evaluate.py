"""`rl-warmup evaluate RUN`: predict and score a trained model, or a checkpoint of it, under controls, on any split.

Also `accelerate launch -m rl_warmup.cli.evaluate RUN`: the processes share the rows; the results stay the same.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rl_warmup.cli.main import OptionParser, count, place, quick_imports, run_command


def command(args: list[str]) -> None:
    """Load the task of the run's recipe and the model; write predictions and metrics; print the table."""
    parser = OptionParser(prog="rl-warmup evaluate", description=__doc__)
    parser.add_argument(
        "run", type=place, help="folder of a finished run (output_dir of its recipe), or a checkpoint in it"
    )
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--controls", nargs="*", default=["shuffled", "empty_warmup"], metavar="CONTROL",
                        help="shuffled (another prompt's warmup), empty_warmup, filler, sampled, rerank (the best of several), "
                             "other_run (with --warmups-from), or all; default: shuffled empty_warmup")  # fmt: skip
    parser.add_argument("--likelihood", action="store_true",
                        help="also log P(y|x) by 1 to 16 warmups, the gain, and multiple choice by likelihood")  # fmt: skip
    parser.add_argument("--num-warmups", type=count, help="candidates of rerank; default 8")
    parser.add_argument(
        "--warmups-from", type=place, metavar="RUN", help="run whose warmups the control other_run uses"
    )
    parser.add_argument("--metrics", nargs="*", type=_metric, metavar="METRIC",
                        help="in place of the recipe's: bleu, chrf++, ..., or '{name: bertscore, kwargs: {...}}'")  # fmt: skip
    parser.add_argument("--allow_code", "--allow-code", nargs="*", metavar="NAME",
                        help="run code that the run's recipe names as its task or a metric (module:function, file.py:function, "
                             "a command): these, or all without NAME; refused by default")  # fmt: skip
    parser.add_argument(
        "--task", help="in place of the recipe's data: file, hub, ...; a run made in Python has no recipe"
    )
    parser.add_argument(
        "--task_kwargs", "--task-kwargs", metavar="MAPPING", help="arguments of --task, '{test: rows.jsonl}'"
    )
    parser.add_argument("--limit", type=count, help="only the first rows of the split")
    parser.add_argument("--batch-size", type=count, default=32)
    parser.add_argument(
        "--output",
        type=place,
        help="folder for the results; default RUN/evaluation/SPLIT, of other data than the recipe's RUN/evaluation/SPLIT-HASH",
    )
    options = parser.parse_args(args)
    for flag, named in (("--controls", options.controls), ("--metrics", options.metrics or [])):
        if twice := [name for at, name in enumerate(named) if name in named[:at]]:
            raise ValueError(f"{flag}: {twice[0]!r} is listed twice. List it once.")

    with quick_imports():
        from rl_warmup.config import read_task
        from rl_warmup.experiments.collect import other_weights
        from rl_warmup.experiments.report import result_table
        from rl_warmup.experiments.run import identity, load_recipe_task
        from rl_warmup.inference.evaluation import Evaluation
        from rl_warmup.inference.generation import WarmupGenerator
        from rl_warmup.inference.rehearsal import rehearse
        from rl_warmup.runtime import ownership
        from rl_warmup.runtime.run_files import read_result, require_folder
        from rl_warmup.runtime.run_folder import write_json
        from rl_warmup.runtime.sharing import initialize_distributed, is_main, refuse_differences
        from rl_warmup.tasks import rows_hash
        from rl_warmup.tasks.stream import Stream

    controls = _names(options.controls, options.warmups_from)
    if options.num_warmups is not None and "rerank" not in controls:
        raise ValueError(
            "--num-warmups: is the number of candidates of rerank; add rerank to --controls, or leave it out."
        )
    evaluation = Evaluation(
        controls, options.likelihood or "all" in options.controls,
        options.batch_size, options.num_warmups or 8, options.warmups_from, show_progress=True,
    )  # fmt: skip
    evaluation.check()
    require_folder(options.run)
    folder = Path(options.run)
    run = folder if ownership.is_run(folder) else ownership.run_around(folder) or folder  # folder may be a checkpoint
    recipe = run / "recipe.yaml"
    if options.task is None and not recipe.is_file():
        raise ValueError(
            f"{run} holds no recipe.yaml with a task. Give the output_dir of a run, or a checkpoint in it; for a run made in "
            f"Python also the data: `--task file --task_kwargs '{{test: rows.jsonl}}'`."
        )
    if options.task is None and options.task_kwargs:
        raise ValueError("--task_kwargs: are arguments of another task; give --task as well, e.g. `--task file`.")
    wanted = read_task(recipe) if options.task is None else _task(options.task, options.task_kwargs)
    if options.task is None:
        wanted.metrics = [] if options.metrics else wanted.metrics
        refuse_code(recipe, wanted, options.allow_code)
    wanted.metrics = options.metrics or wanted.metrics
    if options.warmups_from and Path(options.warmups_from).resolve() == folder.resolve():
        raise ValueError(f"--warmups-from: {options.warmups_from} is the run that is evaluated. Give another run.")
    output = Path(options.output or folder / "evaluation" / options.split)
    ownership.refuse_output(output, run, [folder, *(Path(other) for other in [options.warmups_from] if other)])
    device = initialize_distributed()
    with ExitStack() as held:
        if is_main():
            held.enter_context(ownership.reading(run, "evaluate"))
        weights = ownership.fingerprint(folder) if is_main() else None
        with suppress(ValueError):  # no result, or an unreadable one
            if is_main() and folder == run and (note := other_weights(run, read_result(run).get("weights"), weights)):
                print(note)
        warmup_generator = WarmupGenerator.load(folder, device)
        warmup_generator.shared = True
        task = load_recipe_task(wanted)
        rows = task.splits[options.split]
        task.splits[options.split] = rows.first(options.limit) if isinstance(rows, Stream) else rows[: options.limit]
        if not task.splits[options.split]:
            others = " or ".join(f"--split {name}" for name, rows in task.splits.items() if rows)
            raise ValueError(f"The task {task.name} has no rows in its {options.split} split, only for {others}.")
        refuse_differences(identity(task, {}))
        is_other_data = options.task is not None and recipe.is_file()
        if is_other_data and not options.output:  # the results of the run's own rows stay
            output = output.with_name(f"{options.split}-{rows_hash(task.splits[options.split])[:8]}")
        rehearse(task, options.split, warmup_generator.encoder(), warmup_generator, evaluation.controls)
        if is_main():  # results of other weights or controls must not stay beside the new files
            held.enter_context(ownership.writing(output, "--output"))
            ownership.clear_results(output)
        scored = evaluation.run(warmup_generator, task, options.split, output)
        if not scored:
            return  # not the main process
        result = {"task": task.name, "model": str(folder), "weights": weights, **scored}
        write_json(output / "metrics.json", result)
    print(result_table(result))
    if "likelihood" in result:
        print(_likelihood_table(result["likelihood"]))
    print(f"\nPredictions with their warmups: {output}")


def refuse_code(recipe: Path, task: Any, allowed: list[str] | None) -> None:
    """Refuse code that the recipe of a run names, unless it is allowed; print what will run.

    Raises:
        ValueError: naming the code and the flag that allows it.
    """
    from rl_warmup.config import code_named_by
    from rl_warmup.runtime.sharing import is_main

    found = code_named_by(task)
    unasked = {name: what for name, what in found.items() if allowed is None or (allowed and name not in allowed)}
    if unasked:
        raise ValueError(
            f"{recipe} names code that would run: {'; '.join(unasked.values())}. Read that code first; then allow it by "
            f"`--allow_code {' '.join(unasked)}`, or name others by `--metrics` or `--task`."
        )
    if found and is_main():
        print(f"Runs code that {recipe} names: {'; '.join(found.values())}.", file=sys.stderr)


def _task(name: str, kwargs: str | None) -> Any:
    """The task of the flags."""
    from rl_warmup.config import TaskOptions
    from rl_warmup.runtime.recipe_file import flag_value

    given = flag_value("task_kwargs", kwargs) if kwargs is not None else None
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"--task_kwargs: {kwargs!r} is no mapping. Write '{{argument: value}}'.")
    return TaskOptions(task=name, task_kwargs=given)


def _metric(text: str) -> Any:
    """A metric's name, or its mapping of name and kwargs as in a recipe."""
    from rl_warmup.runtime.recipe_file import flag_value

    try:
        return flag_value("metrics", text) if text.startswith("{") else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(asked: list[str], other_run: str | None) -> list[str]:
    from rl_warmup.inference.controls import CONTROLS

    if "all" not in asked:
        return asked
    return [control for control in CONTROLS if control != "other_run" or other_run is not None]


def _likelihood_table(likelihood: dict[str, Any]) -> str:
    """log P(y|x) without a warmup and by bounds of growing n, and the gain."""
    from rl_warmup.experiments.report import text_table

    def line(name: str, values: dict[str, Any]) -> list[str | None]:
        error = values["std_error"]
        return [name, f"{values['mean']:.3f}", None if error is None else f"{error:.3f}", f"{values['per_token']:.4f}"]

    rows = [line("without a warmup", likelihood["without_warmup"])]
    rows += [line(f"bound, n = {n}", values) for n, values in likelihood.get("bound", {}).items()]
    table = text_table(["log P(y|x), nats", "per target", "std error", "per token"], rows)
    if "gain" not in likelihood:
        return f"\n{table}"
    gain, words = likelihood["gain"], "; unknown at zero overlap with the target: too few warmups have little overlap"
    if gain["at_no_overlap"] is not None:
        error = gain["at_no_overlap_std_error"]
        words = f"; {gain['at_no_overlap']:.3f} ± {error:.3f} at zero overlap with the target"
    return f"\n{table}\n\ngain of a sampled warmup: {gain['mean']:.3f} nats per target{words}"


if __name__ == "__main__":
    sys.exit(run_command("evaluate", sys.argv[1:]))
