"""Which library multiplies fp32 matrices on a CPU: torch's default, or oneDNN where that is shown to stay fp32.

Knows: torch's precision flags, transformers' table of attention functions. Must not know: models, training. On some
processors the default (MKL) runs at half the speed of oneDNN, and torch has one way to oneDNN: the flag that allows bfloat16
inside fp32 products. Where a processor cannot use the permission, or torch's kernels do not, the arithmetic stays fp32;
where it can, it does. So a probe looks at the results.

The choice follows from bits alone, never from a clock: it must come out the same when a killed run goes on.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ((64, 64, 64), (200, 96, 1000), (512, 256, 512))  # rows, inputs, outputs: kernels differ with the size
FP32_ERROR = 1e-5  # relative; fp32 leaves 2e-7 to 1e-6, tf32 3e-4, bf16 3e-3
UNTOUCHED = ("none", "none")  # torch's settings as they are before anyone has set one
SWITCHED = ("bf16", "tf32")
# Scores (queries times keys) up to which attention under oneDNN goes by plain products. The fused kernel makes a small product
# per head and 32 or 64 queries, which oneDNN prepares anew each time: forward and backward of 40 queries and keys took 25 ms,
# against 4 by products and 4 by the fused kernel under MKL; at 128 25 and 10 ms, for 560 queries and 32 keys 26 and 9. From about
# 250 of both on the fused kernel is quicker and smaller.
SHORT_ATTENTION = 200 * 200
# oneDNN compiles products anew for every number of rows, and rows without padding have another number at every update. Its 1024
# latest, where the environment says nothing, were 600 MB; with 256 updates take as long.
KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

_taken: dict[str, Any] | None = None  # the outcome, once it was oneDNN: torch's flag belongs to the process


def choose_cpu_matmul(device_type: str) -> dict[str, Any]:
    """Switch fp32 products to oneDNN where a probe shows that they differ from the default route and stay fp32.

    Args:
        device_type: of the run: "cpu", "cuda", ... Nothing is done for other devices than a CPU.

    Returns:
        `route`, "default" or "onednn"; `reason`, a sentence; and where a probe was made `relative_error` of the oneDNN route
        against float64. Torch's settings are left as they were unless the route is "onednn". Calling again changes nothing.
    """
    global _taken
    if device_type != "cpu":
        return _default(f"the run is on {device_type}")
    if torch.cuda.is_available():
        return _default("the flag would also let a GPU of this machine round its products")
    if not torch.backends.mkldnn.is_available() or not hasattr(_flag(), "fp32_precision"):
        return _default("this build of torch cannot send fp32 products to oneDNN")
    if _taken is not None and _settings() == SWITCHED:
        return _taken
    if _settings() != UNTOUCHED:
        return _default(f"the precision of products was set before (oneDNN {_settings()[0]}, CUDA {_settings()[1]})")
    os.environ.setdefault(*KERNELS)
    try:
        error, same_bits = _probe()
    except RuntimeError as fault:  # a run does not stop for a faster product
        return _default(f"trying oneDNN failed: {str(fault).partition(chr(10))[0]}")
    if same_bits:
        return _default("oneDNN gives the same bits here", error)
    if not error <= FP32_ERROR:  # also when it is no number
        return _default("oneDNN rounds to fewer digits than fp32 here", error)
    # The older of torch's two ways to say it: it sets the newer one as well, so that either can be asked afterwards.
    torch.set_float32_matmul_precision("medium")
    _attend_by_products_where_short()
    _taken = {"route": "onednn", "reason": "oneDNN differs from the default and stays fp32", "relative_error": error}
    return _taken


def _attend_by_products_where_short() -> None:
    """Put an `sdpa` into transformers' table that leaves the fused kernel out on a CPU where rows are short."""
    from transformers import AttentionInterface

    stock = AttentionInterface()["sdpa"]
    if getattr(stock, "by_products_where_short", False):
        return

    def sdpa(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        is_short = query.size(2) > 1 and query.size(2) * key.size(2) <= SHORT_ATTENTION
        by_onednn = query.device.type == "cpu" and _settings() == SWITCHED
        with sdpa_kernel(SDPBackend.MATH) if is_short and by_onednn else nullcontext():
            return stock(module, query, key, *args, **kwargs)

    sdpa.by_products_where_short = True  # type: ignore[attr-defined]
    AttentionInterface.register("sdpa", sdpa)


def _default(reason: str, error: float | None = None) -> dict[str, Any]:
    return {"route": "default", "reason": reason, **({} if error is None else {"relative_error": error})}


def _flag() -> Any:
    """Torch's flag for matrix products by oneDNN, None before it had one."""
    return getattr(torch.backends.mkldnn, "matmul", None)


def _settings() -> tuple[str, str]:
    """What products may be rounded to, on a CPU and on CUDA, by either of torch's two ways to set it."""
    return _flag().fp32_precision, torch.backends.cuda.matmul.fp32_precision


def _probe() -> tuple[float, bool]:
    """The largest relative error of products by oneDNN, and whether all of them have the bits of the default route."""
    generator = torch.Generator().manual_seed(0)  # the random state of the run stays as it is
    errors, same = [], []
    for rows, inputs, outputs in SHAPES:
        sizes = ((rows, inputs), (outputs, inputs), (rows, outputs))
        factors = [torch.randn(size, generator=generator, dtype=torch.float32, device="cpu") for size in sizes]
        exact = _products(*(factor.double() for factor in factors))
        usual = _products(*factors)
        _flag().fp32_precision = "bf16"
        try:
            other = _products(*factors)
        finally:
            _flag().fp32_precision = "none"
        errors += [(a - b).norm() / b.norm() for a, b in zip(other, exact, strict=True)]
        same += [torch.equal(a, b) for a, b in zip(other, usual, strict=True)]
    return torch.stack(errors).max().item(), all(same)


def _products(x: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """The three products of a linear layer: forward, and backward to its input and to its weight."""
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = F.linear(x, weight)
        return [y.detach(), *torch.autograd.grad(y, (x, weight), gradient)]
