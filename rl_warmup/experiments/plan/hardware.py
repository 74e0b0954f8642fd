"""What a machine has: `8xA100-80GB` -> how many devices of which memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

USABLE = 0.95  # of a device's memory; the allocator never gets the rest
SPELLING = "COUNTxNAME-MEMORY, e.g. 8xA100-80GB, 1xRTX4090-24GB, 2xCPU or 2xCPU-8GB (memory of each process)"
# GB of the vendors' data sheets
DEVICES = {
    "A100": (40, 80), "A30": (24,), "A10": (24,), "A6000": (48,), "L4": (24,), "L40S": (48,), "H100": (80,), "H200": (141,),
    "B200": (180,), "RTX3090": (24,), "RTX4090": (24,), "RTX5090": (32,), "MI300X": (192,),
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """Some equal devices in one machine; of a CPU each process counts as one."""

    count: int
    name: str
    memory: float  # GiB of each

    @property
    def is_cpu(self) -> bool:
        return self.name == "CPU"

    @property
    def spelled(self) -> str:
        return f"{self.count}x{self.name}-{self.memory:.0f}GB"


def read_hardware(text: str) -> Hardware:
    """`8xA100-80GB`, `1xH100`, `4xNAME-64GB`; ValueError where it cannot be read, or does not settle the memory."""
    spelling = r"(?:(\d+)[x*])?([a-z][\w.]*)(?:-(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?)?"
    found = re.fullmatch(spelling, text.strip(), re.IGNORECASE)
    if found is None or found[1] == "0":
        raise ValueError(f"--hardware: cannot read {text!r}. Write {SPELLING}.")
    count, name = int(found[1] or 1), found[2].upper()
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    sizes = DEVICES.get(name, ()) if name != "CPU" else (machine / count,)
    if not found[3] and len(sizes) != 1:
        known = " or ".join(f"{name}-{size}GB" for size in sizes)
        known = known or f"{name}-24GB or what it has; known without it: {', '.join(DEVICES)}"
        raise ValueError(f"--hardware: {text!r} says no memory; write {known}.")
    return Hardware(count, name, float(found[3] or sizes[0]))
