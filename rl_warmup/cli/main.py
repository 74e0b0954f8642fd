"""`rl-warmup COMMAND`: runs a command and prints expected errors in one line.

Imports nothing heavy, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from rl_warmup import plugins

COMMANDS = {
    "train": "train one recipe, then predict and score it",
    "evaluate": "predict and score a trained model again, under controls",
    "generate": "write warmups and targets for prompts",
    "sample": "draw warmups for every row of a split into a file to train on",
    "plan": "what a recipe would cost on some hardware, and whether it fits",
    "score": "try rewards on a file of warmups",
    "report": "compare runs: tables, curves and examples as one page",
    "sweep": "run many recipes to answer one question",
    "ceiling": "can warmups pay on this data at all: good ones imitated, beside plain fine-tuning",
    "demo": "train everything small, next to its controls, and compare",
}
USAGE = "\n".join([
    "rl-warmup: train a model to write a short warmup first and the target after it\n",
    "usage: rl-warmup COMMAND [--help] ...\n",
    *(f"  {name:<10} {what}" for name, what in COMMANDS.items()),
])  # fmt: skip


class OptionParser(argparse.ArgumentParser):
    """Refuses an option that is given twice; argparse would silently take the last one.

    Raises:
        ValueError: from `parse_args`, for anything that cannot be parsed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: set[str] = set()
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def error(self, message: str) -> NoReturn:
        """Raises ValueError instead of printing the usage."""
        raise ValueError(f"{message}; see `{self.prog} --help`.")


class _StoreOnce(argparse._StoreAction):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if option_string and self.dest in parser.given:
            raise argparse.ArgumentError(self, "is given twice; remove one of the two")
        parser.given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


def count(text: str) -> int:
    """The type of an option: a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number between 1 and 10^9")
    return int(text)


def quantity(text: str) -> float:
    """The type of an option: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 success, 2 an error of the user, 130 interrupted, 143 terminated."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] not in COMMANDS:
        print(f"rl-warmup: unknown command {args[0]!r}. Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return run_command(args[0], args[1:]) if argv is None else _run(args[0], args[1:])


def run_command(name: str, args: list[str]) -> int:
    """Run `rl_warmup.cli.<name>` as what this process is for, with one-line errors. RL_WARMUP_TRACEBACK=1 shows tracebacks."""
    plugins.exit_code = 2
    plugins.exit_code = _run(name, args)
    return plugins.exit_code


def _run(name: str, args: list[str]) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import_module(f"rl_warmup.cli.{name}").command(args)
        _leave_processes()
    except KeyboardInterrupt as error:
        print("rl-warmup: interrupted.", file=sys.stderr)
        return getattr(error, "code", 130)
    except SystemExit as error:
        if error.code or {"-h", "--help"} & set(args):
            raise
        print(
            f"rl-warmup {name}: a plugin or a library called sys.exit before the command was finished.", file=sys.stderr
        )
        return 2
    except (ValueError, ImportError, OSError, ArithmeticError) as error:
        if os.environ.get("RL_WARMUP_TRACEBACK"):
            raise
        where = " (RL_WARMUP_TRACEBACK=1 shows where)" if error.__cause__ is not None else ""
        many = int(os.environ.get("WORLD_SIZE") or 1)
        which = f" (process {os.environ['RANK']} of {many})" if many > 1 and "RANK" in os.environ else ""
        print(f"rl-warmup {name}{which}: {error}{where}", file=sys.stderr)
        return 2
    return 0


def _leave_processes() -> None:
    """Close the connections to the other processes of a launch. Left to the end of the interpreter, this aborted some runs that
    were finished ("terminate called without an active exception")."""
    distributed = sys.modules.get("torch.distributed")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and distributed and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch, transformers and what is built on them without looking for garbage meanwhile.

    Importing makes a million objects that all stay. The collector would go through them again and again, a second in all, and
    once more whenever Trainer asks it to; frozen, they are passed over for good.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
