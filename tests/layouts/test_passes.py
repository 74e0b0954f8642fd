"""Every forward pass gives the same numbers."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.engine import enable_scoring, score
from rl_warmup.engine.fast import buckets, packed, passes
from rl_warmup.models.layouts.splice import splice

# ---------------------------------------------------------------------- the same from every pass


def random_batch(layout, seed: int):
    """Three prompts with three, one and five warmups, two empty rows; nothing has the length of anything else."""
    generator = random.Random(seed)

    def words(low: int, high: int) -> list[int]:
        return [generator.randint(5, 19) for _ in range(generator.randint(low, high))]

    prompts = [{"prompt_ids": words(1, 7), "target_ids": [*words(0, 5), 1]} for _ in range(3)]
    rows = [
        (prompt, RowKind.GROUP, Warmup(words(0, 6), generator.choice(["separator", "length", "proposal"])))
        for prompt, size in enumerate((3, 1, 5))
        for _ in range(size)
    ]
    rows += [(prompt, RowKind.EMPTY, Warmup([], "empty")) for prompt in (2, 0)]
    return splice(layout, prompts, rows, 2)


def weighted(scores):
    weights = torch.randn(2, len(scores.warmup_logprob), generator=torch.Generator().manual_seed(7))
    return (weights[0] * scores.warmup_logprob + weights[1] * scores.target_logprob).sum()


def gradient(model, loss):
    """Of all parameters, one long float64 vector."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pieces = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    return torch.cat([piece.flatten().double() for piece in pieces])


def relative(one, other) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture
def passes_used(monkeypatch):
    """The names of the passes that scoring chose."""
    taken = []
    names = [f"packed_{kind}_states" for kind in ("shared", "concatenated", "decoder")]
    for name in [*names, "padded_concatenated_states", "padded_decoder_states"]:
        stock = getattr(passes, name)

        def spied(*args, name=name, stock=stock, **kwargs):
            taken.append(name)
            return stock(*args, **kwargs)

        monkeypatch.setattr(passes, name, spied)
    return taken


@pytest.mark.parametrize("max_length", [None, 9, 1], ids=["one-sequence", "some-sequences", "a-sequence-per-row"])
@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "gemma2"])
def test_prompts_read_once_or_with_every_row(
    name, max_length, build, layout_of, constraints_of, passes_used, monkeypatch
):
    model = build(name, **({"sliding_window": 64} if name == "gemma2" else {}))
    enable_scoring(model)
    stock_pack, counts = passes.pack_rows, []

    def packed_rows(lengths, prompts, width):
        out = stock_pack(lengths, prompts, max_length or 1000)
        counts.append(len(out.prompt))
        return out

    monkeypatch.setattr(passes, "pack_rows", packed_rows)
    constraints = constraints_of(temperature=1.3, max_length=6)
    for seed in range(3):
        batch = random_batch(layout_of(model), seed)
        passes_used.clear()
        shared, joined = score(model, batch, constraints), score(model, replace(batch, group_size=0), constraints)
        assert passes_used == ["packed_shared_states", "packed_concatenated_states"]
        torch.testing.assert_close(shared.token_logps, joined.token_logps, rtol=0, atol=1e-5)
        assert relative(gradient(model, weighted(shared)), gradient(model, weighted(joined))) < 1e-5
    assert all(count == 3 if max_length is None else count > 3 for count in counts)


