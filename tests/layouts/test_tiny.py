"""Models from scratch: the same seed gives the same weights; sizes are read with care; loading errors say what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rl_warmup.models.loading import disable_dropout, load_model, refuse_fp16
from rl_warmup.models.tiny import TinySize

SIZE = {"width": 8, "layers": 1, "heads": 2, "vocab_size": 300}
TEXTS = ["the house is blue", "das Haus ist blau"]


@pytest.mark.parametrize("name", ["scratch-t5", "scratch-llama"])
def test_the_seed_decides_the_weights(name):
    first, again, other = (load_model(name, lambda: TEXTS, SIZE, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["scratch-t5", "scratch-llama"])
@pytest.mark.parametrize("kind", ["words", "digits", "subwords"])
def test_the_tokenizer_reads_and_writes_its_texts(name, kind):
    model, tokenizer = load_model(name, lambda: TEXTS, {**SIZE, "tokenizer": kind})
    ids = tokenizer("das Haus", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == "das Haus"
    whole = tokenizer("das Haus")["input_ids"]
    ended = [*ids, tokenizer.eos_token_id] if name == "scratch-t5" else [tokenizer.bos_token_id, *ids]
    assert whole == ended
    assert "<extra_id_0>" in tokenizer.all_special_tokens
    assert "..." in tokenizer.decode(tokenizer("...", add_special_tokens=False)["input_ids"])
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


@pytest.mark.parametrize("name", ["scratch-t5", "scratch-llama"])
def test_digits_are_tokens_of_their_own_and_numbers_come_back_whole(name):
    _, tokenizer = load_model(name, lambda: ["4 ants , 12 bees", "0 34 4"], {**SIZE, "tokenizer": "digits"})
    ids = tokenizer("12 ants , 4 bees 34", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁1", "2", "▁ants", "▁,", "▁4", "▁bees", "▁3", "4"]
    assert tokenizer.decode(ids) == "12 ants , 4 bees 34"


def test_both_models_take_the_same_sizes():
    for name in ("scratch-t5", "scratch-llama"):
        model, _ = load_model(name, lambda: TEXTS, {**SIZE, "layers": 3})
        assert sum("layer_norm" in key or "layernorm" in key for key in model.state_dict()) >= 3
    t5, _ = load_model("scratch-t5", lambda: TEXTS, {**SIZE, "layers": 3, "encoder_layers": 1})
    assert (t5.config.num_layers, t5.config.num_decoder_layers) == (1, 3)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"widht": 8}, "scratch: unknown 'widht'. Allowed: width, layers"),
        ({"tokenizer": "bytes"}, "tokenizer is 'bytes'; allowed: words, digits, subwords"),
        ({"width": 10, "heads": 4}, "width 10 is not a multiple of heads 4"),
    ],
)
def test_sizes_that_make_no_sense(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        TinySize.read(values)


def test_a_missing_model_folder_is_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"model_name_or_path: .*nowhere' is no folder .*scratch-llama or start:NAME\.$"
    ):
        load_model(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="model_name_or_path: .*empty' could not be loaded"):
        load_model(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["scratch-t5", "scratch-llama"])
def test_a_saved_model_loads_by_its_folder(name, tmp_path):
    model, tokenizer = load_model(name, lambda: TEXTS, SIZE)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, its_tokenizer = load_model(str(tmp_path))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert its_tokenizer("das Haus")["input_ids"] == tokenizer("das Haus")["input_ids"]


def test_every_dropout_is_set_to_zero():
    model, _ = load_model("scratch-t5", lambda: TEXTS, SIZE)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
        if hasattr(module, "dropout_rate"):
            module.dropout_rate = 0.1
    model.train()
    ids = torch.tensor([[5, 6, 7]])

    def logits():
        return model(input_ids=ids, decoder_input_ids=ids).logits

    assert not torch.equal(logits(), logits())
    disable_dropout(model)
    assert torch.equal(logits(), logits())


def test_fp16_is_refused_for_the_t5_family_only():
    for dtype in ("fp16", "float16", "torch.float16"):
        with pytest.raises(ValueError, match="mt5 overflows in float16. Use bf16"):
            refuse_fp16("mt5", dtype)
    refuse_fp16("mt5", "torch.bfloat16")
    refuse_fp16("llama", "fp16")
