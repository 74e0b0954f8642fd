"""What `generate` writes: the plan where one is forced, the stock model's likeliest target after it, the limits."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from rl_warmup.batch import Warmup
from rl_warmup.engine import generate_targets, sample_warmups
from rl_warmup.models.loading import load_model

PROMPTS = ["a b c", "d", "e f"]
FORCED = ["b", "", "c d e"]


def next_logits(lab, prompt: list[int], written: list[int]) -> torch.Tensor:
    """The stock model, one unpadded row, no cache."""
    with torch.no_grad():
        if lab.model.config.is_encoder_decoder:
            decoder = torch.tensor([[lab.model.config.decoder_start_token_id, *written]])
            return lab.model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0, -1]
        return lab.model(input_ids=torch.tensor([[*prompt, *written]])).logits[0, -1]


def greedy_target(lab, prompt: list[int], warmup: list[int], limit: int) -> list[int]:
    written = [*warmup, lab.tokens.separator_id]
    target: list[int] = []
    while len(target) < limit:
        token = int(next_logits(lab, prompt, [*written, *target]).argmax())
        if token == lab.tokens.eos_id:
            break
        target.append(token)
    return target


def greedy_warmup(lab, prompt: list[int], constraints) -> Warmup:
    written: list[int] = []
    while len(written) < constraints.max_length:
        logits = next_logits(lab, prompt, written)
        logits[constraints.banned] = -torch.inf
        if len(written) < constraints.min_length:
            logits[constraints.separator_id] = -torch.inf
        token = int(logits.argmax())
        if token == constraints.separator_id:
            return Warmup(written, "separator")
        written.append(token)
    return Warmup(written, "length")


@pytest.mark.parametrize("limit", [1, 6])
def test_forced_warmups_are_followed_by_greedy_targets(lab, limit):
    prompts, forced = [lab.ids(p) for p in PROMPTS], [lab.ids(c) for c in FORCED]
    written = generate_targets(lab.model, lab.layout, lab.constraints(), prompts, limit, forced)
    for prompt, warmup, both in zip(prompts, forced, written, strict=True):
        assert both.target == greedy_target(lab, prompt, warmup, limit)
        assert both.warmup == Warmup(warmup, "proposal" if warmup else "empty")


def test_an_empty_forced_warmup_writes_from_the_separator(lab):
    prompt = lab.ids("a b c")
    (both,) = generate_targets(lab.model, lab.layout, lab.constraints(), [prompt], 5, [[]])
    assert both.warmup == Warmup([], "empty")
    assert both.target == greedy_target(lab, prompt, [], 5)


@pytest.mark.parametrize("settings", [{"max_length": 3}, {"min_length": 2, "max_length": 4}, {"max_length": 1}])
def test_inference_writes_the_likeliest_warmup_and_then_the_likeliest_target(lab, settings):
    constraints, prompts = lab.constraints(**settings), [lab.ids(p) for p in PROMPTS]
    for prompt, both in zip(prompts, generate_targets(lab.model, lab.layout, constraints, prompts, 6), strict=True):
        assert both.warmup == greedy_warmup(lab, prompt, constraints)
        assert both.target == greedy_target(lab, prompt, both.warmup.ids, 6)


@pytest.mark.parametrize("separator_logit", [50.0, -50.0])
def test_the_separator_ends_or_the_limit_does(new_lab, separator_logit):
    """A head that always or never wants the separator; the forced one is not counted as written."""
    lab = new_lab("scratch-llama")
    head = lab.model.get_output_embeddings()
    head.register_forward_hook(_bias(lab.tokens.separator_id, separator_logit))
    constraints, prompt = lab.constraints(min_length=1, max_length=3), lab.ids("a b")
    (both,) = generate_targets(lab.model, lab.layout, constraints, [prompt], 4)
    sampled = sample_warmups(lab.model, lab.layout, constraints, [prompt], 5)
    wanted = separator_logit > 0
    assert both.warmup.finish == ("separator" if wanted else "length")
    assert len(both.warmup.ids) == (1 if wanted else 3)
    assert {(len(w.ids), w.finish) for w in sampled} == {(1, "separator") if wanted else (3, "length")}
    assert lab.tokens.separator_id not in both.warmup.ids


def _bias(token: int, amount: float):
    def hook(module, args, out):
        out = out.clone()
        if out.size(-1) > token:  # only logits: the prompt's states pass through the head as they are
            out[..., token] += amount
        return out

    return hook


def test_sampled_targets_follow_the_model(lab):
    """The first target token after a forced warmup, drawn 2000 times."""
    prompt, warmup, draws = lab.ids("a b"), lab.ids("c"), 2000
    torch.manual_seed(3)
    written = generate_targets(
        lab.model, lab.layout, lab.constraints(), [prompt] * draws, 1, [warmup] * draws, sample_target=True
    )
    probabilities = next_logits(lab, prompt, [*warmup, lab.tokens.separator_id]).softmax(0)
    for token, probability in enumerate(probabilities.tolist()):
        drawn = sum(both.target == ([] if token == lab.tokens.eos_id else [token]) for both in written) / draws
        assert abs(drawn - probability) < 4 * (probability * (1 - probability) / draws) ** 0.5 + 1e-9


def test_groups_come_prompt_by_prompt_and_within_their_limits(lab):
    constraints, prompts = lab.constraints(min_length=2, max_length=4), [lab.ids(p) for p in PROMPTS]
    written = sample_warmups(lab.model, lab.layout, constraints, prompts, 50)
    assert len(written) == 150
    never = {i for i, banned in enumerate(constraints.banned.tolist()) if banned} | {constraints.separator_id}
    for warmup in written:
        assert 2 <= len(warmup.ids) <= 4
        assert warmup.finish == "length" if len(warmup.ids) == 4 else warmup.finish == "separator"
        assert not never & set(warmup.ids)


def test_the_checkpoints_own_settings_come_back_untouched(lab, new_lab):
    lab = new_lab("scratch-t5" if lab.model.config.is_encoder_decoder else "scratch-llama")
    own = GenerationConfig(repetition_penalty=5.0, top_k=1, max_length=3)
    lab.model.generation_config = own
    prompt = lab.ids("a b")
    (both,) = generate_targets(lab.model, lab.layout, lab.constraints(), [prompt], 9, [lab.ids("c c")])
    assert both.target == greedy_target(lab, prompt, lab.ids("c c"), 9)
    assert lab.model.generation_config is own
    assert own.repetition_penalty == 5.0
    with pytest.raises(TypeError):
        sample_warmups(lab.model, lab.layout, lab.constraints(), [prompt], 1, nonsense_argument=3, do_sample=True)
    assert lab.model.generation_config is own


def test_the_same_seed_gives_the_same_warmups(lab):
    constraints, prompts = lab.constraints(max_length=5), [lab.ids(p) for p in PROMPTS]
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(sample_warmups(lab.model, lab.layout, constraints, prompts, 4))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len({tuple(w.ids) for w in drawn[0][:4]}) > 1  # a group is not one warmup four times


def test_a_t5_with_fewer_encoder_than_decoder_layers(lab_of):
    """transformers would size the decoder's cache by the encoder and fail, or worse."""
    size = {"width": 16, "layers": 3, "encoder_layers": 1, "heads": 2, "tokenizer": "words"}
    lab = lab_of(*load_model("scratch-t5", lambda: ["a b c d e f g h"], size))
    constraints, prompt = lab.constraints(max_length=3), lab.ids("a b")
    (both,) = generate_targets(lab.model, lab.layout, constraints, [prompt], 6)
    assert both.warmup == greedy_warmup(lab, prompt, constraints)
    assert both.target == greedy_target(lab, prompt, both.warmup.ids, 6)
    assert len(sample_warmups(lab.model, lab.layout, constraints, [prompt], 3)) == 3
