"""A sequence-classification network as a reward: a tiny BERT with weights one can read."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from rl_warmup.rewards.classifier import Classifier


@pytest.fixture
def save(tmp_path, new_tokenizer, world):
    """A saved classifier with so many labels, and its tokenizer."""

    def make(labels: int, architecture: type = BertForSequenceClassification) -> str:
        torch.manual_seed(1)
        words = list(world.tokenizer.get_vocab())
        config = BertConfig(
            vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            num_labels=labels, pad_token_id=0, hidden_dropout_prob=0.5,
        )  # fmt: skip
        folder = tmp_path / f"{architecture.__name__}{labels}"
        architecture(config).save_pretrained(folder)
        new_tokenizer(words).save_pretrained(folder)
        return str(folder)

    return make


def spec(path: str, **kwargs) -> dict:
    return {"name": "classifier", "kwargs": {"model_name_or_path": path, **kwargs}}


def test_one_output_is_the_score_itself(world, save):
    """Row by row the logit of the network, whatever is padded beside it, dropout off."""
    path = save(1)
    got = world.judge([spec(path, batch_size=3, template="{prompt} {completion}")]).by_name["classifier"]
    board = world.board([spec(path)])
    model, tokenizer = (getattr(board.rewards[0].function, part) for part in ("model", "tokenizer"))
    texts = ["red green red one", "red green green red red", "blue <think> blue </think> one", "blue"]
    for score, text in zip(got, texts, strict=True):
        with torch.no_grad():
            assert score == pytest.approx(model(**tokenizer(text, return_tensors="pt")).logits.item(), abs=1e-5)


def test_of_several_labels_it_is_a_log_probability(world, save):
    path = save(3)
    scores = [world.judge([spec(path, label=label)]).total for label in ("LABEL_0", 1, "LABEL_2")]
    torch.testing.assert_close(torch.stack(scores).exp().sum(0), torch.ones(4))
    with pytest.raises(ValueError, match="label is None; .* has LABEL_0, LABEL_1, LABEL_2"):
        world.board([spec(path)])


def test_what_cannot_be_used_says_so(world, save, tmp_path):
    with pytest.raises(ValueError, match="is no sequence-classification model: it has no weights for classifier"):
        world.board([spec(save(1, BertModel))])
    with pytest.raises(ValueError, match="No sequence-classification model can be loaded from './nowhere'"):
        world.board([spec("./nowhere")])
    for template in ("no field", "{answer}", "{completion", 3):
        with pytest.raises(ValueError, match="template is"):
            Classifier("x", template=template)
    with pytest.raises(RuntimeError, match="not loaded yet: call prepare"):
        Classifier("x")(prompts=["a"], completions=["a"], target=["a"])
