"""The command: what it tells, how it refuses, which launch it advises, and what it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.experiments.plan import make_plan, planned_cost, read_hardware

LLAMA = "meta-llama/Llama-3.2-1B"
RECIPE = {
    "task": "hub", "num_warmups": 8, "max_warmup_length": 64, "max_target_length": 64, "per_device_train_batch_size": 8,
    "max_steps": 2000, "bf16": True, "learning_rate": 1e-5,
}  # fmt: skip
TINY = {
    "model_name_or_path": "scratch-t5", "scratch": {"width": 32, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger", "task_kwargs": {"length": 8, "modulus": 5, "train_size": 40, "validation_size": 4, "test_size": 4},
    "num_warmups": 2, "bf16": False, "use_cpu": True, "proposals": ["reverse"], "eval_strategy": "steps", "eval_delay": 2,
}  # fmt: skip


@pytest.fixture
def plan(tmp_path, capsys):
    """Runs the command on a recipe; what it printed, or its refusal."""

    def run(hardware, *flags, **settings):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **settings}))
        code = main(["plan", str(path), "--hardware", hardware, *flags])
        out, err = capsys.readouterr()
        assert code == (0 if out else 2)
        return out.replace(str(path), "R") or err

    return run


def test_it_answers_without_network():
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise OSError('plan asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from rl_warmup.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    recipe = "recipes/paper/llama-3.2-1b/logiqa2.yaml"
    command = [sys.executable, "-c", code, "plan", recipe, "--hardware", "8xA100-80GB"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    for fact in (LLAMA, "1,235,814,400", "zero3_offload", "x an SFT update", "Without effect on the cost: "):
        assert fact in told


def test_the_mapping_says_the_same_in_bytes(plan):
    told = json.loads(plan("2xH100-80GB", "--json", "--num_warmups", "4", model_name_or_path=LLAMA))
    assert told["shape"]["parameters"] == 1_235_814_400
    assert [option["strategy"] for option in told["options"]][:4] == ["ddp", "zero1", "zero2", "zero3"]
    for option in told["options"]:
        parts = option["memory_bytes"]
        training = sum(parts[name] for name in ("gradients", "gathered", "activations", "logits"))
        always = parts["parameters"] + parts["optimizer"] + parts["context"]
        assert parts["peak"] == pytest.approx(always + max(training, parts["cache"]), rel=1e-12)
    assert "--num_warmups 4" in told["choice"]["launch"]


def test_a_large_card_needs_no_change_and_a_small_one_is_used_to_the_full(plan):
    values = {**RECIPE, "model_name_or_path": LLAMA}
    large, small = (make_plan(values, read_hardware(text)) for text in ("8xA100-80GB", "1xRTX4090-24GB"))
    assert (large.choice.strategy, large.choice.work) == ("ddp", large.work)
    assert not any(option.fits for option in small.options)
    assert small.choice.strategy == "zero2_offload"  # Adam's 16 bytes per parameter leave 5 GiB
    assert small.choice.work.prompts * small.choice.work.micro_batches == 8  # the same update
    assert "Nothing fits" in plan("1xL4-24GB", "--max_prompt_length", "60000", model_name_or_path="Llama-3.1-8B")


def test_launch_lines(plan):
    settings = {"model_name_or_path": "t5-base", "bf16": False, "per_device_train_batch_size": 2}
    accelerate = "accelerate launch --config_file deepspeed_configs/ddp.yaml --num_processes 8"
    train = "-m rl_warmup.cli.train --config R"
    one, eight, cpus = (plan(hardware, **settings) for hardware in ("1xA100-80GB", "8xA100-80GB", "2xCPU-64GB"))
    assert "\n  rl-warmup train --config R\n" in one
    assert f"\n  {accelerate} {train}\n" in eight
    assert f"\n  torchrun --nproc_per_node 2 {train} --use_cpu true\n" in cpus
    assert "2 prompts x 1 micro-batch x 1 process, float32" in one
    assert "2 prompts x 1 micro-batch x 8 processes, float32" in eight


def test_measuring_runs_an_update_and_leaves_nothing_behind(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = json.loads(plan("2xCPU-4GB", "--json", "--measure", "--warmup-tokens", "10", **TINY))["measured"]
    assert told["device"] == "cpu"
    assert min(told["seconds"], told["peak_bytes"], told["flops"]) > 0
    assert "Measured here" in plan("1xCPU-4GB", "--measure", **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "model_name_or_path is missing"),
        ({"model_name_or_path": "someone/unknown"}, "the shape of 'someone/unknown' is not known here, and plan asks no network"),
        ({"model_name_or_path": "t5-base", "num_warmups": 0}, "num_warmups: is 0, must be at least 1"),
        ({"model_name_or_path": "t5-base", "backward_samples": 9}, "backward_samples: 9 must lie between 1 and num_warmups"),
        ({"model_name_or_path": "t5-base", "objective": "ppo"}, "There is no objective 'ppo'"),
        ({"model_name_or_path": "google/mt5-base"}, "'google/mt5-base' is not on this machine"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_or_measured_is_refused_in_a_sentence(settings, sentence, plan):
    assert sentence in plan("1xA100-80GB", "--measure", **settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rat", 1.0), ("learning_rate", -1.0), ("label_smoothing_factor", 0.1), ("lora_r", 4), ("num_generations", 4),
        ("eval_steps", -5), ("metrics", [5]), ("controls", ["other_run"]), ("debug", ["tpu_metrics_debug"]),
        ("do_train", False), ("fp16", True), ("predict_split", "dev"), ("bf16", "maybe"),
    ],
)  # fmt: skip
def test_what_train_refuses_is_refused_in_the_same_words(key, value, plan, tmp_path, capsys):
    told = plan("1xA100-80GB", **{**TINY, "bf16": key == "fp16", key: value})
    assert key in told
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.removeprefix("rl-warmup train") == told.removeprefix("rl-warmup plan")


def test_no_code_that_a_recipe_names_is_run(plan, tmp_path):
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\ndef f(*args): pass\n")
    own = f"{tmp_path}/own.py:f"
    named = {"objective": own, "rewards": [own], "metrics": [own], "proposals": ["reverse", own]}
    assert "own functions" in plan("1xCPU-4GB", **{**TINY, **named})
    assert not (tmp_path / "RAN").exists()


def test_devices_of_another_machine_need_not_be_here(plan):
    assert "fits" in plan("8xA100-80GB", **{**TINY, "bf16": True, "tf32": True, "use_cpu": False})


def test_devices_have_their_memory_or_what_is_given_or_a_share_of_this_machine():
    spelled = [read_hardware(text).spelled for text in ("rtx4090", "4xGaudi2-96GB", "2xCPU-8G")]
    assert spelled == ["1xRTX4090-24GB", "4xGAUDI2-96GB", "2xCPU-8GB"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert read_hardware("2xCPU").memory == pytest.approx(machine / 2)
    for text in (
        "eight GPUs",
        "0xA100-80GB",
        "1xFOO-0GB",
        "1xFOO-0.0GB",
        f"{9**40}xA100-80GB",
        "1xA100-9999999GB",
        "\u0661xA100-80GB",
    ):
        with pytest.raises(ValueError, match=f"cannot read {text!r} as at least one device"):
            read_hardware(text)
    for text, known in {"2xA100": "A100-40GB or A100-80GB", "1xH10": "H10-24GB or what it has"}.items():
        with pytest.raises(ValueError, match=f"{text!r} says no memory; write {known}"):
            read_hardware(text)


def test_words_of_conversations_are_counted(plan, tmp_path):
    rows = tmp_path / "rows.jsonl"
    talk = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
    rows.write_text(json.dumps({"messages": talk}))
    settings = {**TINY, "task": "file", "task_kwargs": {"train": str(rows)}}
    assert "fits" in plan("1xCPU-8GB", **settings)


@pytest.mark.parametrize(("changes", "updates"), [
    ({"num_train_epochs": 0.5}, 3), ({"num_train_epochs": 1.5, "gradient_accumulation_steps": 3}, 3),
    ({"num_train_epochs": 2}, 12),
])  # fmt: skip
def test_parts_of_epochs_are_counted_as_trainer_counts_them(changes, updates, tmp_path):
    """12 rows, 2 a batch: ceil(epochs x updates of an epoch), which a run of these settings makes too."""
    rows = {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4}
    values = {
        **TINY,
        "task_kwargs": rows,
        "per_device_train_batch_size": 2,
        "eval_strategy": "no",
        "eval_delay": 0,
        **changes,
    }
    assert planned_cost(values)["updates"] == updates
    path = tmp_path / "recipe.yaml"
    quiet = {"output_dir": str(tmp_path / "run"), "save_strategy": "no", "show_progress": False, "report_to": "none"}
    path.write_text(yaml.safe_dump({**values, **quiet, "max_warmup_length": 4, "max_target_length": 6}))
    assert main(["train", "--config", str(path)]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["updates"] == updates


def test_a_template_is_said_to_be_left_out(plan, tmp_path):
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    told = plan("1xCPU", **TINY, system="Be brief.", chat_template=str(tmp_path / "chat.jinja"))
    assert "chat_template, system" in next(line for line in told.splitlines() if line.startswith("Not counted: ")), told
