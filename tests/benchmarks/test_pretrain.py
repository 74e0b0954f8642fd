"""Pretraining: blocks and span corruption by hand, and a model that comes out of two updates."""

import argparse
import json
import random
from collections import Counter

import pytest

from benchmarks.pretrain import blocks, corrupt, noise_spans, pretrain, read_texts


def test_blocks_join_texts_with_an_end_and_drop_the_rest():
    assert list(blocks([[5, 6], [7], [8, 9]], 3, end=1)) == [[5, 6, 1], [7, 1, 8]]


def test_a_corrupted_block_and_its_labels_hold_every_token_once():
    block = [10, 11, 12, 13, 14, 15, 16]
    made = corrupt(block, [(1, 3), (5, 7)], sentinels=[90, 91, 92], end=1)
    assert made["input_ids"] == [10, 90, 13, 14, 91, 1]
    assert made["labels"] == [90, 11, 12, 91, 15, 16, 1]


def test_spans_hide_fifteen_percent_and_leave_a_token_between_them():
    rng = random.Random(0)
    for _ in range(200):
        spans = noise_spans(64, 0.15, 3.0, rng)
        assert len(spans) == 3
        assert sum(stop - start for start, stop in spans) == 10  # round(9.6)
        assert spans[-1][1] == 64
        assert all(before[1] < after[0] for before, after in zip([(0, 0), *spans], spans, strict=False))


def test_all_ways_to_cut_are_equally_likely():
    # 4 tokens, 2 of them hidden in spans of 1: kept 1+1, hidden 1+1 is the only way; 5 with 2 kept differently: 1+2, 2+1
    assert noise_spans(4, 0.5, 1.0, random.Random(0)) == [(1, 2), (3, 4)]
    rng = random.Random(0)
    counts = Counter(tuple(noise_spans(5, 0.4, 1.0, rng)) for _ in range(1000))
    assert set(counts) == {((1, 2), (4, 5)), ((2, 3), (4, 5))}
    assert min(counts.values()) > 440  # a fair coin falls so rarely in one of 6000 tries


def test_too_few_tokens_for_the_spans():
    with pytest.raises(ValueError, match="leave none between"):
        noise_spans(4, 0.9, 1.0, random.Random(0))


def test_texts_are_read_once_from_the_named_columns(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"en": "one", "de": "eins", "n": 1}\n{"en": "one", "de": " "}\n')
    assert read_texts([file], ["en", "de"]) == ["one", "eins"]
    with pytest.raises(ValueError, match="none of the columns text"):
        read_texts([file], ["text"])


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_pretrained_folder_loads_and_its_separator_is_reserved(tmp_path, kind):
    from rl_warmup.models.loading import load_model
    from rl_warmup.models.tokens import declare_tokens

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"the number {i} is here"}) + "\n" for i in range(60)))
    options = argparse.Namespace(
        kind=kind, files=[file], columns=["text"], pairs=None, output=tmp_path / "model", width=16, layers=1, heads=2,
        feed_forward=32, vocab_size=400, block=16, batch=4, updates=2, learning_rate=1e-3, held_out=4, seed=0,
        accelerator=False, bf16=False,
    )  # fmt: skip
    result = pretrain(options)
    assert result["rows_seen"] == 8
    assert json.loads((tmp_path / "model" / "pretraining.json").read_text()) == result
    model, tokenizer = load_model(str(tmp_path / "model"))
    assert len(tokenizer) == model.config.vocab_size
    tokens = declare_tokens(model, tokenizer)
    assert tokens.separator == "<extra_id_0>"
    assert tokens.banned[tokenizer.convert_tokens_to_ids("<extra_id_31>")]


def test_a_t5_learns_pairs_of_columns(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"x": f"say {i}", "y": f"{i}"}) + "\n" for i in range(20)))
    options = argparse.Namespace(
        kind="t5", files=[file], columns=["text"], pairs=["x", "y"], output=tmp_path / "model", width=16, layers=1, heads=2,
        feed_forward=32, vocab_size=400, block=16, batch=4, updates=20, learning_rate=3e-2, held_out=4, seed=0,
        accelerator=False, bf16=False,
    )  # fmt: skip
    result = pretrain(options)
    assert result["rows"] == 16
    assert result["held_out_loss"][-1] < result["held_out_loss"][0]
