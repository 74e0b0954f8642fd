"""What a plugin raises to end the process is a failure of the plugin: a sentence and exit code 2, never 0."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from rl_warmup.cli.main import main
from rl_warmup.method.objectives import ObjectiveSettings, load_objective
from rl_warmup.method.proposals import ProposalContext, propose
from rl_warmup.metrics import compute, signatures
from rl_warmup.plugins import ProcessExit, contained
from rl_warmup.rewards import load_reward
from rl_warmup.tasks import load_task

PLUGIN = """
import os, sys
class Stop(BaseException): pass
def leave(how):
    if how == "exit": sys.exit(0)
    if how == "none": raise SystemExit
    if how == "quit": raise KeyboardInterrupt
    if how == "_exit": os._exit(0)
    if how == "exec": os.execvp("true", ["true"])
    raise Stop("enough")
def reward(completions, **kwargs): leave("{how}")
async def later(completions, **kwargs): leave("{how}")
def objective(*args): leave("{how}")
def proposal(*args): leave("{how}")
def metric(*args): leave("{how}")
def task(): leave("{how}")
class Made:
    def __init__(self): leave("{how}")
    def __call__(self, completions): return [0.0] * len(completions)
class Prepared:
    def prepare(self, **kwargs): leave("{how}")
    def __call__(self, completions): return [0.0] * len(completions)
"""
HOWS = ["exit", "none", "quit", "stop", "_exit", "exec"]


@pytest.fixture(params=HOWS)
def own(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(PLUGIN.replace("{how}", request.param))
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)


CALLS = {
    "objective": lambda: load_objective("own.py:objective")(torch.zeros(1, 2), torch.zeros(1, 2), ObjectiveSettings()),
    "proposal": lambda: propose("own.py:proposal", {"target_ids": [4, 1], "word_lengths": [1]}, ProposalContext(9)),
    "metric": lambda: compute(["own.py:metric"], ["a"], ["a"]),
    "task": lambda: load_task("own.py:task"),
    "class": lambda: load_reward("own.py:Made"),
    "import": lambda: load_reward("leaves:f"),
    "file": lambda: signatures(["leaves.py:f"]),
}


@pytest.mark.parametrize("what", CALLS)
def test_every_kind_of_plugin(own, what):
    with pytest.raises(ValueError, match=r"own\.py|leaves|failed with ProcessExit") as caught:
        CALLS[what]()
    assert "tried to end the process" in str(caught.value)


def test_children_of_a_plugin_may_end(capfd):
    """A forked child ends by os._exit, and multiprocessing's do too."""
    with contained():
        child = os.fork()
        if not child:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        worker = multiprocessing.get_context("fork").Process(target=print, args=("worker",))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    assert "worker" in capfd.readouterr().out


