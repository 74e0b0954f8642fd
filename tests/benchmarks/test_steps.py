"""The steps that are compared: they train the same thing, on warmups of the length they claim."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.ours import make_trainer, ours
from benchmarks.stock import adamw, latro, naive, row_logprobs, sample, sft
from benchmarks.workloads import SEPARATOR_ID, mean_warmup_length
from rl_warmup.batch import RowKind, Warmup
from rl_warmup.engine import sample_warmups, score
from rl_warmup.models.layouts.splice import splice


def test_warmups_have_ten_tokens(workload):
    """1 + Σ (15/16)^t over t = 1..15 is 10.3, for a separator that never comes first."""
    model = workload.model()
    assert 9 < mean_warmup_length(workload, model) < 11.5


def test_our_sampler_meets_the_same_stop_rate(workload, tmp_path):
    model = workload.model()
    trainer = make_trainer(workload, model, adamw(model), str(tmp_path), 16)
    torch.manual_seed(0)
    warmups = sample_warmups(model, trainer.layout, trainer.constraints, workload.prompts, 16)
    assert 9 < sum(len(warmup.ids) for warmup in warmups) / len(warmups) < 11.5


def test_tokenizer_gives_back_the_ids(workload):
    for row, prompt, target in zip(workload.rows, workload.prompts, workload.targets, strict=True):
        assert workload.tokenizer(row["prompt"])["input_ids"] == prompt
        assert workload.tokenizer(row["target"], add_special_tokens=False)["input_ids"] == target[:-1]


def test_stock_and_our_log_probabilities_agree(workload, tmp_path):
    stock = workload.model()
    patched = copy.deepcopy(stock)
    trainer = make_trainer(workload, patched, adamw(patched), str(tmp_path), 2)
    warmups = sample(workload, stock, 1)
    rows = [
        (
            i,
            RowKind.GROUP,
            Warmup([t for t in ids if t != SEPARATOR_ID], "separator" if SEPARATOR_ID in ids else "length"),
        )
        for i, ids in enumerate(warmups)
    ]
    prompts = [{"prompt_ids": x, "target_ids": y} for x, y in zip(workload.prompts, workload.targets, strict=True)]
    with torch.no_grad():
        of_warmup, of_target = row_logprobs(stock, workload.prompts, warmups, workload.targets, "cpu")
        ours = score(patched, splice(trainer.layout, prompts, rows, 1), trainer.constraints)
    torch.testing.assert_close(ours.target_logprob, of_target, atol=1e-3, rtol=1e-5)
    # The constraints ban four special tokens and a separator at the first step: that renormalises by (1 - 1/16) once.
    banned = torch.log(torch.tensor(16 / 15)) * torch.ones_like(of_warmup)
    torch.testing.assert_close(ours.warmup_logprob - of_warmup, banned, atol=0.1, rtol=0)


@pytest.mark.parametrize("make", ["sft", "naive", "latro", "ours"])
def test_a_step_runs_and_leaves_the_weights_as_they_were(workload, make, tmp_path):
    model, reference = workload.model(), workload.model()
    optimizer = adamw(model)
    step = {
        "sft": lambda: sft(workload, model, optimizer),
        "naive": lambda: naive(workload, model, optimizer, 2),
        "latro": lambda: latro(workload, model, reference, optimizer, 2),
        "ours": lambda: ours(workload, model, optimizer, str(tmp_path), 2),
    }[make]()
    step()
    assert optimizer.state, "the optimizer took no step"
    for before, after in zip(reference.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after)
        assert after.grad is None
