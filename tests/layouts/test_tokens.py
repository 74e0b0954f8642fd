"""Which token becomes the separator, what a warmup may not hold, and every way this can be refused."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.inference_settings import CONSTRAINTS, LAYOUT_FILE, Inference, read_layout
from rl_warmup.models.tokens import ADDED_SEPARATOR, declare_tokens

LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]


def make_tokenizer(special: list[str], eos: str | None, **roles: str) -> PreTrainedTokenizerFast:
    """Words a, b, c after the special tokens."""
    vocabulary = {token: i for i, token in enumerate([*special, "a", "b", "c"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=roles.get("unk_token", "c")))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own = [token for token in special if token not in (eos, *roles.values())]
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos, extra_special_tokens=own, **roles)


def make_t5(rows: int) -> T5ForConditionalGeneration:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=rows, decoder_start_token_id=0, **sizes))


def make_llama(rows: int, tie: bool = False) -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=tie, **sizes))


def t5_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(
        ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"], "</s>", pad_token="<pad>", unk_token="<unk>"
    )


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Nothing reserved at all."""
    return make_tokenizer(["<pad>", "</s>", "<tool>"], "</s>", pad_token="<pad>")


def allowed(tokens, tokenizer) -> list[str]:
    return [tokenizer.convert_ids_to_tokens(i) for i, banned in enumerate(tokens.banned.tolist()) if not banned]


def test_t5_takes_its_first_sentinel():
    tokenizer = t5_tokenizer()
    tokens = declare_tokens(make_t5(12), tokenizer)  # eight tokens, four rows without one
    assert (tokens.separator, tokens.separator_id, tokens.pad_id, tokens.eos_id) == ("<extra_id_0>", 3, 0, 1)
    assert allowed(tokens, tokenizer) == ["<extra_id_0>", "a", "b", "c"]
    assert tokens.banned.shape == (12,)


def test_llama_3_takes_a_reserved_token_and_gets_a_pad_token():
    tokenizer = make_tokenizer(LLAMA_3, "<|end_of_text|>", bos_token="<|begin_of_text|>")
    model = make_llama(7)
    tokens = declare_tokens(model, tokenizer)
    assert tokens.separator == "<|reserved_special_token_0|>"
    assert tokens.pad_id == tokens.eos_id == 1
    assert allowed(tokens, tokenizer) == ["<|reserved_special_token_0|>", "a", "b", "c"]
    assert model.get_input_embeddings().num_embeddings == 7  # nothing was added


def test_qwen_takes_a_token_that_never_occurs_in_text():
    tokenizer = make_tokenizer(QWEN, "<|im_end|>", pad_token="<|endoftext|>")
    tokens = declare_tokens(make_llama(8), tokenizer)
    assert tokens.separator == "<|object_ref_start|>"
    assert allowed(tokens, tokenizer) == ["<|object_ref_start|>", "a", "b", "c"]


def test_a_separator_of_ones_own_is_taken_and_the_reserved_one_banned():
    tokenizer = t5_tokenizer()
    tokens = declare_tokens(make_t5(8), tokenizer, separator="<extra_id_1>")
    assert tokens.separator == "<extra_id_1>"
    assert allowed(tokens, tokenizer) == ["<extra_id_1>", "a", "b", "c"]
    assert declare_tokens(make_t5(8), tokenizer, separator="b").separator_id == 6


def test_the_separator_may_lie_behind_the_last_counted_token():
    """`len(tokenizer)` counts tokens, ids may have gaps: the separator is never banned all the same."""
    tokenizer = make_tokenizer(["<pad>", "</s>"], "</s>", pad_token="<pad>")
    vocabulary = {**tokenizer.get_vocab(), "<sep>": 9}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="c"))
    gapped = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    tokens = declare_tokens(make_llama(10), gapped)
    assert tokens.separator_id == 9
    assert not tokens.banned[9]


