"""What happens after a failure: the run stops, the term is left out for a whole group, or 0 is counted - and it is said."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from rl_warmup.rewards import Reward, calling
from rl_warmup.rewards.calling import MAX_ABANDONED


def nan_in_the_second_row(completion_ids):
    return [1.0, float("nan"), 3.0, None]


def test_skip_leaves_the_term_out_for_the_whole_group(world, caplog):
    """One warmup without a penalty beside siblings that have it would look better for no reason."""
    scores = world.judge(["target_logprob", Reward("odd", 2.0, nan_in_the_second_row, on_failure="skip")])
    assert torch.equal(scores.total, world.target_logps + torch.tensor([0.0, 0.0, 6.0, 0.0]))
    assert scores.by_name["odd"].isnan().tolist() == [True, True, False, True]
    assert scores.failed == {"odd": 1}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "Reward 'odd' returned nan for row 1 (id 'a', warmup 1); return a list of 4, one finite number or None per warmup. "
        "It is left out for the warmups of 1 prompts (on_failure: skip)."
    )


def test_zero_counts_nothing_for_the_failed_rows_and_says_so(world, caplog):
    scores = world.judge(["target_logprob", Reward("odd", 2.0, nan_in_the_second_row, on_failure="zero")])
    assert torch.equal(scores.total, world.target_logps + torch.tensor([2.0, 0.0, 6.0, 0.0]))
    assert scores.by_name["odd"].tolist()[:3] == [1.0, 0.0, 3.0]
    assert scores.failed == {"odd": 1}
    assert "It counts 0 for 1 warmups (on_failure: zero)." in caplog.text


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_call_that_fails_as_a_whole_fails_for_every_row(world, policy, caplog):
    def broken(completion_ids):
        raise KeyError("reply")

    scores = world.judge(["target_logprob", Reward("broken", -1.0, broken, on_failure=policy)])
    assert torch.equal(scores.total, world.target_logps)
    assert scores.by_name["broken"].isnan().all() == (policy == "skip")
    assert scores.failed == {"broken": 4}
    assert "Reward 'broken' failed with KeyError: 'reply'" in caplog.text


def test_skipping_the_only_reward_is_not_a_zero(world):
    def broken(completion_ids):
        raise KeyError("reply")

    with pytest.raises(
        ValueError, match="No reward scores row 0 .*: broken returned None for it, or failed and was skipped"
    ):
        world.judge([Reward("broken", 1.0, broken, on_failure="skip")])


def test_failures_that_cannot_go_away_stop_the_run_under_every_policy(world):
    def judge(completions, solution):
        return [0.0] * 4

    with pytest.raises(ValueError, match="needs an argument 'solution'"):
        world.judge(["target_logprob", Reward("judge", 1.0, judge, on_failure="zero")])


def test_failures_reach_the_run_folder(world):
    reported = []
    board = world.board(["target_logprob", Reward("odd", 2.0, nan_in_the_second_row, on_failure="zero")])
    board.report = reported.append
    world.judge(board, trainer_state=type("State", (), {"global_step": 7}))
    (warning,) = reported
    assert (warning["step"], warning["rule"]) == (7, "reward odd")
    assert warning["sees"].startswith("Reward 'odd' returned nan for row 1 (id 'a', warmup 1)")
    assert warning["done"] == "it counts 0 for 1 warmups (on_failure: zero)"


# ---------------------------------------------------------------------- time


def test_a_hanging_function_is_interrupted_where_it_stands(world):
    ended = []

    def hangs(completion_ids):
        try:
            time.sleep(30)
        finally:
            ended.append(True)

    began = time.monotonic()
    scores = world.judge(["target_logprob", Reward("hangs", 1.0, hangs, on_failure="skip", timeout=0.1)])
    assert time.monotonic() - began < 5
    assert ended == [True]
    assert torch.equal(scores.total, world.target_logps)


def test_a_pattern_that_never_ends_is_interrupted_too(world):
    """Matching holds the interpreter, so no thread could stop it; it does look for signals."""

    def backtracks(completion_ids):
        re.fullmatch("(a+)+b", "a" * 40)

    with pytest.raises(ValueError, match=r"gave no answer within its `timeout` of 0.1 s; it was interrupted"):
        world.judge([Reward("backtracks", 1.0, backtracks, timeout=0.1)])


def test_somebody_elses_alarm_survives(world):
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    outer = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        world.judge(["target_logprob", Reward("quick", 1.0, lambda completion_ids: [0.0] * 4, timeout=10)])
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        time.sleep(0.3)
        assert rang == [True]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_outside_the_main_thread_a_hanging_function_is_left_behind(world, monkeypatch):
    """Nothing can stop a thread, so there may only be so many."""
    monkeypatch.setattr(calling, "_abandoned", [])
    release, messages = threading.Event(), []

    def hangs(completion_ids):
        release.wait(30)

    def work():
        for _ in range(MAX_ABANDONED + 1):
            with pytest.raises(ValueError, match="Reward 'hangs'") as caught:
                world.judge([Reward("hangs", 1.0, hangs, timeout=0.05)])
            messages.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    release.set()
    assert messages[0] == (
        "Reward 'hangs' gave no answer within its `timeout` of 0.05 s; outside the main thread it cannot be stopped and was "
        "abandoned."
    )
    assert (
        messages[-1]
        == "Reward 'hangs' was not called: 8 earlier calls of rewards are still running after their timeout."
    )


def test_in_a_thread_gradients_stay_off(world):
    seen = []

    def look(completion_ids):
        seen.append(torch.is_grad_enabled())
        return [0.0] * 4

    thread = threading.Thread(target=lambda: world.judge([look]))
    thread.start()
    thread.join(30)
    assert seen == [False]


def test_a_coroutine_that_blocks_its_loop_costs_the_loop_not_the_run(world, monkeypatch):
    monkeypatch.setattr(calling, "GRACE", 0.1)

    async def blocks(completion_ids):
        time.sleep(1.5)

    async def fine(completion_ids):
        await asyncio.sleep(0)
        return [1.0] * 4

    with pytest.raises(
        ValueError, match=r"within its `timeout` of 0.1 s; it blocks its event loop \(`await` where it waits\)"
    ):
        world.judge([Reward("blocks", 1.0, blocks, timeout=0.1)])
    assert world.judge([fine]).total.tolist() == [1.0] * 4


def test_a_call_that_ends_after_it_was_given_up_leaves_the_working_directory(world, monkeypatch, tmp_path):
    monkeypatch.setattr(calling, "GRACE", 0.1)
    release, ended = threading.Event(), threading.Event()

    async def blocks(completion_ids):
        release.wait(30)
        asyncio.get_running_loop().call_soon(ended.set)  # after `contained` has ended

    with pytest.raises(ValueError, match="blocks its event loop"):
        world.judge([Reward("blocks", 1.0, blocks, timeout=0.1)])
    monkeypatch.chdir(tmp_path)
    release.set()
    assert ended.wait(30)
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("timeout", [None, 10])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_changed_working_directory_is_changed_back(world, monkeypatch, tmp_path, is_async, timeout):
    monkeypatch.chdir(tmp_path)

    def leaves(completion_ids):
        os.chdir("/")
        return [0.0] * 4

    async def leaves_later(completion_ids):
        return leaves(completion_ids)

    def work():
        world.judge([Reward("leaves", 1.0, leaves_later if is_async else leaves, timeout=timeout)])

    work()
    assert Path.cwd() == tmp_path
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert Path.cwd() == tmp_path


def test_a_functions_own_time_out_is_its_own(world):
    async def refused(completion_ids):
        raise TimeoutError("socket")

    with pytest.raises(ValueError, match="Reward 'refused' failed with TimeoutError: socket"):
        world.judge([refused])
