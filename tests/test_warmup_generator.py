"""`WarmupGenerator.generate` against brute force, hand-computed cases, float64 loops and itself."""

from __future__ import annotations

import copy
import gc
import math
import threading
import tracemalloc
from dataclasses import replace
from itertools import product

import pytest
import torch

from rl_warmup.batch import Warmup
from rl_warmup.engine import plain
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.inference.selection import expected_utility, utility_of, votes
from rl_warmup.models.inference_settings import Inference
from rl_warmup.models.layouts.splice import batch_of_groups

PROMPTS = ["a b c d", "e f", "g", "h a e"]


@pytest.fixture
def lab(lab):
    """A sharper copy of the network, so that targets differ."""
    sharper = replace(lab, model=copy.deepcopy(lab.model))
    with torch.no_grad():
        for parameter in sharper.model.parameters():
            parameter.mul_(1.5)
    return sharper


@pytest.fixture
def writer(lab) -> WarmupGenerator:
    """Warmups of one or two of three words, targets of up to two tokens."""
    constraints = lab.constraints("a b c", min_length=1, max_length=2)
    return WarmupGenerator(lab.model, lab.tokenizer, lab.layout, Inference(constraints, "", max_target_length=2))


def logprob(lab, prompt: str, warmup: Warmup, target: list[int], constraints) -> tuple[float, float]:
    """log P(c|x) and log P(y|x,c) by a float64 copy of the network, one token at a time."""
    model = copy.deepcopy(lab.model).double()
    layout, tokens, x = lab.layout, [*warmup.ids, lab.tokens.separator_id, *target], lab.ids(prompt)
    sums = [0.0, 0.0]
    for place, token in enumerate(tokens):
        ids, mask = layout.prompt_inputs([x])
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                start = [model.config.decoder_start_token_id, *tokens[:place]]
                found = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([start]))
            else:
                found = model(input_ids=torch.tensor([[*x, *tokens[:place]]]))
        logits = found.logits[0, -1:].double()
        in_warmup = place < len(warmup.ids) or (place == len(warmup.ids) and warmup.separator_is_action)
        if in_warmup:
            logits[:, constraints.banned] = -math.inf
            if place < constraints.min_length:
                logits[:, constraints.separator_id] = -math.inf
        if in_warmup or place > len(warmup.ids):
            sums[not in_warmup] += logits.log_softmax(1)[0, token].item()
    return sums[0], sums[1]


def target_of(lab, prediction: dict) -> list[int]:
    return prediction["prediction_ids"] + [lab.tokens.eos_id] * (prediction["prediction_finish"] == "end")


def rows_of(lab) -> list[dict]:
    return [{"id": p, "prompt": p, "prompt_ids": lab.ids(p)} for p in PROMPTS]


def test_log_probabilities_equal_a_float64_loop(lab, writer):
    for settings in ({}, {"sample_warmup": True, "sample_target": True, "seed": 4}, {"warmup": "b c"}, {"warmup": ""}):
        for row, prediction in zip(rows_of(lab), writer.generate(rows_of(lab), batch_size=3, **settings), strict=True):
            warmup = Warmup(prediction["warmup_ids"], prediction["warmup_finish"])
            wanted = logprob(lab, row["prompt"], warmup, target_of(lab, prediction), writer.constraints)
            assert (prediction["warmup_logprob"], prediction["prediction_logprob"]) == pytest.approx(wanted, abs=1e-4)


def test_marginal_reranking_equals_brute_force(lab, writer):
    out = writer.generate(rows_of(lab), num_warmups=5, batch_size=2, seed=3)
    candidates = [writer.predict(rows_of(lab), 4, sample_warmup=True, seed=s) for s in (3, "3/1", "3/2", "3/3", "3/4")]
    for place, prompt in enumerate(PROMPTS):
        drawn = [c[place] for c in candidates]
        scores = []
        for one in drawn:
            likelihoods = [
                logprob(lab, prompt, Warmup(c["warmup_ids"], "separator"), target_of(lab, one), writer.constraints)[1]
                for c in drawn
            ]
            scores.append(math.log(math.fsum(map(math.exp, likelihoods)) / len(drawn)))
        assert [c["score"] for c in out[place]["candidates"]] == pytest.approx(scores, abs=1e-4)
        assert out[place]["score"] == pytest.approx(max(scores), abs=1e-4)
        assert out[place]["prediction"] == drawn[scores.index(max(scores))]["prediction"]


