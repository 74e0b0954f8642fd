"""Where weights live in shards, two processes take the same decoding steps, whenever their own warmups end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

LIMIT = 5  # of sampling_worker.py


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What both processes drew. Started by hand: a launcher would spend as long again on importing torch."""
    worker, place = Path(__file__).with_name("sampling_worker.py"), tmp_path_factory.mktemp("synced") / "meeting-place"
    both = [
        subprocess.Popen([sys.executable, worker, str(rank), place], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    try:
        answers = [process.communicate(timeout=240) for process in both]
    finally:
        for process in both:
            process.kill()  # one that waits for another which has failed would wait for long
    for process, (_, errors) in zip(both, answers, strict=True):
        assert process.returncode == 0, errors.decode()
    return [json.loads(output) for output, _ in answers]


def close(one: list[list[float]], other: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, abs=1e-5) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_both_take_the_steps_of_the_longest(ranks, kind, slow):
    """Six warmups run to the limit on one, on the other none is left after the first draw; it goes on without rows."""
    results = [rank[f"{kind} slow={slow}"] for rank in ranks]
    fed = LIMIT - 1  # the last token is read together with a target, if at all
    assert results[slow]["synced"]["steps"] == results[slow]["alone"]["steps"] == [6] * fed
    assert results[1 - slow]["synced"]["steps"] == [0] * fed
    assert results[1 - slow]["alone"]["steps"] == []
    assert all(len(ids) == LIMIT and finish == "length" for ids, finish, *_ in results[slow]["synced"]["warmups"])
    assert all(ids == [] and finish == "separator" for ids, finish, *_ in results[1 - slow]["synced"]["warmups"])


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_waiting_changes_no_result(ranks, kind, slow):
    for rank in ranks:
        result = rank[f"{kind} slow={slow}"]
        synced, alone = result["synced"], result["alone"]
        assert synced["warmups"] == alone["warmups"]
        assert close(synced["ahead"], alone["ahead"])
