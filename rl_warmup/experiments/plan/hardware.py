"""What a machine is said to be able to do: `8xA100-80GB` -> memory, operations and bytes per second of one device.

Knows: figures of vendors' data sheets. Must not know: models, recipes. None of these figures was measured here.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace

USABLE = 0.95  # of a device's memory; the allocator never gets the rest
SPELLING = "COUNTxNAME-MEMORY, e.g. 8xA100-80GB, 1xRTX4090-24GB, 2xCPU or 2xCPU-8GB (memory of each process)"


@dataclass(frozen=True)
class Device:
    """One accelerator, or one process on a CPU."""

    name: str
    memory: float  # GiB
    tflops: float  # 10^12 operations per second, bf16 products, dense (no sparsity)
    tflops_float32: float  # the same in float32 without TF32, as torch computes unless told otherwise
    bandwidth: float  # GB/s, memory
    link: float  # GB/s in one direction, to the other devices
    source: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether it is a process rather than an accelerator."""
        return self.name == "CPU"


_NVLINK3, _NVLINK4, _NVLINK5, _PCIE4, _PCIE5 = 300, 450, 900, 32, 64
DEVICES = {
    f"{device.name}-{device.memory:.0f}GB": device
    for device in (
        Device("A100", 40, 312, 19.5, 1555, _NVLINK3, "NVIDIA A100 data sheet, SXM4"),
        Device("A100", 80, 312, 19.5, 2039, _NVLINK3, "NVIDIA A100 80GB data sheet, SXM4"),
        Device("A30", 24, 165, 10.3, 933, _PCIE4, "NVIDIA A30 data sheet"),
        Device("A10", 24, 125, 31.2, 600, _PCIE4, "NVIDIA A10 data sheet"),
        Device("A6000", 48, 154.8, 38.7, 768, _PCIE4, "NVIDIA RTX A6000 data sheet"),
        Device("L4", 24, 121, 30.3, 300, _PCIE4, "NVIDIA L4 data sheet, half the figure with sparsity"),
        Device("L40S", 48, 362, 91.6, 864, _PCIE4, "NVIDIA L40S data sheet"),
        Device("H100", 80, 989, 67, 3350, _NVLINK4, "NVIDIA H100 data sheet, SXM5, half the figure with sparsity"),
        Device("H200", 141, 989, 67, 4800, _NVLINK4, "NVIDIA H200 data sheet, SXM5, half the figure with sparsity"),
        Device("B200", 180, 2250, 75, 7700, _NVLINK5, "NVIDIA DGX B200 data sheet, per GPU, half the figure with sparsity"),
        Device("RTX3090", 24, 71, 35.6, 936, _PCIE4, "NVIDIA Ampere GA102 white paper, bf16 with float32 accumulation"),
        Device("RTX4090", 24, 165.2, 82.6, 1008, _PCIE4, "NVIDIA Ada white paper, bf16 with float32 accumulation"),
        Device("RTX5090", 32, 209.5, 104.8, 1792, _PCIE5, "NVIDIA RTX Blackwell white paper, float32 accumulation"),
        Device("MI300X", 192, 1307, 163.4, 5300, _PCIE5, "AMD Instinct MI300X data sheet"),
    )
}  # fmt: skip
# One core of an AVX-512 server: float32 products ran at 0.08 to 0.24 TFLOP/s there; bf16 without AMX is no faster here.
CPU = Device("CPU", 0, 0.16, 0.16, 15, 5, "one core, AVX-512, between what MKL and oneDNN reached on an AMD EPYC")


@dataclass(frozen=True)
class Hardware:
    """Some equal devices in one machine."""

    count: int
    device: Device

    @property
    def spelled(self) -> str:
        return f"{self.count}x{self.device.name}-{self.device.memory:.0f}GB"


def read_hardware(text: str, tflops: float | None = None, bandwidth: float | None = None) -> Hardware:
    """Read `8xA100-80GB`, `2xCPU`, or a device of one's own, `4xNAME-64GB`, with its two figures.

    Args:
        tflops: 10^12 dense bf16 operations per second of one device, in the place of the data sheet's.
        bandwidth: GB/s of its memory, in the place of the data sheet's.

    Raises:
        ValueError: the text cannot be read, or the device is not known and its figures were not given.
    """
    found = re.fullmatch(
        r"(?:(\d+)[xX*])?([A-Za-z][\w.]*)(?:-(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?)?", text.strip(), re.IGNORECASE
    )
    if found is None or found[1] == "0":
        raise ValueError(f"--hardware: cannot read {text!r}. Write {SPELLING}.")
    count, name, memory = int(found[1] or 1), found[2].upper(), float(found[3]) if found[3] else None
    if name == "CPU":
        share = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 / count
        device = replace(CPU, memory=memory or share)
    else:
        device = _accelerator(text, name, memory, tflops, bandwidth)
    if tflops:  # who knows the one peak is asked for no second: float32 is taken to be in the table's proportion
        device = replace(device, tflops=tflops, tflops_float32=tflops * device.tflops_float32 / device.tflops)
    return Hardware(count, replace(device, bandwidth=bandwidth or device.bandwidth))


def _accelerator(text: str, name: str, memory: float | None, tflops: float | None, bandwidth: float | None) -> Device:
    sizes = [device for device in DEVICES.values() if device.name == name]
    if memory is None and len(sizes) == 1:
        return sizes[0]
    for device in sizes:
        if device.memory == memory:
            return device
    if sizes:
        known = " or ".join(f"{name}-{device.memory:.0f}GB" for device in sizes)
        raise ValueError(f"--hardware: {text!r} has no memory that plan knows; write {known}.")
    if memory and tflops and bandwidth:
        return Device(name, memory, tflops, tflops / 8, bandwidth, _PCIE4, "figures given on the command line")
    near = difflib.get_close_matches(name, [device.name for device in DEVICES.values()], n=1)
    raise ValueError(
        f"--hardware: no device {name!r} is known.{f' Did you mean {near[0]}?' if near else ''} Known are "
        f"{', '.join(DEVICES)} and CPU. For any other, write its memory (COUNTx{name}-24GB) and give --tflops (dense bf16, "
        f"10^12 per second) and --bandwidth (GB/s) from its data sheet."
    )