def test_many_warmups_find_the_likeliest_target_of_all(lab, writer):
    """Enumerated: log Σ_c P(c|x) P(y|x,c) over every warmup; the mixture of samples estimates it for the target it takes."""
    row = {**lab.row(PROMPTS[0], "a"), "prompt_ids": lab.ids(PROMPTS[0])}
    (best,) = writer.generate([row], num_warmups=64, seed=1)
    with torch.no_grad():
        target = {**row, "target_ids": target_of(lab, best)}
        scores = lab.score(target, lab.all_warmups(writer.constraints), writer.constraints)
    exact = (scores.warmup_logprob + scores.target_logprob).logsumexp(0).item()
    assert best["score"] == pytest.approx(exact, abs=0.3)


def test_beams_find_the_likeliest_target(lab, writer):
    vocabulary, suppressed = len(lab.tokenizer), set(writer.settings.suppressed(lab.tokens))
    words = [i for i in range(vocabulary) if i not in suppressed and i != lab.tokens.eos_id]
    targets = [[lab.tokens.eos_id], *([a, lab.tokens.eos_id] for a in words), *map(list, product(words, repeat=2))]
    for settings in ({"warmup": "b c"}, {}):
        for row, found in zip(rows_of(lab), writer.generate(rows_of(lab), num_beams=30, **settings), strict=True):
            warmup = Warmup(found["warmup_ids"], found["warmup_finish"])
            rows = [{**row, "target_ids": target} for target in targets]
            with torch.no_grad():
                batch = batch_of_groups(lab.layout, rows, [[warmup]] * len(rows))
                scores = plain.score(lab.model, batch, writer.constraints).target_logprob
            assert found["prediction_logprob"] == pytest.approx(scores.max().item(), abs=1e-4)
            assert target_of(lab, found) == targets[int(scores.argmax())]


def test_mbr_by_hand():
    same_letters = lambda a, b: len(set(a) & set(b)) / len(set(a) | set(b))  # noqa: E731
    # "ab": (1 + 1/3 + 1 + 0)/4 of ab, bc, ab, xy; "bc": (1/3 + 1 + 1/3 + 0)/4; "xy": 1/4
    scores = expected_utility(["ab", "bc", "ab", "xy"], same_letters)
    assert scores == pytest.approx([7 / 12, 5 / 12, 7 / 12, 1 / 4])
    assert utility_of("chrf")("a b", "a b") == pytest.approx(100)
    assert utility_of("rouge")("a b", "a c") == pytest.approx(50)
    with pytest.raises(ValueError, match="chrf, rouge"):
        utility_of("bleurt")


def test_votes_by_hand():
    assert votes(["4", " 4", "5"]) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert votes(["B", "b) Ada", "the answer is B.", "zzz"], ["Bob", "Ada"]) == [0.75, 0.75, 0.75, 0.0]
    assert votes(["4", " 4", "5"], ["foo", "bar"]) == votes(["4", " 4", "5"])  # a column that has the name by chance


def test_predictions_of_predictions_keep_nothing_of_the_earlier_ones(lab, writer):
    rows = [{**row, "score": 0.25} for row in rows_of(lab)]  # a column of the data
    first = writer.generate(rows, num_warmups=2)
    again = writer.generate(first, warmup="", logprobs=False)
    assert not {"warmup_logprob", "prediction_logprob", "score", "candidates"} & again[0].keys()
    gated = writer.generate(first, gate=-100.0)
    assert gated[0]["gated"]
    assert "gated" not in writer.generate(gated)[0]
    assert writer.generate(rows)[0]["score"] == 0.25


@pytest.mark.parametrize("select", ["mbr", "vote"])
def test_a_selection_takes_one_of_its_candidates(lab, writer, select):
    out = writer.generate(
        rows_of(lab), num_warmups=4, select=select, utility=lambda a, b: float(a == b), logprobs=False
    )
    for prediction in out:
        texts = [c["prediction"] for c in prediction["candidates"]]
        assert texts.count(prediction["prediction"]) == max(map(texts.count, texts))
        assert prediction["score"] == texts.count(prediction["prediction"]) / 4


def test_samples_do_not_depend_on_the_batch_or_the_window(lab, writer, monkeypatch):
    settings = {"sample_warmup": True, "sample_target": True, "seed": 2, "logprobs": False}
    rows = rows_of(lab) * 3
    whole = writer.generate(rows, batch_size=12, **settings)
    assert writer.generate(rows, batch_size=1, **settings) == whole
    monkeypatch.setattr("rl_warmup.inference.generation.WINDOW", 1)
    assert list(writer.iterate(iter(rows), batch_size=5, **settings)) == whole
    assert len({tuple(p["prediction_ids"]) for p in whole}) > 3


def test_iterate_reads_its_inputs_as_it_goes(lab, writer, monkeypatch):
    monkeypatch.setattr("rl_warmup.inference.generation.WINDOW", 2)
    read = []
    source = (read.append(i) or PROMPTS[i % 4] for i in range(1000))
    found = writer.iterate(source, batch_size=3)
    assert [next(found)["prompt"] for _ in range(7)] == [PROMPTS[i % 4] for i in range(7)]
    assert len(read) == 12


