"""Samples of the starting model: the same whoever draws them and however often he is stopped, and nobody else's."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rl_warmup.method.drawing import Drawing, weights_hash
from rl_warmup.method.reference import FILE, StartingPolicy, reference_warmups
from rl_warmup.models.tokens import end_by_separator

PROMPTS = ["a b c", "d", "e f", "g g", "h a b", "c", "b b", "f"]


@pytest.fixture
def drawing(lab):
    return Drawing(lab.model, lab.layout, lab.constraints(max_length=3), num_warmups=2, seed=5, batch_size=3)


@pytest.fixture
def prompts(lab):
    return [lab.ids(words) for words in PROMPTS]


def test_the_file_gives_back_what_was_drawn(drawing, prompts, tmp_path):
    drawn = reference_warmups(drawing, prompts, tmp_path / FILE)
    assert [len(group) for group in drawn] == [2] * 8
    assert {warmup.finish for group in drawn for warmup in group} == {"separator", "length"}
    assert all(warmup.logprob is None for group in drawn for warmup in group)
    before = (tmp_path / FILE).read_bytes()
    assert reference_warmups(drawing, prompts, tmp_path / FILE) == drawn
    assert (tmp_path / FILE).read_bytes() == before


def test_drawing_disturbs_no_other_random_draw(drawing, prompts, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawing.model.train()
    reference_warmups(drawing, prompts, tmp_path / FILE)
    assert torch.rand(3).equal(expected)
    assert drawing.model.training
    drawing.model.eval()


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_an_interrupted_drawing_goes_on_with_the_same_samples(drawing, prompts, tmp_path, kept):
    """Cut within a line, after the header or after whole batches."""
    drawn = reference_warmups(drawing, prompts, tmp_path / FILE)
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    (tmp_path / FILE).write_text("".join(lines[:kept]) + lines[kept][:7])
    assert reference_warmups(drawing, prompts, tmp_path / FILE) == drawn
    again = (tmp_path / FILE).read_text().splitlines()
    assert sorted(again[1:]) == sorted(line.rstrip("\n") for line in lines[1:])


@pytest.mark.parametrize("change", ["seed", "num_warmups", "constraints", "batch_size", "prompts", "model"])
def test_a_file_of_another_drawing_is_not_used(drawing, prompts, tmp_path, change):
    reference_warmups(drawing, prompts, tmp_path / FILE)
    other, asked = drawing, prompts
    if change == "prompts":
        asked = prompts[::-1]
    elif change == "model":
        other = replace(drawing, model=copy.deepcopy(drawing.model))
        with torch.no_grad():
            next(iter(other.model.parameters())).add_(1)
    elif change == "constraints":
        other = replace(drawing, constraints=replace(drawing.constraints, temperature=0.7))
    else:
        other = replace(drawing, **{change: getattr(drawing, change) + 1})
    if change == "batch_size":  # a resumed run keeps its samples
        first = reference_warmups(drawing, prompts, tmp_path / FILE)
        assert reference_warmups(other, asked, tmp_path / FILE, earlier=tmp_path / FILE) == first
        (tmp_path / "copy").mkdir()  # a run that goes on in another folder
        assert reference_warmups(other, asked, tmp_path / "copy" / FILE, earlier=tmp_path / FILE) == first
    else:
        with pytest.raises(ValueError, match="started with"):
            reference_warmups(other, asked, tmp_path / FILE, earlier=tmp_path / FILE)
    drawn = reference_warmups(other, asked, tmp_path / FILE)
    assert [len(group) for group in drawn] == [other.num_warmups] * 8
    assert json.loads((tmp_path / FILE).read_text().splitlines()[0]) == other.header(asked)


def test_every_batch_has_a_random_state_of_its_own(drawing, prompts, tmp_path):
    """Batches may be drawn in any order, by anybody."""
    drawn = reference_warmups(drawing, prompts, tmp_path / FILE)
    order = sorted(range(8), key=lambda place: len(prompts[place]))
    batches = [order[i : i + 3] for i in range(0, 8, 3)]
    torch.manual_seed(99)
    for batch in reversed(batches):
        again = drawing.draw(prompts, batch)
        assert [[w.ids for w in group] for group in again] == [[w.ids for w in drawn[place]] for place in batch]


def test_the_start_is_on_the_device_that_trains(lab):
    """Whichever device the model was on when it was copied."""
    start = StartingPolicy(lab.model)
    engine = {"is_deepspeed_enabled": False, "is_fsdp_enabled": False}
    start.prepare(SimpleNamespace(args=SimpleNamespace(device=torch.device("meta")), **engine))
    assert {parameter.device.type for parameter in start.model.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in lab.model.parameters()} == {"cpu"}


def test_the_hash_of_weights_tells_models_apart(lab):
    same = copy.deepcopy(lab.model)
    assert weights_hash(lab.model) == weights_hash(same)
    with torch.no_grad():
        next(iter(same.parameters()))[0] += 1e-3
    assert weights_hash(lab.model) != weights_hash(same)


def test_the_separator_takes_the_end_tokens_place(new_lab):
    """After `end_by_separator` a warmup is as likely to end as the plain model's text was."""
    for kind in ("scratch-t5", "scratch-llama"):
        lab = new_lab(kind)
        end_by_separator(lab.model, lab.tokens)
        ids = torch.tensor([lab.ids("a b c")])
        given = (
            {"decoder_input_ids": torch.tensor([[lab.tokens.pad_id]])} if lab.model.config.is_encoder_decoder else {}
        )
        logits = lab.model(input_ids=ids, **given).logits[0, -1]
        assert logits[lab.tokens.separator_id].item() == logits[lab.tokens.eos_id].item()
