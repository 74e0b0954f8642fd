"""Part of `accelerator.sh`: what one optimizer step of a shape costs in bf16 - time, throughput, peak memory, and its floor.

    python -m benchmarks.device_steps --shape llama-3.2-1b --n 4 --out step.csv

Variants: `sft` (stock transformers), `sft_ours`, `ours_all`, `ours_k1`, and for a Llama where trl is installed `trl_grpo` with a
log-probability reward. Each has the device to itself. Weights are float32 with bf16 autocast, as `bf16: true` trains without
DeepSpeed. Knows: workloads and steps of the other benchmarks. Must not
know: what is made of the numbers.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.accelerator_rows import DeviceRow, write_rows
from benchmarks.shapes import DEVICE_SHAPES, MAX_WARMUP, TINY_SHAPES, Shape

ADAM_BYTES = 28  # per parameter: weight, gradient and two moments are read, weight and moments written, all in float32
BF16_BYTES = 2


def steps_of(workload: Any, folder: str, n: int) -> dict[str, Callable[[], tuple[Callable[[], Any], Any]]]:
    """By variant: a function that makes a model of its own and returns one step of it, and the model."""
    import torch

    from benchmarks.ours import ours
    from benchmarks.rivals import trl_grpo
    from benchmarks.stock import adamw, sft

    def stock() -> tuple[Callable[[], Any], Any]:
        model = workload.model()
        plain = sft(workload, model, adamw(model))

        def step() -> None:
            with torch.autocast(workload.device.type, torch.bfloat16):
                plain()

        return step, model

    def of(**options: Any) -> Callable[[], tuple[Callable[[], Any], Any]]:
        def make() -> tuple[Callable[[], Any], Any]:
            model = workload.model()
            return ours(workload, model, adamw(model), folder, n, bf16=True, **options), model

        return make

    def grpo() -> tuple[Callable[[], Any], Any]:
        model = workload.model()
        return trl_grpo(workload, model, adamw(model), folder, n, bf16=True), model

    steps = {"sft": stock, "sft_ours": of(objective="sft"), "ours_all": of(), "ours_k1": of(backward_samples=1)}
    if workload.shape.kind == "llama" and find_spec("trl") is not None:
        steps["trl_grpo"] = grpo
    return steps


def measure_part(shape: Shape, n: int, repeats: int, part: str) -> list[DeviceRow]:
    """A row per variant; one that does not fit the memory has empty cells and says so."""
    import torch

    from benchmarks.workloads import make_workload

    workload = make_workload(shape)
    device, ceiling = device_name(), ceilings(workload.device, shape.width >= 512)
    tokens = sum(map(len, workload.prompts)) + sum(map(len, workload.targets))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for variant, make in steps_of(workload, folder, n).items():
            row = DeviceRow(part, device, shape.name, "one step", variant, n=n)
            try:
                cost = _cost(*make(), workload.device, repeats)
                row.step_ms, row.peak_gb = cost["ms"], cost["peak_gb"]
                row.tokens_per_s = tokens / cost["ms"] * 1e3
                decoded = MAX_WARMUP if variant.startswith(("ours", "trl")) else 0
                row.floor_ms = floor_ms(cost, decoded, ceiling)
                row.note = ceiling["text"]
            except torch.OutOfMemoryError:
                row.note = "out of memory"
            rows.append(row)
            gc.collect()
            if workload.device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{part} {variant}: {f'{row.step_ms:.1f} ms' if row.step_ms else row.note}", flush=True)
    return rows


def _cost(step: Callable[[], Any], model: Any, device: Any, repeats: int) -> dict[str, Any]:
    """Median milliseconds, operations and peak bytes (weights and optimizer included) of a step; the first is not timed."""
    import torch

    from benchmarks.measure import count_flops, milliseconds, peak_bytes

    torch.manual_seed(0)
    step()
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = peak_bytes(step) + 4 * 4 * sum(p.numel() for p in model.parameters())
    times = []
    for i in range(repeats):
        torch.manual_seed(i)
        times.append(milliseconds(step))
    torch.manual_seed(0)
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model
    return {
        "ms": statistics.median(times), "peak_gb": peak / 1e9, "flops": count_flops(step),
        "parameters": sum(p.numel() for p in model.parameters()),
        "decoder_parameters": sum(p.numel() for p in decoder.parameters()),
    }  # fmt: skip


def floor_ms(cost: dict[str, Any], decoded: int, ceiling: dict[str, Any]) -> float:
    """What the step could not be faster than, by this device's own ceilings: its matrix products at the speed of a large one,
    the decoder's weights read once in bf16 for every token decoded, and AdamW's traffic; nothing overlaps."""
    moved = decoded * BF16_BYTES * cost["decoder_parameters"] + ADAM_BYTES * cost["parameters"]
    return 1e3 * (cost["flops"] / ceiling["flops"] + moved / ceiling["bytes"])


def ceilings(device: Any, large: bool) -> dict[str, Any]:
    """Operations per second of a large bf16 matrix product and bytes per second of a copy, measured here and now."""
    import torch

    side, size = (8192, 1 << 28) if large and device.type == "cuda" else (64, 1 << 16)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    b = torch.empty(size, device=device)
    best = {"matmul": _seconds(lambda: a @ a, device), "copy": _seconds(lambda: b.copy_(b + 0), device)}
    flops, moved = 2 * side**3 / best["matmul"], 4 * 4 * size / best["copy"]
    return {"flops": flops, "bytes": moved, "text": f"ceilings {flops / 1e12:.3g} TFLOP/s, {moved / 1e9:.3g} GB/s"}


def _seconds(call: Callable[[], Any], device: Any) -> float:
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    best = float("inf")
    for _ in range(5):
        wait()
        began = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - began)
    return best


def device_name() -> str:
    """The accelerator's name, or the processor's kind."""
    import platform

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"


def main(argv: list[str] | None = None) -> None:
    """Measure one part and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True, choices=list(DEVICE_SHAPES))
    parser.add_argument("--n", type=int, required=True, help="warmups per prompt")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps (%(default)s)")
    parser.add_argument("--part", default="step", help="name in the table")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--tiny", action="store_true", help="a shape of two layers, to see that all of this runs")
    options = parser.parse_args(argv)
    shape = (TINY_SHAPES if options.tiny else DEVICE_SHAPES)[options.shape]
    write_rows(options.out, measure_part(shape, options.n, options.repeats, options.part))


if __name__ == "__main__":
    main()
