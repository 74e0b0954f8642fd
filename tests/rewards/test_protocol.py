"""The protocol is TRL's: its functions run here unchanged, ours run there, and what we add is written down as types."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
import trl.rewards
from trl.rewards import accuracy_rewards

from rl_warmup.rewards import load_reward
from rl_warmup.rewards.arguments import CHEAP, ON_REQUEST
from rl_warmup.rewards.protocol import RewardArguments

# every public function of trl.rewards: kwargs, what it says about the four warmups of the world
TRL = {
    "get_soft_overlong_punishment": ({"max_completion_len": 4, "soft_punish_cache": 2}, [0.0, -0.5, -1.0, 0.0]),
    "get_repetition_penalty_reward": ({"ngram_size": 1, "max_penalty": -1.0}, [0.0, -1 / 3, 0.0, 0.0]),
    "think_format_reward": ({}, [0.0, 0.0, 1.0, 0.0]),
    "accuracy_reward": ({}, [1.0, 0.0, 1.0, None]),
    "reasoning_accuracy_reward": ({}, [0.0, 0.0, 1.0, 0.0]),
    "get_cosine_scaled_reward": ({"max_len": 4}, [0.75, -0.5 - 0.25 * (1 - 0.5**0.5), 0.5, None]),
}
GOLD = ["one", "two", "one", "$unreadable"]


@pytest.fixture
def solved(world, monkeypatch):
    """A world with TRL's column `solution`. Words cannot be solved, so the last one counts as what math_verify would parse."""

    def parse(text, **kwargs):
        words = text.split()
        return words[-1:] if words and not text.startswith("$") else []

    monkeypatch.setattr(accuracy_rewards, "is_math_verify_available", lambda: True)
    stand_ins = {
        "parse": parse, "verify": lambda gold, answer, **kwargs: gold == answer,
        "LatexExtractionConfig": lambda **kwargs: None, "NormalizationConfig": lambda **kwargs: None,
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(accuracy_rewards, name, stand_in, raising=False)
    prompts = [row for row in world.batch.prompts for _ in range(2)]
    prompts = [{**row, "solution": gold} for row, gold in zip(prompts, GOLD, strict=True)]
    return replace(world.batch, prompts=prompts, group_size=1)


def test_the_list_of_trls_functions_is_complete():
    public = [name for names in trl.rewards._import_structure.values() for name in names]
    assert sorted(public) == sorted(TRL)


@pytest.mark.parametrize("name", TRL)
def test_every_function_of_trl_runs_unchanged(world, solved, name):
    kwargs, expected = TRL[name]
    function = getattr(trl.rewards, name)
    ids_only = "completions" not in inspect.signature(function(**kwargs) if kwargs else function).parameters
    spec = {"name": f"trl.rewards:{name}", "kwargs": kwargs, "label": "trl", "messages": not ids_only}
    scores = world.judge(["target_logprob", spec], batch=solved).by_name["trl"]
    wanted = torch.tensor([float("nan") if value is None else value for value in expected])
    torch.testing.assert_close(scores, wanted, equal_nan=True)


def test_one_of_ours_runs_inside_trls_trainer(new_lab, tmp_path):
    """Two steps of GRPO on a tiny Llama with our length penalty, which takes fewer keywords than TRL gives."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    lab = new_lab("scratch-llama")
    reward = load_reward({"name": "length_penalty", "kwargs": {"target_length": 4}})
    args = GRPOConfig(
        output_dir=str(tmp_path), num_generations=2, per_device_train_batch_size=4, max_completion_length=4, max_steps=2,
        logging_steps=1, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True, bf16=False,
        save_strategy="no",
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "a b c"}, {"prompt": "d e"}] * 4)
    trainer = GRPOTrainer(
        model=lab.model, reward_funcs=[reward], args=args, train_dataset=rows, processing_class=lab.tokenizer
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        mean_length = log["completions/mean_length"]  # never above 4, so the penalty is linear in the length
        assert log["rewards/length_penalty/mean"] == pytest.approx(mean_length / 4 - 1, abs=1e-6)


def test_the_types_name_what_is_on_offer():
    assert set(RewardArguments.__annotations__) == {*CHEAP, *ON_REQUEST}


def test_messages_on_request(world):
    seen = {}

    def look(prompts, completions):
        seen.update(prompts=prompts, completions=completions)
        return [0.0] * 4

    look_at = load_reward(look)
    world.judge([replace(look_at, messages=True)])
    assert seen["prompts"][0] == [{"role": "user", "content": "red green"}]
    assert seen["completions"][1] == [{"role": "assistant", "content": "green red red"}]
    assert seen["prompts"][2] == [{"role": "user", "content": "blue"}]  # was a conversation already


def test_one_function_twice_under_labels(world):
    specs = [{"name": "length_penalty", "kwargs": {"target_length": n}, "label": f"length{n}"} for n in (2, 4)]
    assert {k: v.tolist() for k, v in world.judge(specs).by_name.items()} == {
        "length2": [0.0, -0.5, -1.0, -1.0],
        "length4": [-0.5, -0.25, 0.0, -1.0],
    }
