"""`rl-warmup plan RECIPE --hardware 8xA100-80GB`: what a run would cost and whether it fits, before anything is paid for.

From shapes alone: no weight is loaded and nothing is downloaded. Settings are checked as `train` checks them. Only `--measure`
runs something."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from typing import Any

from rl_warmup.cli.main import OptionParser, place, quantity, quick_imports
from rl_warmup.runtime.recipe_file import split_config


def command(args: list[str]) -> None:
    """Print tokens, operations, memory, and the line that launches the simplest way that fits."""
    parser = OptionParser(
        prog="rl-warmup plan",
        description=__doc__,
        epilog="Settings of the recipe follow as `--key value`, as for train.",
    )
    parser.add_argument(
        "recipe", type=place, metavar="RECIPE", help="a YAML file or a shipped recipe's name, as for train"
    )
    parser.add_argument(
        "--hardware", metavar="COUNTxNAME-MEMORY", help="e.g. 8xA100-80GB, 4xH100, 2xCPU; default: this machine"
    )
    for part in ("prompt", "warmup", "target"):
        parser.add_argument(
            f"--{part}-tokens", type=quantity, metavar="N", help=f"mean tokens of a {part}, where you know them"
        )
    parser.add_argument("--measure", action="store_true", help="run one update here as well, and leave nothing behind")
    parser.add_argument("--json", action="store_true", help="print it for programs: bytes and operations")
    if any(arg.partition("=")[0] == "--config" for arg in args):
        recipe, rest = split_config(args)
        args = [str(recipe), *rest]
    options, flags = parser.parse_known_args(args)
    if gone := [flag for flag in flags if flag.startswith(("--tflops", "--bandwidth"))]:
        parser.error(f"{gone[0]}: seconds are not estimated any more. Leave it out; --measure times one update here.")
    if options.measure:  # torch's profiler tells about itself; torch reads these when it is imported
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from rl_warmup.experiments.plan import make_plan, read_hardware, this_machine
    from rl_warmup.experiments.plan.page import measured_text, plan_mapping, plan_text
    from rl_warmup.experiments.plan.work import unread
    from rl_warmup.runtime.recipe_file import read_values

    values = read_values(options.recipe, flags)
    hardware = this_machine() if options.hardware is None else read_hardware(options.hardware)
    with quick_imports():
        from rl_warmup.config import build_recipe
    build_recipe(values, on_this_machine=False)
    given = {part: getattr(options, f"{part}_tokens") for part in ("prompt", "warmup", "target")}
    given = {part: tokens for part, tokens in given.items() if tokens is not None}
    plan = make_plan(values, hardware, given)
    measured, beside = _measure(values, hardware, given) if options.measure else (None, None)
    if options.json:
        told = plan_mapping(plan, options.recipe, flags)
        print(json.dumps(told | ({"measured": asdict(measured)} if measured else {}), indent=1))
    else:
        print(plan_text(plan, options.recipe, flags, unread(values)))
        if beside:
            print("\n" + measured_text(measured, beside))


def _measure(values: dict[str, Any], hardware: Any, given: dict[str, float]) -> tuple[Any, Any]:
    """What an update costs here, and a plan of the settings that it had."""
    with quick_imports():
        from rl_warmup.experiments.measurement import measure_update, measured_values
    from rl_warmup.experiments.plan import make_plan

    values = measured_values(values, given.get("warmup"))
    return measure_update(values), make_plan(values, replace(hardware, count=1), given)
