"""A launch that became something else is refused with a sentence. What such launches do is in docs/distributed.md."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rl_warmup.runtime.launched import (
    LaunchCheck,
    describe,
    engine_faults,
    initialize_distributed_on_cpu,
    refuse_launch,
    sentence,
    whole_weights,
)

LAUNCHER = (
    "RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DEEPSPEED_CONFIG_FILE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_launched(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def asked(stage: int | None = None, **changes: Any) -> SimpleNamespace:
    """Settings of one process without an engine."""
    given = {
        "deepspeed": None,
        "fsdp": None,
        "use_cpu": True,
        "world_size": 1,
        "process_index": 0,
        "disable_tqdm": True,
    }
    plugin = SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(**{**given, "deepspeed_plugin": plugin, **changes})


def model(is_encoder_decoder: bool = False) -> nn.Module:
    network = nn.Linear(100, 100, bias=False)
    network.config = SimpleNamespace(is_encoder_decoder=is_encoder_decoder, model_type="t5")
    return network


def zero(stage: int, optimizer: int = 5000, parameters: int = 5000) -> dict[str, Any]:
    """Two processes under DeepSpeed, as `describe` tells it."""
    return {
        "count": 2, "engine": "DeepSpeedEngine", "zero_stage": stage, "parameters": 100_000, "parameters_here": parameters,
        "trained_parameters": 100_000, "optimizer_elements_here": optimizer,
    }  # fmt: skip


@pytest.mark.parametrize("engine", [{"deepspeed": "zero2.json"}, {"fsdp": True}, "DEEPSPEED", "FSDP"])
def test_quantized_weights_and_an_engine(monkeypatch, engine):
    """Asked for by the settings, or by the launcher."""
    if isinstance(engine, str):
        monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    args, quantized = asked(**(engine if isinstance(engine, dict) else {})), model()
    quantized.is_quantized = True
    with pytest.raises(ValueError, match="load_in_4bit, load_in_8bit: "):
        refuse_launch(args, quantized)
    refuse_launch(args, model())
    monkeypatch.delenv(f"ACCELERATE_USE_{engine}", raising=False)
    refuse_launch(asked(), quantized)


def test_one_process_without_an_engine_is_fine():
    refuse_launch(asked(), model())
    assert engine_faults(asked(), model(), describe(model())) == []


def test_a_process_that_believes_to_be_alone(monkeypatch):
    """`accelerate launch --multi_gpu` where there is no GPU: two runs, both rank 0, writing the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match=r"2 processes \(WORLD_SIZE\), this is number 1, but .* counts 1"):
        refuse_launch(asked(), model())
    refuse_launch(asked(world_size=2, process_index=1), model())


def test_several_processes_asked_for_and_one_started(monkeypatch):
    """`accelerate launch --cpu --num_processes 2` sets a meeting place and starts one process."""
    monkeypatch.setenv("MASTER_PORT", "29500")
    refuse_launch(asked(), model())  # a cluster may set it
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ValueError, match="`accelerate launch`, but it started one"):
        refuse_launch(asked(), model())


def test_gradients_that_would_never_be_averaged():
    found = {"count": 2, "engine": "Linear"}
    (fault,) = engine_faults(asked(), model(), found)
    assert fault.startswith(
        "2 processes train, but the model is not wrapped in DistributedDataParallel (it is a Linear)"
    )
    assert engine_faults(asked(), model(), {"count": 2, "engine": DistributedDataParallel.__name__}) == []


def test_deepspeed_that_does_not_run(monkeypatch):
    plain = {"count": 2, "engine": "DistributedDataParallel"}
    (fault,) = engine_faults(asked(2, deepspeed="zero2.json"), model(), plain)
    assert "DeepSpeed was requested, but the model is wrapped in DistributedDataParallel: give `distr" in fault
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (fault,) = engine_faults(asked(2), model(), plain)
    assert "ACCELERATE_USE_CPU=true turns DeepSpeed off; unset it and set `use_cpu: true`" in fault


