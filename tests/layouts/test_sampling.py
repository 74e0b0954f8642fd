"""Our own sampler: its log-probabilities equal those of scoring, and nothing is read twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.engine import enable_scoring, paths, sample_warmups, score, score_sampled
from rl_warmup.engine.fast import passes, sampling
from rl_warmup.models.layouts.splice import splice

KNOWN = ("t5", "t5-v1.1", "mt5", "llama", "llama-grouped", "llama-tied", "mistral", "qwen2", "qwen3")
PROMPTS = [[3, 7, 8, 9, 10], [5], [12, 13]]
TARGETS = [[11, 12, 1], [6, 6, 6, 13, 1], [1]]
N = 6
CONSTRAINTS = {
    "tempered": {"temperature": 1.4, "min_length": 1, "max_length": 5},
    "from-nothing": {"top_p": 0.8, "max_length": 4},
    "nucleus": {"temperature": 1.7, "top_p": 0.9, "min_length": 1, "max_length": 6},
    "two-words": {"allowed": (7, 8), "temperature": 4.0, "max_length": 3},  # often empty
}


@pytest.fixture(scope="module", params=KNOWN)
def known(request, build, layout_of):
    """A supported network and its layout."""
    model = build(request.param)
    enable_scoring(model)
    return model, layout_of(model)


@pytest.fixture(params=["t5", "llama-grouped"])
def either(request, build, layout_of):
    """One encoder-decoder and one decoder-only network, which a test may change."""
    model = build(request.param)
    enable_scoring(model)
    return model, layout_of(model)


def spliced(layout, warmups, extra=()):
    """The groups prompt by prompt, then single rows."""
    data = [{"prompt_ids": p, "target_ids": t} for p, t in zip(PROMPTS, TARGETS, strict=True)]
    n = len(warmups) // len(PROMPTS)
    rows = [(i // n, RowKind.GROUP, warmup) for i, warmup in enumerate(warmups)]
    return splice(layout, data, [*rows, *extra], n)


@pytest.mark.parametrize("settings", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_log_probabilities_of_the_sampler_equal_scoring(known, constraints_of, settings):
    (model, layout), constraints = known, constraints_of(**settings)
    warmups = sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
    assert len(warmups) == N * len(PROMPTS)
    batch = spliced(layout, warmups)
    scores = score(model, batch, constraints)
    sampled = torch.tensor([warmup.logprob for warmup in warmups])
    torch.testing.assert_close(sampled, scores.warmup_logprob.detach(), rtol=0, atol=1e-4)
    for row, warmup in enumerate(warmups):
        expected = scores.token_logps[row][batch.target_mask[row].bool()].tolist()
        assert len(expected) == len(TARGETS[row // N])
        assert warmup.target_logps == pytest.approx(expected, abs=1e-4)
    assert {warmup.finish for warmup in warmups} == {"separator", "length"}
    if settings == CONSTRAINTS["two-words"]:
        assert [] in [warmup.ids for warmup in warmups]


def test_scoring_what_was_sampled_equals_scoring(known, constraints_of):
    """Together with an empty row and a proposal, for which the sampler computed nothing."""
    (model, layout), constraints = known, constraints_of(**CONSTRAINTS["two-words"])
    warmups = sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
    assert {len(warmup.ids) for warmup in warmups} >= {0, constraints.max_length}
    proposal = Warmup([14, 15, 16, 17, 18], "proposal")  # longer than any sample
    batch = spliced(layout, warmups, [(1, RowKind.EMPTY, Warmup([], "empty")), (0, RowKind.ANCHOR, proposal)])
    full, cheap = score(model, batch, constraints).detach(), score_sampled(model, batch, constraints)
    for name in ("warmup_logprob", "target_logprob"):
        torch.testing.assert_close(getattr(cheap, name), getattr(full, name), rtol=0, atol=2e-4)
    for name in ("warmup_tokens", "target_tokens"):
        assert torch.equal(getattr(cheap, name), getattr(full, name))
    sampled = torch.arange(len(batch.warmups))[:, None] < len(warmups)
    promised = full.token_logps.masked_fill(sampled & batch.warmup_mask.bool(), 0)  # of sampled warmups the sum alone
    torch.testing.assert_close(cheap.token_logps, promised, rtol=0, atol=1e-4)
    assert not cheap.target_logprob.requires_grad


@pytest.mark.parametrize(
    "sampled", [{}, {"logprob": -1.0}, {"target_logps": [-1.0]}], ids=["nothing", "warmup", "target"]
)
def test_rows_with_one_of_two_numbers_are_scored(either, constraints_of, sampled):
    """Here all rows, as `generate` wrote them."""
    (model, layout), constraints = either, constraints_of(**CONSTRAINTS["tempered"])
    warmups = [w._replace(logprob=None) for w in sample_warmups(model, layout, constraints, PROMPTS, 2)]
    batch = spliced(layout, [warmup._replace(**sampled) for warmup in warmups])
    full, cheap = score(model, batch, constraints).detach(), score_sampled(model, batch, constraints)
    torch.testing.assert_close(cheap.warmup_logprob, full.warmup_logprob, rtol=0, atol=1e-5)
    torch.testing.assert_close(cheap.token_logps, full.token_logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "bound", [(passes, "MAX_NUMBERS_PER_PASS"), (sampling, "MAX_SCORES_PER_PASS")], ids=["tokens", "scores"]
)
def test_scoring_targets_in_small_passes_changes_nothing(known, constraints_of, monkeypatch, bound):
    (model, layout), constraints = known, constraints_of(**CONSTRAINTS["tempered"])
    torch.manual_seed(5)
    whole = sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
    monkeypatch.setattr(*bound, 1)
    torch.manual_seed(5)
    parts = sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
    assert [w.ids for w in parts] == [w.ids for w in whole]
    for one, other in zip(parts, whole, strict=True):
        assert one.target_logps == pytest.approx(other.target_logps, abs=1e-5)


def test_logits_in_small_chunks_change_nothing(either, constraints_of, monkeypatch):
    (model, layout), constraints = either, constraints_of(**CONSTRAINTS["tempered"])
    torch.manual_seed(5)
    whole = sample_warmups(model, layout, constraints, PROMPTS, N)
    monkeypatch.setattr(sampling, "LOGITS_PER_CHUNK", 1)
    monkeypatch.setattr(sampling, "ROWS_PER_CHUNK", 2)
    torch.manual_seed(5)
    parts = sample_warmups(model, layout, constraints, PROMPTS, N)
    assert [w.ids for w in parts] == [w.ids for w in whole]
    assert [w.logprob for w in parts] == pytest.approx([w.logprob for w in whole], abs=1e-5)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["warmups", "targets"])
def test_the_same_seed_gives_the_same_numbers(either, constraints_of, targets):
    (model, layout), constraints, drawn = either, constraints_of(temperature=1.4, max_length=5), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(sample_warmups(model, layout, constraints, PROMPTS, N, targets=targets))
    assert drawn[0] == drawn[1]  # ids, endings, log-probabilities
    assert drawn[0] != drawn[2]


def test_scoring_targets_changes_no_sample(either, constraints_of):
    (model, layout), constraints = either, constraints_of(temperature=1.4, max_length=5)
    torch.manual_seed(3)
    alone = sample_warmups(model, layout, constraints, PROMPTS, N)
    torch.manual_seed(3)
    ahead = sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
    assert [warmup._replace(target_logps=None) for warmup in ahead] == alone


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_an_adapter_is_active_while_sampling_and_scoring_from_the_cache(new_lab, kind):
    peft = pytest.importorskip("peft")
    lab = new_lab(kind)
    is_t5 = lab.model.config.is_encoder_decoder
    targets = ["q", "k", "v", "o", "wi"] if is_t5 else ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
    config = peft.LoraConfig(
        r=2, task_type="SEQ_2_SEQ_LM" if is_t5 else "CAUSAL_LM", init_lora_weights=False, target_modules=targets
    )
    model = peft.get_peft_model(lab.model, config).eval()
    constraints, rows = lab.constraints(max_length=4), [lab.row("a b c", "d e"), lab.row("f", "g")]
    prompts, ends = [row["prompt_ids"] for row in rows], [row["target_ids"] for row in rows]
    warmups = sample_warmups(model, lab.layout, constraints, prompts, 4, targets=ends)
    batch = splice(lab.layout, rows, [(i // 4, RowKind.GROUP, w) for i, w in enumerate(warmups)], 4)
    with torch.no_grad():
        adapted = score(model, batch, constraints)
        with model.disable_adapter():
            bare = score(model, batch, constraints)
    assert (adapted.warmup_logprob - bare.warmup_logprob).abs().max() > 0.1
    sampled = score_sampled(model, batch, constraints)
    torch.testing.assert_close(sampled.warmup_logprob, adapted.warmup_logprob, rtol=0, atol=1e-4)
    torch.testing.assert_close(sampled.target_logprob, adapted.target_logprob, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_bf16_weights_are_sampled_as_exactly_as_they_are_scored(name, build, layout_of, constraints_of):
    """Against the same weights in float32: the mean error is that of the stock forward, measured at 0.9 to 1.2 times it."""
    model, exact = build(name, torch.bfloat16), build(name, torch.bfloat16).float()
    for network in (model, exact):
        enable_scoring(network)
    layout, constraints = layout_of(model), constraints_of(**CONSTRAINTS["tempered"])
    warmups = sample_warmups(model, layout, constraints, PROMPTS, 60, targets=TARGETS)
    batch = spliced(layout, warmups)
    sampled, stock, truth = (
        score_sampled(model, batch, constraints),
        score(model, batch, constraints).detach(),
        score(exact, batch, constraints).detach(),
    )
    assert sampled.warmup_logprob.dtype == sampled.token_logps.dtype == torch.float32
    for kind in ("warmup_logprob", "target_logprob"):
        ours, theirs, right = (getattr(scores, kind) for scores in (sampled, stock, truth))
        assert (ours - right).abs().mean() < 1.4 * (theirs - right).abs().mean() < 0.2
        assert (ours - theirs).abs().mean() < 0.1
        assert (ours - theirs).abs().max() < 0.6  # nats, of a whole warmup


def test_under_autocast(known, constraints_of):
    """Float32 weights, bf16 products: the trainer samples under the precision that scores."""
    (model, layout), constraints = known, constraints_of(**CONSTRAINTS["tempered"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warmups = sample_warmups(model, layout, constraints, PROMPTS, N, targets=TARGETS)
        batch = spliced(layout, warmups)
        sampled, stock = score_sampled(model, batch, constraints), score(model, batch, constraints).detach()
    truth = score(model, batch, constraints).detach()
    assert sampled.warmup_logprob.dtype == sampled.token_logps.dtype == torch.float32
    for kind in ("warmup_logprob", "target_logprob"):
        ours, theirs, right = (getattr(scores, kind) for scores in (sampled, stock, truth))
        assert (ours - right).abs().mean() < 1.4 * (theirs - right).abs().mean() + 0.02 < 0.2
        assert (ours - theirs).abs().max() < 0.5


def test_lengths_are_not_inferred_from_padding(known, constraints_of):
    """Constraints that allow the pad and the end token inside a warmup."""
    model, layout = known
    constraints = replace(constraints_of(temperature=3.0, max_length=5), banned=torch.zeros(20, dtype=torch.bool))
    constraints = replace(constraints, banned=(torch.arange(20) > 4))  # pad, end and three more: pads are drawn often
    warmups = sample_warmups(model, layout, constraints, PROMPTS, 20, targets=TARGETS)
    assert any(w.ids[-1:] == [0] and w.finish == "separator" for w in warmups)
    batch = spliced(layout, warmups)
    full, cheap = score(model, batch, constraints).detach(), score_sampled(model, batch, constraints)
    torch.testing.assert_close(cheap.warmup_logprob, full.warmup_logprob, rtol=0, atol=1e-4)
    torch.testing.assert_close(cheap.target_logprob, full.target_logprob, rtol=0, atol=2e-4)
    for warmup in warmups:
        assert (
            len(warmup.ids) == constraints.max_length
            if warmup.finish == "length"
            else len(warmup.ids) < constraints.max_length
        )


class OnAccelerator(torch.Tensor):
    """A device on a CPU that claims not to be one."""

    class Device(str):
        type = "cuda"

    @property
    def device(self):
        return self.Device("cpu")


@pytest.mark.parametrize("check_every", [1, 3, 100])
def test_an_accelerator_checks_for_ended_warmups_every_few_steps(known, constraints_of, monkeypatch, check_every):
    """Until the check, ended warmups are extended; neither log-probabilities nor targets see that."""
    stock_draw, (model, layout) = sampling._draw_step, known
    first = paths.decoding_for(model, 0).first
    monkeypatch.setattr(sampling, "CHECK_EVERY", check_every)
    monkeypatch.setattr(paths.decoding_for(model, 0), "first", lambda self: first(self).as_subclass(OnAccelerator))
    rows = []

    def plain(head, constraints, hidden, step, points):
        rows.append(len(points))
        return stock_draw(head, constraints, hidden.as_subclass(torch.Tensor), step, points)

    monkeypatch.setattr(sampling, "_draw_step", plain)
    constraints = constraints_of(temperature=2.0, max_length=12)
    warmups = sample_warmups(model, layout, constraints, PROMPTS, 8, targets=TARGETS)
    batch = spliced(layout, warmups)
    full, cheap = score(model, batch, constraints).detach(), score_sampled(model, batch, constraints)
    torch.testing.assert_close(cheap.warmup_logprob, full.warmup_logprob, rtol=0, atol=1e-4)
    torch.testing.assert_close(cheap.target_logprob, full.target_logprob, rtol=0, atol=2e-4)
    assert len({len(warmup.ids) for warmup in warmups}) > 3
    drawn = [min(len(warmup.ids) + 1, constraints.max_length) for warmup in warmups]
    looked = [step // check_every * check_every for step in range(len(rows))]  # who is left has been known since then
    assert rows == [sum(draws > step for draws in drawn) for step in looked]
