"""How long an update may take: a range, from data sheets and the shares of them that such loops usually reach.

Knows: the assumptions, all of them in `ASSUMED`. Must not know: recipes, text. Nothing here was measured on an accelerator;
`docs/plan.md` says how to read the range.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl_warmup.experiments.plan.cost import Flops
from rl_warmup.experiments.plan.hardware import Device
from rl_warmup.experiments.plan.memory import device_precision
from rl_warmup.experiments.plan.work import Work

ADAM_BYTES = 28  # per parameter and update: four float32 numbers are read, three written
HOST_BANDWIDTH, PCIE = 40.0, 24.0  # GB/s: main memory under CPU Adam, all processes together; each device's bus


@dataclass(frozen=True)
class Assumed:
    """One end of the range: shares of a data sheet's figures, and seconds that a kernel needs to be started."""

    products: float  # of peak operations, in large products
    products_float32: float
    bandwidth: float
    link: float
    launch: float


ASSUMED = {
    "fast": Assumed(0.50, 0.80, 0.80, 0.80, 8e-6),
    "slow": Assumed(0.20, 0.50, 0.40, 0.30, 25e-6),
}
ASSUMED_CPU = {  # benchmarks/results/step_cost.csv lies within; a test looks
    "fast": Assumed(0.60, 0.60, 0.80, 0.80, 10e-6),
    "slow": Assumed(0.25, 0.25, 0.40, 0.30, 40e-6),
}
KERNELS = {"t5": 28, "llama": 24}  # of one decoder layer, forward; a backward starts about twice as many


@dataclass(frozen=True)
class Seconds:
    """One end of the range, part by part."""

    sampling: float
    training: float  # scoring, forward, backward
    optimizer: float
    communication: float

    @property
    def total(self) -> float:
        return self.sampling + self.training + self.optimizer + self.communication


def estimate(work: Work, flops: Flops, device: Device, strategy: str, devices: int) -> tuple[Seconds, Seconds]:
    """The fast and the slow end for one update."""
    assumed = ASSUMED_CPU if device.is_cpu else ASSUMED
    fast, slow = (_estimate(work, flops, device, strategy, devices, assumed[end]) for end in ("fast", "slow"))
    return fast, slow


def _estimate(work: Work, flops: Flops, device: Device, strategy: str, devices: int, share: Assumed) -> Seconds:
    shape, precision = work.shape, device_precision(work, strategy)
    weight = 2 if precision == "bfloat16" else 4
    peak = device.tflops_float32 if precision == "float32" else device.tflops
    rate, head_rate = peak * 1e12 * share.products, device.tflops_float32 * 1e12 * share.products_float32
    rate = head_rate if precision == "float32" else rate
    bandwidth, layers = device.bandwidth * 1e9 * share.bandwidth, shape.layers + shape.encoder_layers
    steps = work.mean.warmup if work.warmups else 0
    draws = work.prompts * work.micro_batches * (1 + work.warmups * (steps - 1)) if steps else 0
    head_ahead = draws * 2 * shape.head_size
    kernels = KERNELS[shape.kind] * share.launch

    read = shape.decoder_parameters * weight + 4 * shape.head_size * (weight == 2)  # the head again, in float32
    sampling = steps * kernels * shape.layers + max(
        (flops.sampling - head_ahead) / rate + head_ahead / head_rate, steps * read / bandwidth
    )
    head = flops.head - head_ahead
    rest = flops.total - flops.sampling - head
    passes = work.micro_batches * (3 + (1 if work.checkpointing else 0)) + (1 if flops.scoring else 0)
    training = max(rest / rate + head / head_rate, passes * layers * kernels)

    p, sharded = shape.parameters, 1 if strategy == "ddp" else devices
    optimizer = ADAM_BYTES * p / sharded / bandwidth
    if strategy.endswith("offload"):
        moved = 2 * weight * p / sharded * work.micro_batches / (PCIE * 1e9 * share.link)
        optimizer = ADAM_BYTES * p / (HOST_BANDWIDTH * 1e9 * share.bandwidth) + moved
    gathers = {"zero3": 3 * work.micro_batches + 1, "zero3_offload": 3 * work.micro_batches + 1}.get(strategy, 2)
    link = device.link if devices > 1 else PCIE
    moved = gathers * weight * p * (devices - 1) / devices
    if strategy == "zero3_offload":
        moved += gathers * weight * p / devices  # from main memory
    return Seconds(sampling, training, optimizer, moved / (link * 1e9 * share.link))
