"""`rl-warmup score`: the plugin author's bench, on a file of six warmups and on a run's own."""

from __future__ import annotations

import json

import pytest

from rl_warmup.cli.main import main
from rl_warmup.inference.scorecard import correlation, read_warmups, within
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.ownership import foreign_files
from rl_warmup.runtime.run_folder import write_jsonl

ROWS = [
    {"prompt": "a+1 b+2", "target": "b=0 a=1", "warmup": "a=1 b=0", "colour": "red"},
    {"prompt": "a+1 b+2", "target": "b=0 a=1", "warmup": "a=1"},
    {"prompt": "a+1 b+2", "target": "b=0 a=1", "warmup": ""},
    {"prompt": "a+2", "target": "a=2", "warmup": "a=2 a=2", "colour": "blue"},
    {"prompt": "a+2", "target": "a=2", "warmup": "a=2"},
    {"prompt": "a+0", "target": "a=0", "warmup": "a=0"},
]
OWN = """
calls = []
def words(completions, **kwargs): return [float(len(c.split())) for c in completions]
def talks(completions, **kwargs): return [float(len(c[0]["content"])) for c in completions]  # as TRL gives them
def coloured(colour, **kwargs): return [None if c is None else 1.0 for c in colour]
def mine(completions): return [0.0] * len(completions)
def nan_for_red(colour, **kwargs): return [float("nan") if c == "red" else 0.0 for c in colour]
def ranked(completions, **kwargs): return [c / len(completions) for c in range(len(completions))]
def moody(completions, **kwargs):
    calls.append(1)
    return [float(len(calls))] * len(completions)
def greedy(completions, **kwargs):
    completions.sort()
    return [0.0] * len(completions)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def score(capsys, *args: str) -> tuple[int, str, str]:
    code = main(["score", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def line(table: str, name: str) -> list[str]:
    return next(line for line in table.splitlines() if line.startswith(name)).split()


def test_warmups_of_conversations_are_scored(place, capsys):
    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    write_jsonl(place / "chats.jsonl", chats)
    for model in ((), ("--model", "start:skills-llama")):
        code, out, err = score(capsys, "chats.jsonl", "--reward", "own.py:talks", *model)
        assert code == 0, err
        assert "6 warmups of 3 prompts" in out
    write_jsonl(place / "bad.jsonl", [{**ROWS[0], "prompt": 5}])
    assert "'prompt' is 5; give a text" in score(capsys, "bad.jsonl", "--reward", "own.py:words")[2]


def test_scores_and_spread_without_a_model(place, capsys):
    code, out, err = score(capsys, "rows.jsonl", "--reward", "own.py:words", "--output", "scores.jsonl")
    assert (code, err) == (0, "")
    assert "6 warmups of 3 prompts; no model: tokens are the file's words" in out
    # within the prompts: 1, 0, -1 and 1/2, -1/2; the third prompt has one warmup only
    assert line(out, "words")[1:6] == ["6", "1.167", "0.000", "2.000", f"{(2.5 / 5) ** 0.5:.3f}"]
    assert line(out, '"a=1 b=0"')[-1] == "2.000"
    assert "No mistakes found." in out
    assert [row["scores"] for row in read_jsonl(place / "scores.jsonl")] == [{"words": n} for n in (2, 1, 0, 2, 1, 1)]


def test_with_a_model_there_are_likelihoods_predictions_and_a_correlation(place, capsys):
    specs = ["target_logprob", "gain", "{name: prediction_metric, kwargs: {metric: exact_match}}"]
    flags = [word for spec in specs for word in ("--reward", spec)]
    code, out, _ = score(capsys, "rows.jsonl", "--model", "scratch-llama", "--show", "6", "--batch-size", "4", *flags)
    assert code == 0
    assert line(out, "target_logprob")[6] == "1.00"
    assert line(out, "gain")[6] == "1.00"  # what is subtracted belongs to the prompt
    assert line(out, '""')[-2] == "0.000"  # an empty warmup gains nothing
    assert "predictions apart:" in out


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("own.py:nan_for_red", 2, "Reward 'nan_for_red' returned nan for row 0 (id 'line 1', warmup 0)"),
        ("gain", 2, "Reward 'gain' needs 'target_logps', which needs a model, and none is given."),
        ("own.py:greedy", 2, "changes its argument 'completions'"),
        ("own.py:lost", 2, "The reward 'own.py:lost': own.py has no 'lost'"),
        ("{name: own.py:words", 2, "is not valid YAML"),
        ("own.py:coloured", 0, "coloured: leaves 4 of 6 rows unscored (None)"),
        ("{name: own.py:words, kwargs: {scal: 2}}", 0, "words: takes 'scal' of its kwargs by **kwargs alone"),
        ("own.py:mine", 0, "mine: takes no **kwargs, so TRL's trainers need it through `load_reward`"),
        ("own.py:mine", 0, "mine: gives all warmups of a prompt the same number, so it cannot change the posterior"),
        ("own.py:moody", 0, "moody: two calls with the same rows gave different numbers"),
        ("own.py:ranked", 0, "ranked: a row's number depends on the other rows"),
    ],
)
def test_mistakes_and_what_is_worth_knowing(place, capsys, spec, code, words):
    given, out, err = score(capsys, "rows.jsonl", "--reward", spec)
    assert given == code
    assert words in (err if code else out)
    assert "corr" not in out or spec != "gain"  # nothing was scored, so there is no table
    assert "Traceback" not in out + err


def test_every_reward_of_the_call_is_judged(place, capsys):
    args = ["--reward", "own.py:lots", "--reward", "own.py:words", "--reward", "{name: own.py:words}"]
    code, out, err = score(capsys, "rows.jsonl", *args)
    assert code == 2
    assert line(out, "words")[1] == "6"
    assert err.splitlines() == [
        "rl-warmup score: 2 mistakes:",
        "  - The reward 'own.py:lots': own.py has no 'lots'.",
        "  - Another reward has the name 'words': give one of them a `label`.",
    ]


def test_the_warmups_of_a_run_are_scored_by_its_model(place, capsys):
    flags = {
        "model_name_or_path": "scratch-t5", "scratch": "{width: 16, layers: 1, heads: 2, tokenizer: words}",
        "task": "ledger", "task_kwargs": "{length: 3, modulus: 3, train_size: 8, validation_size: 4, test_size: 4}",
        "max_steps": 1, "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 4, "output_dir": "run",
        "save_strategy": "no", "use_cpu": "true", "show_progress": "false", "logging_steps": 1, "learning_rate": 0.0,
    }  # fmt: skip
    assert main(["train", *(f"--{key}={value}" for key, value in flags.items())]) == 0
    capsys.readouterr()
    code, out, _ = score(capsys, "run/warmups.jsonl", "--reward", "target_logprob", "--output", "s.jsonl")
    assert code == 0
    assert "6 warmups of 3 prompts; log-probabilities by run" in out
    inside = ["run/warmups.jsonl", "--reward", "target_logprob", "--output", "run/scored.jsonl"]
    assert [score(capsys, *inside)[0] for _ in range(2)] == [0, 0]
    assert foreign_files(place / "run") == []  # so that the run can be replaced
    for row in read_jsonl(place / "s.jsonl"):  # nothing was learned, and tokens are words: the file's numbers come back
        assert row["scores"]["target_logprob"] == pytest.approx(row["target_logprob"], abs=1e-3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "rows.jsonl holds no rows. Give JSON lines with prompt, target, warmup."),
        ("{", "rows.jsonl, line 1: is not valid JSON"),
        ('{"prompt": "a", "target": "b"}', "rows.jsonl, line 1: 'warmup' is None; give a text."),
        ("[1]", "rows.jsonl, line 1: is a JSON list, no JSON object"),
        (
            r'{"prompt": "a", "target": "b", "warmup": "cut \ud83d"}',
            "rows.jsonl, line 1: 'warmup' holds half a character",
        ),
        ('{"prompt": "a", "target": "b", "warmup": "a", "target_logprob": "-1"}', "line 1: 'target_logprob'"),
    ],
)
def test_files_that_cannot_be_read(place, capsys, text, sentence):
    (place / "rows.jsonl").write_text(text)
    code, _, err = score(capsys, "rows.jsonl", "--reward", "gain")
    assert code == 2
    assert sentence in err
    assert "no.jsonl does not exist" in score(capsys, "no.jsonl", "--reward", "gain")[2]


def test_a_warmup_of_unknown_words_alone_is_not_scored_as_none(place, capsys):
    flags = ["--model", "start:skills-llama", "--reward", "target_logprob"]
    row = {"prompt": "a+1 b+2", "target": "b=0 a=1", "warmup": "a=1"}
    write_jsonl(place / "rows.jsonl", [row, {**row, "warmup": "ünheard"}])
    code, _, err = score(capsys, "rows.jsonl", *flags, "--output", "s.jsonl")
    assert code == 2
    assert "line 2" in err
    assert not (place / "s.jsonl").exists()


def test_a_runs_groups_are_spread_out(place):
    group = {"step": 1, "id": "x", "prompt": "p", "target": "t", "warmups": [{"warmup": "a"}, {"warmup": "b"}]}
    (place / "w.jsonl").write_text(json.dumps(group) + "\n")
    assert [(row["id"], row["warmup"]) for row in read_warmups(place / "w.jsonl")] == [("x", "a"), ("x", "b")]


def test_spread_and_correlation_by_hand():
    prompts = ["p", "p", "q", "q", "r"]
    assert within([1.0, 3.0, 10.0, 10.0, 99.0], prompts) == pytest.approx((2 / 4) ** 0.5)
    assert within([1.0, 2.0, 3.0], ["p", "q", "r"]) is None
    # within prompts +1 -1 | +2 -2 against -1 +1 | -2 +2, whatever lies between the prompts
    assert correlation([3.0, 1.0, 104.0, 100.0, 7.0], [0.0, 2.0, 50.0, 54.0, 1.0], prompts) == pytest.approx(-1.0)
    left, right = [3.0, None, 104.0, 100.0, 102.0, 9.0], [0.0, 2.0, 50.0, 54.0, 52.0, None]  # of p nothing is left
    assert correlation(left, right, ["p", "p", "q", "q", "q", "p"]) == pytest.approx(-1.0)
    assert correlation([3.0, 1.0], [0.0, 2.0], ["p", "p"]) is None  # of two it is always 1 or -1
    assert correlation([1.0, 1.0, 2.0, 2.0, 3.0], [0.0, 2.0, 50.0, 54.0, 1.0], prompts) is None
