"""From a recipe's words to a reward, and every way in which that can fail."""

import functools
from importlib.metadata import EntryPoint

import pytest
from trl.rewards import think_format_reward

from rl_warmup import plugins
from rl_warmup.rewards import Reward, load_reward
from rl_warmup.rewards.shaping import LengthPenalty

FILE = """
from dataclasses import dataclass

def brevity(completion_ids, scale=1.0, **kwargs):
    return [-scale * len(ids) for ids in completion_ids]

class Constant:
    def __init__(self, value): self.value = value
    def __call__(self, completion_ids): return [self.value] * len(completion_ids)

NUMBER = 3
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(FILE)
    return f"{tmp_path}/own.py"


def test_a_name_and_a_mapping():
    assert load_reward("gain") == load_reward({"name": "gain"})
    reward = load_reward({"name": "length_penalty", "weight": 2, "kwargs": {"target_length": 4}})
    assert (reward.name, reward.weight) == ("length_penalty", 2)
    assert isinstance(reward.function, LengthPenalty)


def test_a_callable_and_a_finished_reward():
    reward = load_reward(think_format_reward)
    assert reward == Reward("think_format_reward", 1.0, think_format_reward)
    assert load_reward(reward) is reward
    assert load_reward(functools.partial(think_format_reward, a=1)).name == "think_format_reward"


def test_a_function_of_a_module():
    assert load_reward("trl.rewards:think_format_reward").function is think_format_reward


def test_a_factory_of_trl_is_called_when_kwargs_fill_it():
    name = "trl.rewards:get_soft_overlong_punishment"
    reward = load_reward({"name": name, "kwargs": {"max_completion_len": 4, "soft_punish_cache": 2}})
    assert reward.function(completion_ids=[[1] * 3]) == [-0.5]


def test_a_function_of_a_file(place, world):
    specs = [
        {"name": f"{place}:brevity", "weight": 0.5, "kwargs": {"scale": 2.0}},
        {"name": f"{place}:Constant", "kwargs": {"value": 10.0}},
    ]
    scores = world.judge(specs)
    assert scores.by_name["brevity"].tolist() == [-4.0, -6.0, -8.0, 0.0]
    assert scores.total.tolist() == [8.0, 7.0, 6.0, 10.0]


def test_a_file_relative_to_the_working_directory(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_reward("own.py:brevity").name == "brevity"


def test_entry_points(monkeypatch):
    values = {"think": "trl.rewards:think_format_reward", "torn": "no_such_package:f"}
    points = [EntryPoint(name, value, "rl_warmup.rewards") for name, value in values.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "rl_warmup.rewards" else [])
    assert load_reward({"name": "think", "weight": 3.0}) == Reward("think", 3.0, think_format_reward)
    with pytest.raises(ValueError, match="'torn' is the entry point 'no_such_package:f', which fails to load"):
        load_reward("torn")
    with pytest.raises(ValueError, match="Did you mean 'think'"):
        load_reward("thnik")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("target_logprobs", r"no reward 'target_logprobs'. Did you mean .target_logprob.. Known are .*package.module:f"),
        ("zzz", r"no reward 'zzz'. Known are .*path/to/file.py:function"),
        ("own.py", r"no reward 'own.py'.*path/to/file.py:function"),
        ("own.py:", "no reward 'own.py:'"),
        ("missing.py:f", "no file .*missing.py. Give a path relative"),
        ("no_such_package.part:f", "cannot be imported .*ModuleNotFoundError.*PYTHONPATH"),
        ("trl.rewards:think_format_rewards", "has no 'think_format_rewards'. Did you mean 'think_format_reward'"),
        ("trl.rewards:zzz", "trl.rewards has no 'zzz'.$"),
        ("math:pi", "The reward 'math:pi' is 3.14.*, which cannot be called; name a function or a class"),
        ({"name": "gain", "weigth": 2.0}, "has the key 'weigth'; allowed are name, weight, kwargs"),
        ({"weight": 2.0}, "needs a `name`"),
        ({"name": 3}, "needs a `name`, a text"),
        ({"name": ""}, "needs a `name`"),
        (3, "A reward is 3; give a name, a mapping"),
        (None, "A reward is None"),
        ({"name": "gain", "weight": "2"}, "weight of reward 'gain' is '2'; give a finite number"),
        ({"name": "gain", "weight": True}, "weight of reward 'gain' is True"),
        ({"name": "gain", "weight": None}, "weight of reward 'gain' is None"),
        ({"name": "gain", "weight": float("nan")}, "weight of reward 'gain' is nan"),
        ({"name": "gain", "kwargs": ["a"]}, r"kwargs of reward 'gain' are \['a'\]; give a mapping"),
        ({"name": "gain", "kwargs": {1: 2}}, "give a mapping of argument names"),
        ({"name": "gain", "kwargs": {"scale": 2}}, "'gain' takes no argument 'scale'. It takes target_logps, baseline"),
        ("length_penalty", r"'length_penalty' cannot be made with the kwargs given \(none\): TypeError: .*target_length"),
        ({"name": "length_penalty", "kwargs": {"target_length": 0}}, "target_length is 0; give .* 1 or more"),
        ({"name": "target_logprob", "kwargs": {"dtype": "fp8"}}, "dtype is 'fp8'; allowed are float32, bfloat16"),
        ({"name": "target_logprob", "kwargs": {"model_name_or_path": 7}}, "model_name_or_path is 7; give a folder"),
    ],
)  # fmt: skip
def test_errors_say_what_was_given_and_what_is_allowed(spec, message):
    with pytest.raises(ValueError, match=message):
        load_reward(spec)


def test_a_missing_function_in_a_file(place):
    with pytest.raises(ValueError, match="own.py has no 'brevety'. Did you mean 'brevity'"):
        load_reward(f"{place}:brevety")
    with pytest.raises(ValueError, match="own.py:NUMBER' is 3, which cannot be called"):
        load_reward(f"{place}:NUMBER")


def test_a_file_that_fails_to_run(tmp_path):
    (tmp_path / "torn.py").write_text("import no_such_package")
    with pytest.raises(
        ValueError, match="torn.py fails to run .ModuleNotFoundError: No module named 'no_such_package'"
    ):
        load_reward(f"{tmp_path}/torn.py:f")


@pytest.mark.parametrize("name", ["", 3])
def test_a_rewards_own_name_is_checked(name):
    with pytest.raises(ValueError, match="name has to be a non-empty string"):
        Reward(name, 1.0, print)


def test_what_a_reward_changes_is_its_own(world):
    seen = []

    def greedy(completions, completion_ids, **kwargs):
        kept = [list(ids) for ids in completion_ids]
        completions[:] = ["zz"] * len(completions)
        for ids in completion_ids:
            ids.clear()
        return [float(len(ids)) for ids in kept]

    def watching(completions, completion_ids, **kwargs):
        seen.extend([list(completions), [list(ids) for ids in completion_ids]])
        return [0.0] * len(completions)

    world.judge([greedy, watching])
    assert "zz" not in seen[0]
    assert any(seen[1])


def test_what_a_reward_changes_in_messages_is_its_own(world):
    seen = []

    def greedy(prompts, **kwargs):
        for prompt in prompts:
            if isinstance(prompt, list):
                prompt[0]["content"] = "zz"
        return [1.0] * len(prompts)

    def watching(prompts, **kwargs):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    world.judge([greedy, watching])
    assert any(isinstance(prompt, list) for prompt in seen)
    assert "zz" not in str(seen)


def test_no_reward_with_a_weight_is_refused(world):
    with pytest.raises(ValueError, match="rewards: all have the weight 0"):
        world.judge([{"name": "target_logprob", "weight": 0}])
