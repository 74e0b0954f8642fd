"""`rl-warmup demo`: train everything small, next to its controls, and compare."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rl_warmup.cli.main import OptionParser, count, place, quick_imports

PARTS = """\
parts:
  quick    legs with a Llama (3 seeds of reading, SFT and SFT at equal compute, one of the other arms)
           and one seed of the ledger; the default
  legs     questions about legs, all arms, 3 seeds: a useful warmup is found among the start's habits
  legs-t5  the same with a T5
  skills   list skills, Llama and T5, all arms, 3 seeds
  copies   a start without a useful skill: nothing is found, and the run says so
  rare     a start whose useful skill is rare
  ledger   a given proposal instead of a starting model, T5 (3 seeds) and Llama
"""


def command(args: list[str]) -> None:
    """Run the demo and print its page."""
    parser = OptionParser(
        prog="rl-warmup demo", description=__doc__, epilog=PARTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="quick", help="what to run, separated by commas; default quick")
    parser.add_argument("--output", type=place, default="runs/demo", help="folder for the results; default runs/demo")
    parser.add_argument(
        "--recipes",
        type=place,
        metavar="DIR",
        help="folder of the demo's recipes and of its parts' sweep files; default: the shipped ones",
    )
    parser.add_argument(
        "--processes", type=count, default=min(4, os.cpu_count() or 1), help="runs at a time, one thread each"
    )
    options = parser.parse_args(args)

    with quick_imports():
        from rl_warmup.experiments.demo import run_demo
        from rl_warmup.runtime.shipped import shipped

    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    parts = [part.strip() for part in options.parts.split(",")]
    folder = Path(options.recipes) if options.recipes else shipped("recipes") / "demo"
    print(run_demo(folder, output, options.processes, parts))
