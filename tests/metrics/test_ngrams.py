import math

import pytest

from rl_warmup.metrics import compute, signatures

PREDICTIONS = ["the cat sat on the mat today", "a dog barks at night"]
TARGETS = ["the cat sat on the mat", "the dog barks at night"]


def test_bleu_by_hand():
    pytest.importorskip("sacrebleu")
    # hits of all: 1-grams 6+4 of 7+5, 2-grams 5+3 of 6+4, 3-grams 4+2 of 5+3, 4-grams 3+1 of 4+2; longer, so no penalty
    precisions = [10 / 12, 8 / 10, 6 / 8, 4 / 6]
    expected = 100 * math.prod(precisions) ** 0.25
    assert compute(["bleu"], PREDICTIONS, TARGETS)["bleu"] == pytest.approx(expected)


def test_bleu_and_chrf_equal_sacrebleu_called_directly():
    sacrebleu = pytest.importorskip("sacrebleu")
    scores = compute(["chrf++", "bleu"], PREDICTIONS, TARGETS)
    assert list(scores) == ["chrf++", "bleu"]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [TARGETS]).score)
    assert scores["chrf++"] == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [TARGETS], word_order=2).score)


def test_scales_are_0_to_100():
    names = ["bleu", "chrf++", "rouge"]
    assert all(score == pytest.approx(100) for score in compute(names, TARGETS, TARGETS).values())
    assert all(score == pytest.approx(0) for score in compute(names, ["", ""], TARGETS).values())


def test_chinese_needs_its_own_tokenizer():
    pytest.importorskip("sacrebleu")
    prediction, target = ["打开设置然后点击网络面板"], ["打开设置然后点击网络设备"]
    scores = compute(["bleu", "bleu_zh"], prediction, target)
    assert scores["bleu_zh"] > 50 > scores["bleu"]


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    scores = compute(["rouge"], PREDICTIONS, TARGETS)
    # F = 2 * hits / (predicted + wanted), per row
    assert scores["rouge1"] == pytest.approx(100 * (12 / 13 + 8 / 10) / 2)
    assert scores["rouge2"] == pytest.approx(100 * (10 / 11 + 6 / 8) / 2)
    assert scores["rougeL"] == pytest.approx(100 * (12 / 13 + 8 / 10) / 2)
    assert compute(["rouge1"], ["barking"], ["barks"])["rouge1"] == pytest.approx(100)  # stemmed


def test_signatures_name_settings_and_version():
    found = signatures(["bleu", "bleu_zh", "chrf++", "rougeL", "exact_match"])
    assert set(found) == {"bleu", "bleu_zh", "chrf++", "rougeL"}
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "tok:zh" in found["bleu_zh"]
    assert "nw:2" in found["chrf++"]
    assert "stemmer:porter" in found["rougeL"]
