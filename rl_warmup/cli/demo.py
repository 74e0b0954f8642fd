"""`rl-warmup demo`: train everything small, next to its controls, and compare."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rl_warmup.cli.main import quick_imports


def command(args: list[str]) -> None:
    """Run the demo and print its page."""
    parser = argparse.ArgumentParser(prog="rl-warmup demo", description=__doc__)
    parser.add_argument("--output", default="runs/demo", help="folder for the results; default runs/demo")
    parser.add_argument("--recipes", default="recipes/demo", help="folder of the demo's recipes; default recipes/demo")
    parser.add_argument(
        "--processes", type=int, default=min(4, os.cpu_count() or 1), help="runs at a time, one thread each"
    )
    options = parser.parse_args(args)

    with quick_imports():
        from rl_warmup.demo import run_demo

    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    print(run_demo(Path(options.recipes), output, options.processes))
