"""Text to ids: limits, counts, words; every fault named before the first update."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rl_warmup.method.proposals import target_words
from rl_warmup.models.encoding import ROWS_PER_CALL, RowEncoder
from rl_warmup.models.tiny import TinySize, build_tokenizer

WORDS = "a b c d e f g h"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


def words_tokenizer(encoder_decoder: bool = True) -> PreTrainedTokenizerFast:
    texts = [f"{WORDS} user assistant"] * 3
    return build_tokenizer(texts, TinySize(tokenizer="words"), encoder_decoder)


def make_encoder(encoder_decoder: bool = True, **limits) -> RowEncoder:
    tokenizer = words_tokenizer(encoder_decoder)
    separator_id = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    return RowEncoder(tokenizer, separator_id, encoder_decoder=encoder_decoder, **limits)


def tokens(encoder: RowEncoder, ids: list[int]) -> list[str]:
    return encoder.tokenizer.convert_ids_to_tokens(ids)


def encode(encoder: RowEncoder, prompt="a b c d", target="e f g h", **columns):
    return encoder.encode({"prompt": prompt, "target": target, **columns}, "train row 7 (id x)")


# ---------------------------------------------------------------------- whole rows


def test_an_encoder_reads_the_prompt_with_its_end_token():
    encoder = make_encoder()
    row = encode(encoder, color="red")
    assert tokens(encoder, row["prompt_ids"]) == ["a", "b", "c", "d", "</s>"]
    assert tokens(encoder, row["target_ids"]) == ["e", "f", "g", "h", "</s>"]
    assert row["word_lengths"] == [1, 1, 1, 1]
    assert (row["prompt"], row["target"], row["color"]) == ("a b c d", "e f g h", "red")  # other columns stay


def test_a_decoder_only_prompt_begins_and_does_not_end():
    encoder = make_encoder(encoder_decoder=False)
    row = encode(encoder)
    assert tokens(encoder, row["prompt_ids"]) == ["<s>", "a", "b", "c", "d"]
    assert tokens(encoder, row["target_ids"]) == ["e", "f", "g", "h", "</s>"]


@pytest.mark.parametrize("begin", ["<s>", " <s>", "<s><s> <s>"])
def test_a_prompt_begins_once_however_its_text_begins(begin):
    encoder = make_encoder(encoder_decoder=False)
    assert tokens(encoder, encoder.encode({"prompt": f"{begin}a b", "target": "c"}, "row")["prompt_ids"]) == [
        "<s>",
        "a",
        "b",
    ]
    inside = encoder.encode({"prompt": f"a {begin}b", "target": "c"}, "row")["prompt_ids"]
    assert tokens(encoder, inside).count("<s>") == 1 + begin.count("<s>")


def test_an_end_token_that_a_tokenizer_adds_to_a_decoder_only_prompt_is_cut_off():
    encoder = make_encoder(encoder_decoder=True)  # its tokenizer ends every text
    encoder.encoder_decoder = False
    assert tokens(encoder, encode(encoder)["prompt_ids"]) == ["a", "b", "c", "d"]


def test_trl_rows_work_unchanged():
    encoder = make_encoder(encoder_decoder=False)
    row = encoder.encode({"prompt": "a b", "completion": "c d"}, "row")
    assert tokens(encoder, row["target_ids"]) == ["c", "d", "</s>"]
    assert row["target"] == "c d"


def test_conversational_rows():
    encoder = make_encoder(encoder_decoder=False)
    encoder.tokenizer.chat_template = TEMPLATE
    prompt = [{"role": "user", "content": "a b"}]
    row = encoder.encode({"prompt": prompt, "completion": [{"role": "assistant", "content": "c d"}]}, "row")
    assert tokens(encoder, row["prompt_ids"]) == ["user", "a", "b", "assistant"]
    assert tokens(encoder, row["target_ids"]) == ["c", "d", "</s>"]
    assert row["target"] == "c d"


def test_ids_of_rows_are_kept_or_made():
    encoder = make_encoder()
    plain = {"prompt": "a", "target": "b"}
    rows = encoder.encode_all([{**plain, "id": "mine"}, plain, {**plain, "id": None}, {**plain, "id": 7}], "train")
    assert [row["id"] for row in rows] == ["mine", "1", "2", 7]
    assert [row["id"] for row in encoder.encode_prompts(["a", "b"])] == ["0", "1"]


@pytest.mark.parametrize("rows", [1, ROWS_PER_CALL, ROWS_PER_CALL + 1])
def test_rows_read_together_are_the_rows_read_one_by_one(rows):
    encoder = subword_encoder()
    texts = [{"prompt": f"sum {i} of {i % 7}", "target": f" it is  {i * i} or so", "id": str(i)} for i in range(rows)]
    together = encoder.encode_all(iter(texts), "train")
    assert together == [encoder.encode(dict(row), "") for row in texts]
    assert "prompt_ids" not in texts[0]  # the rows that came in are left as they were


def test_among_rows_read_together_the_first_faulty_one_is_named():
    rows = [{"prompt": "a", "target": "b"}, {"prompt": "a", "target": None}, {"prompt": "a"}]
    with pytest.raises(ValueError, match=r"train row 1 \(id 1\): the target is empty"):
        make_encoder().encode_all(rows, "train")


# ---------------------------------------------------------------------- limits


def test_a_row_exactly_at_its_limits_is_left_alone():
    encoder = make_encoder(max_prompt_length=5, max_target_length=5)  # four words and the end token
    row = encode(encoder)
    assert len(row["prompt_ids"]) == len(row["target_ids"]) == 5
    assert not encoder.counts


@pytest.mark.parametrize(("policy", "kept"), [("right", ["a", "b", "</s>"]), ("left", ["c", "d", "</s>"])])
def test_a_cut_prompt_of_an_encoder_keeps_its_end_token(policy, kept):
    encoder = make_encoder(max_prompt_length=3, prompt_truncation=policy)
    assert tokens(encoder, encode(encoder)["prompt_ids"]) == kept
    assert encoder.counts == {"prompts_truncated": 1}


def test_a_cut_prompt_of_a_decoder_only_model():
    encoder = make_encoder(encoder_decoder=False, max_prompt_length=3, prompt_truncation="right")
    assert tokens(encoder, encode(encoder)["prompt_ids"]) == ["<s>", "a", "b"]
    encoder.prompt_truncation = "left"
    assert tokens(encoder, encode(encoder)["prompt_ids"])[-2:] == ["c", "d"]


def test_a_cut_target_keeps_its_end_token_and_its_words_follow():
    encoder = make_encoder(max_target_length=3, target_truncation="right")
    row = encode(encoder)
    assert tokens(encoder, row["target_ids"]) == ["e", "f", "</s>"]
    assert row["word_lengths"] == [1, 1]
    assert encoder.counts == {"targets_truncated": 1}


@pytest.mark.parametrize("part", ["prompt", "target"])
def test_dropping_is_counted(part):
    encoder = make_encoder(**{f"max_{part}_length": 3, f"{part}_truncation": "drop"})
    rows = encoder.encode_all([{"prompt": "a", "target": "b", part: text} for text in ("a b c", "a b", "a b c d")], "t")
    assert [row[part] for row in rows] == ["a b"]
    assert encoder.counts == {f"{part}s_dropped": 2}


@pytest.mark.parametrize("part", ["prompt", "target"])
def test_by_default_a_long_row_stops_with_the_numbers_and_the_remedy(part):
    encoder = make_encoder(**{f"max_{part}_length": 3})
    message = rf"row 7 \(id x\): the {part} has 5 tokens, the limit max_{part}_length is 3.*{part}_truncation"
    with pytest.raises(ValueError, match=message):
        encode(encoder)


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize("target", ["", "  \n", None, []])
def test_an_empty_target_is_a_fault(target):
    with pytest.raises(ValueError, match=r"row 7 \(id x\): the target is empty"):
        encode(make_encoder(), target=target)


def test_an_empty_prompt_is_a_fault_where_nothing_would_precede_the_warmup():
    encoder = make_encoder(encoder_decoder=True)
    assert tokens(encoder, encode(encoder, prompt="")["prompt_ids"]) == ["</s>"]
    encoder.encoder_decoder = False
    encoder.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match="the prompt is empty"):
        encode(encoder, prompt="")


@pytest.mark.parametrize(
    ("row", "has"),
    [({"prompt": "a"}, "'prompt'"), ({"target": "a"}, "'target'"), ({"text": "a", "label": 1}, "'text', 'label'")],
)
def test_missing_columns_name_what_is_there(row, has):
    with pytest.raises(
        ValueError, match=f"row 7: needs a `prompt` column and a `target` .or `completion`. column; it has {has}"
    ):
        make_encoder().encode(row, "row 7")


def test_a_separator_inside_the_target_is_a_fault_and_inside_the_prompt_is_not():
    with pytest.raises(ValueError, match="the target holds .<extra_id_0>., which the layout needs"):
        encode(make_encoder(), target="a <extra_id_0> b")
    assert encode(make_encoder(), prompt="a <extra_id_0> b") is not None


def test_no_row_left_is_a_fault():
    with pytest.raises(ValueError, match="train: no row is left to use .the data set is empty"):
        make_encoder().encode_all([], "train")
    encoder = make_encoder(max_target_length=1, target_truncation="drop")
    with pytest.raises(ValueError, match=r"no row is left to use .*targets_dropped.*1"):
        encoder.encode_all([{"prompt": "a", "target": "b"}], "train")


# ---------------------------------------------------------------------- words


def subword_encoder() -> RowEncoder:
    tokenizer = build_tokenizer(["the house is blue"] * 3, TinySize(vocab_size=320), encoder_decoder=True)
    return RowEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<extra_id_0>"))


def sentencepiece_like() -> RowEncoder:
    """`▁` is a token of its own where no longer piece fits, as in T5's vocabulary."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁the", "house", "s", "blue", "über"]
    unigram = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 2, False))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    return RowEncoder(tokenizer, separator_id=99)


