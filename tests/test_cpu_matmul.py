"""Every outcome of the choice by a probe that is made up, and the real probe on this machine.

Each test runs twice: on the processor at hand, and with products rounded as a processor with AMX rounds them under the flag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from rl_warmup import cpu_matmul
from rl_warmup.cpu_matmul import FP32_ERROR, KERNELS, SWITCHED, UNTOUCHED, _probe, _settings, choose_cpu_matmul
from rl_warmup.runtime.run_folder import environment

FP32, BF16 = 4e-7, 3e-3
ATEN = torch.ops.aten
FACTORS = {
    ATEN.mm.default: 0,
    ATEN.bmm.default: 0,
    ATEN.addmm.default: 1,
    ATEN.baddbmm.default: 1,
}  # op -> place of the first
TO_ONEDNN = 16**3  # torch leaves products of so many multiplications and fewer to the default route


class Rounding(TorchDispatchMode):
    """fp32 factors of a product lose the digits that bfloat16 lacks, while torch's flag allows it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (first := FACTORS.get(func)) is not None and torch.backends.mkldnn.matmul.fp32_precision == "bf16":
            a, b = args[first : first + 2]
            if a.dtype == torch.float32 and a.numel() * b.size(-1) > TO_ONEDNN:
                args = (*args[:first], a.bfloat16().float(), b.bfloat16().float(), *args[first + 2 :])
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True, params=["as it is", "rounding"])
def _processor(request: pytest.FixtureRequest) -> Iterator[None]:
    with Rounding() if request.param == "rounding" else nullcontext():
        yield


def untouched() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.fixture(autouse=True)
def _process(monkeypatch):
    """A process that has chosen nothing yet and has no GPU; afterwards torch is as it was."""
    before, chosen, attention = _settings(), cpu_matmul._taken, AttentionInterface()["sdpa"]
    untouched()
    monkeypatch.setattr(cpu_matmul, "_taken", None)
    monkeypatch.setenv(KERNELS[0], "as the user wants")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    untouched()
    AttentionInterface.register("sdpa", attention)
    if before == SWITCHED and chosen is not None:
        torch.set_float32_matmul_precision("medium")


@pytest.fixture
def probed(monkeypatch):
    """Replaces the probe; counts its calls."""

    def replace(error: float, same_bits: bool) -> list:
        calls: list = []
        monkeypatch.setattr(cpu_matmul, "_probe", lambda: calls.append(1) or (error, same_bits))
        return calls

    return replace


def never() -> None:
    raise AssertionError("nothing may be probed here")


def test_a_route_of_its_own_with_the_error_of_fp32_is_taken_once(probed):
    calls = probed(FP32, same_bits=False)
    chosen = choose_cpu_matmul("cpu")
    assert (chosen["route"], chosen["relative_error"]) == ("onednn", FP32)
    assert _settings() == SWITCHED
    assert torch.get_float32_matmul_precision() == "medium"  # raises where torch's two ways to set it disagree
    assert torch.backends.cuda.matmul.allow_tf32 is True  # so does this one
    assert choose_cpu_matmul("cpu") == chosen
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "same_bits", "reason"),
    [(2e-7, True, "same bits"), (BF16, False, "fewer digits"), (3e-4, False, "fewer digits"), (float("nan"), False, "fewer")],
)  # fmt: skip
def test_otherwise_the_default_stays_and_so_do_torchs_settings(probed, error, same_bits, reason):
    probed(error, same_bits)
    chosen = choose_cpu_matmul("cpu")
    assert chosen["route"] == "default"
    assert reason in chosen["reason"]
    assert chosen["relative_error"] == pytest.approx(error, nan_ok=True)
    assert _settings() == UNTOUCHED
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_what_someone_has_set_is_left_alone_by_the_older_way(monkeypatch, precision):
    monkeypatch.setattr(cpu_matmul, "_probe", never)
    torch.set_float32_matmul_precision(precision)
    settings = _settings()
    assert "was set before" in choose_cpu_matmul("cpu")["reason"]
    assert _settings() == settings
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("module", [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul])
def test_what_someone_has_set_is_left_alone_by_the_newer_way(monkeypatch, module):
    monkeypatch.setattr(cpu_matmul, "_probe", never)
    module.fp32_precision = "ieee"
    settings = _settings()
    assert "was set before" in choose_cpu_matmul("cpu")["reason"]
    assert _settings() == settings


def test_a_setting_made_after_the_choice_is_left_alone(probed):
    probed(FP32, same_bits=False)
    choose_cpu_matmul("cpu")
    torch.set_float32_matmul_precision("highest")
    assert choose_cpu_matmul("cpu")["route"] == "default"
    assert torch.get_float32_matmul_precision() == "highest"


