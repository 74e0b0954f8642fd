import csv
import importlib.util
import json
import math
import subprocess
import sys

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


FILES = {
    "en-de": [
        ("Der Hund (braun) schläft heute, oder?", "Der braune Hund schläft heute; oder nicht?"),
        ("Öffnen Sie die Datei »README.md«.", "Öffnen Sie die Datei »README.md«."),
        ("1.024 Byte sind 1 KiB", "1.024 Byte entsprechen 1 KiB."),
        ("", "Klicken Sie auf OK."),
        ("Das ist ein &quot;Test&quot; .", 'Das ist ein "Test".'),
    ],
    "zh": [
        ("打开设置然后点击网络面板。", "打开“设置”,然后点击网络设备。"),
        ("使用 apt 安装软件包", "使用 APT 安装软件包。"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "texts", "flags"),
    [
        ("bleu", "en-de", ["-m", "bleu"]),
        ("chrf++", "en-de", ["-m", "chrf", "--chrf-word-order", "2"]),
        ("bleu_zh", "zh", ["-m", "bleu", "--tokenize", "zh"]),
        ("bleu_char", "zh", ["-m", "bleu", "--tokenize", "char"]),
        ("chrf++", "zh", ["-m", "chrf", "--chrf-word-order", "2"]),
    ],
)
def test_numbers_and_signatures_equal_the_command_line_of_sacrebleu(tmp_path, name, texts, flags):
    predictions, targets = map(list, zip(*FILES[texts], strict=True))
    (tmp_path / "predictions").write_text("\n".join(predictions) + "\n", encoding="utf-8")
    (tmp_path / "targets").write_text("\n".join(targets) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "targets", "-i", "predictions", "-w", "12", "-f", "json", *flags]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    found = json.loads(said.stdout)
    assert compute([name], predictions, targets)[name] == pytest.approx(found["score"], abs=1e-9)
    assert 0 < found["score"] < 100
    assert signatures([name])[name] == found["signature"]


def test_rouge_equals_the_command_line_of_rouge_score(tmp_path):
    pytest.importorskip("rouge_score")
    (tmp_path / "predictions").write_text("".join(text + "\n" for text in PREDICTIONS), encoding="utf-8")
    (tmp_path / "targets").write_text("".join(text + "\n" for text in TARGETS), encoding="utf-8")
    flags = ["--target_filepattern=targets", "--prediction_filepattern=predictions", "--output_filename=scores.csv"]
    command = [sys.executable, "-m", "rouge_score.rouge", *flags, "--use_stemmer=true", "--aggregate=false"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(TARGETS)
    for key, score in compute(["rouge"], PREDICTIONS, TARGETS).items():
        assert score == pytest.approx(100 * sum(float(row[f"{key}-F"]) for row in found) / len(found), abs=1e-4)


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


def test_japanese_is_split_by_mecab_where_it_is_installed(monkeypatch):
    sacrebleu = pytest.importorskip("sacrebleu")
    prediction, target = ["設定を開いてネットワークを選びます。"], ["設定を開いてネットワークをクリックします。"]
    if importlib.util.find_spec("MeCab") and importlib.util.find_spec("ipadic"):
        expected = sacrebleu.corpus_bleu(prediction, [target], tokenize="ja-mecab").score
        assert compute(["bleu_ja"], prediction, target)["bleu_ja"] == pytest.approx(expected)
        assert "tok:ja-mecab" in signatures(["bleu_ja"])["bleu_ja"]
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    for ask in (lambda: compute(["bleu_ja"], prediction, target), lambda: signatures(["bleu_ja"])):
        with pytest.raises(
            ImportError, match=r"mecab-python3 and ipadic; pip install 'sacrebleu\[ja\]', or .*'bleu_char'"
        ):
            ask()
    assert 0 < compute(["bleu_char"], prediction, target)["bleu_char"] < 100
    assert "tok:char" in signatures(["bleu_char"])["bleu_char"]
