"""`rl-warmup train --launch NAME`: the line it prints is the line it runs, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl_warmup.cli import launch as launching
from rl_warmup.cli.launch import LAYOUTS, launch_command, run_folder
from rl_warmup.cli.main import main

FOLDER = Path(__file__).parents[2] / "deepspeed_configs"


def flags(command: list[str]) -> list[str]:
    assert command[:3] == [sys.executable, "-m", "rl_warmup.cli.launch"]
    return command[3:]


def test_the_command_of_zero3(tmp_path, monkeypatch):
    """Files by their full path, as accelerate would look for the JSON file below the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("seed: 1\n")
    args = ["--config", "r.yaml", "--launch", "zero3", "--num_processes", "4", "--num_warmups", "8", "output_dir=out"]
    command, environment, logs = launch_command(args)
    assert flags(command) == [
        "--config_file", str(FOLDER / "zero3.yaml"), "--deepspeed_config_file", str(FOLDER / "zero3.json"),
        "--num_processes", "4", "--main_process_port", "0",
        "-m", "rl_warmup.cli.train", "--config", "r.yaml", "--num_warmups", "8", "output_dir=out",
    ]  # fmt: skip
    assert environment == {"RL_WARMUP_LOGS": "out/logs"}
    assert logs == Path("out/logs")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_a_command(name):
    command, environment, _ = launch_command([f"--launch={name}"])
    assert flags(command)[:2] == ["--config_file", str(FOLDER / f"{name}.yaml")]
    assert ("--deepspeed_config_file" in command) == name.startswith("zero")
    assert environment.get("ACCELERATE_USE_CPU") == ("true" if name == "cpu" else None)


def test_two_machines_are_one_command_each():
    """DeepSpeed's own way would log in to the others by ssh."""
    two = [
        "--num_machines",
        "2",
        "--num_processes",
        "16",
        "--main_process_ip",
        "10.0.0.1",
        "--main_process_port",
        "29500",
    ]
    command, _, _ = launch_command(["--launch", "zero2", *two, "--machine_rank", "1"])
    assert flags(command)[4:] == [
        "--deepspeed_multinode_launcher", "standard", "--num_processes", "16", "--num_machines", "2", "--machine_rank", "1",
        "--main_process_ip", "10.0.0.1", "--main_process_port", "29500", "-m", "rl_warmup.cli.train",
    ]  # fmt: skip


def test_it_prints_the_line_and_becomes_it(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(os, "execve", lambda *args: started.append(args))
    monkeypatch.setattr(launching, "keep_own_log", lambda: None)
    launching.launch(["--launch", "cpu", "--num_processes", "2", "--output_dir", "a b"])
    line, logs = capsys.readouterr().out.splitlines()
    assert line == (
        f"RL_WARMUP_LOGS=a b/logs ACCELERATE_USE_CPU=true accelerate launch --config_file {FOLDER}/cpu.yaml "
        "--num_processes 2 --main_process_port 0 -m rl_warmup.cli.train --output_dir 'a b'"
    ).replace("a b/logs", "'a b/logs'")
    assert logs == "All processes but the first print to a b/logs/"
    (program, command, environment), *none = started
    assert (program, none) == (sys.executable, [])
    assert command[-2:] == ["--output_dir", "a b"]
    assert environment["RL_WARMUP_LOGS"] == "a b/logs"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--launch", "zero4"], "--launch: 'zero4' is not one of ddp, zero1, zero2,"),
        (["--launch"], "--launch: expected one argument."),
        (["--launch", "single", "--num_processes", "2"], "--launch single is one process, not 2."),
        (["--launch", "cpu", "--num_processes", "0"], "--num_processes: '0' is not a whole number from 1"),
        (["--launch", "cpu", "--num_machines", "two"], "--num_machines: 'two' is not a whole number from 1"),
    ],
)
def test_a_wrong_launch_says_so(args, sentence, capsys):
    assert main(["train", *args]) == 2
    assert sentence in capsys.readouterr().err


def test_where_the_run_will_write(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("output_dir: from/recipe\n")
    assert run_folder(["--config", str(recipe)]) == Path("from/recipe")
    assert run_folder(["--config", str(recipe), "--output_dir=flag"]) == Path("flag")
    assert run_folder(["--config", str(recipe), "--output_dir", "flag"]) == Path("flag")
    assert run_folder(["output_dir=flag", "--config", str(recipe)]) == Path("flag")
    assert run_folder(["--config", "demo/legs"]) == Path("runs/legs")
    assert run_folder([]) == Path("trainer_output")


def test_processes_after_the_first_write_to_their_own_log(tmp_path):
    """What C libraries and subprocesses write too."""
    code = "import os; from rl_warmup.cli.launch import keep_own_log; keep_own_log()"
    code += "; print('said', flush=True); os.system('echo heard')"
    said = {}
    for rank in ("0", "1"):
        env = {**os.environ, "RANK": rank, "RL_WARMUP_LOGS": str(tmp_path / "logs")}
        said[rank] = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout
    assert said == {"0": "said\nheard\n", "1": ""}
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["rank1.log"]
    assert (tmp_path / "logs" / "rank1.log").read_text() == "said\nheard\n"
