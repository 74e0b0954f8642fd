"""What may be written behind --hardware."""

from __future__ import annotations

import os

import pytest

from rl_warmup.experiments.plan.hardware import DEVICES, read_hardware


def test_known_devices_are_found():
    eight = read_hardware("8xA100-80GB")
    assert (eight.count, eight.device.memory, eight.device.tflops, eight.device.bandwidth) == (8, 80, 312, 2039)
    assert read_hardware("1xrtx4090").device == DEVICES["RTX4090-24GB"]
    assert read_hardware("A100-40").spelled == "1xA100-40GB"


def test_processes_on_a_cpu_share_its_memory():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert read_hardware("2xCPU").device.memory == pytest.approx(machine / 2)
    assert read_hardware("2xCPU-8GB").device.memory == 8


def test_a_device_of_ones_own():
    own = read_hardware("4xGaudi2-96GB", tflops=432, bandwidth=2450)
    assert (own.count, own.device.name, own.device.memory, own.device.tflops) == (4, "GAUDI2", 96, 432)
    slower = read_hardware("1xA100-80GB", tflops=156)
    assert (slower.device.tflops, slower.device.tflops_float32) == (156, 9.75)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("eight GPUs", r"cannot read 'eight GPUs'\. Write COUNTxNAME-MEMORY"),
        ("0xA100-80GB", "cannot read '0xA100-80GB'"),
        ("2xA100", r"has no memory that plan knows; write A100-40GB or A100-80GB\."),
        ("1xA100-64GB", r"write A100-40GB or A100-80GB\."),
        ("1xH10-80GB", r"no device 'H10' is known\. Did you mean .*give --tflops"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_hardware(text)
