"""Command lines as people type them: what is accepted, and for all else the flag, what was given and what to write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from rl_warmup.cli.completion import flags_of
from rl_warmup.cli.main import COMMANDS, main
from rl_warmup.runtime import faults
from rl_warmup.runtime.other_names import OURS
from rl_warmup.runtime.recipe_file import read_values, split_config
from rl_warmup.runtime.settings import EFFECTIVE

RECIPE = {
    "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
    "task": "ledger", "task_kwargs": {"length": 3, "modulus": 3, "train_size": 8, "validation_size": 4, "test_size": 4},
    "max_steps": 1, "num_warmups": 2, "max_warmup_length": 3, "use_cpu": True, "show_progress": False,
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "file").write_text("a file")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ("--bf16", {"bf16": True}),
        ("--no_bf16 --seed 3", {"bf16": False, "seed": 3}),
        ("--no-show-progress", {"show_progress": False}),
        ("--bf16 --max-steps 3", {"bf16": True, "max_steps": 3}),
        ("--learning_rate -1 use-cpu=false", {"learning_rate": -1, "use_cpu": False}),
        ("--no_cuda", {"no_cuda": True}),
    ],
)
def test_flags(flags, values):
    assert read_values(None, flags.split()) == values


@pytest.mark.parametrize("args", ["--config r.yaml", "--config=r.yaml", "config=r.yaml", "r.yaml"])
def test_ways_to_give_the_recipe(args):
    assert split_config([*args.split(), "--seed", "1"]) == ("r.yaml", ["--seed", "1"])


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        ("train", "usage: rl-warmup train --config"),
        ("train --config", "--config needs"),
        ("train --config=", "--config is empty"),
        ("train r.yaml --config s.yaml", "given twice, r.yaml and s.yaml"),
        ("train --config .", "is a folder. Give a YAML file"),
        ("train --config /dev/null", "is no ordinary file"),
        ("train --config r.yaml -max_steps 1", "'-max_steps': write `--max_steps 1`"),
        ("train --config r.yaml max_steps: 3", "'max_steps:': write `--max_steps 3`"),
        ("train --config r.yaml s.yaml", "'s.yaml': a recipe is given as `--config s.yaml`"),
        ("train --config r.yaml --report_to", "report_to: True is not a text or a list|--report_to VALUE"),
        ("train --config r.yaml --controls shuffled filler", "'filler'|--key '[a, b]'"),
        ("train --config r.yaml --num_processes 2", "num_processes: is no setting|--launch"),
        ("train --launch ddp --num_processes x", "--num_processes: 'x' is not a whole number"),
        (
            "train --config r.yaml --output_dir file/x",
            "output_dir: file/x cannot be made a folder|a part of the path is a file",
        ),
        ("train --config r.yaml --output_dir /proc/x", "output_dir: /proc/x cannot be made a folder"),
        ("evaluate run --metrics {", "--metrics '{'|not valid YAML"),
        ("evaluate run --controls filler filler", "--controls: 'filler' is listed twice"),
        ("evaluate run --metrics bleu bleu", "--metrics: 'bleu' is listed twice"),
        ("evaluate run --batch_size 0", "--batch-size: '0'"),
        ("score file --reward gain --show -5", "--show: '-5'"),
        ("plan r.yaml --prompt_tokens 1e300", "--prompt-tokens: '1e300'"),
        ("plan r.yaml --hardware 1xFOO-0GB", "--hardware|'1xFOO-0GB'"),
        ("plan r.yaml --dtype float8", "dtype: 'float8' is not one of"),
        ("plan r.yaml --proposals [nosuch]", "proposals|'nosuch'"),
        ("report ", "RUN: is empty"),
        ("demo --output /dev/null/x", "--output: /dev/null/x"),
        ("trian", "'trian'|Did you mean 'train'"),
        ("completion csh", "'csh'"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_remedy(here, capsys, args, facts):
    assert main(args.split(" ")) == 2
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts.split("|")), said
    assert "Errno" not in said


@pytest.mark.parametrize("flag", [*(f"--{name}" for name in OURS)])
def test_names_of_other_libraries_are_answered(here, capsys, flag):
    assert main(["train", "--config", "r.yaml", flag, "1"]) == 2
    assert f"{flag[2:]}: is no setting here; {OURS[flag[2:]]}." in capsys.readouterr().err


def test_names_of_other_libraries_are_none_of_ours():
    assert not set(OURS) & set(EFFECTIVE)


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ("run_name=!!timestamp abc", "run_name|not valid YAML"),
        ("lr_scheduler_type=greedy", "lr_scheduler_type: greedy|eval_strategy"),
        ("lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs|min_lr_rate"),
        ("lr_scheduler_type=warmup_stable_decay", "lr_scheduler_kwargs|num_decay_steps"),
        ("optim=galore_adamw", "optim: galore_adamw|galore-torch"),
        ("optim=adamw_bnb_8bit", "optim: adamw_bnb_8bit|bitsandbytes"),
        ("deepspeed=nosuch.json", "deepspeed: there is no file 'nosuch.json'"),
        ("deepspeed=r.yaml", "deepspeed: r.yaml|not valid JSON"),
        ("deepspeed={a: 1}", "deepspeed|zero_optimization.stage"),
        ("deepspeed={zero_optimization: {stage: 9}}", "stage 9|from 0 to 3"),
        ("fsdp=abc", "fsdp: 'abc'|full_shard"),
        ("fsdp=-1", "fsdp: '-1'"),
        ("debug=abc", "debug: 'abc'"),
        ("ddp_backend=nccl", "ddp_backend: nccl"),
        ("accelerator_config=nosuch", "accelerator_config: there is no file 'nosuch'"),
        ("accelerator_config='{\"a\": [1}'", "accelerator_config|not valid JSON"),
        ("gradient_checkpointing_kwargs=a=b", "gradient_checkpointing_kwargs"),
    ],
)
def test_what_other_libraries_would_refuse_is_a_sentence_of_ours(here, capsys, setting, facts):
    more = ["--gradient_checkpointing"] if setting.startswith("gradient") else []
    assert main(["train", "--config", "r.yaml", "--output_dir", "new", f"--{setting}", *more]) == 2
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts.split("|")), said
    assert not (here / "new").exists()


@pytest.mark.parametrize(
    ("variable", "value"), [("RANK", "x"), ("WORLD_SIZE", "abc"), ("LOCAL_RANK", "x"), ("RANK", "3")]
)
def test_variables_of_launchers(here, capsys, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert main(["plan", "r.yaml"]) == 2
    assert f"{variable} is " in capsys.readouterr().err


def test_only_the_first_process_tells(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        told.append(faults.claim("a sentence"))
    assert told == [True, False]
    assert json.loads((tmp_path / "0" / "error.json").read_text())["message"] == "a sentence"
    assert not (tmp_path / "1" / "error.json").exists()


def test_help_version_and_env(here, capsys):
    for args in ([], ["help"], ["--help"], ["-h"]):
        assert main(args) == (0 if args else 2)
    for name in COMMANDS:
        assert main([name, "-h"]) == main(["help", name]) == 0
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rl-warmup ")
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("python: ", "torch: ", "transformers: ", "threads of torch: ", "cores"))


def test_completion_knows_every_command_and_its_flags(capsys):
    assert {"--warmups-from", "--batch-size", "--help"} <= set(flags_of("evaluate"))
    assert {"--config", "--launch", "--learning_rate", "--num_warmups"} <= set(flags_of("train"))
    for shell in ("zsh", "fish", "bash"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(name in script for name in COMMANDS)
    assert all(f"    {name}) words=" in script for name in COMMANDS)
    if shutil.which("bash"):
        ask = 'COMP_WORDS=(rl-warmup trai); COMP_CWORD=1; _rl_warmup; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["train"]


def test_a_plan_of_this_machine(here, capsys):
    assert main(["plan", "--config", "r.yaml", "--bf16"]) == 0
    assert "Plan of r.yaml on " in capsys.readouterr().out


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "rl_warmup", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rl-warmup ")


def test_a_current_folder_that_is_gone(tmp_path, capsys, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        assert main(["plan", "r.yaml"]) == 2
    finally:
        os.chdir(tmp_path)
    assert "the current folder does not exist" in capsys.readouterr().err


def test_a_sweep_file_given_to_train_is_one_sentence_that_names_the_command(here, capsys):
    (here / "sweep.yaml").write_text(
        yaml.safe_dump({"question": "?", "base": "r.yaml", "seeds": 1, "metric": "exact_match"})
    )
    assert main(["train", "--config", "sweep.yaml"]) == 2
    said = capsys.readouterr().err
    assert "rl-warmup sweep sweep.yaml" in said
    assert "setting" not in said


@pytest.mark.parametrize("command", ["evaluate {}", "generate {} red", "export {} --output out", "card {}"])
def test_a_folder_that_is_not_there_is_said_with_the_one_meant(here, command, capsys):
    (here / "runs" / "mine").mkdir(parents=True)
    assert main(command.format("runs/mien").split()) == 2
    said = capsys.readouterr().err
    assert "runs/mien does not exist" in said
    assert "'mine'" in said


def test_all_controls_by_one_word():
    from rl_warmup.config import build_recipe
    from rl_warmup.options import CONTROLS

    assert build_recipe({**RECIPE, "controls": "all"}).task.controls == list(CONTROLS)
