"""Who is late, who is frozen, and when nobody may be judged: the watchdog's decisions, with hand-made heartbeats."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from rl_warmup.runtime import interruptions
from rl_warmup.runtime.interruptions import EXIT_HUNG, EXIT_SIGNALLED, Interruption, Watchdog

NOW = 1000.0


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """The exit code of process 0 at count 4, or None, when it has heard this of the others (count, seconds ago)."""

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(interruptions.faulthandler, "dump_traceback", lambda all_threads: None)

    def decide(**heard: tuple[int, float]) -> int | None:
        watchdog = Watchdog(tmp_path, 30)
        watchdog.count, watchdog.point = 4, "update 2, warmups scored"
        told = {int(name[1:]): ({"count": n, "what": f"point {n}"}, NOW - ago) for name, (n, ago) in heard.items()}
        try:
            watchdog._end_if_late(NOW, {0: ({"count": 4, "what": "point 4"}, NOW), **told})
        except Ended as ended:
            return ended.args[0]
        return None

    return decide


def test_all_at_the_same_point_is_no_hang(judge):
    assert judge(p1=(4, 1)) is None
    assert judge() is None  # processes that do not share the folder are not known


def test_a_late_process_is_named_with_the_point_it_reached(judge, capsys):
    assert judge(p1=(4, 1), p2=(3, 1)) == EXIT_HUNG == 124
    said = capsys.readouterr().err
    assert "process 2 has not come further since `point 3`, and process 0 has waited for 30 seconds" in said
    assert "process 1" not in said


def test_a_frozen_process_is_named_even_where_it_was_not_late(judge, capsys):
    assert judge(p1=(4, 31)) == EXIT_HUNG
    assert "process 1 has stopped altogether since `point 4`" in capsys.readouterr().err


def test_the_late_one_says_that_it_is_itself(judge, capsys):
    assert judge(p1=(5, 1)) == EXIT_HUNG
    assert "process 0 hangs: since `update 2, warmups scored`" in capsys.readouterr().err


def test_only_several_processes_are_watched_and_the_folder_goes_with_the_last(tmp_path):
    for count, watched in ((1, False), (2, True)):
        watchdog = Watchdog(tmp_path / "heartbeats", 30)
        watchdog.on_train_begin(SimpleNamespace(world_size=count, process_index=0), None, None)
        assert (watchdog.thread is not None) == watched
        until = time.monotonic() + 30
        while watched and watchdog._read(0) is None and time.monotonic() < until:
            time.sleep(0.05)
        assert not watched or watchdog._read(0)["count"] == 0
        watchdog.close()
        assert not (tmp_path / "heartbeats").exists()
    forever = Watchdog(tmp_path / "heartbeats", None)
    forever.on_train_begin(SimpleNamespace(world_size=2, process_index=0), None, None)
    assert forever.thread is None


def test_nobody_is_judged_while_the_main_process_writes(tmp_path):
    watchdog = Watchdog(tmp_path, 30)
    watchdog.reached("update 1, rows read")
    assert watchdog.since is not None
    watchdog.rest()
    assert watchdog.since is None


@pytest.mark.parametrize("told_here", [True, False])
def test_a_signal_to_one_process_is_a_signal_to_all(told_here):
    state = SimpleNamespace(is_world_process_zero=False, global_step=3, max_steps=9, epoch=0.5)
    control = SimpleNamespace(should_save=False)
    interruption = Interruption(lambda value: max(value, 0 if told_here else signal.SIGTERM))
    interruption.on_step_end(None, state, control)
    assert control.should_save != told_here  # nothing heard yet here; the other has heard
    if told_here:
        interruption._receive(signal.SIGUSR1, None)
        interruption.on_step_end(None, state, control)
        assert control.should_save
    with pytest.raises(SystemExit) as end:
        interruption.on_save(None, state, control)
    assert end.value.code == EXIT_SIGNALLED


def test_an_ordinary_save_ends_nothing():
    interruption = Interruption(lambda value: value)
    state = SimpleNamespace(is_world_process_zero=True, global_step=3, max_steps=9, epoch=0.5)
    assert interruption.on_save(None, state, None) is None


@pytest.mark.parametrize("moment", ["while the processes agree", "between agreeing and saving"])
def test_a_signal_of_the_last_moment_waits_for_the_next_update(moment):
    """One process must not leave after an update that the others take for an ordinary one; nor may the signal be lost."""
    state = SimpleNamespace(is_world_process_zero=False, global_step=4, max_steps=9, epoch=0.5)
    control = SimpleNamespace(should_save=False)

    def most(value):
        if moment == "while the processes agree":
            interruption._receive(signal.SIGTERM, None)
        return value

    interruption = Interruption(most)
    interruption.on_step_end(None, state, control)
    if moment == "between agreeing and saving":
        interruption._receive(signal.SIGTERM, None)
    assert not control.should_save
    interruption.on_save(None, state, control)  # a checkpoint that was due anyway
    interruption.on_step_end(None, state, control)
    assert control.should_save
    with pytest.raises(SystemExit):
        interruption.on_save(None, state, control)


@pytest.mark.parametrize(("epoch", "step"), [(2.0, 4), (0.5, 9)])
@pytest.mark.parametrize("told", [True, False])
def test_a_checkpoint_of_an_epochs_last_update_waits_for_its_end(epoch, step, told):
    """Trainer evaluates and logs at the end of an epoch, after the update's own checkpoint."""
    state = SimpleNamespace(is_world_process_zero=False, global_step=step, max_steps=9, epoch=epoch)
    control = SimpleNamespace(should_save=not told)
    interruption = Interruption(lambda value: signal.SIGTERM if told else 0)
    interruption.on_step_end(None, state, control)
    assert not control.should_save
    interruption.on_save(None, state, control)  # of a new best model
    interruption.on_epoch_end(None, state, control)
    assert control.should_save


def test_signals_are_left_alone_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    interruption = Interruption(lambda value: value)
    thread = threading.Thread(target=interruption.on_train_begin, args=(None, None, None))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    interruption.close()
