"""How the starts are made: habits by hand, what of a row is learned, and a start made in two updates."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from benchmarks import make_starts
from benchmarks.make_starts import STARTS, as_prompt, batch, leg_habits, list_skills
from rl_warmup.models.loading import load_model
from rl_warmup.models.tiny import TinySize, build_tokenizer
from rl_warmup.tasks.legs import AFTER, BEFORE


def test_a_question_in_its_own_words():
    question = (
        "Your task is to count legs.\n\nNow, how many legs are there in total if you have 4 beetles, 1 sea slug?\n"
    )
    assert as_prompt(question) == BEFORE + "4 beetles , 1 sea slug" + AFTER


def test_habits_of_legs_by_hand():
    assert leg_habits(BEFORE + "4 beetles , 1 sea slug , 2 crabs" + AFTER) == {
        "worked": "24 ; 24 ; 0 ; 24 ; 20 ; 44",
        "copy": "4 beetles ; 1 sea slug ; 2 crabs",
        "backwards": "2 crabs ; 1 sea slug ; 4 beetles",
        "legs": "6 ; 0 ; 10",
    }


def test_list_skills_by_hand():
    assert list_skills("a+3 b+1 c+4") == {
        "totals": "a=3 b=4 c=3",  # 3, 3+1, 3+1+4 = 8 = 3 modulo 5
        "copy": "a=3 b=1 c=4",
        "largest": "a=3 b=3 c=4",
        "differences": "a=3 b=3 c=3",  # 3, 1-3 = -2 = 3, 4-1
        "doubles": "a=1 b=2 c=3",
        "backwards": "c=4 b=1 a=3",
    }


def test_shares_name_habits_and_add_up_to_one():
    for name, start in STARTS.items():
        if not name.startswith("gym"):  # whose questions need reasoning-gym, and half a minute
            prompt = "a+3 b+1" if "legs" not in name else BEFORE + "1 ant" + AFTER
            assert set(start.shares) <= set(start.habits(prompt))
        assert sum(start.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_only_the_habit_and_its_end_are_learned(encoder_decoder):
    tokenizer = build_tokenizer(["a b c d"], TinySize(tokenizer="words"), encoder_decoder)
    a, b, c, d = (tokenizer.convert_tokens_to_ids(word) for word in "abcd")
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    made = {key: value.tolist() for key, value in batch(tokenizer, ["a b", "c"], ["d", "d"], encoder_decoder).items()}
    if encoder_decoder:
        assert made["input_ids"] == [[a, b, end], [c, end, pad]]
        assert made["labels"] == [[d, end], [d, end]]
    else:
        assert made["input_ids"] == [[begin, a, b, d, end], [begin, c, d, end, pad]]
        assert made["labels"] == [[-100, -100, -100, d, end], [-100, -100, d, end, -100]]


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_start_of_two_updates_is_a_folder_that_loads(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(make_starts, "PROBES", 4)
    small = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
    make_starts.make("tiny", dataclasses.replace(STARTS[f"skills-{kind}"], updates=2, size=small), home=tmp_path)
    record = json.loads((tmp_path / "tiny" / make_starts.RECORD).read_text(encoding="utf-8"))
    assert record["samples"] == {**dict.fromkeys(record["samples"], 0.0), "none": 1.0}
    model, _ = load_model(str(tmp_path / "tiny"))
    assert model.dtype == torch.float32
    assert {str(value.half().float().sub(value).abs().max().item()) for value in model.state_dict().values()} == {"0.0"}
