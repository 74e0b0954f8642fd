"""The launch files of deepspeed_configs/: read as accelerate and DeepSpeed read them, without starting anything.

`tests/distributed` trains with them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from rl_warmup.cli.launch import LAYOUTS, TO_ACCELERATE
from rl_warmup.runtime.shipped import shipped

FOLDER = Path(__file__).parents[1] / "deepspeed_configs"
ZERO = {"zero1": 1, "zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3}
# DeepSpeed takes an unknown key at the top of a file without a word, a misspelt `gradient_cliping` for instance.
TOP_KEYS = {
    "bf16", "fp16", "zero_optimization", "gradient_accumulation_steps", "gradient_clipping", "train_batch_size",
    "train_micro_batch_size_per_gpu",
}  # fmt: skip


def settings(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_every_layout_has_its_file_and_every_file_its_layout():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(LAYOUTS)
    assert {path.stem for path in FOLDER.glob("*.json")} == set(ZERO)
    assert shipped("deepspeed_configs") == FOLDER


@pytest.mark.parametrize("name", LAYOUTS)
def test_accelerate_reads_it(name):
    """It refuses unknown keys at the top; below `deepspeed_config` and `fsdp_config` it drops them without a word."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == (1 if name == "single" else 2)
    kind = "DEEPSPEED" if name in ZERO else {"fsdp2": "FSDP", "single": "NO"}.get(name, "MULTI_GPU")
    assert config.distributed_type == kind
    known = {"deepspeed_config_file", "zero3_init_flag"}
    assert set(config.deepspeed_config) == (known if name in ZERO else set())


@pytest.mark.parametrize("name", ZERO)
def test_the_yaml_points_at_its_json(name):
    text = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert text["deepspeed_config"]["deepspeed_config_file"] == f"deepspeed_configs/{name}.json"
    assert "mixed_precision" not in text  # accelerate refuses it beside a JSON file


@pytest.mark.parametrize("name", ZERO)
def test_deepspeed_reads_it(name):
    values = settings(name)
    assert set(values) == TOP_KEYS
    decided_by_recipe = (
        "gradient_accumulation_steps",
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    )
    assert {values[key] for key in decided_by_recipe} == {"auto"}
    assert values["bf16"] == values["fp16"] == {"enabled": "auto"}
    block = {key: value for key, value in values["zero_optimization"].items() if value != "auto"}
    zero = DeepSpeedZeroConfig(**block)  # refuses unknown keys and wrong types
    assert zero.stage == ZERO[name]
    assert (zero.offload_optimizer is not None) == ("offload" in name)
    assert (zero.offload_param is not None) == (name == "zero3_offload")
    if zero.stage == 3:
        assert zero.gather_16bit_weights_on_model_save
        # 1e5 elements by default: all of a small model would stay whole, and its tests would say nothing about ZeRO-3
        assert values["zero_optimization"]["stage3_param_persistence_threshold"] == "auto"


def test_the_table_names_every_file():
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in table or f"`{path.stem}`" in table for path in FOLDER.glob("*.yaml"))
    assert all(f"--{flag}" in table for flag in TO_ACCELERATE)


def test_slurm_starts_one_command_per_machine(tmp_path):
    """srun, scontrol and rl-warmup are stood in for; what they are called with is what counts."""
    stubs = {
        "scontrol": 'echo "node7"; echo "node8"',
        "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "rl-warmup": 'echo "$HF_HUB_OFFLINE $*"',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41234", "SLURM_NNODES": "2"}
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **job}
    script = ["bash", str(FOLDER / "slurm.sh"), "my recipe.yaml", "--bf16", "true"]
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"1 train --launch zero2 --num_machines 2 --num_processes 16 --machine_rank {rank} --main_process_ip node7 "
        f"--main_process_port 21234 --config my recipe.yaml --bf16 true"
        for rank in (0, 1)
    ]
