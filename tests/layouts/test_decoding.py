"""Which networks are decoded by a loop of our own, what they read meanwhile, and what happens to all others."""

from __future__ import annotations

import pytest

from rl_warmup.batch import RowKind
from rl_warmup.engine import enable_scoring, plain, sample_warmups, score
from rl_warmup.models.layouts.splice import splice

KNOWN = ("t5", "t5-v1.1", "mt5", "llama", "llama-grouped", "llama-tied", "mistral", "qwen2", "qwen3")
PROMPTS = [[3, 7, 8, 9, 10], [5], [12, 13]]
TARGETS = [[11, 12, 1], [6, 6, 6, 13, 1], [1]]
N = 6


class Reads:
    """Counts what a network reads: tokens of prompts, rows of every decoding step, tokens of continuations."""

    def __init__(self, model):
        self.steps: list[int] = []
        self.prompts: list[int] = []
        decoder, both = model.get_decoder(), model.config.is_encoder_decoder
        first = decoder.block[0].layer[0].SelfAttention.q if both else decoder.layers[0].self_attn.q_proj
        first.register_forward_pre_hook(self._projected)
        body = model.get_encoder() if both else decoder
        body.register_forward_pre_hook(self._begun, with_kwargs=True)
        body.register_forward_hook(self._ended)
        self.in_prompts = False

    def _begun(self, _, args, kwargs):
        self.in_prompts = True
        self.prompts.append(kwargs["inputs_embeds"].shape[:2].numel())

    def _ended(self, *_):
        self.in_prompts = False

    def _projected(self, _, args):
        if self.in_prompts:
            return
        self.steps.append(len(args[0]))


@pytest.fixture(params=KNOWN)
def watched(request, build, layout_of):
    """A supported network, its layout and what it reads."""
    model = build(request.param)
    enable_scoring(model)
    return model, layout_of(model), Reads(model)


def first_step(model) -> list[int]:
    """A decoder's start token is read once per prompt; a decoder-only network needs none."""
    return [len(PROMPTS)] if model.config.is_encoder_decoder else []


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["warmups", "targets"])
def test_prompts_are_read_once_and_ended_warmups_no_more(watched, constraints_of, targets):
    """Of a warmup all L tokens are read, not its separator; the last one before the limit only if a target follows."""
    model, layout, reads = watched
    constraints = constraints_of(temperature=2.5, max_length=6)
    warmups = sample_warmups(model, layout, constraints, PROMPTS, N, targets=targets)
    fed = [min(len(warmup.ids), constraints.max_length - 1) for warmup in warmups]
    steps = first_step(model) + [sum(tokens > step for tokens in fed) for step in range(max(fed))]
    assert len(set(steps)) > 2  # the lengths did differ
    if targets is not None:  # then all tokens of the separators and targets at once, but each target's last
        steps.append(N * sum(len(target) for target in targets) + sum(warmup.finish == "length" for warmup in warmups))
    assert reads.steps == steps
    assert reads.prompts == [sum(len(prompt) for prompt in PROMPTS)]


def test_the_loop_stops_when_all_have_ended(watched, constraints_of):
    """Nothing but the separator is possible: all warmups end at once, and nothing more is read, whatever the limit."""
    model, layout, reads = watched
    warmups = sample_warmups(model, layout, constraints_of(allowed=(), max_length=50), PROMPTS, N)
    assert {(len(w.ids), w.finish, w.logprob) for w in warmups} == {(0, "separator", 0.0)}
    assert reads.steps == first_step(model)


def test_a_limit_of_one_takes_no_step(watched, constraints_of):
    model, layout, reads = watched
    warmups = sample_warmups(model, layout, constraints_of(max_length=1), PROMPTS, N)
    assert {len(w.ids) for w in warmups} <= {0, 1}
    assert reads.steps == first_step(model)
    assert len(reads.prompts) == 1


@pytest.fixture
def calls(monkeypatch):
    """How often warmups were sampled by `generate`."""
    seen, stock = [], plain.sample

    def counted(*args, **kwargs):
        seen.append(args)
        return stock(*args, **kwargs)

    monkeypatch.setattr(plain, "sample", counted)
    return seen


OTHERS = ("bart", "t5gemma", "t5gemma2", "gpt2")
WINDOWS = {
    "mistral": {"sliding_window": 8},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None},
}


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in OTHERS), *WINDOWS.items()], ids=[*OTHERS, *WINDOWS]
)
def test_unsupported_networks_use_generate(name, changes, build, layout_of, constraints_of, calls, warnings_of):
    """Also a supported one whose attention window is shorter than prompt and warmup."""
    model = build(name, **changes)
    enable_scoring(model)
    constraints, layout = constraints_of(min_length=1, max_length=4, temperature=1.4), layout_of(model)
    for count in (1, 2):
        warmups = sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
        assert len(calls) == count
    assert len(warmups) == N * len(PROMPTS)
    assert {len(w.ids) for w in warmups} <= {1, 2, 3, 4}
    assert not {0, 1, 2, 3, 4} & {token for w in warmups for token in w.ids}
    assert all(w.finish == ("length" if len(w.ids) == 4 else "separator") for w in warmups)
    assert {(w.logprob, w.target_logps) for w in warmups} == {(None, None)}
    assert len([text for text in warnings_of() if "sampled by `generate`" in text]) == 1


@pytest.mark.parametrize("name", KNOWN)
def test_supported_networks_cause_no_warning(name, build, layout_of, constraints_of, calls, warnings_of):
    model = build(name)
    enable_scoring(model)
    sample_warmups(model, layout_of(model), constraints_of(max_length=4), PROMPTS, N, targets=TARGETS)
    assert calls == []
    assert warnings_of() == []


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("max_length", [1, 2, 3, 4])
def test_a_window_as_long_as_everything_that_is_read_does_not_matter(
    name, max_length, build, layout_of, constraints_of, calls
):
    """Windows of 8 tokens. The longest prompt has 5, so a warmup of up to 3 fits; targets must fit too, or are scored later."""
    model = build(name, **WINDOWS[name])
    enable_scoring(model)
    layout, constraints = layout_of(model), constraints_of(min_length=max_length, max_length=max_length)
    warmups = sample_warmups(model, layout, constraints, PROMPTS, N)
    assert len(calls) == (max_length == 4)
    warmups += sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
    data = [{"prompt_ids": p, "target_ids": t} for p, t in zip(PROMPTS, TARGETS, strict=True)]
    batch = splice(layout, data, [(i // N % 3, RowKind.GROUP, w) for i, w in enumerate(warmups)], 0)
    scores = score(model, batch, constraints)
    for row, warmup in enumerate(warmups):
        if warmup.logprob is not None:
            assert warmup.logprob == pytest.approx(scores.warmup_logprob[row].item(), abs=1e-4)
        if warmup.target_logps is not None:
            expected = scores.token_logps[row][batch.target_mask[row].bool()].tolist()
            assert warmup.target_logps == pytest.approx(expected, abs=1e-4)
