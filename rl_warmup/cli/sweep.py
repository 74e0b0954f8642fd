"""`rl-warmup sweep FILE`: run every arm of a question and compare the arms with the control; continues after any stop."""

from __future__ import annotations

from pathlib import Path

from rl_warmup.cli.main import OptionParser, count, place, quick_imports


def command(args: list[str]) -> None:
    """Do the missing runs, print the table; raises if a run failed."""
    epilog = "Repeat the command after a stop. Several workers, here or on other machines, share the runs. See docs/sweeps.md."
    parser = OptionParser(prog="rl-warmup sweep", description=__doc__, epilog=epilog)
    parser.add_argument(
        "file", type=place, metavar="FILE", help="a sweep file, or a shipped one's name, e.g. sweeps/num_warmups"
    )
    parser.add_argument("--output", type=place, metavar="DIR", help="folder of the runs; default runs/sweeps/NAME")
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time; default 1")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their cost, and run nothing")
    parser.add_argument("--budget", metavar="TIME", help="2h, 90m or seconds: start no run that would not end in time")
    parser.add_argument("--retry-failed", action="store_true", help="repeat failed runs too")
    parser.add_argument("--storage", metavar="URL",
                        help="Optuna's database, for workers without a common disk; default DIR/study.db")  # fmt: skip
    parser.add_argument("--devices", nargs="*", default=[], metavar="GPU", help="GPUs for the jobs, e.g. 0 1 2 3")
    parser.add_argument("--patience", type=count, default=60, metavar="SECONDS",
                        help="time without a heartbeat before another worker takes a run over; default 60")  # fmt: skip
    options = parser.parse_args(args)

    with quick_imports():
        from rl_warmup.experiments.sweeps import SweepSettings, run_sweep, show_jobs
        from rl_warmup.experiments.sweeps.worker import seconds_of

    settings = SweepSettings(
        Path(options.output) if options.output else None, options.jobs, options.storage,
        seconds_of(options.budget) if options.budget else None, options.retry_failed, options.devices, options.patience,
    )  # fmt: skip
    if options.dry_run:
        print(show_jobs(options.file, settings))
        return
    answer = run_sweep(options.file, settings)
    print("\n" + answer.text)
    print("\n" + "\n".join(map(str, answer.files)))
    if answer.failed:
        raise ValueError(
            f"{len(answer.failed)} run{'s' if len(answer.failed) > 1 else ''} failed: {', '.join(answer.failed)}. The others "
            f"are intact; repair the cause and repeat the command with --retry-failed."
        )
