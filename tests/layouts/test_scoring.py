"""What scoring promises besides the right numbers: padding, chunks, one encoder pass, precision, checkpointing, adapters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.engine import sample_warmups, score
from rl_warmup.engine.fast import logprobs
from rl_warmup.models.layouts.splice import splice


def example(lab):
    """Two prompts with two warmups each, one empty row, all of different length."""
    rows = [lab.row("a b c d", "e f"), lab.row("g", "h")]
    warmups = [("d c", "separator"), ("a a a", "length"), ("b", "separator"), ("f e", "proposal")]
    plan = [(i // 2, RowKind.GROUP, Warmup(lab.ids(words), finish)) for i, (words, finish) in enumerate(warmups)]
    return splice(lab.layout, rows, [*plan, (1, RowKind.EMPTY, Warmup([], "empty"))], 2)


def gradients(lab, scores):
    parameters = list(lab.model.parameters())
    loss = (scores.warmup_logprob + 2 * scores.target_logprob).sum()
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def same_gradients(one, other):
    """Up to the order of float32 sums: the difference is small against the whole gradient."""
    flat_one, flat_other = (torch.cat([g.flatten().double() for g in gradient]) for gradient in (one, other))
    assert (flat_one - flat_other).norm() < 2e-5 * flat_other.norm()


def test_more_padding_changes_nothing(lab):
    batch, constraints = example(lab), lab.constraints(max_length=3, min_length=1)
    pad = lab.tokens.pad_id
    wide = replace(
        batch,
        seq_ids=F.pad(batch.seq_ids, (0, 5), value=pad),
        seq_mask=F.pad(batch.seq_mask, (0, 5)),
        warmup_mask=F.pad(batch.warmup_mask, (0, 5)),
        target_mask=F.pad(batch.target_mask, (0, 5)),
    )
    if lab.model.config.is_encoder_decoder:
        wide.prompt_ids, wide.prompt_mask = F.pad(batch.prompt_ids, (0, 4), value=pad), F.pad(batch.prompt_mask, (0, 4))
    narrow_scores, wide_scores = score(lab.model, batch, constraints), score(lab.model, wide, constraints)
    torch.testing.assert_close(wide_scores.warmup_logprob, narrow_scores.warmup_logprob, rtol=0, atol=1e-5)
    torch.testing.assert_close(wide_scores.target_logprob, narrow_scores.target_logprob, rtol=0, atol=1e-5)
    torch.testing.assert_close(wide_scores.token_logps[:, :-5], narrow_scores.token_logps, rtol=0, atol=1e-6)
    assert (wide_scores.token_logps[:, -5:] == 0).all()


def test_tokens_in_padding_do_not_matter(lab):
    batch, constraints = example(lab), lab.constraints(max_length=3)
    other = replace(batch, seq_ids=batch.seq_ids.masked_fill(batch.seq_mask == 0, lab.ids("h")[0]))
    torch.testing.assert_close(
        score(lab.model, other, constraints).token_logps, score(lab.model, batch, constraints).token_logps
    )


def test_other_rows_do_not_matter(lab):
    constraints = lab.constraints(max_length=3)
    together = score(lab.model, example(lab), constraints).target_logprob
    alone = lab.score(lab.row("a b c d", "e f"), [Warmup(lab.ids("a a a"), "length")], constraints)
    assert together[1].item() == pytest.approx(alone.target_logprob.item(), abs=1e-5)


@pytest.mark.parametrize("logits_per_chunk", [1, 40])
def test_a_chunked_head_changes_neither_values_nor_gradients(lab, monkeypatch, logits_per_chunk):
    batch, constraints = example(lab), lab.constraints(max_length=3, min_length=1, top_p=0.9)
    whole = score(lab.model, batch, constraints)

    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", logits_per_chunk)
    monkeypatch.setattr(logprobs, "ROWS_PER_CHUNK", 1)
    monkeypatch.setattr(logprobs, "KEPT_LOGITS", 50)  # some chunks wait for the backward, the others are computed again
    chunked = score(lab.model, batch, constraints)
    torch.testing.assert_close(chunked.token_logps, whole.token_logps)
    same_gradients(gradients(lab, chunked), gradients(lab, whole))


def test_the_encoder_reads_every_prompt_once(t5):
    batch, seen = example(t5), []
    hook = t5.model.get_encoder().register_forward_hook(
        lambda _, args, kwargs, out: seen.append(out[0].shape), with_kwargs=True
    )
    score(t5.model, batch, t5.constraints(max_length=3))
    hook.remove()
    tokens = int(batch.prompt_mask.sum())  # of two prompts, though five rows are scored
    assert [shape[:2].numel() for shape in seen] == [tokens]


def test_only_counted_positions_reach_the_head(lab):
    seen = []
    hook = lab.model.get_output_embeddings().register_forward_hook(
        lambda _, args, out: seen.append(tuple(args[0].shape[:-1]))
    )
    batch = example(lab)
    score(lab.model, batch, lab.constraints(max_length=3))
    hook.remove()
    counted = int(batch.warmup_mask.sum() + batch.target_mask.sum())
    assert [shape for shape in seen if len(shape) == 1] == [(counted,)]


def test_bf16_weights_give_float32_log_probabilities(lab, new_lab):
    """The hidden states are bf16; head and log-softmax are not: the result equals a float32 head on the same states."""
    half = new_lab("scratch-t5" if lab.model.config.is_encoder_decoder else "scratch-llama")
    half.model.to(torch.bfloat16)
    batch, constraints = example(half), half.constraints(max_length=3)
    head, states = half.model.get_output_embeddings(), []
    hook = head.register_forward_pre_hook(lambda _, args: states.append(args[0].detach()))
    scores = score(half.model, batch, constraints)
    hook.remove()
    assert scores.token_logps.dtype == torch.float32
    target_states = states[-1][int(batch.warmup_mask.sum()) :]  # actions come first
    assert target_states.dtype == torch.bfloat16
    expected = (target_states.float() @ head.weight.float().T).log_softmax(1)
    ids = batch.seq_ids[batch.target_mask.bool()]
    got = scores.token_logps[batch.target_mask.bool()]
    torch.testing.assert_close(got, expected.gather(1, ids[:, None])[:, 0], rtol=0, atol=1e-6)
    full = score(lab.model, example(lab), lab.constraints(max_length=3))
    assert (scores.target_logprob - full.target_logprob).abs().max() < 0.5
    assert all(g is None or g.dtype == torch.bfloat16 for g in gradients(half, scores))


def test_autocast_leaves_head_and_sum_in_float32(lab):
    constraints = lab.constraints(max_length=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score(lab.model, example(lab), constraints)
    full = score(lab.model, example(lab), constraints)
    assert scores.target_logprob.dtype == torch.float32
    assert (scores.target_logprob - full.target_logprob).abs().max() < 0.5


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_gradient_checkpointing_changes_nothing(new_lab, kind, use_reentrant):
    lab = new_lab(kind)
    batch, constraints = example(lab), lab.constraints(max_length=3)
    plain = score(lab.model, batch, constraints)
    expected = gradients(lab, plain)
    lab.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    lab.model.train()
    if use_reentrant:
        lab.model.enable_input_require_grads()
    scores = score(lab.model, batch, constraints)
    torch.testing.assert_close(scores.token_logps, plain.token_logps)
    (scores.warmup_logprob + 2 * scores.target_logprob).sum().backward()
    same_gradients([p.grad for p in lab.model.parameters()], expected)


def test_rows_without_actions_or_groups(lab):
    """The SFT control has not a single action; a batch may also hold empty rows alone."""
    batch = splice(lab.layout, [lab.row("a", "b")], [(0, RowKind.EMPTY, Warmup([], "empty"))], 0)
    scores = score(lab.model, batch, lab.constraints())
    assert scores.warmup_logprob.tolist() == [0]
    assert scores.target_tokens.tolist() == [2]
    assert scores.target_logprob.item() < 0


def test_a_one_token_prompt_of_a_decoder_only_model_still_predicts_the_warmup(llama):
    constraints, warmup = llama.constraints("a b", max_length=1), Warmup(llama.ids("a"), "length")
    scores = llama.score(llama.row("c", "d"), [warmup], constraints)
    with torch.no_grad():
        logits = llama.model(input_ids=torch.tensor([llama.ids("c")])).logits[0, -1]
    allowed = [*llama.ids("a b"), llama.tokens.separator_id]
    assert scores.warmup_logprob.item() == pytest.approx(logits[allowed].log_softmax(0)[0].item(), abs=1e-5)


# ---------------------------------------------------------------------- adapters


def adapt(lab, **settings):
    peft = pytest.importorskip("peft")
    t5 = lab.model.config.is_encoder_decoder
    config = peft.LoraConfig(
        r=2, task_type="SEQ_2_SEQ_LM" if t5 else "CAUSAL_LM", init_lora_weights=False,
        **({"target_modules": ["q", "v"] if t5 else ["q_proj", "v_proj"]} | settings),
    )  # fmt: skip
    return peft.get_peft_model(lab.model, config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_an_adapter_is_scored_sampled_and_trained(new_lab, kind):
    lab = new_lab(kind)
    batch, constraints = example(lab), lab.constraints(max_length=3)
    plain = score(lab.model, batch, constraints).target_logprob.detach()
    model = adapt(lab)
    adapted = score(model, batch, constraints)
    assert not torch.allclose(adapted.target_logprob, plain)
    adapted.target_logprob.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained
    assert all("lora_" in name for name in trained)
    merged = model.merge_and_unload()
    torch.testing.assert_close(
        score(merged, batch, constraints).target_logprob, adapted.target_logprob, rtol=0, atol=1e-4
    )
    assert len(sample_warmups(model, lab.layout, constraints, [lab.ids("a b")], 3)) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=["lora", "saved"]
)
def test_an_adapter_on_the_head_is_refused(new_lab, settings):
    """It would be sampled with and scored without."""
    lab = new_lab("scratch-llama")
    model = adapt(lab, **settings)
    with pytest.raises(ValueError, match="The output head was replaced after scoring was enabled"):
        score(model, example(lab), lab.constraints(max_length=3))
