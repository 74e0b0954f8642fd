"""What tokenizers do to text in silence: unknown characters, changed ones, a second beginning, sentences without spaces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rl_warmup.cli.main import main
from rl_warmup.config import WarmupConfig
from rl_warmup.inference.evaluation import Evaluation
from rl_warmup.method.proposals import ProposalContext, count_words, propose
from rl_warmup.method.training_data import encode_rows
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.models.tiny import TinySize, build_tokenizer

CHINESE = ["今天天气很好。", "我喜欢吃苹果和香蕉。", "他们明天去北京旅游。", "这本书非常有意思。", "老师在教室里上课。"]
JAPANESE = ["今日は天気がいいです。", "私はりんごが好きです。", "明日東京へ行きます。", "この本はとても面白い。"]
THAI = ["วันนี้อากาศดีมาก", "ฉันชอบกินแอปเปิล", "พรุ่งนี้ไปเที่ยว"]


def pieces(texts, kind="subwords"):
    return build_tokenizer(texts, TinySize(tokenizer=kind), encoder_decoder=True)


def encoder(tokenizer, **settings):
    return RowEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<extra_id_0>"), **settings)


def rows(texts, prompts=None):
    return [
        {"id": str(i), "prompt": p, "target": t} for i, (p, t) in enumerate(zip(prompts or texts, texts, strict=True))
    ]


@pytest.mark.parametrize(
    "texts", [CHINESE, JAPANESE, THAI, [*CHINESE, "plain words too"]], ids=["zh", "ja", "th", "mixed"]
)
@pytest.mark.parametrize("name", ["reverse", "sorted", "keywords", "head"])
def test_proposals_of_text_without_spaces_are_not_the_target(texts, name):
    encoded = encoder(pieces(texts)).encode_all(rows(texts), "train")
    context = ProposalContext(999, count=lambda: count_words(encoded))
    same = [propose(name, row, context).ids == row["target_ids"][:-1] for row in encoded]
    assert not any(same)
    assert all(sum(row["word_lengths"]) == len(row["target_ids"]) - 1 for row in encoded)


def test_words_of_mixed_text_by_hand():
    tokenizer = pieces(["天 气", "ab cd"])
    text = "天气 ab cd天"
    lengths = encoder(tokenizer).encode({"prompt": "ab", "target": text}, "row")["word_lengths"]
    assert len(lengths) == 5  # 天 | 气 | ab | cd | 天
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_tokenizer_of_whole_sentences_is_refused_for_proposals_by_word():
    words, args = (
        encoder(pieces(CHINESE, "words")),
        WarmupConfig(use_cpu=True, proposals=["reverse"], disable_tqdm=True),
    )
    with pytest.raises(ValueError, match="proposals: reverse.*5 of 5 training rows.*id 0"):
        encode_rows(words, rows(CHINESE), "train", args)
    args.proposals = []
    assert len(encode_rows(words, rows(CHINESE), "train", args) or []) == 5


@pytest.mark.parametrize(
    "texts", [[f"{text} ok" for text in THAI], [f"{a}7。 {b}" for a, b in pairwise(CHINESE)], [" ".join(CHINESE[:3])]],
    ids=["and a word", "two clauses", "three clauses"],
)  # fmt: skip
def test_clauses_in_one_piece_each_are_refused_too(texts):
    args = WarmupConfig(use_cpu=True, proposals=["keywords", "head"], disable_tqdm=True)
    with pytest.raises(ValueError, match=rf"proposals: keywords.*{len(texts)} of {len(texts)} training rows"):
        encode_rows(encoder(pieces(texts, "words")), rows(texts), "train", args)
    assert len(encode_rows(encoder(pieces(texts)), rows(texts), "train", args)) == len(texts)


@pytest.mark.parametrize("text", ["plain words alone", "天气 ab cd 天", " ".join(CHINESE)])
def test_text_whose_words_can_be_moved_is_not_refused(text):
    args = WarmupConfig(use_cpu=True, proposals=["reverse"], disable_tqdm=True)
    assert len(encode_rows(encoder(pieces([text], "words")), rows([text]), "train", args)) == 1


def tokens_with(vocabulary, normalizer=None, begin=False):
    """A tokenizer of characters."""
    names = ["<pad>", "</s>", "<unk>", "<s>", "<extra_id_0>", *vocabulary]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer is not None:
        made.normalizer = normalizer
    if begin:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",
        extra_special_tokens=["<extra_id_0>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def test_targets_that_cannot_be_written_are_counted(capsys):
    args = WarmupConfig(use_cpu=True, disable_tqdm=True)
    coder = encoder(tokens_with(["a", "b", "ﬁ", "fi"], normalizers.NFKC()))
    encode_rows(coder, rows(["a b", "a z", "ﬁ a", "b"]), "validation", args)
    assert (coder.writable.rows, coder.writable.changed) == (4, 2)
    said = capsys.readouterr().out
    assert "2 of 4 targets (50.0%)" in said
    assert "row 1 (id 1), 'a z', comes back as 'a'" in said
    encode_rows(coder, rows(["a", "b  a"]), "validation", args)
    assert "cannot be written" not in capsys.readouterr().out


@pytest.mark.parametrize(("prompt", "target", "part"), [("a", "x y", "target"), ("x", "a", "prompt")])
def test_text_that_is_all_unknown_is_refused_with_its_row(prompt, target, part):
    coder = encoder(tokens_with(["a"]))
    data = [{"id": "0", "prompt": "a", "target": "a"}, {"id": "7", "prompt": prompt, "target": target}]
    with pytest.raises(ValueError, match=rf"train row 1 \(id 7\).*nothing of the {part}"):
        coder.encode_all(data, "train")
    assert len(coder.encode_all(data, "test")) == 2  # scored, and counted
    assert coder.writable.unknown == 1
    with pytest.raises(ValueError, match="test: all of the text is unknown"):
        coder.encode_all(data[1:], "test")


@pytest.mark.parametrize("prompt", ["<s> a b", "<s>a b", "a b"])
def test_one_beginning(prompt):
    tokenizer = tokens_with(["a", "b"], begin=True)
    coder = encoder(tokenizer, encoder_decoder=False)
    once = [3, tokenizer.convert_tokens_to_ids("a"), tokenizer.convert_tokens_to_ids("b")]
    assert coder.encode({"prompt": prompt, "target": "a"}, "row")["prompt_ids"] == once
    assert coder.encode_all([{"prompt": prompt, "target": "a"}], "train")[0]["prompt_ids"] == once
    assert coder.encode_prompts([prompt])[0]["prompt_ids"] == once


def test_the_ceiling_stands_in_the_result(tmp_path, capsys):
    data = [{"prompt": "a b", "target": "b a"}, {"prompt": "a a", "target": "a a"}]
    test = [*data, {"prompt": "a b", "target": "b zebra"}, {"prompt": "b b", "target": "b b"}]
    for name, part in (("train", data), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    recipe = {
        "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "file", "task_kwargs": {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")},
        "objective": "sft", "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True,
        "controls": [], "show_progress": False, "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(tmp_path / "r.yaml")]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["ceiling"] == {"exact_match": 0.75}
    assert "1 of 4 targets" in capsys.readouterr().out


def test_a_foreign_column_called_choices_is_not_ranked():
    rows = [{"choices": ["black", "blue"], "answer": "black", "target": "black"}]
    assert Evaluation(likelihood=True)._ranked_accuracy(None, rows, []) == {}  # type: ignore[arg-type]


def test_characters_survive_in_pieces():
    tokenizer = pieces([*CHINESE, *THAI])
    for text in [*CHINESE, *THAI]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert torch.tensor(ids).numel() > 3
        assert tokenizer.decode(ids) == text
