"""`rl-warmup train --launch NAME`: prints and runs the `accelerate launch` line of a shipped configuration.

Knows: deepspeed_configs/ and accelerate's flags. Must not know: what a recipe means, besides its output folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from rl_warmup.cli.main import OptionParser
from rl_warmup.runtime import faults
from rl_warmup.runtime.orphans import as_parent
from rl_warmup.runtime.ownership import LOGS, refuse_folder
from rl_warmup.runtime.shipped import shipped

LAYOUTS = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2", "cpu", "single")
TO_ACCELERATE = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
COUNTS = ("num_processes", "num_machines")


def asks_launch(args: list[str]) -> bool:
    """Whether `--launch` is among the flags."""
    return any(arg == "--launch" or arg.startswith("--launch=") for arg in args)


def launch(args: list[str]) -> None:
    """Print the command and replace this process by it, so signals reach the launcher. Does not return.

    Raises:
        ValueError: no such configuration, or flags that do not fit it.
    """
    command, environment, logs = launch_command(args)
    refuse_folder(logs.parent, overwrite=True, resumes=True)  # the processes write logs there before they check it
    set_first = (f"{name}={shlex.quote(value)}" for name, value in environment.items())
    print(" ".join([*set_first, "accelerate launch", shlex.join(_masked(command[3:]))]))
    print(f"All processes but the first print to {logs}/", flush=True)
    # torch warns in C++ that DDP found no unused parameter, on every process of every run
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    os.execve(sys.executable, command, {**quiet, **os.environ, **environment, **as_parent()})


def launch_command(args: list[str]) -> tuple[list[str], dict[str, str], Path]:
    """The command, its environment variables, and the folder of the other processes' logs."""
    parser = OptionParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--launch")
    for flag in TO_ACCELERATE:
        whole = partial(_whole, least=int(flag in COUNTS))
        parser.add_argument(f"--{flag}", type=str if flag == "main_process_ip" else whole)
    try:
        asked, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error.argument_name}: {error.message}.") from None
    if asked.launch not in LAYOUTS:
        raise ValueError(f"--launch: {asked.launch!r} is not one of {', '.join(LAYOUTS)}.")
    if asked.launch == "single" and (asked.num_processes or "1") != "1":
        raise ValueError(f"--launch single is one process, not {asked.num_processes}. Give ddp, cpu or zero2.")
    folder = shipped("deepspeed_configs")
    launcher = [sys.executable, "-m", "rl_warmup.cli.launch"]
    command = [*launcher, "--config_file", str(folder / f"{asked.launch}.yaml")]
    json = folder / f"{asked.launch}.json"
    if json.is_file():  # the path in the YAML file is relative to the repository's root
        command += ["--deepspeed_config_file", str(json)]
    if asked.num_machines in (None, "1"):
        asked.main_process_port = asked.main_process_port or "0"  # any free port: two runs may share a machine
    elif json.is_file():
        command += ["--deepspeed_multinode_launcher", "standard"]  # one command per machine, as in other configurations
    for flag in TO_ACCELERATE:
        if getattr(asked, flag) is not None:
            command += [f"--{flag}", getattr(asked, flag)]
    logs = run_folder(rest) / "logs"
    environment = {LOGS: str(logs)}
    if asked.launch == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    return [*command, "-m", "rl_warmup.cli.train", *rest], environment, logs


def _whole(text: str, least: int) -> str:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to 999999")
    return text


def run_launcher() -> int:
    """Be `accelerate launch` for this process's arguments; a process that failed is named, without the launcher's traceback."""
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        where = "above" if rank == 0 else f"in {os.environ.get(LOGS, 'logs')}/rank{rank}.log"
        how = f"failed first, with exit code {failure.exitcode}; {where} it says why"
        if failure.exitcode < 0:  # without a word of its own
            how = f"was ended by {signal.Signals(-failure.exitcode).name}; its output is {where}"
        print(f"rl-warmup: process {rank} {how}.", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    return 0


def _masked(words: list[str]) -> list[str]:
    """The words of a command without the values of `--*_token`."""
    out: list[str] = []
    for word in words:
        key, sign, _ = word.partition("=")
        hidden = bool(out) and out[-1].startswith("--") and out[-1].endswith("_token")
        out.append("..." if hidden else f"{key}=..." if sign and key.endswith("_token") else word)
    return out


def run_folder(args: list[str]) -> Path:
    """`output_dir` of the flags, else of the recipe."""
    from rl_warmup.runtime.recipe_file import read_values, split_config

    path, flags = split_config(args)
    given = read_values(path, flags).get("output_dir")
    return Path(str(given or "trainer_output"))  # TrainingArguments' default


def keep_own_log() -> None:
    """On every process of a launch but the first: redirect all output, but the sentence it may end with, to logs/rank<n>.log."""
    folder, rank = os.environ.get(LOGS), int(os.environ.get("RANK") or 0)
    if not folder or rank == 0:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    faults.terminal = os.dup(sys.stderr.fileno())
    with Path(folder, f"rank{rank}.log").open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())  # C libraries write to the descriptor


if __name__ == "__main__":
    sys.exit(run_launcher())
