"""The model of lm-evaluation-harness: log-likelihoods against a loop over the stock model, and whole tasks from local files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from rl_warmup.cli.main import main
from rl_warmup.engine import sample_warmups
from rl_warmup.inference.harness import WarmupLM
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_jsonl
from rl_warmup.runtime.sharing import uniforms

CHOICES = ["c=3 b=3 a=1", "b=1", "a=2 b=0"]
QUESTIONS = ["a+1 b+2 c+0", "b+1", "a+2 b+2"]
TASKS = {
    "choose": {"output_type": "multiple_choice", "doc_to_choice": CHOICES, "doc_to_target": "answer",
               "metric_list": [{"metric": "acc"}]},
    "write": {"output_type": "generate_until", "doc_to_target": "text", "generation_kwargs": {"until": ["\n"]},
              "metric_list": [{"metric": "exact_match"}]},
}  # fmt: skip


@pytest.fixture(scope="module", params=["t5", "llama", "sft"])
def folder(request, tmp_path_factory):
    place, sft = tmp_path_factory.mktemp("run"), request.param == "sft"
    recipe = {
        "model_name_or_path": f"scratch-{'t5' if sft else request.param}", "task": "ledger", "max_target_length": 5,
        "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}, "learning_rate": 0.01,
        "task_kwargs": {"length": 3, "modulus": 4, "train_size": 32, "validation_size": 4, "test_size": 4}, "max_steps": 20,
        "max_warmup_length": 3, "num_warmups": 2, "use_cpu": True, "per_device_train_batch_size": 8, "show_progress": False,
        "report_to": "none", "save_strategy": "no", "controls": [], "output_dir": str(place / "run"),
        **({"objective": "sft"} if sft else {}),
    }  # fmt: skip
    (place / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", "--config", str(place / "r.yaml")]) == 0
    return place / "run"


@pytest.fixture
def tasks(tmp_path):
    """A folder of two tasks over local rows."""
    rows = [{"question": q, "answer": i, "text": CHOICES[i]} for i, q in enumerate(QUESTIONS)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for name, own in TASKS.items():
        data = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": data,
            "test_split": "test",
            "doc_to_text": "question",
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**task, **own}), encoding="utf-8")
    return tmp_path


def ask(*args):
    return SimpleNamespace(args=args)


def naive(folder, lm, prompt: str, warmup, text: str) -> float:
    """log P(y|x,c) from one forward of the stock model, float64."""
    model, tokenizer = load_model(str(folder))
    target, separator = tokenizer(text, add_special_tokens=False)["input_ids"], lm.generator.constraints.separator_id
    ids = torch.tensor([[*warmup, separator, *target]])
    read = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(input_ids=read, decoder_input_ids=torch.cat([start, ids[:, :-1]], 1)).logits[0]
        else:
            logits = model(input_ids=torch.cat([read, ids], 1)).logits[0, read.size(1) - 1 : -1]
    logps = logits.double().log_softmax(1).gather(1, ids.T)[:, 0]
    return logps[len(warmup) + 1 :].sum().item()


def test_loglikelihood_is_that_of_the_continuation_after_the_greedy_warmup(folder):
    lm = WarmupLM(str(folder))
    written = dict(zip(QUESTIONS, lm.generator.generate(QUESTIONS), strict=True))
    asked = [(q, " " + text) for q in QUESTIONS for text in CHOICES]
    found = lm.loglikelihood([ask(*pair) for pair in asked])
    for (question, text), (value, _) in zip(asked, found, strict=True):
        assert value == pytest.approx(
            naive(folder, lm, question, written[question]["warmup_ids"], text.strip()), abs=1e-4
        )
    own = [(question, row["prediction"]) for question, row in written.items() if row["prediction"]]
    assert all(greedy for _, greedy in lm.loglikelihood([ask(*pair) for pair in own]))
    assert not any(greedy for _, greedy in lm.loglikelihood([ask(q, "b=2 b=2 b=2 b=2 b=2 b=2") for q in QUESTIONS]))


@pytest.mark.parametrize("batch_size", [1, 32])
def test_several_warmups_give_the_mean_probability(folder, batch_size):
    if WarmupLM(str(folder)).generator.mode == "empty":
        with pytest.raises(ValueError, match="num_warmups"):
            WarmupLM(str(folder), num_warmups=4)
        return
    lm = WarmupLM(str(folder), num_warmups=4, seed=3, batch_size=batch_size)
    w, asked = lm.generator, [(q, text) for q in QUESTIONS for text in CHOICES]
    prompts = [row["prompt_ids"] for row in w.encoded([{"prompt": q} for q in QUESTIONS])]
    draws = uniforms("harness", 3, range(3), 4, w.constraints.max_length)
    warmups = sample_warmups(w.model, w.layout, w.constraints, prompts, 4, draws=draws)
    for (question, text), (value, _) in zip(asked, lm.loglikelihood([ask(*pair) for pair in asked]), strict=True):
        place = QUESTIONS.index(question)
        each = [naive(folder, lm, question, c.ids, text) for c in warmups[4 * place : 4 * place + 4]]
        assert value == pytest.approx(math.log(sum(map(math.exp, each)) / 4), abs=1e-4)


def test_generation_is_the_prediction_up_to_a_stop(folder):
    lm = WarmupLM(str(folder))
    expected = [row["prediction"] for row in lm.generator.generate(QUESTIONS)]
    settings = {"until": ["\n\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 256}
    assert lm.generate_until([ask(q, settings) for q in QUESTIONS]) == expected
    cut = lm.generate_until([ask(q, {"until": [" "]}) for q in QUESTIONS])
    assert cut == [text.split(" ")[0] for text in expected]
    short = lm.generate_until([ask(q, {"until": [], "max_gen_toks": 1}) for q in QUESTIONS])
    assert all(len(text.split()) <= 1 for text in short)
    sampled = [ask(q, {"do_sample": True, "temperature": 2.0}) for q in QUESTIONS * 5]
    assert lm.generate_until(sampled) == lm.generate_until(sampled)
    assert len(set(lm.generate_until(sampled))) > len(set(expected))


def test_what_would_be_measured_otherwise_is_refused(folder):
    lm = WarmupLM(str(folder))
    with pytest.raises(NotImplementedError, match="perplexity"):
        lm.loglikelihood_rolling([ask("a+1")])
    with pytest.raises(NotImplementedError, match="apply_chat_template"):
        lm.apply_chat_template([{"role": "user", "content": "a+1"}])
    with pytest.raises(ValueError, match="top_p"):
        lm.generate_until([ask("a+1", {"do_sample": True, "top_p": 0.9})])
    with pytest.raises(ValueError, match="request 1: the continuation"):
        lm.loglikelihood([ask("a+1", "b=1"), ask("a+1", " ")])


def test_whole_tasks(folder, tasks):
    lm = WarmupLM(str(folder))
    found = simple_evaluate(
        lm,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    rows = lm.generator.encoded([{"prompt": q} for q in QUESTIONS])
    written = lm.generator.predict(rows)
    right = 0
    for place, (question, row) in enumerate(zip(QUESTIONS, written, strict=True)):
        each = [naive(folder, lm, question, row["warmup_ids"], text) for text in CHOICES]
        right += each.index(max(each)) == place
    assert found["results"]["choose"]["acc,none"] == pytest.approx(right / 3)
    exact = sum(row["prediction"] == text for row, text in zip(written, CHOICES, strict=True))
    assert found["results"]["write"]["exact_match,none"] == pytest.approx(exact / 3)


@pytest.mark.parametrize("folder", ["t5"], indirect=True)
def test_the_command_of_the_docs(folder, tasks):
    command = [
        sys.executable, "-m", "rl_warmup.inference.harness", "run", "--model", "rl_warmup", "--model_args",
        f"pretrained={folder}", "--tasks", "choose,write", "--include_path", str(tasks), "--output_path", str(tasks / "out"),
        "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = tasks.glob("out/**/results_*.json")
    assert set(json.loads(results.read_text(encoding="utf-8"))["results"]) == {"choose", "write"}
    (samples,) = tasks.glob("out/**/samples_write_*.jsonl")
    texts = [row["prediction"] for row in WarmupLM(str(folder)).generator.generate(QUESTIONS)]
    logged = sorted(read_jsonl(samples), key=lambda row: row["doc_id"])
    assert [row["filtered_resps"][0] for row in logged] == texts