@pytest.mark.parametrize("make", [subword_encoder, sentencepiece_like, make_encoder])
@pytest.mark.parametrize("text", ["the house", "the houses the blue", "über the über", "😀 the 😀 x", "  the   house "])
def test_words_add_up_to_the_target_and_are_the_words_of_the_text(make, text):
    encoder = make()
    row = encode(encoder, prompt="the", target=text)
    assert sum(row["word_lengths"]) == len(row["target_ids"]) - 1
    words = target_words(row)
    whole = text.split()
    assert len(words) in (len(whole), len(whole) + 1)  # spaces at the end may stand alone
    if make is not make_encoder:  # its pieces cannot be read back alone
        known = [
            w
            for w in zip(words, whole, strict=False)
            if w[1] not in ("😀", "x") and encoder.tokenizer.unk_token_id not in w[0]
        ]
        assert known
        assert all(encoder.tokenizer.decode(ids).strip() == word for ids, word in known)


def test_subwords_stay_together():
    encoder = sentencepiece_like()
    row = encode(encoder, prompt="the", target="house the houses")
    assert tokens(encoder, row["target_ids"]) == ["▁", "house", "▁the", "▁", "house", "s", "</s>"]
    assert row["word_lengths"] == [2, 1, 3]


def test_a_word_cut_in_the_middle_keeps_its_beginning():
    encoder = sentencepiece_like()
    encoder.max_target_length, encoder.target_truncation = 6, "right"
    row = encode(encoder, prompt="the", target="house the houses")
    assert tokens(encoder, row["target_ids"]) == ["▁", "house", "▁the", "▁", "house", "</s>"]
    assert row["word_lengths"] == [2, 1, 2]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": "a", "target": 5}, "target is a int (5)"), ({"prompt": "a", "target": True}, "target is a bool"),
        ({"prompt": "a", "target": float("nan")}, "target is a float"), ({"prompt": 5, "target": "a"}, "prompt is a int"),
        ({"prompt": "a", "target": ["x", "y"]}, "target is a list"), ({"prompt": {"a": 1}, "target": "a"}, "prompt is a dict"),
        ({"prompt": "a", "completion": None}, "completion is empty"),
        ({"prompt": [{"role": "user", "content": "a"}], "target": "a"}, "no chat template"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named_with_its_row(row, named):
    encoder = make_encoder()
    encoder.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        encoder.encode_all([row], "train")
    assert str(caught.value).startswith("train row 0 (id 0): ")
