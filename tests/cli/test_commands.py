"""The commands as a person types them: results, help, and one clear sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.inference.controls import CONTROLS
from rl_warmup.runtime.documents import read_jsonl

TINY = {
    "model_name_or_path": "scratch-t5",
    "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger",
    "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
    "max_steps": 2, "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 4,
    "save_strategy": "no", "use_cpu": True, "show_progress": False, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    """Writes TINY with changes and returns its path."""

    def write(**changes) -> Path:
        path = tmp_path / "recipe.yaml"
        values = {**TINY, "output_dir": str(tmp_path / "run"), **changes}
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v != "-"}))
        return path

    return write


def fails(capsys, *args) -> str:
    """The one-line error of a command that must fail."""
    assert main([str(arg) for arg in args]) == 2
    out = capsys.readouterr()
    assert "Traceback" not in out.err + out.out
    return out.err


def test_train_evaluate_generate(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--config", str(recipe()), "--seed", "3"]) == 0
    assert "own warmup" in capsys.readouterr().out
    result = json.loads((run / "metrics.json").read_text())
    assert result["seed"] == 3
    assert set(result["metrics"]) == {"", "shuffled", "empty_warmup"}
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolved["seed"] == 3
    assert resolved["tau"] == 1.0  # defaults are written out
    assert len(read_jsonl(run / "predictions.jsonl")) == 4

    assert main(["evaluate", str(run), "--split", "validation", "--controls", "filler", "--limit", "3"]) == 0
    again = json.loads((run / "evaluation" / "validation" / "metrics.json").read_text())
    assert again["rows"] == 3
    assert set(again["metrics"]) == {"", "filler"}
    capsys.readouterr()

    assert main(["evaluate", str(run), "--split", "validation", "--task", "ledger", "--task_kwargs",
                 "{length: 3, modulus: 5, train_size: 4, validation_size: 2, test_size: 2}"]) == 0  # fmt: skip
    assert json.loads((run / "evaluation" / "validation" / "metrics.json").read_text()) == again
    assert len(list((run / "evaluation").glob("validation-*/predictions.jsonl"))) == 1
    capsys.readouterr()

    assert main(["evaluate", str(run), "--output", str(tmp_path / "test")]) == 0
    assert read_jsonl(tmp_path / "test" / "predictions.jsonl") == read_jsonl(run / "predictions.jsonl")
    capsys.readouterr()

    other = ["--warmups-from", str(tmp_path / "test"), "--num-warmups", "2"]
    assert main(["evaluate", str(run), "--controls", "all", *other, "--output", str(tmp_path / "all")]) == 0
    everything = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert set(everything["metrics"]) == {"", *CONTROLS}
    assert set(everything["likelihood"]["bound"]) == {"1", "2", "4", "8", "16"}
    same = [read_jsonl(tmp_path / "all" / name) for name in ("predictions.jsonl", "predictions.other_run.jsonl")]
    assert [row["prediction"] for row in same[0]] == [
        row["prediction"] for row in same[1]
    ]  # its own warmups, handed back
    table = capsys.readouterr().out
    for words in ("reranked", "without a warmup", "bound, n = 16", "gain of a sampled warmup"):
        assert words in table
    assert "--warmups-from" in fails(capsys, "evaluate", run, "--controls", "other_run")

    assert main(["generate", str(run), "a+1 b+2 c+0", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert {"prompt", "warmup", "warmup_finish", "warmup_logprob", "prediction", "prediction_logprob"} <= set(written)
    assert main(["generate", str(run), "a+1 b+2 c+0", "--warmup", ""]) == 0
    assert "warmup      \n" in capsys.readouterr().out


def test_the_same_recipe_drives_both_architectures(recipe):
    for kind in ("scratch-t5", "scratch-llama"):
        assert main(["train", "--config", str(recipe(model_name_or_path=kind)), "overwrite=true"]) == 0


def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_overwritten(recipe, tmp_path, capsys):
    path = recipe(save_strategy="steps", save_steps=1)
    assert main(["train", "--config", str(path)]) == 0
    whole = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "already holds a run" in fails(capsys, "train", "--config", path)
    (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").unlink()  # as if killed while saving
    assert main(["train", "--config", str(path), "--resume_from_checkpoint", "auto"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_warmup": 3}, ["'num_warmup' is not a setting", "Did you mean 'num_warmups'"]),
        ({"objective": "marginl"}, ["objective: There is no objective 'marginl'", "Did you mean 'marginal'"]),
        ({"num_warmups": 1, "objective": "grpo"}, ["num_warmups: is 1", "'grpo'", "at least 2"]),
        ({"num_warmups": "many"}, ["num_warmups: 'many' is not a whole number"]),
        ({"num_warmup": 3, "tau": 0.0}, ["2 settings cannot be used", "num_warmups", "tau: is 0.0, must be at least"]),
        ({"proposals": ["revers"]}, ["proposals: There is no proposal 'revers'", "Did you mean 'reverse'"]),
        ({"controls": ["shuffle"]}, ["controls: 'shuffle' is not one of", "shuffled"]),
        ({"model_name_or_path": "./nowhere"}, ["model_name_or_path: './nowhere' is no folder", "scratch-t5"]),
        ({"model_name_or_path": "-"}, ["model_name_or_path is missing"]),
        ({"metrics": ["blue"]}, ["blue", "bleu"]),
        ({"metrics": [{"name": "comet", "kwargs": {"checkpoint": "c", "command": "no-such-comet"}}]}, ["no-such-comet"]),
        ({"task": "ledgr"}, ["There is no task 'ledgr'", "Did you mean 'ledger'"]),
        ({"task_kwargs": {"lenght": 3}}, ["no argument 'lenght'", "did you mean 'length'"]),
        ({"scratch": {"widht": 16}}, ["scratch: unknown 'widht'", "width"]),
        ({"max_prompt_length": 2}, ["the prompt has 4 tokens, the limit max_prompt_length is 2", "prompt_truncation"]),
        ({"separator": "</s>"}, ["'</s>' already is the end token"]),
        ({"rewards": ["target_logprop"]}, ["target_logprop", "target_logprob"]),
        ({"max_prompt_length": 2, "prompt_truncation": "drop"}, ["no row is left"]),
    ],
)  # fmt: skip
def test_every_mistake_gets_one_clear_sentence(recipe, capsys, changes, words):
    error = fails(capsys, "train", "--config", recipe(**changes))
    for word in words:
        assert word in error


def test_mistakes_in_files_and_flags(recipe, tmp_path, capsys):
    assert "does not exist" in fails(capsys, "train", "--config", tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    assert "not valid YAML" in fails(capsys, "train", "--config", tmp_path / "bad.yaml")
    assert "--key value" in fails(capsys, "train", "--config", recipe(), "stray")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    error = fails(capsys, "train", "--config", recipe(task="file", task_kwargs={"train": str(rows)}))
    assert "target" in error
    assert "answer" in error
    rows.write_text('{"prompt": "a", "target": " "}\n')
    assert "target" in fails(capsys, "train", "--config", recipe(task="file", task_kwargs={"train": str(rows)}))
    assert "nothing does not exist" in fails(capsys, "generate", tmp_path / "nothing", "x")
    (tmp_path / "empty").mkdir()
    assert "warmup_layout.json" in fails(capsys, "generate", tmp_path / "empty", "x")
    assert "recipe.yaml" in fails(capsys, "evaluate", tmp_path / "empty")
    assert "unknown command 'trian'" in fails(capsys, "trian")


def test_splits_without_rows_are_named(recipe, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a b", "target": "b"}\n' * 2)
    path = recipe(
        task="file", task_kwargs={"train": str(rows)}, metrics=["exact_match"], eval_strategy="steps", eval_steps=1
    )
    error = fails(capsys, "train", "--config", path)
    assert "eval_strategy: is steps, but the task file has no validation rows" in error
    assert main(["train", "--config", str(path), "--eval_strategy", "'no'", "--max_steps", "1"]) == 0
    assert "in its test split, only for --split train." in fails(capsys, "evaluate", tmp_path / "run")


def test_a_reward_that_dies_names_itself_and_keeps_the_checkpoints(recipe, tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "calls = []\n"
        "def shaky(completions, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 1: raise KeyError('gone')\n"
        "    return [0.0] * len(completions)\n"
    )
    path = recipe(rewards=["target_logprob", f"{plugin}:shaky"], save_strategy="steps", save_steps=1)
    error = fails(capsys, "train", "--config", path)
    assert "Reward 'shaky' failed with KeyError: 'gone'" in error
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "mine.py:fine",
            "Reward 'fine' needs an argument 'solution', which is neither in its `kwargs`, nor a column of",
        ),
        ("mine.py:hangs", "Reward 'hangs' gave no answer within its `timeout` of 0.5 s; it was interrupted."),
        ("mine.py:waits", "Reward 'waits' gave no answer within its `timeout` of 0.5 s; it was cancelled."),
        ("mine.py:torn", "Reward 'torn' returned inf for row 0 (id 'train-"),
        ("mine.py:lost", "The reward 'mine.py:lost': mine.py has no 'lost'."),
        ("torn.py:f", "torn.py fails to run (ModuleNotFoundError: No module named 'no_such_package')."),
    ],
)
def test_a_broken_reward_is_one_clear_sentence(recipe, tmp_path, capsys, monkeypatch, spec, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.py").write_text("import no_such_package")
    (tmp_path / "mine.py").write_text(
        "import asyncio, time\n"
        "def fine(completions, solution): return [0.0] * len(completions)\n"
        "def hangs(completions): time.sleep(60)\n"
        "async def waits(completions): await asyncio.sleep(60)\n"
        "def torn(completions): return [float('inf')] * len(completions)\n"
    )
    error = fails(capsys, "train", "--config", recipe(rewards=["target_logprob", {"name": spec, "timeout": 0.5}]))
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_reward_that_may_fail_is_counted_and_written_down(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def torn(completions): return [None, *[float('nan')] * (len(completions) - 1)]\n"
    )
    torn = {"name": "mine.py:torn", "on_failure": "skip"}
    assert main(["train", "--config", str(recipe(rewards=["target_logprob", torn], proposals=[]))]) == 0
    logs = [log for log in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in log]
    assert [log["rewards/torn/failed"] for log in logs] == [7 / 8, 7 / 8]
    assert not [log for log in logs if "rewards/torn/mean" in log]  # nothing was scored, so there is no mean
    warnings = read_jsonl(tmp_path / "run" / "warnings.jsonl")
    assert [(warning["step"], warning["rule"]) for warning in warnings] == [(0, "reward torn"), (1, "reward torn")]
    assert warnings[0]["done"] == "it is left out for the warmups of 4 prompts (on_failure: skip)"


def test_env_shows_no_secret(monkeypatch, capsys):
    shown = {
        "HF_ENDPOINT": "https://bob:pw@mirror/x",
        "HF_TOKEN_READ": "abc",
        "HF_TOKEN": "def",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in shown.items():
        monkeypatch.setenv(name, value)
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {
        "HF_ENDPOINT=https://...@mirror/x",
        "HF_TOKEN_READ=...",
        "HF_TOKEN=...",
        "TOKENIZERS_PARALLELISM=false",
    } <= set(lines)
