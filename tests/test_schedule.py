"""The switch waits for a condition, τ moves the right way, and both survive a restart."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from rl_warmup.objectives.weights import effective_sample_size, posterior
from rl_warmup.schedule import SMOOTHING, TAU_RANGE, Schedule


def end_step(schedule: Schedule, step: int = 1) -> None:
    schedule.on_step_end(None, SimpleNamespace(global_step=step), None)


def proposals(schedule: Schedule, logp: float, step: int = 1) -> None:
    """One update whose proposals have this log P(c|x) per token."""
    schedule.observe_proposals(logp * 10, 10)
    end_step(schedule, step)


def groups(schedule: Schedule, ess: float) -> None:
    schedule.observe_ess(ess * 4, 4)
    end_step(schedule)


# ---------------------------------------------------------------------- the switch


def test_without_proposals_there_is_no_cold_start():
    assert not Schedule(has_proposals=False).in_cold_start


def test_the_switch_comes_when_the_smoothed_value_reaches_readiness():
    """-1 at first, then -0.01 for ever: 0.9^k * -1 + (1 - 0.9^k) * -0.01 >= -0.1 holds from k = 23 on."""
    schedule = Schedule(True, readiness=-0.1)
    proposals(schedule, -1.0, 1)
    assert schedule.proposal_logp == -1.0
    for step in range(2, 40):
        if not schedule.in_cold_start:
            break
        proposals(schedule, -0.01, step)
        k = step - 1
        assert schedule.proposal_logp == pytest.approx(-(SMOOTHING**k) - (1 - SMOOTHING**k) * 0.01)
    assert schedule.switched_at == 24  # after the first update and 23 more
    assert not schedule.in_cold_start


def test_one_lucky_update_is_not_enough():
    schedule = Schedule(True, readiness=-0.1)
    proposals(schedule, -2.0)
    proposals(schedule, -0.001)
    assert schedule.in_cold_start


def test_the_switch_is_for_good():
    schedule = Schedule(True, readiness=-0.5)
    proposals(schedule, -0.1, 7)
    assert (schedule.in_cold_start, schedule.switched_at) == (False, 7)
    proposals(schedule, -9.0, 8)
    assert (schedule.in_cold_start, schedule.switched_at) == (False, 7)


def test_readiness_is_per_token_over_all_micro_batches():
    """(-1 - 8) nats over (10 + 20) tokens, not the mean of -0.1 and -0.4."""
    schedule = Schedule(True, readiness=-0.3)
    schedule.observe_proposals(-1, 10)
    schedule.observe_proposals(-8, 20)
    end_step(schedule)
    assert schedule.proposal_logp == pytest.approx(-0.3)
    assert not schedule.in_cold_start


def test_processes_decide_together():
    """Each adds what the other has seen, so both switch at the same update."""
    schedule = Schedule(
        True, readiness=-0.3, reduce=lambda mine: [a + b for a, b in zip(mine, [-8, 20, 0, 0, 0, 0, 0, 0], strict=True)]
    )
    schedule.observe_proposals(-1, 10)
    end_step(schedule)
    assert schedule.proposal_logp == pytest.approx(-0.3)


def test_proposal_only_never_switches():
    schedule = Schedule(True, readiness=-0.5, proposal_only=True)
    for step in range(5):
        proposals(schedule, -0.001, step)
    assert schedule.in_cold_start
    assert schedule.switched_at is None
    assert schedule.proposal_logp == pytest.approx(-0.001)  # still logged


def test_an_update_without_a_report_changes_nothing():
    schedule = Schedule(True, target_ess=2.0)
    end_step(schedule)
    assert (schedule.proposal_logp, schedule.tau, schedule.switched_at) == (None, 1.0, None)


# ---------------------------------------------------------------------- tau


def test_tau_rises_where_one_warmup_has_all_the_weight_and_falls_where_all_are_equal():
    schedule = Schedule(target_ess=2.0)
    groups(schedule, 1.1)
    assert schedule.tau > 1
    risen = schedule.tau
    groups(schedule, 3.9)
    assert schedule.tau < risen
    kept = schedule.tau
    groups(schedule, 2.0)
    assert schedule.tau == pytest.approx(kept)


def test_tau_is_left_alone_without_a_target():
    schedule = Schedule(tau=0.7)
    groups(schedule, 1.0)
    assert schedule.tau == 0.7


@pytest.mark.parametrize("start", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("target", [1.5, 3.0])
def test_tau_finds_the_target_on_a_toy(start, target):
    """Rewards of fixed spread 2 in groups of four: the steered ess settles at the target, from either side."""
    rewards = torch.randn(200, 4) * 2
    schedule = Schedule(tau=start, target_ess=target)
    for _ in range(300):
        ess = effective_sample_size(posterior(rewards, schedule.tau))
        schedule.observe_ess(ess.sum().item(), len(ess))
        end_step(schedule)
    assert effective_sample_size(posterior(rewards, schedule.tau)).mean().item() == pytest.approx(target, rel=0.02)


def test_tau_stays_within_its_range():
    low, high = Schedule(target_ess=1.0), Schedule(target_ess=4.0)
    for _ in range(2000):
        groups(low, 3.9)
        groups(high, 1.1)
    assert (low.tau, high.tau) == TAU_RANGE


# ---------------------------------------------------------------------- restarts


def through_a_checkpoint(schedule: Schedule, fresh: Schedule, tmp_path, step: int) -> Schedule:
    """As Trainer does it: the state goes to trainer_state.json and comes back as plain JSON."""
    state = TrainerState(global_step=step, stateful_callbacks=[schedule])
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    fresh.on_train_begin(None, TrainerState.load_from_json(str(tmp_path / "trainer_state.json")), None)
    return fresh


@pytest.mark.parametrize("switched", [False, True])
def test_the_state_survives_a_restart(tmp_path, switched):
    schedule = Schedule(True, readiness=-0.1, target_ess=2.0, tau=1.0)
    proposals(schedule, -0.05 if switched else -3.0, 5)
    groups(schedule, 3.7)
    back = through_a_checkpoint(schedule, Schedule(True, readiness=-0.1, target_ess=2.0, tau=1.0), tmp_path, 6)
    assert back.state() == schedule.state()
    assert back.in_cold_start == (not switched)
    for one in (schedule, back):  # and goes on alike
        proposals(one, -0.2, 7)
        groups(one, 1.2)
    assert back.state() == schedule.state()


def test_the_state_is_plain_json():
    schedule = Schedule(True)
    proposals(schedule, -0.3)
    assert json.loads(json.dumps(schedule.state())) == schedule.state()


def test_a_new_run_starts_from_its_settings(tmp_path):
    schedule = Schedule(True, tau=5.0)
    proposals(schedule, -0.001, 3)
    fresh = through_a_checkpoint(schedule, Schedule(True, tau=2.0), tmp_path, step=0)
    assert (fresh.tau, fresh.in_cold_start) == (2.0, True)
