"""BERTScore: what we add, on a stand-in for the package; and the package itself on a tiny model, where it is installed."""

import json
import sys

import pytest

from rl_warmup.metrics import compute, row_statistics, signatures
from rl_warmup.metrics.bertscore import _scorer

STAND_IN = """
import types

class Scores(list):
    def tolist(self):
        return list(self)

class utils:
    model2layers = {"roberta-large": 17}

class BERTScorer:
    made = []

    def __init__(self, model_type, num_layers):
        if model_type == "owner/unknown":
            raise OSError("no such model\\nand more about it")
        assert num_layers <= 24, "Invalid num_layers: between 0 and 24"
        self._tokenizer = types.SimpleNamespace(model_max_length=512)
        self.made.append((model_type, num_layers))

    def score(self, predictions, targets, batch_size):
        assert all(predictions) and all(targets)
        return None, None, Scores(float(a == b) for a, b in zip(predictions, targets))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    import types

    module = types.ModuleType("bert_score")
    exec(STAND_IN, module.__dict__)
    utils = types.ModuleType("bert_score.utils")
    utils.model2layers = module.utils.model2layers
    module.utils = utils
    monkeypatch.setitem(sys.modules, "bert_score", module)
    monkeypatch.setitem(sys.modules, "bert_score.utils", utils)
    _scorer.cache_clear()
    yield module
    _scorer.cache_clear()


def spec(**kwargs):
    return {"name": "bertscore", "kwargs": {"model": "roberta-large", **kwargs}}


def test_the_key_names_model_and_layer(stand_in, tmp_path):
    folder = tmp_path / "all-minilm"
    folder.mkdir()
    specs = [spec(), spec(num_layers=3), spec(model=str(folder), num_layers=6), spec(model="owner/model", num_layers=2)]
    specs.append(spec(model=str(folder), num_layers=6, label="minilm"))
    assert list(compute(specs, ["a"], ["a"])) == [
        "bertscore[roberta-large:17]", "bertscore[roberta-large:3]", "bertscore[all-minilm:6]", "bertscore[owner/model:2]",
        "bertscore[minilm:6]",
    ]  # fmt: skip


def test_empty_texts_score_0_and_the_model_is_loaded_once(stand_in):
    scores = compute([spec()], ["a", "", "b", " "], ["a", "a", "c", ""])
    assert scores == {"bertscore[roberta-large:17]": 0.25}
    rows = row_statistics([spec()], ["a", "", "b"], ["a", "a", "c"])["bertscore[roberta-large:17]"].rows
    assert [score for score, _ in rows] == [1.0, 0.0, 0.0]
    assert compute([spec()], [""], [""]) == {"bertscore[roberta-large:17]": 0.0}
    assert stand_in.BERTScorer.made == [("roberta-large", 17)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"model": "owner/model"}, "bert-score knows no layer for model 'owner/model'; give num_layers"),
        (
            {"model": "owner/unknown", "num_layers": 1},
            r"cannot load model 'owner/unknown' \(no such model\); give a local",
        ),
        ({"model": "/no/such/folder", "num_layers": 1}, r"'/no/such/folder' \(there is no such folder\); give a local"),
        ({"num_layers": 30}, "between 0 and 24; give num_layers within it"),
    ],
)
def test_models_and_layers_that_are_not_there(stand_in, kwargs, message):
    with pytest.raises(ValueError, match=f"metric 'bertscore': .*{message}"):
        compute([spec(**kwargs)], ["a"], ["a"])


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    _scorer.cache_clear()
    for ask in (lambda: compute([spec(num_layers=3)], ["a"], ["a"]), lambda: signatures([spec(num_layers=3)])):
        with pytest.raises(ImportError, match="BERTScore needs the package bert-score; pip install bert-score"):
            ask()


def test_the_package_itself_on_a_tiny_model(tmp_path):
    library = pytest.importorskip("bert_score")
    transformers = pytest.importorskip("transformers")
    _scorer.cache_clear()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "ran", "."]
    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    predictions, targets = ["the cat sat .", "a dog ran", ""], ["the cat sat .", "the dog sat .", "the cat"]
    tiny = {"name": "bertscore", "kwargs": {"model": str(folder), "num_layers": 1}}
    rows = row_statistics([tiny], predictions, targets)["bertscore[tiny-bert:1]"].rows
    # transformers' tokenizer of a bare folder has no length limit, which bert-score's own `score` needs
    scorer = library.BERTScorer(model_type=str(folder), num_layers=1)
    scorer._tokenizer.model_max_length = 512
    expected = scorer.score(predictions[:2], targets[:2])[2].tolist()
    assert [score for score, _ in rows] == pytest.approx([*expected, 0.0])
    assert rows[0][0] == pytest.approx(1.0, abs=1e-5)
    assert compute([tiny], predictions, targets)["bertscore[tiny-bert:1]"] == pytest.approx(sum(expected) / 3)
    assert "layer:1|idf:no|rescaled:no|version:bert-score-" in signatures([tiny])["bertscore[tiny-bert:1]"]
    with pytest.raises(ValueError, match="between 0 and 2"):
        compute([{"name": "bertscore", "kwargs": {"model": str(folder), "num_layers": 9}}], ["the"], ["cat"])
    _scorer.cache_clear()
