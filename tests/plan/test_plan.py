"""The command: what it prints, how fast, and which launch it advises."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmarks.shapes import SHAPES
from rl_warmup.cli.main import main
from rl_warmup.experiments.plan import make_plan, read_hardware
from rl_warmup.experiments.plan.cost import count_flops
from rl_warmup.experiments.plan.duration import estimate
from rl_warmup.experiments.plan.shapes import Shape
from rl_warmup.experiments.plan.work import Lengths

RECIPE = {
    "task": "hub", "num_warmups": 8, "max_warmup_length": 64, "max_target_length": 64, "per_device_train_batch_size": 8,
    "max_steps": 2000, "bf16": True, "learning_rate": 1e-5,
}  # fmt: skip
MODELS = ("google/mt5-base", "google-t5/t5-base", "meta-llama/Llama-3.2-1B")


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe; its path."""

    def write(**settings):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **settings}))
        return str(path)

    return write


@pytest.mark.parametrize("model", MODELS)
def test_it_answers_at_once_without_torch_or_network(model, recipe):
    code = (
        "import socket, sys; socket.socket = None\n"
        "from rl_warmup.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules), 'too much was imported'\n"
        "sys.exit(code)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", recipe(model_name_or_path=model), "--hardware", "8xA100-80GB"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 5
    for word in (
        model,
        "estimate",
        "sampling",
        "backward",
        "x an SFT update",
        "zero3_offload",
        "Quickest of what fits",
    ):
        assert word in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "--config" not in line) <= 130


