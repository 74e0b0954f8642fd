"""Every warning is provoked once, by a log line that shows it; healthy logs stay silent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rl_warmup.batch import Warmup
from rl_warmup.method.diagnostics import variety
from rl_warmup.method.guard import PATIENCE, RULES, Guard

HEALTHY = {
    "phase": "own warmups", "gain": 5.0, "target_logprob": -20.0, "target_logprob_std": 3.0, "ess": 2.0,
    "completions/median_length": 8, "completions/mean_length": 8.0, "completions/clipped_ratio": 0.1,
    "completions/distinct_across_prompts": 0.9, "completions/prompt_overlap": 0.2,
}  # fmt: skip
SICK = {
    "ignored": {"gain": 0.01, "target_logprob_std": 0.02},
    "harmful": {"gain": -6.0},
    "short": {"completions/median_length": 1},
    "endless": {"completions/clipped_ratio": 0.97},
    "same_everywhere": {"completions/distinct_across_prompts": 0.02},
    "one_hot": {"ess": 1.01},
    "flat": {"ess": 3.999, "gain": 0.0},
    "copies_the_prompt": {"completions/prompt_overlap": 0.99, "gain": 0.0},
}


class Run:
    """A guard over a made-up log."""

    def __init__(self, mode: str = "warn") -> None:
        self.warnings: list[dict] = []
        self.changes: list[dict] = []
        self.control = SimpleNamespace(should_save=False, should_training_stop=False)
        self.guard = Guard(mode, 4, 1, 1.0, 10, lambda **c: self.changes.append(c), self.warnings.append)

    def log(self, times: int = 1, **changes) -> list[str]:
        for _ in range(times):
            state = SimpleNamespace(global_step=7, is_world_process_zero=False, stateful_callbacks={})
            self.guard.on_log(None, state, self.control, {**HEALTHY, **changes})
        return [warning["rule"] for warning in self.warnings]


def test_healthy_logs_are_silent():
    assert Run().log(20) == []


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_each_collapse_is_named_in_plain_words(rule):
    run = Run()
    assert run.log(PATIENCE - 1, **SICK[rule]) == []
    assert rule in run.log(1, **SICK[rule])
    warning = next(w for w in run.warnings if w["rule"] == rule)
    assert "{" not in warning["sees"]
    assert len(warning["means"]) > 20
    assert len(warning["change"]) > 10
    assert run.log(10, **SICK[rule]).count(rule) == 1  # once, not at every log
    run.log(1)
    assert run.log(PATIENCE, **SICK[rule]).count(rule) == 2  # again after it was well in between


def test_the_cold_start_and_runs_without_warmups_are_left_alone():
    for phase in ("cold start", "reading"):
        assert Run().log(9, phase=phase, **SICK["short"]) == []
    run = Run()
    run.guard.on_log(None, SimpleNamespace(global_step=1), run.control, {"loss": 1.0})
    assert run.warnings == []


def test_act_raises_the_minimum_length_until_it_helps():
    run = Run("act")
    run.log(2 * PATIENCE, **SICK["short"])
    assert run.changes == [{"temperature": 1.0, "min_length": 2}, {"temperature": 1.0, "min_length": 3}]
    assert "min_warmup_length is now 2" in run.warnings[0]["done"]


def test_act_raises_the_temperature_up_to_a_limit():
    run = Run("act")
    run.log(20 * PATIENCE, **SICK["same_everywhere"])
    assert run.changes[0] == {"temperature": pytest.approx(1.2), "min_length": 1}
    assert run.changes[-1]["temperature"] <= 3.0
    assert not run.control.should_training_stop


def test_stop_ends_the_run_with_a_checkpoint():
    run = Run("stop")
    run.log(PATIENCE, **SICK["harmful"])
    assert run.control.should_save
    assert run.control.should_training_stop


def test_what_it_changed_survives_a_restart():
    run = Run("act")
    run.log(PATIENCE, **SICK["same_everywhere"])
    again = Run("act")
    saved = {"Guard": run.guard.state()}
    again.guard.on_train_begin(None, SimpleNamespace(global_step=5, stateful_callbacks=saved), None)
    assert again.changes == [{"temperature": pytest.approx(1.2), "min_length": 1}]


def test_what_differs_is_counted_over_all_processes():
    """Of eight warmups on two processes three differ: 1, 2 on this one, 1, 3 on the other."""
    prompts = [{"prompt_ids": [9], "target_ids": [9]}] * 2
    own, other = ([Warmup([i], "separator") for i in ids] for ids in ((1, 1, 1, 2), (1, 1, 1, 3)))
    found = [
        variety(prompts, mine, 2, lambda here, theirs=theirs: here + [tuple(w.ids) for w in theirs], 2)
        for mine, theirs in ((own, other), (other, own))
    ]
    total, count = map(sum, zip(*(one["completions/distinct_across_prompts"] for one in found), strict=True))
    assert total / count == 3 / 8
    assert variety(prompts, own, 2)["completions/distinct_across_prompts"] == (2, 4)
