"""Objectives, proposals, tasks and metrics of other people are found like rewards, and fail in the same words."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch

from rl_warmup import plugins
from rl_warmup.config import build_recipe
from rl_warmup.method.objectives import RULES, ObjectiveSettings, load_objective
from rl_warmup.method.proposals import ProposalContext, load_proposal, propose
from rl_warmup.metrics import compute
from rl_warmup.options import PROPOSALS
from rl_warmup.plugins import code_hashes, find_plugin
from rl_warmup.rewards import load_reward
from rl_warmup.tasks import load_task

FILE = """
import torch
def best(rewards, warmup_logprobs, knobs):
    one = torch.nn.functional.one_hot(rewards.argmax(1), rewards.size(1)).float()
    return one - 1 / rewards.size(1), one
class Best:
    def __call__(self, rewards, warmup_logprobs, knobs): return best(rewards, warmup_logprobs, knobs)
def one_tensor(rewards, warmup_logprobs, knobs): return rewards
def wrong_shape(rewards, warmup_logprobs, knobs): return rewards, rewards.sum(1)
def infinite(rewards, warmup_logprobs, knobs): return rewards, rewards / 0
def broken(*args): raise KeyError("gone")
def last(words, context): return words[-1:]
def text(words, context): return [context.decode(word) for word in words]
def shout(predictions, targets, rows, *, mark="!"): return sum(p.endswith(mark) for p in predictions)
class Shout:
    def __call__(self, predictions, targets, rows): return {"shouts": 1.0}
