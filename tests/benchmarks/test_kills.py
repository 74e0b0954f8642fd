"""A few of the kills that `python -m benchmarks.kills` makes thirty of."""

from __future__ import annotations

from benchmarks import kills


def test_killed_at_random_and_started_again_it_ends_the_same(tmp_path):
    places, differ = kills.torment(tmp_path, 3, longest=0.3, seed=1, show=False, max_steps=30)
    assert sum(places.values()) == 3, places
    assert "finished before" not in places
    assert differ == []


def test_a_death_is_placed_by_what_it_left(tmp_path):
    run = tmp_path / "run"
    (run / "unfinished" / "removed-checkpoint-2").mkdir(parents=True)
    assert kills.place_of_death(run, True, 8) == "removing a checkpoint"
    (run / "unfinished" / "checkpoint-4").mkdir()
    assert kills.place_of_death(run, True, 8) == "writing a checkpoint"
    assert kills.place_of_death(run, False, 8) == "starting"  # what lies there is of an earlier life
    for left in (run / "unfinished").iterdir():
        left.rmdir()
    assert kills.place_of_death(run, True, 8) == "training"
    (run / "checkpoint-8").mkdir()
    assert kills.place_of_death(run, True, 8) == "predicting"


def test_the_last_update_is_read_from_a_log_with_a_torn_line(tmp_path):
    assert kills.updates(tmp_path) == 0
    (tmp_path / "timing.jsonl").write_text('{"step": 3}\n{"step": 6}\n{"st')
    assert kills.updates(tmp_path) == 6
