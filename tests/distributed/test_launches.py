"""Launches as a user types them: one that works from any folder, and two that became something else and are refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rl_warmup.runtime import orphans

from .conftest import run_to_end

pytestmark = pytest.mark.distributed

CONFIGURATIONS = Path(__file__).parents[2] / "deepspeed_configs"
RECIPE = {
    "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger", "task_kwargs": {"length": 3, "modulus": 3, "train_size": 8, "validation_size": 3, "test_size": 3},
    "max_steps": 2, "num_warmups": 2, "max_warmup_length": 3, "max_target_length": 8, "per_device_train_batch_size": 2,
    "logging_steps": 1, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 2, "controls": ["empty_warmup"],
    "output_dir": "run",
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    """A recipe in the current folder, which is not the repository's."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return "recipe.yaml"


def test_a_run_under_zero3_ends_with_predictions(recipe):
    """Weights are gathered for validation and for the predictions at the end, which the main process writes alone."""
    train = [sys.executable, "-m", "rl_warmup.cli.main", "train", "--launch", "zero3", "--num_processes", "2"]
    code, output = run_to_end([*train, "--config", recipe], 200)
    assert code == 0, output[-6000:]
    assert f"accelerate launch --config_file {CONFIGURATIONS}/zero3.yaml" in output
    assert "Training on 2 processes: DeepSpeedEngine, ZeRO stage 3" in output
    assert output.count("own warmup  ") == 1  # the table of results
    run = Path("run")
    result = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert result["updates"] == 2
    assert set(result["metrics"]) == {"", "empty_warmup"}
    assert len((run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert [path.name for path in (run / "logs").iterdir()] == ["rank1.log"]
    assert json.loads((run / "environment.json").read_text(encoding="utf-8"))["processes"]["zero_stage"] == 3


def test_zero_that_accelerate_would_turn_into_ddp(recipe):
    """With this variable it trains on without ZeRO, ends with exit code 0 and says nothing."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / "zero2.yaml")]
    launch += ["--deepspeed_config_file", str(CONFIGURATIONS / "zero2.json"), "--main_process_port", "0"]
    code, output = run_to_end(
        [*launch, "-m", "rl_warmup.cli.train", "--config", recipe], 200, ACCELERATE_USE_CPU="true"
    )
    assert code != 0
    assert "counted from 0): DeepSpeed was requested, but the model is wrapped in DistributedDataParallel" in output
    assert not Path("run", "metrics.jsonl").exists()


def test_two_processes_of_which_accelerate_would_start_one(recipe):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    code, output = run_to_end([*launch, "-m", "rl_warmup.cli.train", "--config", recipe], 200)
    assert code != 0
    assert "rl-warmup train: Several processes were requested of `accelerate launch`, but it started one" in output
    assert not Path("run", "metrics.jsonl").exists()


def test_a_misspelt_setting_is_told_once_on_the_terminal(recipe):
    """Whichever process is the first to find it: only the others' output goes to files."""
    command = [sys.executable, "-m", "rl_warmup.cli.main", "train", "--config", recipe, "--launch", "cpu"]
    code, output = run_to_end([*command, "--num_processes", "2", "--num_warmps", "2"], 200)
    assert code == 2
    assert output.count("Did you mean 'num_warmups'?") == 1


def test_processes_of_one_launch_are_one_run_and_end_with_their_launcher(recipe):
    """A second launch is refused while the first one writes; killed, the first one leaves no process and no lock."""
    command = [sys.executable, "-m", "rl_warmup.cli.main", "train", "--config", recipe]
    pair = [*command, "--launch", "cpu", "--num_processes", "2"]
    launcher = subprocess.Popen([*pair, "--max_steps", "100000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log, lock = Path("run", "metrics.jsonl"), Path("run", "writing.lock")
    while not log.is_file():
        assert launcher.poll() is None
        time.sleep(0.1)
    writer = int(lock.read_text())
    code, output = run_to_end([*pair, "--overwrite", "true"], 200)
    assert code != 0
    assert str(writer) in output
    assert log.is_file()
    launcher.kill()
    launcher.wait()
    until = time.monotonic() + 20
    while orphans._start_time(writer) is not None:
        assert time.monotonic() < until
        time.sleep(0.1)
    code, output = run_to_end([*pair, "--overwrite", "true"], 200)
    assert code == 0, output[-6000:]
    assert json.loads(Path("run", "metrics.json").read_text(encoding="utf-8"))["updates"] == 2
    assert {json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines()} == {1, 2}
    code, output = run_to_end([*pair, "--output_dir", "."], 200)  # which holds the recipe
    assert code != 0
    assert not Path("logs").exists()