def test_memory_does_not_grow_with_the_rows(lab, writer, monkeypatch):
    monkeypatch.setattr("rl_warmup.inference.generation.WINDOW", 4)
    kept = []
    for count in (100, 100, 500):  # the first fills caches
        gc.collect()
        tracemalloc.start()
        source = (" ".join(["a b c d e"] * (1 + i % 7)) for i in range(count))
        assert sum(1 for _ in writer.iterate(source, batch_size=8)) == count
        gc.collect()
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    # an answer takes more than 1,000 bytes; torch keeps some 100 for the calls of its own functions
    assert kept[2] < kept[1] + 400 * 250


def test_inputs_of_every_kind_and_what_is_no_input(lab, writer):
    one = writer.generate("a b")
    assert writer.generate(["a b"]) == writer.generate({"prompt": "a b"}) == one
    assert {
        "prediction",
        "warmup",
        "warmup_logprob",
        "prediction_logprob",
        "warmup_finish",
        "prediction_finish",
    } <= set(one[0])
    assert writer.generate([]) == []
    with pytest.raises(ValueError, match="input 1: '5'"):
        writer.generate(["a", 5])


def test_streamed_pieces_are_the_prediction(lab, writer):
    for prompt in PROMPTS:
        (whole,), pieces = writer.generate(prompt), list(writer.stream(prompt))
        parts = {part: "".join(text for p, text in pieces if p == part) for part in ("warmup", "target")}
        assert parts == {"warmup": whole["warmup"], "target": whole["prediction"]}
    assert {part for part, _ in writer.stream("a b", warmup="")} <= {"target"}
    with pytest.raises(ValueError, match="warmup: 5 is no text"):
        list(writer.stream("a b", warmup=5))


def test_a_stream_passes_on_what_generate_finds_when_it_has_written(lab, writer):
    with torch.no_grad():
        writer.model.get_output_embeddings().weight.mul_(math.nan)
    with pytest.raises(FloatingPointError, match="write nothing"):
        list(writer.stream("a b"))


def test_a_stream_left_early_ends_its_writing_before_the_model_is_used_again(lab, writer):
    settings, count = writer.model.generation_config, threading.active_count()
    whole = writer.generate(PROMPTS)
    for prompt in PROMPTS:
        for _ in writer.stream(prompt):
            break
        assert threading.active_count() == count
        assert writer.model.generation_config is settings
    assert writer.generate(PROMPTS) == whole


def test_unsure_rows_of_a_gate_draw_by_their_own_numbers(lab, writer):
    settings = {"sample_warmup": True, "sample_target": True, "seed": 3}
    sure = sorted(p["prediction_logprob"] / len(target_of(lab, p)) for p in writer.generate(rows_of(lab), warmup=""))
    always, out = (writer.generate(rows_of(lab), gate=gate, **settings) for gate in (1e9, sure[-2]))
    assert {p["gated"] for p in out} == {True, False}
    for prediction, wanted in zip(out, always, strict=True):
        assert prediction["gated"] or prediction == wanted


def test_neighbouring_seeds_share_no_candidates(lab, writer):
    rows = rows_of(lab) * 10
    of = {seed: writer.generate(rows, num_warmups=2, select="vote", seed=seed, logprobs=False) for seed in (1, 2)}
    second, first = ([p["candidates"][k]["warmup"] for p in of[seed]] for seed, k in ((1, 1), (2, 0)))
    assert second != first


def test_windows_name_rows_by_their_numbers_and_share_given_warmups(lab, writer, monkeypatch):
    monkeypatch.setattr("rl_warmup.inference.generation.WINDOW", 1)
    texts = ["a", "b c", "", "c"]
    found = list(writer.iterate(iter(PROMPTS), batch_size=3, warmup=iter(texts)))
    expected = writer.generate(PROMPTS, warmup=texts)
    for name in expected[0]:
        values = [row[name] for row in found], [row[name] for row in expected]
        assert values[0] == (pytest.approx(values[1], rel=1e-5) if name.endswith("logprob") else values[1])
    for count, fault in ((3, "3 texts for more inputs"), (5, "more texts than the 4 inputs")):
        with pytest.raises(ValueError, match=fault):
            list(writer.iterate(PROMPTS, batch_size=3, warmup=[*texts, "a"][:count]))
    for fourth, fault in (
        ({"prompt": None}, "prompt 3: is empty"),
        (5, "input 3: '5'"),
        ({"prompt": ["a"]}, "prompt 3: the prompt is a"),
    ):
        with pytest.raises(ValueError, match=fault):
            list(writer.iterate(["a", "b", "c", fourth], batch_size=3))
    rows = [{"prompt": "a", "target": "b"}] * 3
    with pytest.raises(ValueError, match="rows row 3 .*the target is empty"):
        list(writer.iterate([*rows, {"prompt": "a", "target": ""}], batch_size=3))


