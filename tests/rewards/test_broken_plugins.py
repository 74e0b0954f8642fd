"""Plugins as they break in the wild: each ends in one clear sentence, word for word."""

from __future__ import annotations

import pytest

PLUGINS = """
import asyncio, math, threading, time

def short(completions, **kwargs): return [0.0]
def nothing(completions, **kwargs): return None
def all_none(completions, **kwargs): return [None] * len(completions)
def nan(completions, **kwargs): return [0.0, math.nan, 0.0, 0.0]
def infinite(completions, **kwargs): return [0.0, 0.0, -math.inf, math.inf]
def words(completions, **kwargs): return ["good"] * len(completions)
def mapping(completions, **kwargs): return {"score": 1.0}
def nested(completions, **kwargs): return [[1.0], [1.0], [1.0], [1.0]]
def one_number(completions, **kwargs): return 0.5
def raises(completions, **kwargs): return [1 / 0]
def sleeps(completions, **kwargs): time.sleep(60)
def spins(completions, **kwargs):
    while True:
        try: time.sleep(0.01)
        except Exception: pass
async def awaits_for_ever(completions, **kwargs): await asyncio.Event().wait()
async def raises_later(completions, **kwargs):
    await asyncio.sleep(0)
    raise ConnectionError("judge is down")
def forgot_async(completions, **kwargs): return asyncio.sleep(0)
def needs_solution(completions, solution): return [0.0] * len(completions)
def needs_scale(completions, scale): return [scale] * len(completions)
class Unmade:
    def __init__(self, path): self.path = open(path)
    def __call__(self, completions): return [0.0] * len(completions)
class Unprepared:
    def prepare(self, **kwargs): raise FileNotFoundError("no weights")
    def __call__(self, completions): return [0.0] * len(completions)
NUMBER = 3
"""
ROW = "row {} (id {!r}, warmup {})"
LIST = "return a list of 4, one finite number or None per warmup."


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(PLUGINS)
    (tmp_path / "torn.py").write_text("import no_such_package")
    (tmp_path / "garbled.py").write_text("def f(:")
    return tmp_path


