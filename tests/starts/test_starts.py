"""The small pretrained models of the package: unchanged, loadable without a network, with the habits they should have."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from benchmarks.make_starts import RECORD, STARTS, SUMS, habit_shares, list_skills
from rl_warmup.experiments.plan.work import read_work
from rl_warmup.models.loading import load_model
from rl_warmup.models.starts import HOME, names, resolve
from rl_warmup.models.tokens import declare_tokens
from rl_warmup.tasks import load_task
from rl_warmup.tasks.legs import AFTER, BEFORE, worked

MEGABYTE = 1 << 20


def record(name: str) -> dict:
    return json.loads((HOME / name / RECORD).read_text(encoding="utf-8"))


def test_weights_are_those_that_were_recorded_and_small():
    recorded = dict(line.split()[::-1] for line in SUMS.read_text(encoding="utf-8").splitlines())
    found = {f"{name}/model.safetensors": (HOME / name / "model.safetensors").read_bytes() for name in names()}
    assert recorded == {file: hashlib.sha256(data).hexdigest() for file, data in found.items()}
    folders = [sum(file.stat().st_size for file in (HOME / name).iterdir()) for name in names()]
    assert max(folders) < 4 * MEGABYTE
    assert sum(folders) < 9 * MEGABYTE


def test_every_start_can_be_made_again():
    assert set(names()) <= set(STARTS)


@pytest.mark.parametrize("name", names())
def test_a_start_loads_by_name_and_as_an_ordinary_folder_in_float32(name):
    model, tokenizer = load_model(f"start:{name}")
    auto = AutoModelForSeq2SeqLM if name.endswith("t5") else AutoModelForCausalLM
    plain = auto.from_pretrained(HOME / name)
    assert {p.dtype for p in model.parameters()} == {p.dtype for p in plain.parameters()} == {torch.float32}
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())
    assert sum(p.numel() for p in model.parameters()) == record(name)["parameters"]
    assert AutoTokenizer.from_pretrained(HOME / name).get_vocab() == tokenizer.get_vocab()
    asked = load_model(f"start:{name}", dtype="bfloat16")[0]
    assert {p.dtype for p in asked.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", names())
def test_its_tokenizer_knows_the_separator_the_filler_and_where_a_prompt_ends(name):
    model, tokenizer = load_model(f"start:{name}")
    tokens = declare_tokens(model, tokenizer)
    assert (tokens.separator, len(tokenizer)) == ("<extra_id_0>", model.get_input_embeddings().num_embeddings)
    filler = tokenizer("...", add_special_tokens=False)["input_ids"]
    assert len(filler) == 1
    assert filler[0] not in tokenizer.all_special_ids
    prompt = tokenizer("...")["input_ids"]
    ended = name.endswith("t5")
    assert prompt == ([*filler, tokenizer.eos_token_id] if ended else [tokenizer.bos_token_id, *filler])


def test_an_unknown_start_is_one_sentence():
    with pytest.raises(ValueError, match=r"there is no start 'leg-llama'.*Give one of .*start:legs-llama"):
        load_model("start:leg-llama")
    assert resolve("some/model") == "some/model"


@pytest.mark.parametrize("name", names())
def test_plan_reads_its_shape_and_counts_its_tokens(name):
    task = "legs" if name.startswith("legs") else "ledger"
    work = read_work({"model_name_or_path": f"start:{name}", "task": task, "task_kwargs": {"train_size": 50}})
    assert work.shape.parameters == record(name)["parameters"]


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("legs")])
def test_texts_about_legs_come_back_from_their_ids(name):
    tokenizer = load_model(f"start:{name}")[1]
    rows = [row for split in load_task("legs").splits.values() for row in split]
    texts = [row["prompt"] for row in rows] + [row["target"] for row in rows]
    texts += [worked(row["prompt"]) for row in rows]
    texts += [row["prompt"][len(BEFORE) : -len(AFTER)].replace(" , ", " ; ") for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(encoded) == texts
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert tokenizer.convert_ids_to_tokens(tokenizer("138", add_special_tokens=False)["input_ids"]) == ["▁1", "3", "8"]


@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("legs")])
def test_texts_about_ledgers_come_back_from_their_ids(name):
    tokenizer = load_model(f"start:{name}")[1]
    rows = load_task("ledger", length=8, modulus=5, train_size=500).splits["train"]
    texts = [text for row in rows for text in (row["prompt"], row["target"], *list_skills(row["prompt"]).values())]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(encoded) == texts
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)


@pytest.mark.parametrize("name", names())
def test_samples_hold_the_useful_habit_as_often_as_recorded(name):
    """100 samples: within three standard deviations of the share that was measured on more."""
    start, told = STARTS[name], record(name)
    useful = next(iter(start.habits(_prompts(name)[0])))
    share = told["samples"][useful]
    tolerance = 3 * (share * (1 - share) / 100) ** 0.5 + 0.01
    shares = habit_shares(*load_model(f"start:{name}"), start.habits, _prompts(name), seed=1)
    assert abs(shares[useful] - share) <= tolerance


def _prompts(name: str) -> list[str]:
    sizes = {"train_size": 0, "validation_size": 0, "test_size": 100}
    legs = name.startswith("legs")
    task = load_task("legs", **sizes) if legs else load_task("ledger", length=8, modulus=5, **sizes)
    return [row["prompt"] for row in task.splits["test"]]
