"""`rl-warmup train --config RECIPE [--key value ...]`, also `accelerate launch -m rl_warmup.cli.train --config ...`."""

from __future__ import annotations

import sys
from dataclasses import MISSING, Field, fields
from typing import Any

from rl_warmup.cli.launch import asks_launch, keep_own_log, launch
from rl_warmup.cli.main import quick_imports, run_command
from rl_warmup.runtime.orphans import end_with_parent
from rl_warmup.runtime.recipe_file import split_config

HELP = """usage: rl-warmup train --config RECIPE.yaml [--launch NAME [--num_processes N]] [--key value ...]

RECIPE is a YAML file, or the name of a shipped recipe, as `rl-warmup recipes` lists them.
Trains it and leaves a run folder (`output_dir`) with the model, metrics.jsonl, predictions.jsonl and metrics.json.
Flags override the recipe: `--key value`, `--key=value` or `key=value`; `--key` is true and `--no_key` false.

On several processes: --launch ddp, zero1, zero2, zero3, zero2_offload, zero3_offload, fsdp2, cpu or single prints the
`accelerate launch` line of deepspeed_configs/NAME.yaml and runs it, with --num_processes, --num_machines, --machine_rank,
--main_process_ip and --main_process_port. docs/distributed.md says which to take.

Besides the settings below, every field of transformers.TrainingArguments (learning_rate, max_steps, bf16, seed,
resume_from_checkpoint auto, ...) and of trl.ModelConfig (model_name_or_path, dtype, use_peft, lora_r, ...) is a setting.
"""


def help_text() -> str:
    """Usage and our options; does not import torch."""
    from rl_warmup.options import TaskOptions, WarmupOptions

    lines = [HELP]
    for title, cls in (("data and run", TaskOptions), ("warmups", WarmupOptions)):
        lines += [f"{title}:", *(_line(f) for f in fields(cls)), ""]
    return "\n".join(lines)


def _line(f: Field[Any]) -> str:
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    allowed = f" ({', '.join(f.metadata['choices'])})" if "choices" in f.metadata else ""
    shown = "none" if default is None or default == [] else default
    return f"  --{f.name:<22} {f.metadata['help']}{allowed} [{shown}]"


def command(args: list[str]) -> None:
    """Read the recipe, train it, print the results."""
    if "-h" in args or "--help" in args:
        print(help_text())
        return
    if not args:
        raise ValueError(
            f"neither a recipe nor a setting is given.\n{HELP.splitlines()[0]}\n`--help` lists the settings."
        )
    if asks_launch(args):
        launch(args)
    end_with_parent()
    keep_own_log()
    path, args = split_config(args)
    with quick_imports():
        from rl_warmup.config import read_recipe
        from rl_warmup.experiments.report import result_table
        from rl_warmup.experiments.run import train_run

    recipe = read_recipe(path, args)
    result = train_run(recipe)
    if not result:
        return  # not the main process
    print(result_table(result))
    print(f"\nModel, metrics and predictions: {recipe.config.output_dir}")


if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
