"""The switch waits for a condition, τ moves the right way, and both survive a restart."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from rl_warmup.method.objectives import effective_sample_size, posterior
from rl_warmup.method.schedule import SMOOTHING, TAU_RANGE, TRIAL, WINDOW, ReadingMeasurement, Schedule


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


# ---------------------------------------------------------------------- the switch by what is read

# Sums of log P(y|x) in nats: bound over the group, its mean, the bound over another prompt's group, no warmup.
UNREAD = ReadingMeasurement(-10.0, -11.0, -10.0, -10.5)  # warmups differ, and another prompt's are as good
COPIES = ReadingMeasurement(-10.0, -10.0, -20.0, -10.5)  # all alike; another prompt's mislead
DEPENDENT = ReadingMeasurement(-10.0, -12.0, -30.0, -10.1)  # misled by wrong ones, hardly helped by right ones
READ = ReadingMeasurement(-4.0, -8.0, -12.0, -10.0)
NO_ONE_STANDS_OUT = ReadingMeasurement(-4.0, -4.0, -12.0, -10.0)  # nearly every sample is useful


def searching(**settings) -> Schedule:
    return Schedule(True, reading=True, threshold=0.015, updates=(8, 200), **settings)


def measure(schedule: Schedule, *measurements: ReadingMeasurement, start: int = 1, evaluates: str = "no") -> list[int]:
    """One measurement per update; returns the updates after which an evaluation was requested."""
    asked = []
    for step, measurement in enumerate(measurements, start):
        schedule.observe_reading(measurement)
        state = SimpleNamespace(global_step=step, is_world_process_zero=False)
        control = SimpleNamespace(should_evaluate=False)
        schedule.on_step_end(SimpleNamespace(eval_strategy=evaluates, disable_tqdm=True), state, control)
        asked += [step] * control.should_evaluate
    return asked


def test_shares_by_hand():
    assert READ.read == pytest.approx(1 - 4 / 8)  # the mean of the group is what it has to beat
    assert READ.helped == pytest.approx(1 - 4 / 10)  # here: no warmup
    assert UNREAD.read == UNREAD.helped == 0
    assert COPIES.read == 0
    assert COPIES.helped == pytest.approx(1 - 10 / 10.5)
    assert DEPENDENT.read == DEPENDENT.helped == pytest.approx(1 - 10 / 10.1)
    assert ReadingMeasurement.sum_of([READ, [-6, -8, -8, -8]]) == ReadingMeasurement(-10, -16, -20, -18)


@pytest.mark.parametrize("measurement", [UNREAD, COPIES, DEPENDENT])
def test_no_switch_where_content_helps_nobody(measurement):
    schedule = searching()
    measure(schedule, *[measurement] * 199)
    assert (schedule.phase, schedule.switched_at) == ("reading", None)


def test_targets_known_by_heart_take_no_reading():
    """log P(y|x) of exactly 0 without a warmup: nothing is left to take away."""
    by_heart = ReadingMeasurement(-1e-8, -1e-8, -1.0, 0.0)
    assert (by_heart.read, by_heart.helped) == (0.0, 0.0)
    schedule = Schedule(True, reading=True, updates=(0, 1000), threshold=0.01)
    schedule.measurements = [by_heart] * 2 * WINDOW
    assert not schedule.unsettled


def test_the_switch_comes_after_reading_and_learning():
    """24 measurements fill both windows."""
    schedule = searching()
    assert measure(schedule, *[READ] * 40, evaluates="steps") == [2 * WINDOW]
    assert schedule.switched_at == 2 * WINDOW
    assert schedule.phase == "own warmups"


def test_no_switch_while_targets_become_likelier_without_reading():
    """Every measurement is 2 % lower than the one before: after a window a fifth lower, too much for the KL."""
    falling = [ReadingMeasurement(*(value * 0.98**i for value in READ)) for i in range(100)]
    schedule = searching()
    measure(schedule, *falling)
    assert schedule.unsettled
    assert schedule.switched_at is None
    measure(schedule, *[falling[-1]] * 30, start=101)
    assert 101 < schedule.switched_at < 131


def read_by(share: float) -> ReadingMeasurement:
    """Without reading the target costs 10 nats, after any warmups."""
    return ReadingMeasurement(-10 * (1 - share), -10.0, -10.0, -10.0)


def test_no_switch_while_what_is_read_is_being_forgotten():
    """List skills: content is read early, forgotten, and read again; at the threshold on the way down it is too early."""
    down = [read_by(0.5 - 0.01 * i) for i in range(48)]
    schedule = searching()
    measure(schedule, *down)
    assert schedule.measurement.read > schedule.threshold
    assert (schedule.unsettled, schedule.switched_at) == (True, None)
    measure(schedule, *[down[-1]] * 30, start=49)
    assert 49 < schedule.switched_at <= 49 + 2 * WINDOW


def told_apart_by(share: float) -> ReadingMeasurement:
    """A twentieth of 10 nats is taken away throughout, by this share of it more than by the group's mean."""
    return ReadingMeasurement(-9.5, -9.5 - 0.5 * share, -10.0, -10.0)


@pytest.mark.parametrize("little", [lambda share: read_by(0.05 * share), told_apart_by])
def test_warmups_that_are_read_more_and_more_get_more_time(little):
    """A twentieth of the surprise when the trial ends, below the tenth that pays, but growing; then it grows no more."""
    schedule = searching()
    measure(schedule, *[READ] * 24)
    seen = [little(step / (TRIAL + 20)) for step in range(1, TRIAL + 21)]
    measure(schedule, *seen, start=25)
    assert (schedule.phase, schedule.decided) == ("own warmups", False)
    measure(schedule, *[seen[-1]] * 2 * WINDOW, start=45 + TRIAL)
    assert schedule.phase == "plain"
    assert 45 + TRIAL < schedule.gave_up_at <= 45 + TRIAL + 2 * WINDOW


