"""Sweep files: every mistake ends in one clear sentence, before anything runs."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.experiments.sweeps.jobs import label
from rl_warmup.experiments.sweeps.worker import seconds_of

SHIPPED = Path(__file__).parents[2] / "recipes" / "sweeps"


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"sedes": 3}, "'sedes' is no key of a sweep file. Did you mean 'seeds'?"),
        ({"question": None}, "question is missing: what the sweep is to find out, in words."),
        ({"base": "nowhere.yaml"}, "nowhere.yaml does not exist"),
        ({"grid": None}, "nothing varies: give a grid, runs or random ranges that hold something."),
        ({"grid": {}}, "nothing varies: give a grid, runs or random ranges that hold something."),
        ({"grid": {"num_warmups": []}}, "grid: num_warmups has no list of values; write `num_warmups: [a, b]`."),
        ({"grid": {"num_warmups": 3}}, "grid: num_warmups has no list of values"),
        ({"grid": {"num_warmup": [1]}, "control": "num_warmup=1"}, "'num_warmup' is not a setting. Did you mean 'num_warmups'?"),
        ({"grid": {"num_warmup": [1]}, "control": "num_warmups=1"}, "Did you mean 'num_warmups'?"),
        ({"grid": {"tau": [0.0, 1.0]}, "control": "tau=1"}, "The arm tau=0 cannot be run: tau: is 0.0, must be at least"),
        ({"runs": {"a/b": {}}}, "runs: 'a/b' names a folder; use letters, digits and _ . = , + - only."),
        ({"runs": {"num_warmups=1": {}}}, "Two arms are called num_warmups=1"),
        ({"metric": "exact_mach"}, "metric: 'exact_mach' is not among what the base recipe scores (exact_match)."),
        ({"control": "sft"}, "control: 'sft' is no arm of this sweep. Arms: num_warmups=1, num_warmups=2"),
        ({"control": None}, "control is missing: name the arm to compare with, one of num_warmups=1"),
        ({"warmups": "shufled"}, "warmups: 'shufled' is not one of own, shuffled"),
        ({"warmups": "filler"}, "warmups: filler is not scored by the base recipe; add it to `controls` under settings"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] must be a list of different whole numbers"),
        ({"random": {"tau": {"low": 2, "high": 1}}, "trials": 3}, "random: tau runs from 2 to 1"),
        ({"random": {"tau": [1, 2]}}, "trials: random ranges need a number of arms to draw"),
        ({"sampler": "tpe"}, "sampler: is for random ranges, and there are none."),
        ({"pruner": "medain"}, "pruner: 'medain' is not one of median, percentile, halving, hyperband. Did you mean 'median'?"),
        ({"pruner": "median"}, "pruner: needs evaluations during training"),
        ({"launch": "no-such-program"}, "no-such-program cannot be started"),
        ({"grid": {"output_dir": ["a", "b"]}}, "grid: output_dir would have no effect"),
        ({"grid": {"seed": [1, 2]}}, "grid: seed would have no effect"),
        *(
            ({"grid": {key: values}, "control": f"{key}={label(values[0])}"}, f"the same run: {key} ")
            for key, values in {
                "run_name": ["a", "b"], "overwrite": [True, False], "logging_steps": [1, 2], "eval_steps": [3, 4],
                "tsallis_q": [0.3, 0.5], "readiness": [-1.0, -2.0],
            }.items()
        ),
        ({"grid": None, "control": None, "random": {"run_name": ["a", "b"]}, "trials": 2, "sampler": "tpe"}, "random: run_name"),
        ({"runs": {"one": {"tau": 2.0}, "two": {"tau": 2.0}}}, "The arms one and two would be the same run"),
        ({"settings": {"seed": 1}}, "settings: seed would have no effect"),
        ({"runs": {"one": {"output_dir": "a"}}}, "runs: one: output_dir would have no effect"),
        ({"random": {"seed": [1, 2]}, "trials": 2}, "random: seed would have no effect"),
        ({"grid": {"tau": list(range(1, 200)), "beta": list(range(200))}}, "grid: has 3.98e+04 combinations"),
        ({"seeds": 1000000}, "seeds: 1000000 must be"), ({"seeds": -3}, "seeds: -3 must be"),
        ({"seeds": [-1]}, "seeds: [-1] must be"),
        ({"seeds": [2**32]}, "seeds: [4294967296] must be"), ({"seeds": True}, "seeds: True must be"),
        ({"metric": ["a"]}, "metric: ['a'] is not a text"), ({"base": ["a"]}, "base: ['a'] is not a text"),
        ({"random": {"tau": {"low": float("nan"), "high": 1}}, "trials": 3}, "random: tau runs from nan"),
        ({"random": {"tau": [1, 2]}, "trials": 10**9}, "trials: random ranges need a number"),
    ],
)  # fmt: skip
def test_every_mistake_gets_one_sentence(stage, capsys, keys, sentence):
    stage = stage()
    assert main(["sweep", str(stage.write(**keys)), "--output", str(stage.output)]) == 2
    told = capsys.readouterr()
    assert sentence in told.err + told.out
    assert "Traceback" not in told.err + told.out


def test_flags_and_files(stage, tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "none.yaml")]) == 2
    assert "The sweep file" in capsys.readouterr().err
    file = str(stage().write())
    for flags, sentence in ((["--jobs", "0"], "--jobs: '0'"), (["--budget", "soon"], "--budget: 'soon' is no time")):
        assert main(["sweep", file, *flags]) == 2
        assert sentence in capsys.readouterr().err
    assert [seconds_of(text) for text in ("2h", "1h30m", "90m", "45s", "45")] == [7200, 5400, 5400, 45, 45]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_run(path, tmp_path, capsys):
    assert main(["sweep", str(path), "--dry-run", "--output", str(tmp_path / "none")]) == 0
    assert "floating point operations (planned)" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_a_dry_run_says_what_is_missing_to_run(monkeypatch, tmp_path, capsys):
    command = ["sweep", str(SHIPPED / "num_warmups.yaml"), "--dry-run", "--output", str(tmp_path / "none")]
    assert main(command) == 0
    assert "pip install" not in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(command) == 0
    assert "pip install 'rl_warmup[sweeps]'" in capsys.readouterr().out


def test_settings_make_a_base_for_a_gpu_run_on_a_cpu(stage, capsys):
    stage = stage()
    file = stage.folder / "base.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "bf16": True, "use_cpu": False}))
    command = ["sweep", str(stage.write(settings={"bf16": False, "use_cpu": True})), "--dry-run"]
    assert main(command) == 0
    assert "num_warmups=4" in capsys.readouterr().out


def test_values_in_names():
    values = ["a", 2, 0.5, None, True, [], ["reverse", "head"]]
    assert [label(value) for value in values] == ["a", "2", "0.5", "none", "true", "none", "reverse+head"]


def test_a_missing_optuna_is_told(stage, tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["sweep", str(stage().write()), "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'rl_warmup[sweeps]'" in capsys.readouterr().err
