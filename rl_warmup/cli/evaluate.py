"""`rl-warmup evaluate RUN`: predict and score a trained model again, under controls, on any split."""

from __future__ import annotations

import argparse
from pathlib import Path


def command(args: list[str]) -> None:
    """Load the run's recipe for its task and its folder for the model; write predictions and metrics; print the table."""
    parser = argparse.ArgumentParser(prog="rl-warmup evaluate", description=__doc__)
    parser.add_argument("run", help="folder of a finished run (output_dir of its recipe)")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--controls", nargs="*", default=["shuffled", "empty_warmup"], metavar="CONTROL",
                        help="shuffled (another row's warmup), empty_warmup, filler; default: shuffled empty_warmup")  # fmt: skip
    parser.add_argument("--limit", type=int, help="only the first rows of the split")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", help="folder for the results; default RUN/evaluation/SPLIT")
    options = parser.parse_args(args)

    from rl_warmup.config import read_recipe
    from rl_warmup.generation import Writer
    from rl_warmup.report import result_table
    from rl_warmup.run import check_controls, predict_and_score
    from rl_warmup.run_folder import write_json
    from rl_warmup.tasks import load_task

    check_controls(options.controls)
    folder = Path(options.run)
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(
            f"{folder} holds no recipe.yaml, so its task is unknown. Give the output_dir of a finished run."
        )
    recipe = read_recipe(folder / "recipe.yaml")
    writer = Writer.load(folder)
    task = load_task(recipe.task.task, **(recipe.task.task_kwargs or {}))
    if options.limit is not None:
        task.splits[options.split][options.limit :] = []
    if not task.splits[options.split]:
        raise ValueError(f"The task {task.name} has no rows in its {options.split} split.")
    controls = [] if writer.inference == "empty" else options.controls
    filler = writer.tokenizer("...", add_special_tokens=False)["input_ids"]
    output = Path(options.output or folder / "evaluation" / options.split)
    scored = predict_and_score(
        writer, task, options.split, output, controls, options.batch_size, filler=filler, show_progress=True
    )
    result = {"task": task.name, "model": str(folder), **scored}
    write_json(output / "result.json", result)
    print(result_table(result))
    print(f"\nPredictions with their warmups: {output}")
