"""Every family of the docs' list: trained from a folder, evaluated, saved, loaded, and the same in plain transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from rl_warmup import WarmupConfig, WarmupGenerator, WarmupTrainer
from rl_warmup.models.tiny import TinySize, build_tokenizer

from .conftest import CONFIGS, VOCAB

ROWS = [{"prompt": f"a b {word}", "target": f"{word} b a"} for word in "cdefgh"]
IDS = ("warmup_ids", "prediction_ids")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_is_trained_saved_loaded_and_used_without_this_package(name, build, tmp_path):
    model = build(name)
    both = model.config.is_encoder_decoder
    tokenizer = build_tokenizer(["a b c d e f g h"] * 3, TinySize(tokenizer="words"), both)
    assert len(tokenizer) <= VOCAB
    model.save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    args = WarmupConfig(
        output_dir=str(tmp_path / "run"), num_warmups=2, max_warmup_length=3, max_target_length=5, max_steps=2, use_cpu=True,
        per_device_train_batch_size=3, learning_rate=0.001, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = WarmupTrainer(model=str(tmp_path / "start"), args=args, train_dataset=ROWS)
    before = trainer.evaluate(ROWS)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(ROWS)["eval_loss"] != before
    written = trainer.predict_rows(ROWS)
    trainer.save_model()
    again = WarmupGenerator.from_pretrained(tmp_path / "run").generate(ROWS)
    assert [[row[key] for key in IDS] for row in again] == [[row[key] for key in IDS] for row in written]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    auto = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "run", trust_remote_code=True)
    for row in written:
        inputs = tokenizer(row["prompt"], return_tensors="pt")
        ids = plain.generate(**inputs)[0, 1 if both else inputs["input_ids"].size(1) :].tolist()
        place = ids.index(trainer.layout.tokens.separator_id)
        target = ids[place + 1 :]
        end = target.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in target else 5
        assert (ids[:place], target[:end]) == (row["warmup_ids"], row["prediction_ids"])


def test_the_list_in_the_docs_is_that_of_the_tests():
    page = (Path(__file__).parents[2] / "docs/method.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^The tests train tiny shapes of (.*?)\.$", page, re.MULTILINE | re.DOTALL)
    names = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in re.split(r",|\band\b|\(|\)", listed)} - {""}
    assert names == {config.model_type for config in CONFIGS.values()}