def test_whether_a_prompt_is_laid_into_the_template_depends_on_its_own_row_alone(lab, writer, monkeypatch):
    monkeypatch.setattr("rl_warmup.inference.generation.WINDOW", 1)
    writer = replace(writer, settings=replace(writer.settings, prompt_template="a b {text}"))
    rows = [{"prompt": "c", "target": "d"}, {"prompt": "c"}, {"prompt": "c", "prompt_ids": lab.ids("c"), "id": "2"}]
    rows += [{"prompt": "c", "completion": "d"}, {"prompt": "a b c"}]
    alone = [writer.encoded([row], [place])[0] for place, row in enumerate(rows)]
    filled = writer.encoded([{"prompt": "a b c", "target": "d"}])[0]["prompt_ids"]
    assert [row["prompt_ids"] == filled for row in alone] == [False, True, False, False, True]
    assert writer.encoded(rows) == alone
    once, windows = writer.generate(rows, logprobs=False), writer.iterate(rows, batch_size=2, logprobs=False)
    assert list(windows) == once
    assert [p["id"] for p in once] == list("01234")
    with pytest.raises(ValueError, match="rows row 3 .*the target is empty"):
        writer.generate([*rows[:3], {"prompt": "c", "target": ""}])


def test_a_given_warmup_holds_no_token_that_a_warmup_may_not_hold(lab, writer):
    end, separator = lab.tokenizer.convert_ids_to_tokens([lab.tokens.eos_id, lab.tokens.separator_id])
    assert writer.generate("a b", warmup=f"b {separator} c {end}") == writer.generate("a b", warmup="b c")


def test_a_model_without_warmups_reads_a_given_one_in_a_stream_too(lab, writer):
    bare = replace(writer, settings=replace(writer.settings, mode="empty"))
    for warmup in (None, "b c"):
        pieces = list(bare.stream("a b", warmup=warmup))
        (whole,) = bare.generate("a b", warmup=warmup)
        assert "".join(text for part, text in pieces if part == "warmup") == whole["warmup"] == (warmup or "")
        assert "".join(text for part, text in pieces if part == "target") == whole["prediction"]


@pytest.mark.parametrize("prompt", [["a"], [None], 5, None])
def test_a_prompt_that_is_no_text_and_no_conversation_is_one_sentence(lab, writer, prompt):
    fault = "is empty" if prompt is None else "has to be a text, or a list of messages"
    with pytest.raises(ValueError, match=f"prompt 0: .*{fault}"):
        writer.generate({"prompt": prompt})
    with pytest.raises(ValueError, match=f"rows row 0 .*{fault}"):
        writer.generate({"prompt": prompt, "target": "a"})


def test_a_gate_keeps_what_is_sure_and_is_calibrated_on_rows(lab, writer):
    rows = [{"id": p, "prompt": p, "target": t} for p, t in zip(PROMPTS, ["a", "b", "c", "d"], strict=True)]
    never, always = (writer.generate(rows, warmup=w) for w in ("", None))
    for threshold, wanted, gated in ((-1e9, never, True), (1e9, always, False)):
        out = writer.generate(rows, gate=threshold)
        assert [p["prediction_ids"] for p in out] == [p["prediction_ids"] for p in wanted]
        assert {p["gated"] for p in out} == {gated}
    # the target of rows 0 and 1 is what is written without a warmup, of 2 and 3 what is written with one
    for place, source in enumerate((never, never, always, always)):
        rows[place]["target"] = source[place]["prediction"] or "a"
    gate = writer.calibrate_gate(rows)
    assert gate.quality >= max(gate.always, gate.never)
    out = writer.generate(rows, gate=gate)
    assert sum(p["gated"] for p in out) == gate.skipped * 4
    assert sum(p["prediction"] == row["target"] for p, row in zip(out, rows, strict=True)) / 4 == gate.quality
    with pytest.raises(ValueError, match="rows: none"):
        writer.calibrate_gate([])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"select": "best"}, "select"), ({"num_warmups": 0}, "num_warmups"), ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "sample_target": True}, "num_beams"), ({"warmup": "a", "gate": 1.0}, "gate"),
        ({"warmup": ["a", "b"]}, "2 texts for 1"), ({"temperature": 0.0}, "temperature"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_one_sentence(writer, settings, named):
    with pytest.raises(ValueError, match=named):
        writer.generate("a b", **settings)