BROKEN = [
    ("own.py:short", f"Reward 'short' returned 1 values; {LIST}"),
    ("own.py:nothing", f"Reward 'nothing' returned NoneType None; {LIST}"),
    (
        "own.py:all_none",
        f"No reward scores {ROW.format(0, 'a', 0)}: all_none returned None for it, or failed and was skipped. At least "
        f"one must score every warmup: add target_logprob, for instance.",
    ),
    ("own.py:nan", f"Reward 'nan' returned nan for {ROW.format(1, 'a', 1)}; {LIST}"),
    ("own.py:infinite", f"Reward 'infinite' returned -inf for {ROW.format(2, 'b', 0)} and similar values for 1 more; {LIST}"),
    ("own.py:words", f"Reward 'words' returned 'good' for {ROW.format(0, 'a', 0)} and similar values for 3 more; {LIST}"),
    ("own.py:mapping", f"Reward 'mapping' returned dict {{'score': 1.0}}; {LIST}"),
    ("own.py:nested", f"Reward 'nested' returned [1.0] for {ROW.format(0, 'a', 0)} and similar values for 3 more; {LIST}"),
    ("own.py:one_number", f"Reward 'one_number' returned float 0.5; {LIST}"),
    ("own.py:raises", "Reward 'raises' failed with ZeroDivisionError: division by zero (own.py, line 13)"),
    (
        {"name": "own.py:sleeps", "timeout": 0.2},
        "Reward 'sleeps' gave no answer within its `timeout` of 0.2 s; it was interrupted.",
    ),
    (
        {"name": "own.py:spins", "timeout": 0.2},
        "Reward 'spins' gave no answer within its `timeout` of 0.2 s; it was interrupted.",
    ),
    (
        {"name": "own.py:awaits_for_ever", "timeout": 0.2},
        "Reward 'awaits_for_ever' gave no answer within its `timeout` of 0.2 s; it was cancelled.",
    ),
    ("own.py:raises_later", "Reward 'raises_later' failed with ConnectionError: judge is down (own.py, line 22)"),
    (
        "own.py:forgot_async",
        "Reward 'forgot_async' returned a coroutine; declare the function itself with `async def`.",
    ),
    (
        "own.py:needs_solution",
        "Reward 'needs_solution' needs an argument 'solution', which is neither in its `kwargs`, nor a column of the data "
        "(id, colour), nor one of prompts, prompt_ids, completions, completion_ids, target, target_ids, target_logps, "
        "target_token_logps, warmup_logps, warmup_finish, trainer_state, baseline_target_logps, predictions, "
        "sampled_predictions, batch.",
    ),
    (
        {"name": "own.py:needs_scale", "kwargs": {"scal": 2}},
        "The reward 'own.py:needs_scale' takes no argument 'scal'. Did you mean 'scale'? It takes completions, scale. "
        "Correct its `kwargs`.",
    ),
    (
        "own.py:Unmade",
        "The reward 'own.py:Unmade' cannot be made with the kwargs given (none): TypeError: Unmade.__init__() missing 1 "
        "required positional argument: 'path'",
    ),
    ("own.py:Unprepared", "Reward 'Unprepared' cannot be prepared: FileNotFoundError: no weights"),
    (
        "torn.py:f",
        "The reward 'torn.py:f': {place}/torn.py fails to run (ModuleNotFoundError: No module named 'no_such_package').",
    ),
    (
        "garbled.py:f",
        "The reward 'garbled.py:f': {place}/garbled.py fails to run (SyntaxError: invalid syntax (garbled.py, line 1)).",
    ),
    (
        "missing.py:f",
        "The reward 'missing.py:f': no file {place}/missing.py. Give a path relative to the working directory.",
    ),
    (
        "no_such_package:f",
        "The reward 'no_such_package:f': the module 'no_such_package' cannot be imported (ModuleNotFoundError: No module "
        "named 'no_such_package'). Install it or put it on PYTHONPATH; for a file give its path, "
        "`path/to/file.py:function`.",
    ),
    ("builtins:max", "Reward 'max' has no signature; wrap it in a function of your own."),
    ("own.py:shrot", "The reward 'own.py:shrot': own.py has no 'shrot'. Did you mean 'short'?"),
    (
        "own.py:NUMBER",
        "The reward 'own.py:NUMBER' is 3, which cannot be called; name a function or a class.",
    ),
    (
        {"name": "own.py:nan", "weight": "heavy"},
        "The weight of reward 'nan' is 'heavy'; give a finite number (negative: penalty).",
    ),
    ({"name": "own.py:nan", "on_failure": "ignore"}, "on_failure of reward 'nan' is 'ignore'; allowed are raise, skip, zero."),
    (
        {"name": "own.py:nan", "timeout": 0},
        "The timeout of reward 'nan' is 0; give seconds above 0, or null for none.",
    ),
    ({"name": "own.py:nan", "messages": "yes"}, "messages of reward 'nan' is 'yes'; give true or false."),
    (
        {"name": "own.py:nan", "wieght": 1},
        "The reward {{'name': 'own.py:nan', 'wieght': 1}} has the key 'wieght'; allowed are name, weight, kwargs, label, "
        "on_failure, timeout, messages. Did you mean 'weight'?",
    ),
    (
        ["own.py:nan", {"name": "own.py:nan"}],
        "The reward 'nan' is listed 2 times. Names must differ in the log: remove one, or give it a "
        "`label`.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "sentence"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_broken_plugin_is_one_clear_sentence(world, place, spec, sentence):
    with pytest.raises(ValueError, match=".") as caught:
        world.judge(spec if isinstance(spec, list) else [spec])
    message = str(caught.value)
    assert message == (sentence.format(place=place) if "{place}" in sentence or "{{" in sentence else sentence)
    assert "\n" not in message