def test_a_thread_that_a_plugin_leaves_cannot_end_the_run_with_success(tmp_path):
    code = (
        "import os, threading, time\nfrom rl_warmup.plugins import contained\n"
        "with contained(): threading.Thread(target=lambda: (time.sleep(0.2), os._exit(0))).start()\ntime.sleep(20)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=15)
    assert (ended.returncode, len(ended.stderr.strip().splitlines())) == (2, 1)


LEFT_BEHIND = {
    "atexit": "atexit.register(lambda: os._exit(0))",
    "keyword": "atexit.register(lambda: os._exit(status=0))",
    "posix": "atexit.register(lambda: posix._exit(0))",
    "exec": "atexit.register(lambda: os.execvp('true', ['true']))",
    "sys.exit": "atexit.register(sys.exit, 0)",
    "signal": "signal.signal(signal.SIGALRM, lambda *_: os._exit(0)); signal.alarm(1)",
    "finalizer": "global kept; kept = type('Kept', (), {'__del__': lambda self: os._exit(0)})()",
}


@pytest.mark.parametrize(("ending", "rc"), [("raise ValueError('failed')", 2), ("return", 0)])
@pytest.mark.parametrize("left", LEFT_BEHIND)
def test_what_a_plugin_leaves_behind_cannot_end_a_failed_command_with_success(left, ending, rc):
    code = (
        "import atexit, os, posix, signal, sys, time\nfrom rl_warmup.cli import main, plan\n"
        "from rl_warmup.plugins import contained\ndef command(args):\n"
        f"  with contained():\n    {LEFT_BEHIND[left]}\n  {ending}\n"
        "plan.command = command\nsys.argv = ['rl-warmup', 'plan']\ncode = main.main()\n"
        f"time.sleep({1.2 if left == 'signal' else 0})\nsys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == rc
    assert ("failed" in ended.stderr) == bool(rc)


@pytest.mark.parametrize(("ending", "rc"), [("raise ValueError('failed')", 2), ("return", 0)])
def test_a_process_of_a_launch_ends_with_its_code_after_its_exit_handlers_without_those_of_c(ending, rc):
    """What C++ runs at the end of a process aborted some finished runs; here it is a handler of C that aborts."""
    code = (
        "import atexit, ctypes, os, sys\nfrom rl_warmup.cli import main, plan\n"
        "libc = ctypes.CDLL(None)\n"
        f"def command(args):\n  atexit.register(print, 'told')\n  {ending}\n"
        "libc.__cxa_atexit(libc.abort, None, None)\n"
        "plan.command = command\nsys.argv = ['rl-warmup', 'plan']\nsys.exit(main.main())"
    )
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for env, wanted in ((launched, rc), ({}, -signal.SIGABRT)):
        run = [sys.executable, "-c", code]
        ended = subprocess.run(run, capture_output=True, text=True, check=False, env={**os.environ, **env})
        assert (ended.returncode, ended.stdout) == (wanted, "told\n"), ended.stderr


def test_a_program_of_the_users_own_may_end_as_it_likes():
    code = (
        "import os\nfrom rl_warmup.cli.main import main\nfrom rl_warmup.plugins import contained\n"
        "with contained(): pass\nassert main(['plan', 'missing.yaml', '--hardware', '1xCPU']) == 2\nos._exit(0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_ctrl_c_stays_ctrl_c():
    def press():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

    with pytest.raises(KeyboardInterrupt), contained():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ProcessExit), contained():
        raise KeyboardInterrupt
    with pytest.raises(asyncio.CancelledError), contained(cancels=False):
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    "change",
    [
        {"rewards": ["own.py:reward"]},
        {"rewards": [{"name": "own.py:reward", "timeout": None}]},
        {"rewards": [{"name": "own.py:later", "timeout": None}]},
        {"rewards": ["own.py:Made"]},
        {"rewards": ["own.py:Prepared"]},
        {"rewards": ["leaves.py:f"]},
        {"objective": "own.py:objective", "proposals": []},
        {"metrics": ["own.py:metric"]},
        {"task": "own.py:task", "task_kwargs": None},
        {"proposals": ["own.py:proposal"]},
    ],
    ids=lambda change: str(next(iter(change.values())))[:40],
)
def test_a_run_fails_with_a_sentence(tmp_path, monkeypatch, capsys, change):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(PLUGIN.replace("{how}", "exit"))
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(0)")
    values = {
        "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "ledger", "task_kwargs": {"length": 3, "modulus": 3, "train_size": 4, "validation_size": 0, "test_size": 2},
        "num_warmups": 2, "max_warmup_length": 3, "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no",
        "use_cpu": True, "controls": [], "show_progress": False, "output_dir": str(tmp_path / "run"), **change,
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "--config", "r.yaml"]) == 2
    said = capsys.readouterr().err
    assert "tried to end the process by SystemExit(0)" in said
    assert len(said.strip().splitlines()) == 1


def test_a_reward_that_leaves_at_once_is_no_success(tmp_path):
    """In a process of its own, as it would end this one."""
    (tmp_path / "own.py").write_text("import os\ndef f(completions, **kwargs): os._exit(0)\n")
    flags = [
        "model_name_or_path=scratch-t5", "scratch={width: 16, layers: 1, heads: 2, tokenizer: words}", "task=ledger",
        "task_kwargs={length: 3, modulus: 3, train_size: 4, validation_size: 0, test_size: 2}", "num_warmups=2",
        "max_warmup_length=3", "max_steps=1", "use_cpu=true", "show_progress=false", "output_dir=run", "rewards=[own.py:f]",
    ]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "rl_warmup.cli.main", "train", *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 2
    assert "os._exit" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("code", "rc"), [(0, 2), (None, 2)])
def test_an_exit_of_anything_else_is_no_success(monkeypatch, capsys, code, rc):
    monkeypatch.setattr("rl_warmup.cli.plan.command", lambda args: sys.exit(code))
    assert main(["plan"]) == rc
    assert "sys.exit" in capsys.readouterr().err


def test_where_nobody_can_type_an_interrupt_is_the_plugins(tmp_path):
    """A job in the background ignores SIGINT, so a KeyboardInterrupt has no other source than the plugin."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(ProcessExit), contained():
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)
