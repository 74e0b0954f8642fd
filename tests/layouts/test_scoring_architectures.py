"""Scoring equals the stock model, one unpadded row at a time, for every family the package names."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.engine import enable_scoring, sample_warmups, score
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts.splice import splice

VOCAB, SEPARATOR = 20, 4
NAMES = (
    "t5", "t5-v1.1", "mt5", "umt5", "bart", "t5gemma", "t5gemma2", "llama", "llama-grouped", "llama-tied", "mistral", "qwen2",
    "qwen3", "gemma2", "gpt2", "granite", "cohere",
)  # fmt: skip
PROMPTS = [
    {"prompt_ids": [3, 7, 8, 9, 10], "target_ids": [11, 12, 1]},
    {"prompt_ids": [5], "target_ids": [6, 6, 6, 13, 1]},
]
ROWS = [
    (0, RowKind.GROUP, Warmup([14, 15, 16], "length")),
    (0, RowKind.GROUP, Warmup([14], "separator")),
    (1, RowKind.GROUP, Warmup([8, 8], "separator")),
    (1, RowKind.GROUP, Warmup([7], "proposal")),
    (1, RowKind.EMPTY, Warmup([], "empty")),
]


def lay_out(model, layout_of):
    layout = layout_of(model)
    constraints = SamplingConstraints(SEPARATOR, layout.tokens.banned, temperature=1.4, min_length=1, max_length=3)
    return splice(layout, PROMPTS, ROWS, 2), layout, constraints


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_stock_model_row_by_row(name, stock, build, layout_of):
    untouched = build(name)
    model = copy.deepcopy(untouched)
    enable_scoring(model)
    batch, _, constraints = lay_out(model, layout_of)
    scores = score(model, batch, constraints)
    for row in range(len(ROWS)):
        expected = stock(untouched, batch, row)
        got = scores.token_logps[row, : len(expected)]
        is_target = batch.target_mask[row, : len(expected)].bool()
        torch.testing.assert_close(got[is_target], expected[is_target], rtol=1e-5, atol=1e-5)
        assert scores.target_logprob[row].item() == pytest.approx(expected[is_target].sum().item(), rel=1e-5, abs=2e-5)
    counted = (batch.warmup_mask + batch.target_mask).bool()
    assert (scores.token_logps[~counted] == 0).all()
    assert (scores.token_logps[counted] < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_warmups_are_scored_under_the_constraints(name, build, layout_of):
    """The stock logits, tempered and masked by hand, renormalised."""
    untouched = build(name)
    model = copy.deepcopy(untouched)
    enable_scoring(model)
    batch, _, constraints = lay_out(model, layout_of)
    got = score(model, batch, constraints).warmup_logprob
    for row, (_, _, warmup) in enumerate(ROWS):
        written = [*warmup.ids, SEPARATOR] if warmup.separator_is_action else warmup.ids
        expected = 0.0
        for step, token in enumerate(written):
            context, prompt = written[:step], PROMPTS[ROWS[row][0]]["prompt_ids"]
            with torch.no_grad():
                if untouched.config.is_encoder_decoder:
                    start = untouched.config.decoder_start_token_id
                    inputs = {
                        "input_ids": torch.tensor([prompt]),
                        "decoder_input_ids": torch.tensor([[start, *context]]),
                    }
                else:
                    inputs = {"input_ids": torch.tensor([[*prompt, *context]])}
                logits = untouched(**inputs).logits[0, -1] / 1.4
            logits[:4] = -torch.inf
            if step < 1:
                logits[SEPARATOR] = -torch.inf
            expected += logits.log_softmax(0)[token].item()
        assert got[row].item() == pytest.approx(expected, rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_stock_model(name, build, layout_of):
    untouched = build(name)
    model = copy.deepcopy(untouched)
    enable_scoring(model)
    batch, _, constraints = lay_out(model, layout_of)
    score(model, batch, constraints).target_logprob.sum().backward()
    for row, (index, _, _) in enumerate(ROWS):
        seq = batch.seq_ids[row, : int(batch.seq_mask[row].sum())]
        if untouched.config.is_encoder_decoder:
            start = torch.tensor([untouched.config.decoder_start_token_id])
            inputs = {"input_ids": torch.tensor([PROMPTS[index]["prompt_ids"]])}
            logits = untouched(**inputs, decoder_input_ids=torch.cat([start, seq[:-1]])[None]).logits[0]
        else:
            prompt = torch.tensor(PROMPTS[index]["prompt_ids"])
            logits = untouched(input_ids=torch.cat([prompt, seq])[None]).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, seq[:, None])[:, 0]
        (logps * batch.target_mask[row, : len(seq)]).sum().backward()
    twins = dict(untouched.named_parameters())
    largest = max(p.grad.abs().max() for p in twins.values() if p.grad is not None)
    for label, parameter in model.named_parameters():
        twin = twins[label].grad
        assert (parameter.grad is None) == (twin is None), label
        if twin is not None:
            assert (parameter.grad - twin).abs().max() < 1e-4 * largest, label


@pytest.mark.parametrize("name", NAMES)
def test_the_patched_model_is_the_stock_model_otherwise(name, build):
    untouched = build(name)
    model = copy.deepcopy(untouched)
    enable_scoring(model)
    enable_scoring(model)  # once is enough
    tokens = torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, untouched(**inputs).logits)
    assert model.state_dict().keys() == untouched.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
def test_left_padding_changes_no_sampled_warmup(name, build, layout_of):
    """Alone or beside a longer prompt: with one token allowed a step, greedy-like draws are the same. Absolute positions
    (GPT-2) need `generate` to be told them, which it is only while the patched forward shows the stock signature."""
    model = build(name)
    enable_scoring(model)
    _, layout, _ = lay_out(model, layout_of)
    constraints = SamplingConstraints(
        SEPARATOR, torch.zeros(VOCAB, dtype=torch.bool), temperature=1e-3, min_length=4, max_length=4
    )
    short, long = [5, 6], [3, 7, 8, 9, 10, 11, 12]
    alone = sample_warmups(model, layout, constraints, [short], 1)
    beside = sample_warmups(model, layout, constraints, [short, long], 1)
    assert alone[0].ids == beside[0].ids
    assert beside[1].ids == sample_warmups(model, layout, constraints, [long], 1)[0].ids


class DoubledLogits(LlamaForCausalLM):
    """Does something after its head that nobody declared."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


def test_an_unknown_transformation_of_logits_is_refused(configs):
    model = DoubledLogits(configs["llama"])
    with torch.no_grad():
        model.lm_head.weight.normal_()
    message = r"DoubledLogits changes its logits after the head .* differ .* by .* nats"
    for _ in range(2):  # also when asked again
        with pytest.raises(ValueError, match=message):
            enable_scoring(model)
    model(input_ids=torch.tensor([[5, 6]]))  # the model itself is as it was


@pytest.mark.parametrize("name", ["t5", "llama-tied"])
def test_a_deep_copy_scores_with_its_own_weights(name, build, layout_of):
    """A frozen copy of the policy would otherwise silently follow it."""
    model = build(name)
    enable_scoring(model)
    batch, _, constraints = lay_out(model, layout_of)
    frozen = copy.deepcopy(model)
    before = score(model, batch, constraints).target_logprob.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(score(frozen, batch, constraints).target_logprob, before)
    assert (score(model, batch, constraints).target_logprob - before).abs().max() > 1e-2
    score(frozen, batch, constraints).target_logprob.sum().backward()
    assert all(p.grad is None for p in model.parameters())
