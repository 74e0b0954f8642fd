"""Folders that are checkpoints, and folders that only look like one."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from rl_warmup.runtime import checkpoints
from rl_warmup.runtime.checkpoints import Makers

ALONE = Makers(1, "none", 8)


def write(run: Path, step: int, makers: Makers = ALONE, resumable: bool = True) -> Path:
    """A checkpoint of a few bytes, made as the trainer makes one."""
    folder = run / checkpoints.UNFINISHED / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "optimizer.pt").write_bytes(b"1234")
    names = [f"rng_state_{i}.pth" for i in range(makers.processes)] if makers.processes > 1 else ["rng_state.pth"]
    for name in names:
        (folder / name).write_bytes(b"12")
    checkpoints.seal(folder, step, makers, resumable)
    return checkpoints.publish(folder, run)


def test_the_newest_is_the_one_with_the_most_updates(tmp_path):
    assert checkpoints.newest(tmp_path) is None
    for step in (100, 9, 20):
        write(tmp_path, step)
    assert checkpoints.newest(tmp_path).name == "checkpoint-100"
    assert [checkpoints.step_of(path) for path in checkpoints.whole_checkpoints(tmp_path)] == [9, 20, 100]


def test_the_contents_list_every_file_with_its_size(tmp_path):
    listed = json.loads((write(tmp_path, 3) / "checkpoint.json").read_text())
    assert listed["files"] == {"rng_state.pth": 2, "shards/optimizer.pt": 4}
    assert (listed["step"], listed["processes"], listed["sharding"], listed["rows_per_update"]) == (3, 1, "none", 8)


@pytest.mark.parametrize("damage", ["no contents", "torn contents", "a file less", "a file cut short", "model alone"])
def test_an_incomplete_checkpoint_is_never_taken(tmp_path, damage):
    good, bad = write(tmp_path, 3), write(tmp_path, 6, resumable=damage != "model alone")
    if damage == "no contents":
        (bad / "checkpoint.json").unlink()
    elif damage == "torn contents":
        (bad / "checkpoint.json").write_text('{"step": 6, "fil')
    elif damage == "a file less":
        (bad / "shards" / "optimizer.pt").unlink()
    elif damage == "a file cut short":
        (bad / "shards" / "optimizer.pt").write_bytes(b"123")
    assert checkpoints.newest(tmp_path) == good
    assert "passes over checkpoint-6 in" in checkpoints.passed_over(tmp_path, good)
    assert "checkpoint-6" in checkpoints.passed_over(tmp_path, None)
    assert checkpoints.passed_over(tmp_path, bad) is None
    with pytest.raises(ValueError, match="checkpoint-6 is no complete checkpoint.*auto` takes the newest complete"):
        checkpoints.require(bad)


def test_what_was_being_written_has_another_name_and_is_cleared(tmp_path):
    (tmp_path / "unfinished" / "checkpoint-6").mkdir(parents=True)
    assert checkpoints.newest(tmp_path) is None
    checkpoints.clear_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []
    checkpoints.clear_unfinished(tmp_path)  # nothing there is fine as well
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "draft.txt").touch()
    checkpoints.clear_unfinished(tmp_path)
    assert (tmp_path / "unfinished" / "draft.txt").is_file()


def test_a_process_that_wrote_to_another_disk_is_missed(tmp_path):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "rng_state_0.pth").write_bytes(b"12")
    with pytest.raises(FileNotFoundError, match="lacks rng_state_1.pth.*disk that all machines share"):
        checkpoints.seal(folder, 2, Makers(2, "zero-2", 8), True)


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    old = write(tmp_path, 3)
    (old / "old").touch()
    assert not (write(tmp_path, 3) / "old").exists()
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_rotation_counts_whole_checkpoints_and_keeps_the_best_and_the_newest(tmp_path):
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    (tmp_path / "checkpoint-6").mkdir()  # an interrupted copy
    checkpoints.rotate(tmp_path, 2, str(tmp_path / "checkpoint-1"))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-5",
        "checkpoint-6",
    ]
    checkpoints.rotate(tmp_path, 1, None)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    checkpoints.rotate(tmp_path, None, None)
    assert checkpoints.newest(tmp_path).name == "checkpoint-5"


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (Makers(2, "zero-2", 8), Makers(1, "zero-2", 8), "written by 2 processes under zero-2, and now there are 1 process"),
        (Makers(2, "zero-2", 8), Makers(2, "zero-3", 8), "2 processes under zero-2.*2 processes under zero-3.*launch as"),
        (Makers(2, "zero-3", 8), Makers(1, "none", 8), "--model_name_or_path .*checkpoint-3, with a fresh optimizer"),
        (Makers(1, "none", 8), Makers(1, "none", 4), "updates of 8 rows, and now they would have 4.*processes to 8"),
        (Makers(2, "none", 8), Makers(1, "none", 4), "updates of 8 rows"),
    ],
)  # fmt: skip
def test_other_processes_are_refused_with_the_remedy(tmp_path, before, now, words):
    with pytest.raises(ValueError, match=words):
        checkpoints.refuse_other_makers(write(tmp_path, 3, before), now)


def test_whole_states_go_on_with_other_processes_and_say_what_changes(tmp_path):
    two = write(tmp_path, 3, Makers(2, "none", 8))
    assert checkpoints.refuse_other_makers(two, Makers(2, "none", 8)) is None
    sentence = checkpoints.refuse_other_makers(two, ALONE)
    assert "written by 2 processes and is resumed by 1 process:" in sentence
    assert "other random streams" in sentence


def test_errors_of_the_disk_name_the_last_good_checkpoint(tmp_path):
    with (
        pytest.raises(OSError, match="cannot be written.*No space left.*There is no checkpoint yet"),
        checkpoints.disk_faults(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    write(tmp_path, 3)
    with (
        pytest.raises(OSError, match="MiB are free there.*checkpoint-3 is the last good checkpoint"),
        checkpoints.disk_faults(tmp_path),
    ):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    with pytest.raises(OSError, match="gone vanished"), checkpoints.disk_faults(tmp_path / "gone"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "gone/metrics.jsonl")


def test_a_sentence_is_not_wrapped_in_another(tmp_path):
    with pytest.raises(checkpoints.DiskFault) as raised, checkpoints.disk_faults(tmp_path):  # noqa: SIM117
        with checkpoints.disk_faults(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert str(raised.value).count("cannot be written") == 1


def test_other_errors_pass_unchanged(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.jsonl"), RuntimeError("shapes")):
        with pytest.raises(type(error)) as raised, checkpoints.disk_faults(tmp_path):
            raise error
        assert raised.value is error
