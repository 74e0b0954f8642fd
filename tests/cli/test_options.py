"""Options of every command: none is taken twice, and numbers are numbers."""

from __future__ import annotations

import pytest

from rl_warmup.cli.main import main

TWICE = {
    "train": ["--tau", "1", "--tau=2"], "evaluate": ["run", "--split", "test", "--spl=train"],
    "sample": ["run", "--output", "a", "--seed", "1", "--seed", "2"], "generate": ["run", "--seed", "1", "--seed", "1"],
    "plan": ["r.yaml", "--hardware", "2xCPU", "--hardware", "1xCPU"],
    "score": ["f", "--reward", "gain", "--show", "1", "--show", "2"],
    "report": ["run", "--output", "a", "--output", "b"], "sweep": ["s.yaml", "--jobs", "1", "--jobs", "2"],
    "demo": ["--parts", "legs", "--parts", "rare"],
}  # fmt: skip


def fails(capsys, *args) -> str:
    assert main(list(args)) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("command", TWICE)
def test_an_option_given_twice_is_refused(capsys, command):
    said = fails(capsys, command, *TWICE[command])
    assert [word for word in TWICE[command] if word.startswith("--")][-1][:5] in said
    assert "given twice" in said


@pytest.mark.parametrize("args", [["--config", "a", "--config", "b"], ["tau=1", "--tau", "2"]])
def test_other_ways_of_saying_it_twice(capsys, args):
    assert "given twice" in fails(capsys, "train", *args)


def test_several_rewards_may_be_scored(capsys):
    assert "does not exist" in fails(capsys, "score", "none.jsonl", "--reward", "gain", "--reward", "copy")


@pytest.mark.parametrize("flag", ["--prompt-tokens", "--warmup-tokens", "--target-tokens"])
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "x"])
def test_figures_of_a_plan_are_above_nothing(capsys, flag, value):
    assert flag in fails(capsys, "plan", "r.yaml", "--hardware", "1xA100-80GB", f"{flag}={value}")


@pytest.mark.parametrize("flag", ["--tflops", "--bandwidth"])
def test_a_flag_that_is_gone_says_what_to_do(capsys, flag):
    assert "--measure" in fails(capsys, "plan", "r.yaml", "--hardware", "1xA100-80GB", flag, "400")


@pytest.mark.parametrize(
    "args",
    [
        ["evaluate", "run", "--limit"], ["evaluate", "run", "--batch-size"], ["evaluate", "run", "--num-warmups"],
        ["sample", "run", "--output", "o", "--limit"], ["generate", "run", "p", "--batch-size"],
        ["score", "f", "--reward", "gain", "--batch-size"], ["sweep", "s", "--jobs"], ["sweep", "s", "--patience"],
        ["demo", "--processes"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["-1", "0", "1.5", "x", "1" * 400])
def test_counts_are_whole_numbers_above_nothing(capsys, args, value):
    assert args[-1] in fails(capsys, *args[:-1], f"{args[-1]}={value}")


@pytest.mark.parametrize("text", ["[1", "{", "a: b: c", "[" * 3000, "@x", "9" * 5000])
def test_flags_that_are_no_yaml_are_named(capsys, text):
    assert "run_name" in fails(capsys, "train", "model_name_or_path=scratch-t5", f"--run_name={text}")


def test_a_secret_is_in_no_error(capsys):
    assert "hf_S" not in fails(capsys, "train", "--hub_token", "hf_S", "--hub_token", "hf_S")
    assert "hf_S" not in fails(capsys, "train", "--hub_token", "{hf_S")