def rows(): return [1]
NUMBER = 3
"""
ROW = {"target_ids": [4, 5, 6, 1], "word_lengths": [1, 2]}
LOADERS = {
    "reward": load_reward, "objective": load_objective, "proposal": load_proposal, "task": load_task,
    "metric": lambda name: compute([name], ["a"], ["a"]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    return tmp_path


def test_there_is_a_loader_for_every_noun():
    assert tuple(LOADERS) == plugins.NOUNS


@pytest.mark.parametrize("noun", LOADERS)
def test_one_wording_for_all(noun, monkeypatch):
    def fails(name: str) -> str:
        with pytest.raises(ValueError, match=".") as caught:
            LOADERS[noun](name)
        return str(caught.value)

    torn = [EntryPoint("torn", "no_such_package:f", "any")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: torn if group == f"rl_warmup.{noun}s" else [])
    assert fails("zzz").startswith(f"There is no {noun} 'zzz'. Known are ")
    assert fails("zzz").endswith(", torn. Own ones are named `package.module:function` or `path/to/file.py:function`.")
    assert fails("tron").startswith(f"There is no {noun} 'tron'. Did you mean 'torn'?")
    assert fails("own.py:lost") == f"The {noun} 'own.py:lost': own.py has no 'lost'. Did you mean 'last'?"
    assert fails("own.py:NUMBER") == (
        f"The {noun} 'own.py:NUMBER' is 3, which cannot be called; name a function or a class."
    )
    assert fails("nowhere.py:f").startswith(f"The {noun} 'nowhere.py:f': no file ")
    assert fails("no_such:f").startswith(f"The {noun} 'no_such:f': the module 'no_such' cannot be imported ")
    assert fails("torn") == (
        f"The {noun} 'torn' is the entry point 'no_such_package:f', which fails to load (ModuleNotFoundError: No module "
        f"named 'no_such_package'). Repair or reinstall that package."
    )


def test_a_file_is_run_once_until_it_changes(place):
    first, _ = plugins.find_plugin("proposal", "own.py:last", {})
    assert plugins.find_plugin("metric", "own.py:last", {})[0] is first
    (place / "own.py").write_text(FILE + "# changed\n")
    assert plugins.find_plugin("metric", "own.py:last", {})[0] is not first


@pytest.mark.parametrize("name", ["own.py:best", "own.py:Best"])
def test_an_objective(name):
    rewards = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]])
    a, b = load_objective(name)(rewards, rewards, ObjectiveSettings())
    assert (a.tolist(), b.tolist()) == ([[0.5, -0.5], [-0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]])
    assert load_objective("marginal") is RULES["marginal"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("one_tensor", "Objective 'one_tensor' returned Tensor; return two finite tensors (a, b) of the shape (1, 2)"),
        ("wrong_shape", "Objective 'wrong_shape' returned (1,) for b; return two finite tensors"),
        ("infinite", "Objective 'infinite' returned a weight b that is no finite number; return two finite tensors"),
        ("broken", "Objective 'broken' failed with KeyError: 'gone'"),
    ],
)
def test_a_broken_objective(name, sentence):
    rewards = torch.tensor([[-1.0, -2.0]])
    with pytest.raises(ValueError, match=".") as caught:
        load_objective(f"own.py:{name}")(rewards, rewards, ObjectiveSettings())
    assert str(caught.value).startswith(sentence)


def test_a_proposal():
    assert propose("own.py:last", ROW, ProposalContext(9)).ids == [5, 6]
    with pytest.raises(ValueError, match=r"Proposal 'text' returned \['\(4,\)', '\(5, 6\)'\]; return a list of words"):
        propose("own.py:text", ROW, ProposalContext(9))
    with pytest.raises(ValueError, match="Proposal 'broken' failed with KeyError: 'gone'"):
        propose("own.py:broken", ROW, ProposalContext(9))


def test_a_metric_and_a_task():
    assert compute([{"name": "own.py:shout", "kwargs": {"mark": "?"}}], ["a?", "b"], ["a", "b"]) == {"shout": 1.0}
    assert compute(["own.py:Shout"], ["a"], ["a"]) == {"shouts": 1.0}
    with pytest.raises(ValueError, match=r"The task 'own.py:rows' returned list \[1\]; return an rl_warmup.tasks.Task"):
        load_task("own.py:rows")


def test_a_recipe_takes_own_names_and_still_finds_typing_errors():
    base = {"model_name_or_path": "scratch-t5", "output_dir": "run", "use_cpu": True}
    config = build_recipe({**base, "objective": "own.py:best", "proposals": ["own.py:last"]}).config
    assert (config.objective, config.proposals) == ("own.py:best", ["own.py:last"])
    wrong = {"objective": "own.py:bets", "proposals": ["own.py:lats", "revers", 3], "num_warmups": 1}
    with pytest.raises(ValueError, match=".") as caught:
        build_recipe({**base, **wrong})
    assert str(caught.value).splitlines() == [
        "4 settings cannot be used:",
        "  - objective: The objective 'own.py:bets': own.py has no 'bets'. Did you mean 'best'?",
        "  - proposals: The proposal 'own.py:lats': own.py has no 'lats'. Did you mean 'last'?",
        "  - proposals: There is no proposal 'revers'. Did you mean 'reverse'? Known are "
        f"{', '.join(PROPOSALS)}. Own ones are named `package.module:function` or `path/to/file.py:function`.",
        f"  - proposals: 3 is no name; give one of {', '.join(PROPOSALS)}, or `package.module:function`.",
    ]
    with pytest.raises(
        ValueError, match="num_warmups: is 1, but the objective 'own.py:best' compares warmups of a group"
    ):
        build_recipe({**base, "objective": "own.py:best", "num_warmups": 1})


def test_code_of_files_and_modules_has_a_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hashed_module.py").write_text("def f(): pass")
    find_plugin("reward", "hashed_module:f", {})
    names = ["hashed_module:f", {"name": "hashed_module.py:f"}, "target_logprob", "no_module:f", len]
    before = code_hashes(names)
    assert set(before) == {"hashed_module", "hashed_module.py"}
    (tmp_path / "hashed_module.py").write_text("def f(): return 1")
    assert all(code_hashes(names)[key] != value for key, value in before.items())
