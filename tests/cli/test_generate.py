"""`rl-warmup generate`: lines, JSON lines, pipes, a terminal, and every way to choose."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.inference.generation import WarmupGenerator

PROMPTS = ["a+1 b+2 c+0", "c+2 a+1 b+1", "b+1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    recipe = {
        "model_name_or_path": "scratch-llama", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "ledger", "task_kwargs": {"length": 3, "modulus": 4, "train_size": 32, "validation_size": 4, "test_size": 4},
        "max_steps": 20, "learning_rate": 0.01, "max_warmup_length": 4, "max_target_length": 5, "num_warmups": 2,
        "per_device_train_batch_size": 8, "use_cpu": True, "show_progress": False, "report_to": "none",
        "save_strategy": "no", "output_dir": str(folder / "run"),
    }  # fmt: skip
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", "--config", str(folder / "r.yaml")]) == 0
    return folder / "run"


def written(capsys, *args: object) -> list[dict]:
    capsys.readouterr()
    assert main(["generate", *map(str, args)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


class Stdin(io.TextIOWrapper):
    """Standard input with these bytes, a terminal or not."""

    def __init__(self, content: str, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content.encode()), encoding="utf-8")
        self.isatty = lambda: terminal


def test_json_lines_go_in_and_out_with_their_columns(run, tmp_path, capsys):
    rows = [{"prompt": "a+1\nb+2", "mine": {"k": [1]}}, {"prompt": PROMPTS[1], "id": "x"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    out = written(capsys, run, "--file", tmp_path / "p.jsonl")
    assert [{k: row[k] for k in given} for row, given in zip(out, rows, strict=True)] == rows
    added = {"warmup", "warmup_finish", "warmup_logprob", "prediction", "prediction_finish", "prediction_logprob"}
    assert set(out[0]) == {"prompt", "mine"} | added


def test_the_prompt_may_have_another_name(run, tmp_path, capsys):
    rows = [{"asked": {"question": PROMPTS[0]}, "answer": "x"}, {"asked": {"question": PROMPTS[1]}}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = written(capsys, run, "--file", tmp_path / "p.jsonl", "--prompt-column", "asked.question")
    own = WarmupGenerator.from_pretrained(run, "cpu").generate(PROMPTS[:2])
    assert [(row["prompt"], row["prediction"]) for row in out] == [(row["prompt"], row["prediction"]) for row in own]
    assert out[0]["answer"] == "x"
    assert main(["generate", str(run), "--file", str(tmp_path / "p.jsonl"), "--prompt-column", "question"]) == 2
    assert "no column 'question'" in capsys.readouterr().err
    assert main(["generate", str(run), PROMPTS[0], "--prompt-column", "x"]) == 2
    assert "no effect" in capsys.readouterr().err
    (tmp_path / "p.txt").write_text(PROMPTS[0], encoding="utf-8")
    assert main(["generate", str(run), "--file", str(tmp_path / "p.txt"), "--prompt-column", "x"]) == 2
    assert "p.txt holds a prompt per line" in capsys.readouterr().err


def test_conversations_with_their_answers_are_read_as_in_training(tmp_path, capsys):
    """Once in the spelling of ShareGPT; the answer is not a part of the prompt."""
    for name in ("train", "test"):
        texts = [(f"a+{i} b+{i % 3}", f"b={i % 3} a={i}") for i in range(8)]
        chats = [[{"from": "human", "value": asked}, {"from": "gpt", "value": said}] for asked, said in texts]
        lines = [json.dumps({"messages": chat}) for chat in chats[: 4 if name == "test" else 8]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = {
        "model_name_or_path": "scratch-llama", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "file", "task_kwargs": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")},
        "chat_template": "none", "max_steps": 2, "max_warmup_length": 4, "max_target_length": 5, "num_warmups": 2,
        "use_cpu": True, "show_progress": False, "report_to": "none", "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", "--config", str(tmp_path / "r.yaml")]) == 0
    own = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text("utf-8").splitlines()]
    for more in ((), ("--prompt-column", "messages")):
        out = written(capsys, tmp_path / "run", "--file", tmp_path / "test.jsonl", *more)
        assert [row["prediction"] for row in out] == [row["prediction"] for row in own]
        assert out[0]["prompt"] == [{"role": "user", "content": "a+0 b+0"}]
    lines = [json.dumps({"data": {"conversations": chat}}) for chat in chats[:4]]
    (tmp_path / "other.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = written(capsys, tmp_path / "run", "--file", tmp_path / "other.jsonl", "--prompt-column", "data.conversations")
    assert [row["prediction"] for row in out] == [row["prediction"] for row in own]


def test_a_pipe_and_python_write_the_same(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Stdin("\r\n".join(PROMPTS) + "\n"))
    out = written(capsys, run, "--json", "--batch-size", "2")
    own = WarmupGenerator.from_pretrained(run, "cpu").generate(PROMPTS)
    assert [row["prediction"] for row in out] == [row["prediction"] for row in own]
    assert [row["prompt"] for row in out] == PROMPTS


@pytest.mark.parametrize(
    "flags",
    [
        ["--num-warmups", "3"], ["--num-warmups", "3", "--select", "mbr", "--utility", "rouge"],
        ["--num-warmups", "3", "--select", "vote"], ["--num-beams", "2"], ["--sample", "--sample-target", "--seed", "1"],
        ["--gate", "-0.5"], ["--warmup", "a=1"],
    ],
)  # fmt: skip
def test_every_way_to_write(run, capsys, flags):
    out = written(capsys, run, *PROMPTS, "--json", *flags)
    assert [row["prompt"] for row in out] == PROMPTS
    assert ("candidates" in out[0]) == ("--num-warmups" in flags)
    assert ("gated" in out[0]) == ("--gate" in flags)
    assert out == written(capsys, run, *PROMPTS, "--json", *flags)


def test_a_terminal_is_asked_until_it_ends(run, monkeypatch, capsys):
    for flags in ([], ["--num-warmups", "2"]):
        told = [*PROMPTS[:2], ""]
        monkeypatch.setattr("sys.stdin", Stdin("", terminal=True))
        monkeypatch.setattr("builtins.input", lambda shown, told=told: told.pop(0) if told else _end())
        capsys.readouterr()
        assert main(["generate", str(run), *flags]) == 0
        out = capsys.readouterr().out
        assert out.count("warmup      ") == 2
    (own,) = WarmupGenerator.from_pretrained(run, "cpu").generate(PROMPTS[0])
    told = [PROMPTS[0]]
    monkeypatch.setattr("builtins.input", lambda shown: told.pop(0) if told else _end())
    assert main(["generate", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"warmup      {own['warmup']}" in out
    assert own["prediction"] in out


def _end() -> str:
    raise EOFError


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "a+1\n\nb+1\n", ["line 2", "empty"]),
        ("p.jsonl", '{"prompt": "a+1"}\n{"text": "b"}\n', ["line 2", "no prompt"]),
        ("p.jsonl", '{"question": "a+1"}\n', ["line 1", "'question'", "--prompt-column"]),
        ("p.jsonl", '{"prompt": "a+1"\n', ["line 1"]), ("p.txt", "", ["No prompt"]),
    ],
)  # fmt: skip
def test_a_line_without_a_prompt_is_named(run, tmp_path, capsys, name, content, words):
    (tmp_path / name).write_text(content, encoding="utf-8")
    capsys.readouterr()
    assert main(["generate", str(run), "--file", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
