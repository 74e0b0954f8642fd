import random
import sys

import pytest

from rl_warmup.metrics import METRICS, compute, row_statistics, signatures

PREDICTIONS = ["the cat sat on the mat", "B"]
TARGETS = ["the cat sat  on\nthe mat", "A"]


# No settings, no more packages, no columns of one task.
PLAIN = [name for name in METRICS if name not in ("bertscore", "comet", "bleu_ja", "reasoning_gym_score")]


def own_module(tmp_path, monkeypatch, text):
    (tmp_path / "own_metrics.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)


def test_exact_match_is_a_share_after_whitespace():
    assert compute(["exact_match"], PREDICTIONS, TARGETS) == {"exact_match": 0.5}
    assert compute(["exact_match"], ["", "a b"], ["x", "A b"]) == {"exact_match": 0.0}


def test_keys_follow_the_names():
    assert set(compute(PLAIN, ["A", "B"], ["A", "C"])) == {
        "exact_match", "accuracy", "macro_f1", "unparsed", "bleu", "bleu_zh", "bleu_char", "chrf++",
        "rouge1", "rouge2", "rougeL",
    }  # fmt: skip
    assert set(compute(["rouge"], *(PREDICTIONS, TARGETS))) == {"rouge1", "rouge2", "rougeL"}
    assert set(compute("rougeL", *(PREDICTIONS, TARGETS))) == {"rougeL"}
    assert compute([], ["a"], ["a"]) == {}


def test_unknown_names():
    with pytest.raises(ValueError, match=r"There is no metric 'chrf'. Did you mean 'chrf\+\+'") as error:
        compute(["chrf"], ["a"], ["a"])
    assert "accuracy, macro_f1, comet, exact_match, bleu" in str(error.value)
    with pytest.raises(ValueError, match="module 'not_there' cannot be imported"):
        compute(["not_there:f"], ["a"], ["a"])
    with pytest.raises(ValueError, match="The metric 'json:f': json has no 'f'"):
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


def test_settings_travel_with_the_name(tmp_path, monkeypatch):
    own_module(
        tmp_path, monkeypatch, "def share(predictions, targets, rows, *, of='a'):\n    return predictions.count(of)\n"
    )
    assert compute({"name": "own_metrics:share", "kwargs": {"of": "B"}}, PREDICTIONS, TARGETS) == {"share": 1.0}
    assert compute([{"name": "exact_match"}, "bleu"], *(TARGETS, TARGETS)).keys() == {"exact_match", "bleu"}
    both = [{"name": "own_metrics:share", "kwargs": {"of": of}} for of in "AB"]
    with pytest.raises(ValueError, match="two settings, and both are called 'share'"):
        compute(both, PREDICTIONS, TARGETS)
    assert compute([both[0], both[0]], PREDICTIONS, TARGETS) == {"share": 0.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kwargs": {}}, "give a name, or {'name': ..., 'kwargs': {...}}"),
        ({"name": "bleu", "tokenize": "zh"}, "give a name, or"),
        ({"name": "bleu", "kwargs": ["zh"]}, "give a name, or"),
        ({"name": "bleu", "kwargs": {"tokenize": "zh"}}, "metric 'bleu': .*'tokenize'; its settings .* are: none"),
        ("bertscore", "metric 'bertscore': missing a required.* 'model'; .* are: model, num_layers, batch_size, label"),
        (
            {"name": "comet", "kwargs": {"model": "x"}},
            "metric 'comet'.*are: checkpoint, command, source, timeout, label",
        ),
    ],
)
def test_wrong_settings_say_what_is_allowed(spec, message):
    for ask in (lambda: compute([spec], ["a"], ["a"]), lambda: signatures([spec])):
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize("name", PLAIN)
def test_summed_row_statistics_give_the_same_number(name):
    rng = random.Random(0)
    predictions, targets = ([" ".join(rng.choices("ABCD efgh", k=9)) for _ in range(30)] for _ in range(2))
    if name in ("exact_match", "accuracy", "macro_f1"):
        predictions, targets = ([rng.choice("ABCD") for _ in range(30)] for _ in range(2))
    scores = compute([name], predictions, targets)
    for key, statistics in row_statistics([name], predictions, targets).items():
        assert statistics.value() == pytest.approx(scores[key], abs=1e-12)
        assert len(statistics.rows) == 30
        assert scores[key] > 0


@pytest.mark.parametrize("body", ["raise ValueError('no')", "import json; json.loads('{')", "import nothing_here"])
def test_an_own_metric_that_fails_is_named(tmp_path, body):
    (tmp_path / "mine.py").write_text(f"def f(predictions, targets, rows=None):\n    {body}\n")
    with pytest.raises(ValueError, match=r"metric '.*mine\.py:f' failed with"):
        compute([f"{tmp_path}/mine.py:f"], ["a"], ["a"])


def test_a_function_of_ones_own_has_no_row_statistics():
    with pytest.raises(ValueError, match="'builtins:print' has no statistics per row.*give its row scores"):
        row_statistics(["builtins:print"], ["a"], ["a"])


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


def test_what_an_own_metric_changes_or_calls_like_another_changes_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def greedy(predictions, targets, rows):\n"
        "    predictions[:] = targets\n    rows[0]['target'] = 'hacked'\n    return 1.0\n"
        "def clash(predictions, targets, rows): return {'exact_match': 99.0}\n"
    )
    rows = [{"target": "a"}, {"target": "b"}]
    found = compute(["own.py:greedy", "exact_match"], ["x", "b"], ["a", "b"], rows)
    assert (found["exact_match"], rows[0]["target"]) == (0.5, "a")
    with pytest.raises(ValueError, match="'exact_match'"):
        compute(["exact_match", "own.py:clash"], ["x", "b"], ["a", "b"], rows)


def test_whether_two_metrics_clash_does_not_depend_on_their_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twin.py").write_text(
        "def same(predictions, targets, rows): return {'exact_match': 1.0}\n"
        "class Made:\n    def __call__(self, predictions, targets, rows): return {'made': 1.0}\n"
        "def share(predictions, targets, rows, *, of): return 0.0\n"
        "def deep(predictions, targets, rows): rows[0]['prompt'][0]['content'] = 'hacked'; return 1.0\n"
    )
    rows = [{"prompt": [{"role": "user", "content": "a"}]}]
    with pytest.raises(ValueError, match="'exact_match', as another metric does"):
        compute(["exact_match", "twin.py:same"], ["a"], ["a"], rows)
    with pytest.raises(ValueError, match="two settings, and both are called 'share'"):
        compute([{"name": "twin.py:share", "kwargs": {"of": of}} for of in "AB"], ["a"], ["a"], rows)
    assert compute(["twin.py:Made", "twin.py:Made"], ["a"], ["a"], rows) == {"made": 1.0}
    assert compute(["accuracy", "macro_f1"], ["A"], ["A"]).keys() == {"accuracy", "macro_f1", "unparsed"}
    compute(["twin.py:deep"], ["a"], ["a"], rows)
    assert rows[0]["prompt"][0]["content"] == "a"
