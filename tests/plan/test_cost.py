"""Operations against torch's own counter, on real updates of a real trainer."""

from __future__ import annotations

import pytest

from benchmarks.measure import count_flops as counted
from rl_warmup.engine.fast import buckets, logprobs, passes, sampling
from rl_warmup.experiments.plan import cost, memory, planned_cost
from rl_warmup.experiments.plan.cost import count_flops
from rl_warmup.experiments.plan.shapes import Shape

T5 = Shape("t5", "t5", 512, 64, 4, 4, 16, 160, layers=3, encoder_layers=2, gated=False)
LLAMA = Shape("llama", "llama", 512, 64, 4, 2, 16, 160, layers=3)
EXACT = [
    {"n": 4},
    {"n": 4, "k": 1},
    {"n": 0},
    {"n": 1},
    {"n": 3, "reading_can_be_shared": False},  # as on several processes
    {"n": 3, "k": 1, "reading_can_be_shared": False},
]


def work(works, shape, n, k=None, **more):
    return works(shape, 3, n, k, **more)


@pytest.mark.parametrize("shape", [T5, LLAMA], ids=["t5", "llama"])
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_operations_are_those_that_torch_counts(shape, case, works, step):
    todo = work(works, shape, **case)
    # the sampler's products with a warmup's own keys and values are elementwise, which torch's counter leaves out
    assert count_flops(todo).total == pytest.approx(counted(step(todo)), rel=2e-3)


@pytest.mark.parametrize("shape", [T5, LLAMA], ids=["t5", "llama"])
def test_checkpointing_repeats_the_forward(shape, works, step):
    todo = work(works, shape, 4, checkpointing=True)
    assert count_flops(todo).total == pytest.approx(counted(step(todo)), rel=0.01)  # a T5's biases are not counted


@pytest.mark.parametrize("shape", [T5, LLAMA], ids=["t5", "llama"])
def test_padding_is_what_is_left_out(shape, works, step):
    """Empty warmups are shorter rows: in a batch this small they are padded rather than given a pass of their own."""
    todo = work(works, shape, 4, empty_share=1.0)
    assert 0.9 < count_flops(todo).total / counted(step(todo)) < 1


def test_a_gated_t5(works, step):
    todo = work(works, Shape("v1.1", "t5", 512, 64, 4, 4, 16, 160, 3, 2, gated=True), 4)
    assert count_flops(todo).total == pytest.approx(counted(step(todo)), rel=1e-3)


def test_constants_are_those_of_the_code_they_describe():
    for name in ("KEPT_LOGITS", "LOGITS_PER_CHUNK", "ROWS_PER_CHUNK"):
        assert getattr(cost, name) == getattr(logprobs, name)
    assert cost.PACKED_LENGTH_FACTOR == buckets.PACKED_LENGTH_FACTOR
    assert (memory.MAX_TOKENS_PER_PASS, memory.MAX_SCORES_PER_PASS) == (
        passes.MAX_TOKENS_PER_PASS,
        sampling.MAX_SCORES_PER_PASS,
    )


def test_the_whole_run_for_a_sweep():
    recipe = {"model_name_or_path": "google/mt5-base", "task": "hub", "num_warmups": 4, "empty_share": 0, "max_steps": 100,
              "max_prompt_length": 64, "max_warmup_length": 16, "max_target_length": 64,
              "per_device_train_batch_size": 2}  # fmt: skip
    planned = planned_cost(recipe)
    assert planned["parameters"] == 582_401_280
    assert planned["tokens_per_update"] == 2 * (64 + 4 * (16 + 1 + 64))
    assert planned["flops"] == 100 * planned["flops_per_update"]
    assert planned["tokens"] == 100 * planned["tokens_per_update"]
    cheaper = planned_cost({**recipe, "backward_samples": 1})
    assert 1 < cheaper["sft_ratio"] < planned["sft_ratio"]
    assert planned_cost({**recipe, "objective": "sft"})["sft_ratio"] == 1
    assert planned_cost({**recipe, "max_steps": -1})["flops"] is None
    # two processes do not share one reading of the prompts between sampling and gradient
    assert 2 < planned_cost(recipe, processes=2)["flops_per_update"] / planned["flops_per_update"] < 2.2
