"""`rl-warmup report RUN...`: compare runs on one page: differences, their uncertainty, their cost."""

from __future__ import annotations

import os
from pathlib import Path

from rl_warmup.cli.main import OptionParser, place


def command(args: list[str]) -> None:
    """Write report.html, summary.md and pictures; print their paths."""
    parser = OptionParser(prog="rl-warmup report", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=place, metavar="RUN", help="run folders, or folders that hold some, e.g. runs/demo"
    )
    parser.add_argument(
        "--output", type=place, metavar="DIR", help="folder for the report; default: report/ beside the runs"
    )
    parser.add_argument("--control-run", metavar="RUN",
                        help="the control: an arm's name or a run folder; default: the SFT arm that trained longest")  # fmt: skip
    options = parser.parse_args(args)

    from rl_warmup.experiments.report import can_plot, write_report

    output = Path(options.output) if options.output else _default_output(options.runs)
    written = write_report(options.runs, output, options.control_run)
    pictures = len(written) - 2
    drawn = f"{pictures} picture{'' if pictures == 1 else 's'} (PNG) in {output}"
    print(f"{written[0]}\n{written[1]}\n{drawn if can_plot() else 'no pictures (PNG), as matplotlib is not installed'}")


def _default_output(runs: list[str]) -> Path:
    """report/ in the folder that contains all runs."""
    places = [Path(run).resolve() for run in runs]
    if any((place / "recipe.yaml").is_file() for place in places):
        places = [place.parent for place in places]
    return Path(os.path.relpath(os.path.commonpath(places))) / "report"