@pytest.mark.parametrize("name", ["t5", "llama-grouped", "gpt2"])
def test_several_passes_equal_one_pass(name, build, layout_of, constraints_of, monkeypatch):
    """Also if the middle prompt has no rows: its part of the cache goes into the first pass."""
    model = build(name)
    enable_scoring(model)
    head, constraints, forwards = model._warmup_head, constraints_of(temperature=1.3, max_length=6), []
    stock = head.stock_forward
    head.stock_forward = lambda *args, **kwargs: (forwards.append(1), stock(*args, **kwargs))[1]
    for seed in range(3):
        batch = random_batch(layout_of(model), seed)
        some = replace(batch.select([8, 2, 10, 6, 0]), group_size=2)
        for part, most in ((batch, 3), (some, 2)):
            whole = score(model, part, constraints)
            expected = gradient(model, weighted(whole))
            forwards.clear()
            with monkeypatch.context() as patched:
                patched.setattr(passes, "MAX_NUMBERS_PER_PASS", 1)
                several = score(model, part, constraints)
            assert len(forwards) == most + (name != "t5")  # a decoder-only network reads its prompts besides
            torch.testing.assert_close(several.token_logps, whole.token_logps, rtol=0, atol=1e-5)
            assert relative(gradient(model, weighted(several)), expected) < 1e-5


def assert_equals_stock(scores, batch, expected_of):
    """Target log-probabilities, row by row, against the untouched model's."""
    for row in range(len(batch.warmups)):
        expected = expected_of(row)
        counted = batch.target_mask[row, : len(expected)].bool()
        got = scores.token_logps[row, : len(expected)]
        torch.testing.assert_close(got[counted], expected[counted], rtol=0, atol=1e-5)


def test_a_window_that_is_too_short_needs_its_own_mask(build, layout_of, constraints_of, passes_used, stock):
    """A Gemma 2 looks back 4 tokens in every other layer; masks of ours would undo that."""
    untouched = build("gemma2")
    model = copy.deepcopy(untouched)
    enable_scoring(model)
    batch = random_batch(layout_of(model), 0)
    passes_used.clear()
    scores = score(model, batch, constraints_of(max_length=6))
    assert passes_used == ["padded_concatenated_states"]
    assert_equals_stock(scores, batch, lambda row: stock(untouched, batch, row))


@pytest.mark.parametrize("name", ["llama-grouped", "t5"])
def test_gradient_checkpointing_pads_rows_and_warns_once(
    name, build, layout_of, constraints_of, passes_used, warnings_of
):
    model = build(name, **({"dropout_rate": 0.0} if name == "t5" else {}))
    enable_scoring(model)
    batch, constraints = random_batch(layout_of(model), 1), constraints_of(temperature=1.3, max_length=6)
    plain = score(model, batch, constraints)
    expected = gradient(model, weighted(plain))
    assert warnings_of() == []
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    passes_used.clear()
    for _ in range(2):
        assert relative(gradient(model, weighted(score(model, batch, constraints))), expected) < 2e-5
    assert passes_used == ["padded_decoder_states" if name == "t5" else "padded_concatenated_states"] * 2
    assert len([text for text in warnings_of() if "gradient checkpointing computes layers twice" in text]) == 1
    with torch.no_grad():
        torch.testing.assert_close(score(model, batch, constraints).token_logps, plain.token_logps, rtol=0, atol=1e-5)
    model.eval()
    passes_used.clear()
    torch.testing.assert_close(score(model, batch, constraints).token_logps, plain.token_logps, rtol=0, atol=1e-5)
    assert passes_used == ["packed_decoder_states" if name == "t5" else "packed_shared_states"]


