"""The reward model: tied to the policy, or a frozen generator of its own; and what is made of its number."""

import os
from contextlib import suppress

import pytest
import torch
from transformers.integrations import deepspeed

from rl_warmup.rewards.target_logprob import TargetLogProb
from rl_warmup.runtime import sharing


def frozen(path, **kwargs):
    return {"name": "target_logprob", "kwargs": {"model_name_or_path": str(path), **kwargs}}


def save(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def test_a_frozen_copy_scores_as_the_tied_policy(each_world, tmp_path):
    board = each_world.board([frozen(save(tmp_path, each_world.model, each_world.tokenizer))])
    generator = board.rewards[0].function
    assert not generator.tied
    assert not generator.model.training
    assert not any(p.requires_grad for p in generator.model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in a bf16 training step
        scores = each_world.judge(board, target_logps=torch.zeros(4))
    assert torch.allclose(scores.total, each_world.target_logps, atol=1e-5)
    assert torch.allclose(generator.logprob(each_world.batch), each_world.target_logprob, atol=1e-5)


def test_another_generator_scores_differently_and_stays_as_it_is(world, tmp_path, new_model):
    other = new_model("t5")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    board = world.board([frozen(save(tmp_path, other))])  # no tokenizer beside it: equal sizes are enough
    first = world.judge(board).total
    assert not torch.allclose(first, world.target_logps, atol=1e-3)
    assert torch.equal(world.judge(board).total, first)


def test_bfloat16_weights_are_close(world, tmp_path):
    board = world.board([frozen(save(tmp_path, world.model, world.tokenizer), dtype="bfloat16")])
    assert board.rewards[0].function.model.dtype == torch.bfloat16
    assert torch.allclose(world.judge(board).total, world.target_logps, atol=0.2)


def test_sizes_may_differ_where_the_tokenizer_agrees(world, tmp_path, new_model):
    path = save(tmp_path / "larger", new_model("t5", 24), world.tokenizer)
    assert world.judge([frozen(path)]).total.shape == (4,)
    path = save(tmp_path / "unknown", new_model("t5", 24))
    with pytest.raises(ValueError, match="has 24 embedding rows, the policy 16, and no tokenizer to compare"):
        world.board([frozen(path)])


def test_a_generator_with_too_small_a_vocabulary(world, tmp_path, new_model):
    path = save(tmp_path, new_model("t5", 11))
    with pytest.raises(
        ValueError, match="'target_logprob' cannot be prepared.*11 embedding rows.*tokenizer has 12 tokens"
    ):
        world.board([frozen(path)])


def test_a_generator_with_other_words(world, tmp_path, new_model, new_tokenizer):
    words = world.tokenizer.convert_ids_to_tokens(range(11))
    path = save(tmp_path, new_model("t5"), new_tokenizer([*words, "four"]))
    with pytest.raises(ValueError, match="another vocabulary: its token 'four' is 11, the policy's is missing"):
        world.board([frozen(path)])


def test_a_generator_of_the_other_kind(world, tmp_path, new_model):
    path = save(tmp_path, new_model("llama"), world.tokenizer)
    with pytest.raises(ValueError, match="is decoder-only, the policy is encoder-decoder.*the policy's kind"):
        world.board([frozen(path)])


def test_a_folder_without_a_model(world, tmp_path):
    with pytest.raises(ValueError, match="No model configuration can be read from"):
        world.board([frozen(tmp_path)])


def test_only_safetensors_are_read(world, tmp_path):
    world.model.config.save_pretrained(tmp_path)
    torch.save(world.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded as safetensors"):
        world.board([frozen(tmp_path)])


def test_an_unprepared_generator_says_so(world):
    with pytest.raises(RuntimeError, match=r"call prepare\(\) first"):
        TargetLogProb("somewhere")([0.0], world.batch)


def test_a_generator_is_whole_on_every_process(monkeypatch):
    class Zero3:
        def is_zero3(self):
            return True

    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    try:
        with suppress(OSError), sharing.whole_on_every_process():
            assert not deepspeed.is_deepspeed_zero3_enabled()
            assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
            raise OSError("torn")
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_gain_is_the_difference_of_two_scores(each_world):
    scores = each_world.judge(["gain"])
    without = each_world.target_logprob[4:].repeat_interleave(2)
    assert torch.allclose(scores.total, each_world.target_logps - without, atol=1e-6)
    assert scores.total[3].abs() < 1e-5  # an empty warmup gains nothing


def test_per_token_is_the_mean_over_target_tokens(each_world):
    counts = each_world.batch.target_mask[:4].sum(1)
    scores = each_world.judge(["target_logprob_per_token"])
    assert torch.allclose(scores.total, each_world.target_logps / counts, atol=1e-6)