@pytest.mark.parametrize("tie", [True, False])
def test_a_llama_without_any_reserved_token_grows_by_one_row(tie):
    tokenizer, model = plain_tokenizer(), make_llama(6, tie)
    before = [model.get_input_embeddings().weight.detach().clone(), model.lm_head.weight.detach().clone()]
    tokens = declare_tokens(model, tokenizer)
    assert (tokens.separator, tokens.separator_id) == (ADDED_SEPARATOR, 6)
    after = [model.get_input_embeddings().weight, model.lm_head.weight]
    for old, new in zip(before, after, strict=True):
        assert new.shape == (7, 8)
        assert torch.equal(new[:6], old)
    assert model.config.vocab_size == 7
    assert "<tool>" in tokenizer.all_special_tokens  # what was special stays special
    assert allowed(tokens, tokenizer) == ["a", "b", "c", ADDED_SEPARATOR]
    again = declare_tokens(model, tokenizer)  # found, not added twice
    assert again.separator_id == 6
    assert model.get_input_embeddings().num_embeddings == 7


@pytest.mark.parametrize("make", [make_t5, make_llama])
def test_a_spare_row_is_used_before_anything_grows(make):
    tokenizer, model = plain_tokenizer(), make(10)
    weight = model.get_output_embeddings().weight.detach().clone()
    tokens = declare_tokens(model, tokenizer)
    assert (tokens.separator, tokens.separator_id) == (ADDED_SEPARATOR, 6)
    assert torch.equal(model.get_output_embeddings().weight, weight)
    assert tokens.banned.tolist() == [True, True, True, False, False, False, False, True, True, True]


def test_an_encoder_decoder_is_never_grown():
    model = make_t5(6)
    with pytest.raises(
        ValueError, match=r"No token of this vocabulary of 6 can serve as separator .*output head.*`separator: <token>`"
    ):
        declare_tokens(model, plain_tokenizer())
    assert model.get_input_embeddings().num_embeddings == 6


@pytest.mark.parametrize(
    ("separator", "complaint"),
    [
        ("<nowhere>", r"'<nowhere>' is not a single token of this tokenizer"),
        ("a b", r"'a b' is not a single token"),
        ("</s>", r"'</s>' already is the end token \(id 1\)"),
        ("<pad>", r"'<pad>' already is the pad token"),
        ("<unk>", r"'<unk>' already is the unknown token"),
        ("<extra_id_1>", r"'<extra_id_1>' already is the decoder start token"),
    ],
)
def test_separators_that_mean_something_else_are_refused(separator, complaint):
    model = make_t5(8)
    model.config.decoder_start_token_id = 4
    with pytest.raises(ValueError, match=complaint):
        declare_tokens(model, t5_tokenizer(), separator)


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        declare_tokens(make_llama(6), make_tokenizer(["<pad>", "<x>", "<y>"], None, pad_token="<pad>"))


def test_the_declared_layout_is_saved_beside_the_weights(tmp_path):
    tokens = declare_tokens(make_t5(8), t5_tokenizer())
    constraints = SamplingConstraints(tokens.separator_id, tokens.banned, temperature=0.7)
    settings = Inference(constraints, tokens.separator, "empty", 9, "left", 7, "say: {text}", chat=True,
                         chat_template="{{ messages }}", system="be kind", chat_template_kwargs={"a": [1]},
                         special_targets=[5])  # fmt: skip
    settings.save(tmp_path)
    found = read_layout(tmp_path)
    assert (found["separator"], found["separator_id"], found["law"]["temperature"]) == ("<extra_id_0>", 3, 0.7)
    again = Inference.read(tmp_path, tokens)
    for field in fields(Inference):
        if field.name != "constraints":
            assert getattr(again, field.name) == getattr(settings, field.name), field.name
    assert [getattr(again.constraints, name) for name in CONSTRAINTS] == [
        getattr(constraints, name) for name in CONSTRAINTS
    ]
    assert (tmp_path / LAYOUT_FILE).read_text(encoding="utf-8").endswith("}\n")
    assert read_layout(tmp_path / "elsewhere") == {}


def test_a_grown_model_and_its_tokenizer_survive_a_round_trip(tmp_path):
    tokenizer, model = plain_tokenizer(), make_llama(6)
    tokens = declare_tokens(model, tokenizer)
    Inference(SamplingConstraints(tokens.separator_id, tokens.banned), tokens.separator).save(tmp_path)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokens = declare_tokens(model, tokenizer, read_layout(tmp_path)["separator"])
    assert tokens.separator_id == read_layout(tmp_path)["separator_id"] == 6
