"""Bounds against enumeration, growth in n, ranking and reranking by hand-made models."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from rl_warmup.engine import sample_warmups
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.inference.likelihood import rank_choices, target_likelihood
from rl_warmup.models.inference_settings import Inference


@pytest.fixture(params=["t5", "llama"])
def warmup_generator(request):
    """A writer whose warmups are one or two of three words."""
    lab = request.getfixturevalue(request.param)
    constraints = lab.constraints("a b c", min_length=1, max_length=2)
    return lab, WarmupGenerator(lab.model, lab.tokenizer, lab.layout, Inference(constraints, "", max_target_length=4))


def exact(lab, warmup_generator, row) -> tuple[float, float]:
    """log Σ_c P(c|x) P(y|x,c) and Σ_c P(c|x) log P(y|x,c) over every warmup."""
    with torch.no_grad():
        scores = lab.score(row, lab.all_warmups(warmup_generator.constraints), warmup_generator.constraints)
    joint = scores.warmup_logprob + scores.target_logprob
    return joint.logsumexp(0).item(), (scores.warmup_logprob.exp() * scores.target_logprob).sum().item()


def test_the_bound_grows_from_the_mean_to_the_exact_likelihood(warmup_generator):
    lab, write = warmup_generator
    rows = [lab.row("a b c d", "d c")] * 60
    out = target_likelihood(write, rows, counts=(1, 2, 4, 8, 16), batch_size=20)
    likelihood, mean = exact(lab, write, rows[0])
    bounds = [out["bound"][n] for n in (1, 2, 4, 8, 16)]
    assert abs(bounds[0]["mean"] - mean) < 4 * bounds[0]["std_error"]
    values = [bound["mean"] for bound in bounds]
    assert values == sorted(values)  # the same samples in ever larger parts: each bound is at least the one before
    assert abs(values[-1] - likelihood) < 0.5 * abs(mean - likelihood) + 4 * bounds[-1]["std_error"]
    assert out["tokens"] == 60 * 3
    assert bounds[0]["per_token"] == pytest.approx(bounds[0]["mean"] / 3)


def test_likelihood_without_a_warmup_and_gain(warmup_generator):
    lab, write = warmup_generator
    rows = [lab.row("a b c d", "d c"), lab.row("e f", "a b c")]
    out = target_likelihood(write, rows, counts=(4,), batch_size=1)
    from rl_warmup.batch import EMPTY_WARMUP

    with torch.no_grad():
        empty = [lab.score(row, [EMPTY_WARMUP], write.constraints).target_logprob.item() for row in rows]
    assert out["without_warmup"]["mean"] == pytest.approx(sum(empty) / 2, abs=1e-4)
    write.settings = replace(write.settings, mode="empty")
    assert set(target_likelihood(write, rows)) == {"rows", "tokens", "without_warmup"}


def test_gain_left_without_overlap_is_the_intercept():
    from rl_warmup.inference.likelihood import _gain

    overlap = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.0, 1.0]])
    noise = torch.tensor([[0.1, -0.1], [0.1, -0.1], [-0.1, 0.1]])
    out = _gain(2.0 + 3.0 * overlap, overlap)
    assert out["at_no_overlap"] == pytest.approx(2.0, abs=1e-6)
    assert out["at_no_overlap_std_error"] == pytest.approx(0.0, abs=1e-6)
    assert out["mean"] == pytest.approx(3.5)
    x, y = overlap.flatten().tolist(), (2.0 + 3.0 * overlap + noise).flatten().tolist()
    _, intercept = statistics.linear_regression(x, y)
    assert _gain(2.0 + 3.0 * overlap + noise, overlap)["at_no_overlap"] == pytest.approx(intercept, abs=1e-6)
    assert _gain(torch.ones(3, 2), torch.zeros(3, 2))["at_no_overlap"] is None  # nothing to tell a slope from
    assert _gain(gain=torch.rand(3, 2), overlap=torch.tensor([[0.9, 1.0]] * 3))["at_no_overlap"] is None  # a guess
    # ten copies of every sample add no information: the error is over rows, not over samples
    once = _gain(2.0 + 3.0 * overlap + noise, overlap)
    often = _gain((2.0 + 3.0 * overlap + noise).repeat(1, 10), overlap.repeat(1, 10))
    assert often["at_no_overlap_std_error"] == pytest.approx(once["at_no_overlap_std_error"], rel=1e-5)


def test_unequal_parts_are_refused(warmup_generator):
    with pytest.raises(ValueError, match="divide the largest"):
        target_likelihood(warmup_generator[1], [], counts=(3, 8))


def test_choices_are_ranked_by_their_likelihood(warmup_generator):
    lab, write = warmup_generator
    row = {**lab.row("a b c d", "a"), "target": "b c", "choices": ["d e", "b c", "f"], "answer": 1}
    picked = rank_choices(write, [row], [lab.ids("a b")])[0]
    from rl_warmup.batch import Warmup

    by_hand = []
    for choice in row["choices"]:
        with torch.no_grad():
            one = lab.score(lab.row("a b c d", choice), [Warmup(lab.ids("a b"), "proposal")], write.constraints)
        by_hand.append(one.target_logprob.item())
    assert picked == by_hand.index(max(by_hand))


def test_sampling_uses_a_random_state_of_its_own(warmup_generator):
    lab, write = warmup_generator
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    target_likelihood(write, [lab.row("a b", "c")], counts=(2,))
    assert torch.equal(torch.rand(3), expected)
    assert sample_warmups(write.model, write.layout, write.constraints, [lab.ids("a")], 1)
