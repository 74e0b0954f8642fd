"""What is imported when: answers at once where nothing is trained, and nothing idle before the first update."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest
import yaml

from rl_warmup.cli.main import COMMANDS, quick_imports

HEAVY = {"torch", "transformers", "numpy", "trl", "datasets", "tokenizers", "accelerate"}
# Of the metrics and the report; transformers and accelerate import scipy, datasets, peft and deepspeed where they are installed.
NOT_FOR_TRAINING = {"matplotlib", "sklearn", "sacrebleu", "rouge_score", "bert_score", "nltk", "comet"}

HELP = """
import sys
from rl_warmup.cli.main import main
try:
    sys.exit(main(sys.argv[1:]))
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), sep="\\n", file=sys.stderr)
"""
FIRST_STEP = """
import json, os, sys
from contextlib import contextmanager
from rl_warmup.cli import train
from rl_warmup.cli.main import main

stock = train.quick_imports

@contextmanager
def and_tell():
    with stock():
        yield
    from transformers import TrainerCallback
    TrainerCallback.on_step_end = tell

train.quick_imports = and_tell

def tell(*_, **__):
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), flush=True)
    os._exit(0)

sys.exit(main(sys.argv[1:]))
"""


def run(code: str, *args: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_importing_the_package_imports_nothing_heavy():
    done = run("import sys, rl_warmup; print(*{name.partition('.')[0] for name in sys.modules}, sep='\\n')")
    assert "rl_warmup" in done.stdout.split("\n")
    assert not HEAVY & set(done.stdout.split("\n"))


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=lambda command: " ".join(command))
def test_help_imports_nothing_heavy(command):
    done = run(HELP, *command, "--help")
    assert "usage" in done.stdout
    assert "argparse" in done.stderr.split("\n") or command in ((), ("train",))  # the list was printed
    assert not HEAVY & set(done.stderr.split("\n"))


def test_training_imports_no_metric_or_picture_before_the_first_update(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "ledger", "task_kwargs": {"length": 3, "modulus": 3, "train_size": 12, "validation_size": 4, "test_size": 4},
        "output_dir": str(tmp_path / "run"), "num_warmups": 2, "max_warmup_length": 4, "max_steps": 1, "use_cpu": True,
        "show_progress": False,
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(settings))
    seen = json.loads(run(FIRST_STEP, "train", "--config", str(recipe)).stdout.splitlines()[-1])
    assert "torch" in seen
    assert not NOT_FOR_TRAINING & set(seen)


def test_imports_are_frozen_and_garbage_is_collected_again(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_a_process_that_has_torch_already_is_left_alone():
    assert "torch" in sys.modules
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_failing_import_leaves_the_collector_on(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ImportError), quick_imports():
        raise ImportError("torch is broken")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
