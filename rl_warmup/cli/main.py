"""`rl-warmup COMMAND`: runs a command and prints expected errors in one line.

Knows: commands, what their errors become, several processes of which one speaks. Imports nothing heavy, so that `--help` is
fast.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn

import rl_warmup
from rl_warmup import plugins
from rl_warmup.runtime import faults
from rl_warmup.runtime.faults import claim, connection_lost, disk_sentence, launch_fault, processes
from rl_warmup.runtime.terminal import bars, lost_output, steady_streams

COMMANDS = {
    "init": "write a recipe for a file of your own",
    "recipes": "the shipped recipes and sweep files, by name",
    "train": "train one recipe, then predict and score it",
    "evaluate": "predict and score a trained model again, under controls",
    "generate": "write warmups and targets for prompts",
    "sample": "draw warmups for every row of a split into a file to train on",
    "plan": "what a recipe would cost on some hardware, and whether it fits",
    "score": "try rewards on a file of warmups",
    "report": "compare runs: tables, curves and examples as one page",
    "card": "write the model card of a trained folder from the files in it",
    "export": "a trained model as full weights in a folder to hand on; merges adapters",
    "sweep": "run many recipes to answer one question",
    "ceiling": "can warmups pay on this data at all: good ones imitated, beside plain fine-tuning",
    "demo": "train everything small, next to its controls, and compare",
    "env": "versions, devices and variables, for a report of a fault",
    "completion": "a script that completes commands and flags: bash, zsh or fish",
}
AFTER_CTRL_C = {
    "train": " What came after the last checkpoint is lost; --resume_from_checkpoint auto goes on from it.",
    **dict.fromkeys(("sweep", "ceiling", "demo"), " Finished runs are kept; the same command goes on."),
}
OUTLIVE_TERMINAL = ("train", "evaluate", "sample", "sweep", "ceiling", "demo")  # their results are files
USAGE = "\n".join([
    "rl-warmup: train a model to write a short warmup first and the target after it\n",
    "usage: rl-warmup COMMAND [--help] ...",
    "       rl-warmup --version\n",
    *(f"  {name:<10} {what}" for name, what in COMMANDS.items()),
])  # fmt: skip


class OptionParser(argparse.ArgumentParser):
    """Takes `--batch_size` for `--batch-size` and the other way round, and refuses an option that is given twice.

    Raises:
        ValueError: from `parse_args`, for anything that cannot be parsed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.given: set[str] = set()
        self.flags: dict[str, str] = {}  # as people may spell it, with dashes -> as it is declared
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Extends argparse's."""
        action = super().add_argument(*args, **kwargs)
        self.flags |= {name.replace("_", "-"): name for name in action.option_strings if name.startswith("--")}
        return action

    def error(self, message: str) -> NoReturn:
        """Raises ValueError instead of printing the usage."""
        raise ValueError(f"{message.rstrip('.')}; see `{self.prog} --help`.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Extends argparse's."""
        spelled = []
        for arg in args:
            name, sign, value = arg.partition("=")
            spelled.append(f"{self.flags.get(name.replace('_', '-'), name)}{sign}{value}")
        return super().parse_known_args(spelled, namespace)


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
    if not 0 < value <= 10**9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0 and at most 10^9")
    return value


def figure(text: str) -> int:
    """The type of an option: a whole number from 0 on."""
    return 0 if text == "0" else count(text)


def place(text: str) -> str:
    """The type of an option: a path that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path")
    return text


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 success, 2 an error of the user, 130 interrupted, 143 terminated."""
    return _process(sys.argv[1:]) if argv is None else _told(list(argv))


def _process(args: list[str]) -> int:
    """The command as what this process is for: code that a plugin leaves behind cannot end it with another code."""
    plugins.exit_code = 2
    codes: list[int] = []
    atexit.register(_end_launched, codes)  # registered before all others, so it is called after them
    plugins.exit_code = _told(args)
    codes.append(plugins.exit_code)
    return plugins.exit_code


def _end_launched(codes: list[int]) -> None:
    """End a process of a launch, whose command has returned a code, without what C++ does at the end of a process.

    gloo's threads live on after `destroy_process_group`, and aborted some finished runs there ("terminate called without an
    active exception").
    """
    if codes and processes() > 1:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(codes[0])


def _told(args: list[str]) -> int:
    if args[:1] == ["help"]:
        args = [*args[1:2], "--help"]
    with steady_streams(bool(args) and args[0] in OUTLIVE_TERMINAL) as shown:
        try:
            code = _dispatch(args)
        except SystemExit as error:  # of --help
            if error.code:
                raise
            code = 0
        shown.flush()
        if fault := lost_output(shown):
            print(f"rl-warmup: {fault}", file=sys.stderr)
    shows = not args or args[0] not in OUTLIVE_TERMINAL or {"-h", "--help"} & set(args)
    return 2 if fault and shows else code


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"rl-warmup {rl_warmup.__version__}")
        return 0
    if args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        print(f"rl-warmup: unknown command {args[0]!r}.{meant} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return _guarded(args[0], args[1:])


def run_command(name: str, args: list[str]) -> int:
    """`main` for `python -m rl_warmup.cli.<name>`, as launchers start it."""
    return _process([name, *args])


def _guarded(name: str, args: list[str]) -> int:
    """Run `rl_warmup.cli.<name>` with one-line errors. RL_WARMUP_TRACEBACK=1 shows tracebacks."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not bars():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of transformers and datasets too
    try:
        if fault := launch_fault():
            raise ValueError(fault)
        import_module(f"rl_warmup.cli.{name}").command(args)
        _leave_processes()
    except KeyboardInterrupt as error:
        print(f"rl-warmup: interrupted.{AFTER_CTRL_C.get(name, '')}", file=sys.stderr)
        return getattr(error, "code", 130)
    except SystemExit as error:
        if error.code or {"-h", "--help"} & set(args):
            raise
        said = "a plugin or a library called sys.exit before the command was finished."
        print(f"rl-warmup {name}: {said}", file=sys.stderr)
        return 2
    except Exception as error:
        # a RuntimeError is a fault of the program, or says that another process of a launch has ended
        lost = connection_lost(error) if isinstance(error, RuntimeError) else None
        told = lost is not None or isinstance(error, ValueError | ImportError | OSError | ArithmeticError)
        if os.environ.get("RL_WARMUP_TRACEBACK") or not told:
            claim(f"{type(error).__name__}: {error}", own=lost is None)
            raise
        _tell(name, lost or disk_sentence(error, args) or str(error), error, own=lost is None)
        return 2
    return 0


def _tell(name: str, sentence: str, error: Exception, own: bool) -> None:
    """Print the sentence, unless another process of this launch has already failed with its own."""
    if not claim(sentence, own):
        return
    where = " (RL_WARMUP_TRACEBACK=1 shows where)" if error.__cause__ is not None else ""
    many = processes()
    which = f" (process {os.environ['RANK']}, counted from 0)" if many > 1 and os.environ.get("RANK") else ""
    said = f"rl-warmup {name}{which}: {sentence}{where}"
    print(said, file=sys.stderr, flush=True)
    if faults.terminal is not None:
        with suppress(OSError):
            os.write(faults.terminal, f"{said}\n".encode(errors="backslashreplace"))


def _leave_processes() -> None:
    """Close the connections to the other processes of a launch, as torch warns of one that ends without."""
    distributed = sys.modules.get("torch.distributed")
    if processes() > 1 and distributed and distributed.is_initialized():
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