@pytest.mark.parametrize(
    ("wanted", "found", "words"),
    [
        (1, zero(1), []),
        (2, zero(2, optimizer=50_000), []),
        (3, zero(3, optimizer=52_000, parameters=52_000), []),  # some padding
        (3, zero(2), ["ZeRO stage 3 was requested, but the engine runs stage 2"]),
        (
            2,
            zero(2, optimizer=100_000),
            ["about 50% of the optimizer's state on each, but this one holds 100,000 of 100,000"],
        ),
        (
            3,
            zero(3, parameters=100_000),
            ["about 50% of the parameters on each, but this one holds 100,000 of 100,000"],
        ),
        (3, zero(3, 90_000, 90_000), ["of the optimizer's state", "of the parameters"]),
    ],
)
def test_zero_stage_and_shards(wanted, found, words):
    faults = engine_faults(asked(wanted, deepspeed="z.json"), model(), found)
    assert len(faults) == len(words)
    assert all(word in fault for word, fault in zip(words, faults, strict=True))


def test_fsdp_that_shards_nothing():
    (fault,) = engine_faults(asked(fsdp=True), model(), {"count": 2, "engine": "DistributedDataParallel"})
    assert "FSDP was requested, but the model is wrapped in DistributedDataParallel, so nothing is sharded" in fault


def test_fsdp_of_an_encoder_decoder(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP cannot train t5: .* Use ZeRO \(deepspeed_configs/zero2.yaml"):
        refuse_launch(asked(), model(is_encoder_decoder=True))


def test_two_deepspeed_configurations(monkeypatch):
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "zero3.json")
    with pytest.raises(ValueError, match=r"`deepspeed: zero2.json` and the launcher's \(zero3.json\)"):
        refuse_launch(asked(deepspeed="zero2.json"), model())
    refuse_launch(asked(), model())
    monkeypatch.delenv("ACCELERATE_CONFIG_DS_FIELDS")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # as an earlier trainer of this process leaves it
    refuse_launch(asked(deepspeed="zero2.json"), model())


def test_an_encoder_decoder_in_shards():
    """Its head may be tied already, and nothing tells."""
    sharded = model(is_encoder_decoder=True)
    sharded.weight.ds_id = 0
    with pytest.raises(ValueError, match="was loaded in shards"):
        refuse_launch(asked(), sharded)


def test_what_is_said():
    assert sentence(describe(model())) == "1 process: Linear, 10,000 of 10,000 parameters here."
    assert sentence(zero(3)) == (
        "2 processes: DeepSpeedEngine, ZeRO stage 3, optimizer state of 5,000 of 100,000 trained parameters here, 5,000 of "
        "100,000 parameters here."
    )


def test_the_check_stops_a_run_before_its_first_update():
    trainer = SimpleNamespace(model_wrapped=model(), run_folder=SimpleNamespace(processes=None))
    state = SimpleNamespace(is_world_process_zero=True)
    LaunchCheck(trainer).on_train_begin(asked(), state, None)
    assert trainer.run_folder.processes["engine"] == "Linear"
    with pytest.raises(ValueError, match="DeepSpeed was requested"):
        LaunchCheck(trainer).on_train_begin(asked(2, deepspeed="zero2.json"), state, None)


def test_on_a_cpu_processes_meet_over_gloo(monkeypatch):
    """accelerate looks for GPUs unless told otherwise; a single process, and FSDP, are left as they are."""
    assert not torch.accelerator.is_available()
    alone = asked(use_cpu=False)
    initialize_distributed_on_cpu(alone)
    assert not alone.use_cpu
    monkeypatch.setenv("RANK", "0")
    sharded, launched = asked(use_cpu=False, fsdp=True), asked(use_cpu=False)
    initialize_distributed_on_cpu(sharded)
    initialize_distributed_on_cpu(launched)
    assert (sharded.use_cpu, launched.use_cpu) == (False, True)


def test_whole_weights_of_what_is_whole():
    network = model()
    with whole_weights(network):
        assert network.weight.shape == (100, 100)