class Forgetful(LlamaForCausalLM):
    """Ignores the positions it is given."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class Narrow(LlamaForCausalLM):
    """Passes no extra arguments on to its attention."""

    def forward(self, *args, packing=None, implementation=None, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(("kind", "nats"), [(Forgetful, r"0\.\d+|\d"), (Narrow, "inf")])
def test_a_network_that_cannot_go_without_padding_is_noticed(
    kind, nats, configs, layout_of, constraints_of, passes_used, warnings_of, stock
):
    model = kind(copy.deepcopy(configs["llama-grouped"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    untouched = LlamaForCausalLM(configs["llama-grouped"]).eval()
    untouched.load_state_dict(model.state_dict())
    enable_scoring(model)
    assert not model._warmup_head.can_pack
    assert not model._warmup_head.can_decode
    assert model.config._attn_implementation == untouched.config._attn_implementation
    (said,) = warnings_of()
    assert f"{kind.__name__} cannot read rows without padding" in said
    assert ("inf nats" in said) == (nats == "inf")
    batch = random_batch(layout_of(model), 2)
    passes_used.clear()
    scores = score(model, batch, constraints_of(max_length=6))
    assert passes_used == ["padded_concatenated_states"]
    assert_equals_stock(scores, batch, lambda row: stock(untouched, batch, row))


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "gemma2"])
def test_rows_alone_have_the_gradient_of_padded_ones(name, build, layout_of, constraints_of, passes_used):
    model = build(name, **({"sliding_window": 64} if name == "gemma2" else {}))
    enable_scoring(model)
    batch, constraints = (
        replace(random_batch(layout_of(model), 4), group_size=0),
        constraints_of(temperature=1.3, max_length=6),
    )
    passes_used.clear()
    alone = score(model, batch, constraints)
    expected = gradient(model, weighted(alone))
    model._warmup_head.can_pack = False
    padded = score(model, batch, constraints)
    assert passes_used == ["packed_concatenated_states", "padded_concatenated_states"]
    torch.testing.assert_close(alone.token_logps, padded.token_logps, rtol=0, atol=1e-5)
    assert relative(gradient(model, weighted(padded)), expected) < 1e-5


# ---------------------------------------------------------------------- encoder-decoder


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("name", ["t5", "t5-v1.1", "mt5", "padded t5", "bart", "t5gemma", "t5gemma2"])
def test_decoder_rows_have_the_gradient_of_the_stock_model(
    name, many, build, layout_of, monkeypatch, stock_with_gradient, constraints_of
):
    """One unpadded row at a time. If the constraints allow every token, actions are scored like all others.

    `many`: buckets, or passes where rows are padded.
    """
    if many:
        for module, share in (
            (passes, "MIN_SAVING_PER_PASS"),
            (packed, "MIN_SAVING_PER_BUCKET"),
            (buckets, "MIN_TOKENS_SAVED"),
        ):
            monkeypatch.setattr(module, share, 0)
    untouched = build(name.split()[-1])
    model = copy.deepcopy(untouched)
    enable_scoring(model)
    model._warmup_head.can_pack &= not name.startswith("padded")
    assert model._warmup_head.can_pack == (name not in ("padded t5", "bart", "t5gemma", "t5gemma2"))
    batch, constraints = random_batch(layout_of(model), 3), constraints_of(allowed=range(20), max_length=6)
    rows, seen = len(batch.warmups), []
    model.get_decoder().register_forward_hook(lambda *_: seen.append(1))
    scores = score(model, batch, constraints)
    assert len(seen) == (len(set(batch.seq_mask.sum(1).tolist())) if many and not model._warmup_head.can_pack else 1)
    loss = 0
    weights = torch.randn(2, rows, generator=torch.Generator().manual_seed(7))
    for row in range(rows):
        logps = stock_with_gradient(untouched, batch, row)
        for weight, mask in zip(weights[:, row], (batch.warmup_mask, batch.target_mask), strict=True):
            loss = loss + weight * (logps * mask[row, : len(logps)]).sum()
    assert relative(gradient(model, weighted(scores)), gradient(untouched, loss)) < 1e-4


@pytest.mark.parametrize("name", ["t5", "t5-v1.1", "mt5"])
def test_a_t5_projects_every_prompt_once(name, build, layout_of, constraints_of):
    """Eleven rows, three prompts: each reaches the projections of the encoder's output once, in every layer, unpadded."""
    model, seen = build(name), []
    enable_scoring(model)
    for block in model.get_decoder().block:
        attention = block.layer[1].EncDecAttention
        for project in (attention.k, attention.v):
            project.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    batch = random_batch(layout_of(model), 1)
    assert batch.prompt_mask.sum(1).tolist() == [2, 3, 7]
    score(model, batch, constraints_of(max_length=6))
    assert seen == [2 + 3 + 7] * 4  # two layers, keys and values