def test_runs_elsewhere_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(cpu_matmul, "_probe", never)
    assert choose_cpu_matmul("cuda") == {"route": "default", "reason": "the run is on cuda"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "GPU of this machine" in choose_cpu_matmul("cpu")["reason"]
    assert _settings() == UNTOUCHED


@pytest.mark.parametrize("available", [True, False])
def test_a_torch_without_the_flag_or_without_onednn(monkeypatch, available):
    monkeypatch.setattr(cpu_matmul, "_probe", never)
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends, "mkldnn", SimpleNamespace(is_available=lambda: available))
        assert "this build of torch" in choose_cpu_matmul("cpu")["reason"]


def test_a_probe_that_breaks_off_leaves_torch_as_it_was(monkeypatch):
    real, calls = cpu_matmul._products, []

    def third_fails(*factors):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("oneDNN cannot\nException raised from ...")
        return real(*factors)

    monkeypatch.setattr(cpu_matmul, "_products", third_fails)
    assert choose_cpu_matmul("cpu") == {"route": "default", "reason": "trying oneDNN failed: oneDNN cannot"}
    assert _settings() == UNTOUCHED


FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def fused_kernels(model: LlamaForCausalLM, tokens: int) -> tuple[torch.Tensor, bool]:
    """Logits for two rows, and whether their attention went through the fused kernel."""
    ids = torch.arange(2 * tokens).view(2, tokens) % 30
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as found:
        logits = model(input_ids=ids).logits
    return logits, any(event.key == FUSED for event in found.key_averages())


def test_short_attention_goes_by_products_under_onednn_alone(probed):
    probed(FP32, same_bits=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    # In float64, which no processor rounds: the probe is made up, so fp32 products may really lose digits behind it.
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_hidden_layers=1, **sizes)).double().eval()
    before, fused = fused_kernels(model, 40)
    assert fused
    choose_cpu_matmul("cpu")
    registered = AttentionInterface()["sdpa"]
    logits, fused = fused_kernels(model, 40)
    assert not fused
    assert torch.allclose(logits, before, rtol=1e-9, atol=1e-12)
    assert fused_kernels(model, 201)[1]  # where products would be slower, and hold a number for every pair of tokens
    assert fused_kernels(model, 1)[1]
    torch.set_float32_matmul_precision("highest")  # somebody took the flag back
    assert fused_kernels(model, 40)[1]
    untouched()
    cpu_matmul._taken = None
    choose_cpu_matmul("cpu")
    assert AttentionInterface()["sdpa"] is registered


def test_attention_is_short_by_queries_times_keys(probed):
    probed(FP32, same_bits=False)
    choose_cpu_matmul("cpu")
    attend, module = AttentionInterface()["sdpa"], SimpleNamespace(is_causal=False, num_key_value_groups=1)

    def fused(queries: int, keys: int) -> bool:
        query, key = torch.randn(1, 1, queries, 8), torch.randn(1, 1, keys, 8)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            attend(module, query, key, key, torch.zeros(1, 1, 1, keys))
        return any(event.key == FUSED for event in found.key_averages())

    assert not fused(600, 32)
    assert fused(600, 80)
    assert fused(1, 600)


@pytest.mark.parametrize("given", [None, "7"])
def test_compiled_products_are_not_kept_without_end(probed, monkeypatch, given):
    """Only so many of them, unless the environment asks for another number."""
    probed(FP32, same_bits=False)
    monkeypatch.delenv(KERNELS[0])
    if given:
        monkeypatch.setenv(KERNELS[0], given)
    choose_cpu_matmul("cpu")
    assert os.environ[KERNELS[0]] == (given or KERNELS[1])
    monkeypatch.delenv(KERNELS[0])
    choose_cpu_matmul("cuda")
    assert KERNELS[0] not in os.environ


# ---------------------------------------------------------------------- this machine


def test_the_probe_finds_the_same_every_time_and_leaves_no_trace():
    state = torch.get_rng_state()
    error, same_bits = _probe()
    assert _probe() == (error, same_bits)
    assert 0 < error < 0.1
    assert _settings() == UNTOUCHED
    assert torch.equal(torch.get_rng_state(), state)


def test_the_real_probe_finds_out_a_processor_that_rounds():
    with Rounding():
        chosen = choose_cpu_matmul("cpu")
    assert (chosen["route"], chosen["reason"]) == ("default", "oneDNN rounds to fewer digits than fp32 here")
    assert 1e-3 < chosen["relative_error"] < 1e-2
    assert _settings() == UNTOUCHED


def test_whatever_is_chosen_here_products_keep_the_error_of_fp32():
    chosen = choose_cpu_matmul("cpu")
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    assert ((a @ b - exact).norm() / exact.norm()).item() < FP32_ERROR
    assert chosen["route"] in ("default", "onednn")
    assert environment(chosen)["cpu_matmul"] == chosen
