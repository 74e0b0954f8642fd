import sys

import pytest

from rl_warmup.metrics import METRICS, compute, signatures

PREDICTIONS = ["the cat sat on the mat", "B"]
TARGETS = ["the cat sat  on\nthe mat", "A"]


def own_module(tmp_path, monkeypatch, text):
    (tmp_path / "own_metrics.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)


def test_exact_match_is_a_share_after_whitespace():
    assert compute(["exact_match"], PREDICTIONS, TARGETS) == {"exact_match": 0.5}
    assert compute(["exact_match"], ["", "a b"], ["x", "A b"]) == {"exact_match": 0.0}


def test_keys_follow_the_names():
    assert set(compute(list(METRICS), ["A", "B"], ["A", "C"])) == {
        "exact_match", "accuracy", "macro_f1", "unparsed", "bleu", "bleu_zh", "chrf++", "rouge1", "rouge2", "rougeL",
    }  # fmt: skip
    assert set(compute(["rouge"], *(PREDICTIONS, TARGETS))) == {"rouge1", "rouge2", "rougeL"}
    assert set(compute("rougeL", *(PREDICTIONS, TARGETS))) == {"rougeL"}
    assert compute([], ["a"], ["a"]) == {}


def test_unknown_names():
    with pytest.raises(ValueError, match=r"unknown metric 'chrf'.*did you mean 'chrf\+\+'") as error:
        compute(["chrf"], ["a"], ["a"])
    assert "exact_match, accuracy, macro_f1, bleu" in str(error.value)
    with pytest.raises(ValueError, match="no module 'not_there'"):
        compute(["not_there:f"], ["a"], ["a"])
    with pytest.raises(ValueError, match="module 'json' has no function 'f'"):
        compute(["json:f"], ["a"], ["a"])


def test_lengths():
    with pytest.raises(ValueError, match="2 predictions, 1 targets"):
        compute(["exact_match"], ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 predictions, 1 targets, 2 rows"):
        compute(["exact_match"], ["a"], ["a"], rows=[{}, {}])
    with pytest.raises(ValueError, match="no predictions"):
        compute(["exact_match"], [], [])


def test_metrics_of_ones_own(tmp_path, monkeypatch):
    text = "def length(predictions, targets, rows):\n    return sum(map(len, predictions)) / len(targets)\n"
    text += "def two(predictions, targets, rows):\n    return {'pages': rows[0]['page'], 'n': len(targets)}\n"
    text += "def none(predictions, targets, rows):\n    return None\n"
    own_module(tmp_path, monkeypatch, text)
    rows = [{"page": 3}, {"page": 4}]
    scores = compute(["own_metrics:length", "own_metrics:two"], ["a", "bcd"], ["x", "y"], rows)
    assert scores == {"length": 2.0, "pages": 3, "n": 2}
    with pytest.raises(ValueError, match="'own_metrics:none' returned a NoneType; let it return a number"):
        compute(["own_metrics:none"], ["a"], ["a"])
    assert signatures(["own_metrics:length"]) == {}


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("bleu", "sacrebleu.metrics", "sacrebleu"),
        ("chrf++", "sacrebleu.metrics", "sacrebleu"),
        ("rougeL", "rouge_score.rouge_scorer", "rouge-score"),
    ],
)
def test_a_missing_library_is_one_sentence(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{package}; pip install 'rl_warmup\[metrics\]'"):
        compute([name], ["a"], ["a"])
