"""`rl-warmup plan RECIPE --hardware 8xA100-80GB`: what a run would cost and whether it fits, before anything is paid for.

From shapes alone: no weight is loaded, nothing is downloaded, and torch is not even imported."""

from __future__ import annotations

import json

from rl_warmup.cli.main import OptionParser, quantity


def command(args: list[str]) -> None:
    """Print tokens, operations, memory, time, and the line that launches the quickest way that fits."""
    parser = OptionParser(
        prog="rl-warmup plan",
        description=__doc__,
        epilog="Settings of the recipe follow as `--key value`, as for train.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, as for train")
    parser.add_argument(
        "--hardware", required=True, metavar="COUNTxNAME-MEMORY",
        help="e.g. 8xA100-80GB, 1xRTX4090-24GB, 4xH100-80GB, 2xCPU; a device of your own with its two figures",
    )  # fmt: skip
    parser.add_argument("--tflops", type=quantity, metavar="T", help="dense bf16, 10^12 per second, of one device")
    parser.add_argument("--bandwidth", type=quantity, metavar="GB/s", help="of one device's memory")
    for part in ("prompt", "warmup", "target"):
        parser.add_argument(
            f"--{part}-tokens", type=quantity, metavar="N", help=f"mean tokens of a {part}, where you know them"
        )
    parser.add_argument("--json", action="store_true", help="print it for programs: bytes, operations, seconds")
    options, flags = parser.parse_known_args(args)

    from rl_warmup.experiments.plan import make_plan, read_hardware
    from rl_warmup.experiments.plan.page import plan_mapping, plan_text
    from rl_warmup.experiments.plan.work import unread
    from rl_warmup.runtime.recipe_file import read_values

    values = read_values(options.recipe, flags)
    hardware = read_hardware(options.hardware, options.tflops, options.bandwidth)
    given = {part: getattr(options, f"{part}_tokens") for part in ("prompt", "warmup", "target")}
    plan = make_plan(values, hardware, {part: tokens for part, tokens in given.items() if tokens is not None})
    if options.json:
        print(json.dumps(plan_mapping(plan, options.recipe, flags), indent=1))
    else:
        print(plan_text(plan, options.recipe, flags, unread(values)))
