"""The output head after loading is the checkpoint's: its own where it is stored, the embeddings where it is not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations import deepspeed

from rl_warmup.models.loading import load_model
from rl_warmup.models.tiny import TinySize, build_model, build_tokenizer
from rl_warmup.models.weight_files import ROWS, check_head, stored_rows

SIZE = TinySize(width=16, layers=1, heads=2, tokenizer="words")


@pytest.fixture(params=["t5", "llama"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, kind):
    """A checkpoint whose head is tied."""
    tokenizer = build_tokenizer([" ".join(f"w{i}" for i in range(100))], SIZE, encoder_decoder=kind == "t5")
    build_model(kind, tokenizer, SIZE).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def give_own_head(folder) -> torch.Tensor:
    weights = load_file(folder / "model.safetensors")
    vocabulary = next(value for name, value in weights.items() if "shared" in name or "embed_tokens" in name)
    head = torch.randn(vocabulary.shape, generator=torch.Generator().manual_seed(1))
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    return head


def test_a_tied_head_is_the_embeddings(folder):
    model, _ = load_model(str(folder))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert stored_rows(str(folder), "lm_head.weight") == (True, None)
    model.get_output_embeddings().weight = nn.Parameter(torch.randn_like(model.get_input_embeddings().weight))
    with pytest.raises(ValueError, match=r"stores no lm_head.weight, so the output head must be the embeddings"):
        check_head(model, str(folder))


def test_an_own_head_is_kept(folder):
    head = give_own_head(folder)
    model, _ = load_model(str(folder))
    assert torch.equal(model.get_output_embeddings().weight, head)
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    with pytest.raises(ValueError, match=r"stores an output head .* It is tied to the embeddings instead"):
        check_head(model, str(folder))


def test_an_own_head_is_kept_while_zero3_is_on(folder):
    """What transformers sees of it is hidden; it would load shards, find them equal and tie them."""

    class Zero3:
        def is_zero3(self):
            return True

    head, config = give_own_head(folder), Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        model, _ = load_model(str(folder))
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert torch.equal(model.get_output_embeddings().weight, head)


def test_a_rounded_head_is_the_same_head(folder):
    give_own_head(folder)
    model, _ = load_model(str(folder), dtype=torch.bfloat16)
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["t5"], indirect=True)
def test_every_kind_of_weight_file_is_read(folder):
    head = give_own_head(folder)
    found, rows = stored_rows(str(folder), "lm_head.weight")
    assert found
    assert torch.equal(rows, head[:ROWS])
    assert len(head) > ROWS
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part-2.safetensors")
    index = {"weight_map": {"lm_head.weight": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(stored_rows(str(folder), "lm_head.weight")[1], head[:ROWS])
    assert stored_rows(str(folder), "other.weight") == (True, None)
    (folder / "model.safetensors.index.json").unlink()
    torch.save({f"language.{name}": value for name, value in weights.items()}, folder / "pytorch_model.bin")
    assert torch.equal(stored_rows(str(folder), "lm_head.weight")[1], head[:ROWS])
    (folder / "pytorch_model.bin").unlink()
    assert stored_rows(str(folder), "lm_head.weight") == (False, None)