def test_at_the_upper_bound_help_is_enough():
    schedule = searching()
    measure(schedule, *[NO_ONE_STANDS_OUT] * 199)
    assert schedule.switched_at is None
    measure(schedule, NO_ONE_STANDS_OUT, start=200)
    assert (schedule.switched_at, schedule.gave_up_at) == (200, None)


@pytest.mark.parametrize("measurement", [UNREAD, COPIES, DEPENDENT])
def test_at_the_upper_bound_a_run_without_help_gives_up(measurement):
    told, warned = [], []
    schedule = searching(gave_up=lambda: told.append(1), warn=warned.append)
    assert measure(schedule, *[measurement] * 210, evaluates="steps") == [200]
    assert (schedule.phase, schedule.gave_up_at, schedule.switched_at) == ("plain", 200, None)
    assert len(told) == 1
    assert (warned[0]["step"], warned[0]["rule"]) == (200, "nothing_to_read")
    assert not schedule.measures_reading(200)


def ended(schedule: Schedule, warned: list, updates: int, of: int) -> list[tuple[int, str]]:
    """(update, rule) of what is told at the beginning and the end of a run that ends after so many updates."""
    start = SimpleNamespace(global_step=0, max_steps=of, stateful_callbacks={}, is_world_process_zero=True)
    schedule.on_train_begin(None, start, None)
    told = [(warning["step"], warning["rule"]) for warning in warned]
    schedule.on_train_end(None, SimpleNamespace(global_step=updates, max_steps=of, is_world_process_zero=True), None)
    return [*told, *((warning["step"], warning["rule"]) for warning in warned[len(told) :])]


@pytest.mark.parametrize(
    ("settings", "updates", "of", "told"),
    [
        ({"reading": True}, 60, 60, [(0, "never_switched")]),  # known before the first update
        ({"reading": True, "updates": (10, 600)}, 90, 90, [(0, "never_switched")]),  # two windows take 93 updates
        (
            {"reading": True, "updates": (10, 600), "threshold": 0},
            90,
            90,
            [(90, "never_switched")],
        ),  # nothing is waited for
        ({"reading": True, "updates": (10, 50)}, 60, 60, [(60, "never_switched")]),  # helping is enough from 50 on
        ({"reading": True}, 150, 150, [(150, "never_switched")]),
        ({"reading": True}, 90, 150, []),  # stopped by somebody, and may go on
        ({"reading": True, "proposal_only": True}, 60, 60, []),  # as asked
        ({}, 60, 60, [(60, "never_switched")]),  # given proposals were not learned in time
        ({"has_proposals": False}, 60, 60, []),
    ],
)
def test_a_run_says_so_if_the_model_never_wrote_its_own(settings, updates, of, told):
    warned: list = []
    schedule = Schedule(**({"has_proposals": True, "updates": (100, 600)} | settings), warn=warned.append)
    assert ended(schedule, warned, updates, of) == told


def test_a_switch_that_did_not_help_is_reversed():
    schedule = searching()
    measure(schedule, *[READ] * 24)
    measure(schedule, *[UNREAD] * (TRIAL - 1), start=25)
    assert schedule.phase == "own warmups"
    measure(schedule, UNREAD, start=24 + TRIAL)
    assert (schedule.phase, schedule.gave_up_at) == ("plain", 24 + TRIAL)


def test_a_switch_that_helped_stays():
    schedule = searching()
    measure(schedule, *[READ] * (24 + TRIAL))
    assert (schedule.decided, schedule.phase) == (True, "own warmups")
    measure(schedule, *[UNREAD] * 300, start=25 + TRIAL)
    assert schedule.phase == "own warmups"


def test_a_threshold_of_0_neither_waits_nor_gives_up():
    schedule = Schedule(True, reading=True, threshold=0, updates=(3, 5))
    measure(schedule, *[UNREAD] * 300)
    assert (schedule.switched_at, schedule.gave_up_at) == (3, None)


def test_without_a_switch_by_request_reading_goes_on():
    schedule = Schedule(True, reading=True, proposal_only=True, threshold=0.015, updates=(3, 5))
    measure(schedule, *[READ] * 40)
    assert schedule.phase == "reading"
    assert not schedule.measures_reading(0)


def test_processes_measure_together():
    """The generator reads the warmups of the other process; this one alone would not switch."""
    schedule = searching(reduce=lambda mine: [a + b for a, b in zip(mine, [0, 0, 0, 0, *READ], strict=True)])
    measure(schedule, *[UNREAD] * 24)
    assert schedule.measurement.read == pytest.approx(1 - 14 / 19)
    assert schedule.switched_at == 24


@pytest.mark.parametrize("stop", [10, 24, 60])
def test_measurements_survive_a_restart(stop):
    measurements = [READ if step % 3 else UNREAD for step in range(120)]
    whole, first, second = searching(), searching(), searching()
    measure(whole, *measurements)
    measure(first, *measurements[:stop])
    saved = json.loads(json.dumps(first.state()))
    state = TrainerState(global_step=stop, stateful_callbacks={"Schedule": saved})
    second.on_train_begin(None, state, None)
    measure(second, *measurements[stop:], start=stop + 1)
    assert second.state() == json.loads(json.dumps(whole.state()))