def test_the_mapping_says_the_same_in_bytes(recipe, capsys):
    assert (
        main(
            ["plan", recipe(model_name_or_path=MODELS[2]), "--hardware", "2xH100-80GB", "--json", "--num_warmups", "4"]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["estimate"] is True
    assert told["shape"]["parameters"] == 1_235_814_400
    assert told["options"][0]["strategy"] == "ddp"
    for option in told["options"]:
        parts = option["memory_bytes"]
        states = parts["parameters"] + parts["optimizer"] + parts["context"]
        training = (
            parts["gradients"] + parts["gathered"] + parts["activations"] + max(parts["logits"], parts["recomputed"])
        )
        assert parts["peak"] == pytest.approx(states + max(training, parts["cache"]))
        assert option["seconds_fast"]["total"] < option["seconds_slow"]["total"]
    assert "--num_warmups 4" in told["choice"]["launch"]


def plan_of(hardware, **settings):
    return make_plan({**RECIPE, "model_name_or_path": MODELS[2], **settings}, read_hardware(hardware))


def test_a_large_card_needs_no_change():
    plan = plan_of("8xA100-80GB")
    assert plan.choice.strategy == "ddp"
    assert plan.choice.work == plan.work
    assert plan.updates == 2000


def test_a_small_card_is_used_to_the_full():
    """Llama-3.2-1B on 24 GB: Adam's 16 bytes per parameter leave 5 GiB, so state has to move to the host."""
    plan = plan_of("1xRTX4090-24GB")
    assert not any(option.fits for option in plan.options)
    chosen = plan.choice
    assert chosen.strategy == "zero2_offload"
    assert chosen.work.prompts * chosen.work.micro_batches == 8  # the same update
    assert chosen.fits


def test_nothing_is_advised_where_nothing_fits(recipe, capsys):
    assert (
        main(
            [
                "plan",
                recipe(model_name_or_path="meta-llama/Llama-3.1-8B"),
                "--hardware",
                "1xL4-24GB",
                "--max_prompt_length",
                "60000",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "Nothing fits, not even with gradient checkpointing" in out
    assert "launch" not in out


def test_launch_lines(recipe, capsys):
    path = recipe(model_name_or_path="google-t5/t5-base", bf16=False, per_device_train_batch_size=2)
    lines = {}
    for hardware in ("1xA100-80GB", "8xA100-80GB", "2xCPU-64GB"):
        main(["plan", path, "--hardware", hardware])
        lines[hardware] = [line.strip() for line in capsys.readouterr().out.splitlines() if f"--config {path}" in line]
    assert lines == {
        "1xA100-80GB": [f"rl-warmup train --config {path}"],
        "8xA100-80GB": [
            f"accelerate launch --config_file deepspeed_configs/ddp.yaml --num_processes 8 -m rl_warmup.cli.train --config {path}"
        ],
        "2xCPU-64GB": [f"torchrun --nproc_per_node 2 -m rl_warmup.cli.train --config {path} --use_cpu true"],
    }


def test_more_work_takes_longer_and_a_faster_device_less():
    device = read_hardware("1xA100-80GB").device
    few, many = plan_of("1xA100-80GB", num_warmups=2), plan_of("1xA100-80GB", num_warmups=16)
    ends = [estimate(p.work, p.flops, device, "ddp", 1) for p in (few, many)]
    assert ends[0][0].total < ends[1][0].total
    faster = read_hardware("1xH100-80GB").device
    assert estimate(many.work, many.flops, faster, "ddp", 1)[1].total < ends[1][1].total
    checkpointed = plan_of("1xA100-80GB", gradient_checkpointing=True)
    assert checkpointed.options[0].memory.activations < plan_of("1xA100-80GB").options[0].memory.activations / 3


@pytest.mark.parametrize("shape", ["t5-d256", "llama-d256"])
@pytest.mark.parametrize(("n", "k", "variant"), [(4, 4, "ours_all"), (8, 1, "ours_k1")])
def test_measured_steps_of_a_cpu_lie_in_the_range(shape, n, k, variant, works):
    """The recorded benchmark: one thread, float32; prompts and targets of 75 % of their maximum, warmups of about 10."""
    bench = SHAPES[shape]
    with (Path(__file__).parents[2] / "benchmarks/results/step_cost.csv").open() as file:
        measured = next(
            float(row["cpu_ms"]) / 1e3 for row in csv.DictReader(file)
            if (row["shape"], row["n"], row["variant"]) == (shape, str(n), variant)
        )  # fmt: skip
    own = Shape(
        shape, bench.kind, bench.vocab, bench.width, bench.heads, bench.kv_heads, bench.width // bench.heads,
        bench.feed_forward, bench.layers, bench.layers if bench.kind == "t5" else 0, gated=bench.kind != "t5",
    )  # fmt: skip
    lengths = Lengths(0.75 * bench.prompt_tokens, 10, 0.75 * bench.target_tokens + 1)
    work = works(own, bench.rows, n, k, lengths)
    fast, slow = estimate(work, count_flops(work), read_hardware("1xCPU-8GB").device, "ddp", 1)
    assert fast.total < measured < slow.total


def test_rows_that_are_at_hand_are_counted(recipe, capsys):
    sizes = {"width": 64, "layers": 1, "heads": 2, "tokenizer": "words"}
    kwargs = {"length": 8, "modulus": 5, "train_size": 40, "validation_size": 4, "test_size": 4}
    path = recipe(model_name_or_path="scratch-t5", scratch=sizes, task="ledger", task_kwargs=kwargs)
    assert main(["plan", path, "--hardware", "2xCPU-4GB", "--warmup-tokens", "10"]) == 0
    out = capsys.readouterr().out
    assert "prompt 9, warmup 10, target 9: warmup as given, else 40 of the task's training rows" in out
    assert "Not looked at: learning_rate" in out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "model_name_or_path is missing"),
        ({"model_name_or_path": "someone/unknown"}, "the shape of 'someone/unknown' is not known here, and plan asks no network"),
        ({"model_name_or_path": "t5-base", "num_warmups": 0}, "num_warmups: is 0, must be at least 1"),
        ({"model_name_or_path": "t5-base", "backward_samples": 9}, r"backward_samples: 9 must lie between 1 and num_warmups"),
        ({"model_name_or_path": "t5-base", "objective": "ppo"}, "objective: 'ppo' is not one of sft, marginal"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_planned_is_refused_in_a_sentence(settings, sentence, recipe, capsys):
    assert main(["plan", recipe(**settings), "--hardware", "1xA100-80GB"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_recipe_that_is_not_there(capsys):
    assert main(["plan", "no/such.yaml", "--hardware", "2xCPU"]) == 2
    assert "The recipe no/such.yaml does not exist." in capsys.readouterr().err
