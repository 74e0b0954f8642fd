"""The example package by its README alone: installed, tried, tested and used in a run, without a network."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl_warmup.cli.main import main
from rl_warmup.runtime.documents import read_jsonl

EXAMPLE = Path(__file__).parents[2] / "examples" / "ledger-plugins"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(EXAMPLE, tmp_path / "copy", ignore=shutil.ignore_patterns("build", "*.egg-info", "runs"))


def run(words: list[str], folder: Path, **env: str) -> str:
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_works_word_for_word(folder, tmp_path, monkeypatch, capsys):
    """The package goes into a folder of its own, so that the environment of the tests stays as it is."""
    lines = re.findall(r"^ {8}((?:pip|rl-warmup) .*)$", (folder / "README.md").read_text(), re.MULTILINE)
    install, *commands = [shlex.split(line) for line in lines]
    assert [command[1] for command in commands] == ["score", "score", "train"]
    run([sys.executable, "-m", *install, "--quiet", "--target", str(tmp_path / "site")], folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(tmp_path / "site")
    shutil.rmtree(folder / "ledger_plugins")  # only what is installed is used
    out = []
    for command in commands:
        assert main(command[1:]) == 0
        out.append(capsys.readouterr().out)
    for name in [name for name in sys.modules if name.startswith("ledger_plugins")]:
        monkeypatch.delitem(sys.modules, name)
    line = next(line for line in out[0].splitlines() if line.startswith("right_totals"))
    assert line.split()[1:5] == ["4", "0.792", "0.500", "1.000"]  # of 1, 1/2, 1 and 2/3
    assert "No mistakes found" in out[1]
    logs = read_jsonl(folder / "runs" / "ledger-plugins" / "metrics.jsonl")
    assert all(0 <= log["rewards/right_totals/mean"] <= 1 for log in logs if "loss" in log)
    assert [log["rewards/steady/failed"] for log in logs if "loss" in log] == [0.0] * 8
    assert {log["phase"] for log in logs if "phase" in log} == {"cold start", "own warmups"}
    assert "first_word" in out[2]


def test_its_own_tests_pass(folder):
    out = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"], folder, PYTHONPATH=str(folder))
    assert "5 passed" in out
