"""Sampling and scoring use one distribution: a warmup is sampled with exactly the probability that is scored."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import GenerationConfig

from rl_warmup.batch import Warmup
from rl_warmup.engine import generate_targets, plain, sample_warmups
from rl_warmup.models.loading import load_model

HOSTILE = {
    "repetition_penalty": 5.0, "top_k": 1, "top_p": 0.1, "temperature": 0.1, "typical_p": 0.2, "min_p": 0.9,
    "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 3.0, "suppress_tokens": [6, 7], "bad_words_ids": [[8]],
    "begin_suppress_tokens": [9], "forced_eos_token_id": 1, "min_new_tokens": 2, "max_length": 4, "num_beams": 3,
    "do_sample": False, "exponential_decay_length_penalty": (0, 3.0), "eos_token_id": [10, 11],
}  # fmt: skip


@pytest.fixture(scope="module", params=["scratch-t5", "scratch-llama"])
def hostile_lab(request, new_lab):
    """A model whose checkpoint asks for everything that would change the distribution, in both layouts."""
    lab = new_lab(request.param)
    lab.model.generation_config = GenerationConfig(**HOSTILE)
    return lab


def key(warmup: Warmup) -> tuple:
    return tuple(warmup.ids), warmup.finish


def naive_distribution(lab, row, constraints) -> dict[tuple, float]:
    """Every warmup and its probability, token by token with the stock model; a plain loop, no shared code."""
    found: dict[tuple, float] = {}

    def next_probabilities(written: list[int]) -> dict[int, float]:
        if lab.model.config.is_encoder_decoder:
            decoder = torch.tensor([[lab.model.config.decoder_start_token_id, *written]])
            logits = lab.model(input_ids=torch.tensor([row["prompt_ids"]]), decoder_input_ids=decoder).logits[0, -1]
        else:
            logits = lab.model(input_ids=torch.tensor([[*row["prompt_ids"], *written]])).logits[0, -1]
        allowed = [i for i in range(len(logits)) if not constraints.banned[i]]
        if len(written) < constraints.min_length:
            allowed.remove(constraints.separator_id)
        weights = {i: math.exp(logits[i].item() / constraints.temperature) for i in allowed}
        total, kept, mass = sum(weights.values()), {}, 0.0
        for i in sorted(weights, key=weights.get, reverse=True):
            if mass >= constraints.top_p:
                break
            kept[i] = weights[i] / total
            mass += kept[i]
        return {i: p / sum(kept.values()) for i, p in kept.items()}

    def grow(written: list[int], probability: float) -> None:
        if len(written) == constraints.max_length:
            found[tuple(written), "length"] = probability
            return
        for token, p in next_probabilities(written).items():
            if token == constraints.separator_id:
                found[tuple(written), "separator"] = probability * p
            else:
                grow([*written, token], probability * p)

    with torch.no_grad():
        grow([], 1.0)
    return found


def chi_square_p_value(counts: Counter, constraints: dict[tuple, float]) -> float:
    """How surprising the counts are; rare outcomes are pooled."""
    total, cells, rest, expected_rest = sum(counts.values()), [], 0, 0.0
    for outcome, probability in constraints.items():
        if total * probability >= 5:
            cells.append((counts[outcome], total * probability))
        else:
            rest, expected_rest = rest + counts[outcome], expected_rest + total * probability
    if expected_rest >= 1:
        cells.append((rest, expected_rest))
    assert len(cells) > 1, "a distribution with one outcome tests nothing"
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    return 1 - torch.special.gammainc(torch.tensor((len(cells) - 1) / 2), torch.tensor(statistic / 2)).item()


CONSTRAINTS = {
    "plain": {"min_length": 0, "max_length": 2},
    "tempered": {"min_length": 1, "max_length": 2, "temperature": 1.7},
    "nucleus": {"min_length": 1, "max_length": 2, "temperature": 2.0, "top_p": 0.8},
}


@pytest.mark.parametrize("settings", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_scored_probability_of_every_warmup_is_the_naive_one(hostile_lab, settings):
    lab = hostile_lab
    constraints, row = lab.constraints("a b c", **settings), lab.row("d e f", "g")
    exact = naive_distribution(lab, row, constraints)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-6)
    if constraints.top_p == 1:
        assert set(exact) == {key(warmup) for warmup in lab.all_warmups(constraints)}
    scored = lab.score(row, [Warmup(list(ids), finish) for ids, finish in exact], constraints).warmup_logprob.exp()
    assert scored.tolist() == pytest.approx(list(exact.values()), rel=1e-4)


@pytest.mark.parametrize("writer", [sample_warmups, plain.sample], ids=["own", "generate"])
@pytest.mark.parametrize("settings", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_frequencies_are_the_scored_probabilities(hostile_lab, settings, writer):
    """Two prompts of different length in one call, so that padding would show too. Both samplers draw from one distribution."""
    lab, draws = hostile_lab, 3000
    constraints, rows = lab.constraints("a b c", **settings), [lab.row("d e f g h", "g"), lab.row("h", "g")]
    sampled = writer(lab.model, lab.layout, constraints, [row["prompt_ids"] for row in rows], draws)
    assert len(sampled) == 2 * draws
    assert all((warmup.logprob is None) == (writer is plain.sample) for warmup in sampled)
    for i, row in enumerate(rows):
        counts = Counter(map(key, sampled[i * draws : (i + 1) * draws]))
        exact = naive_distribution(lab, row, constraints)
        assert set(counts) <= set(exact)
        assert chi_square_p_value(counts, exact) > 1e-4, (counts, exact)


def test_surprise_averages_to_the_entropy_of_an_enumerated_distribution(hostile_lab):
    lab, draws = hostile_lab, 4000
    constraints, row = lab.constraints("a b c", min_length=1, max_length=2, temperature=1.3), lab.row("d e f", "g")
    space = lab.all_warmups(constraints)
    logps = lab.score(row, space, constraints).warmup_logprob.detach().double()
    entropy = -(logps.exp() * logps).sum().item()
    table = {key(warmup): -logp for warmup, logp in zip(space, logps.tolist(), strict=True)}
    sampled = sample_warmups(lab.model, lab.layout, constraints, [row["prompt_ids"]], draws)
    surprise = torch.tensor([table[key(warmup)] for warmup in sampled])
    assert abs(surprise.mean().item() - entropy) < 4 * surprise.std().item() / draws**0.5


@pytest.mark.parametrize("settings", [{"temperature": 1.2}, {"min_length": 2, "top_p": 0.8}], ids=["plain", "nucleus"])
def test_surprise_averages_to_the_summed_entropy_of_its_steps(hostile_lab, settings):
    """The whole vocabulary and five steps, too many to enumerate: E[-log P(c|x)] = E[Σ_t H(P(.|x, c_<t))]."""
    lab, draws = hostile_lab, 1500
    constraints, row = lab.constraints(max_length=5, **settings), lab.row("d e f", "g")
    sampled = sample_warmups(lab.model, lab.layout, constraints, [row["prompt_ids"]], draws)
    assert {warmup.finish for warmup in sampled} == {"separator", "length"}
    batch = lab.batch(row, sampled)
    with torch.no_grad():
        surprise = -lab.score(row, sampled, constraints).warmup_logprob
        if lab.model.config.is_encoder_decoder:
            start = torch.full_like(batch.seq_ids[:, :1], lab.model.config.decoder_start_token_id)
            prompts = batch.prompt_ids.expand(draws, -1)
            logits = lab.model(input_ids=prompts, decoder_input_ids=torch.cat([start, batch.seq_ids[:, :-1]], 1)).logits
        else:
            prompt, rows = len(row["prompt_ids"]), torch.cat([batch.prompt_ids.expand(draws, -1), batch.seq_ids], 1)
            logits = lab.model(input_ids=rows).logits[:, prompt - 1 :]  # position t-1 predicts token t
    entropy = torch.zeros(draws)
    for step in range(constraints.max_length):
        logps = constraints.restrict(logits[:, step], torch.full((draws,), step)).log_softmax(1)
        entropy += -(logps.exp() * logps.nan_to_num(neginf=0)).sum(1) * batch.warmup_mask[:, step]
    difference = surprise - entropy  # a martingale: zero on average at every step
    assert surprise.std() > 0.1
    assert abs(difference.mean().item()) < 4 * difference.std().item() / draws**0.5


def test_inference_samples_from_the_same_distribution(hostile_lab):
    lab, draws = hostile_lab, 3000
    constraints, row = (
        lab.constraints("a b c", min_length=1, max_length=2, temperature=1.7, top_p=0.9),
        lab.row("d e f", "g"),
    )
    points = torch.rand(draws, constraints.max_length, dtype=torch.float64)
    written = generate_targets(lab.model, lab.layout, constraints, [row["prompt_ids"]] * draws, 2, draws=points)
    exact = naive_distribution(lab, row, constraints)
    assert chi_square_p_value(Counter(key(w.warmup) for w in written), exact) > 1e-4
    assert len({key(w.warmup) for w in written}) > 3


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_generates_default_of_50_likeliest_tokens_is_off(kind, lab_of):
    """With 90 words at a high temperature, hundreds of draws reach far more than 50 of them."""
    words = " ".join(f"w{i}" for i in range(90))
    size = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
    lab = lab_of(*load_model(kind, lambda: [words] * 3, size))
    constraints = lab.constraints(min_length=1, max_length=1, temperature=50.0)
    drawn = sample_warmups(lab.model, lab.layout, constraints, [lab.ids("w1 w2")], 900)
    assert len({warmup.ids[0] for warmup in drawn}) > 80


def test_a_draw_at_the_edge_of_the_nucleus_or_short_of_the_minimum_stays_finite(hostile_lab):
    """Chosen tokens are never masked: a proposal may violate the constraints, yet the policy can learn it."""
    lab = hostile_lab
    constraints, row = lab.constraints("a b c", min_length=2, max_length=3, top_p=0.1), lab.row("d e", "g")
    proposals = [Warmup(lab.ids(words), "proposal") for words in ("a", "b c a", "a b", "c c c")] + [
        Warmup([], "proposal")
    ]
    assert lab.score(row, proposals, constraints).warmup_logprob.isfinite().all()
