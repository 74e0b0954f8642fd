"""COMET by a stand-in command: a few lines of Python that give each row the share of reference words it holds."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from rl_warmup.metrics import compute, row_statistics, signatures
from rl_warmup.metrics.significance import paired_bootstrap

STAND_IN = """
import json, sys
source, hypothesis, reference, checkpoint, *output = sys.argv[1:]
files = [open(path, encoding="utf-8").read().splitlines() for path in (source, hypothesis, reference)]
assert checkpoint == "best.ckpt" and len({len(file) for file in files}) == 1
scores = [len(set(h.split()) & set(r.split())) / len(r.split()) for _, h, r in zip(*files)]
rows = [{"src": s, "mt": h, "ref": r, "COMET": x} for s, h, r, x in zip(*files, scores)]
if output:
    json.dump({hypothesis: rows}, open(output[0], "w"))
    print("a line of a log")
else:
    print("a line of a log")
    print(json.dumps({"scores": scores}))
"""
ROWS = [{"prompt": "eins zwei"}, {"prompt": "drei\nvier"}, {"prompt": ""}]
PREDICTIONS, TARGETS = ["one two", "three\n\u2028 five", ""], ["one two", "three four", "five six"]


def spec(tmp_path, code=STAND_IN, places="{source} {hypothesis} {reference} {checkpoint}", **kwargs):
    script = tmp_path / "stand in.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, str(script), *places.split()]
    return {"name": "comet", "kwargs": {"command": command, "checkpoint": "best.ckpt", **kwargs}}


@pytest.mark.parametrize("output", ["", " {output}"])
def test_scores_come_back_by_standard_output_or_by_file(tmp_path, output):
    comet = spec(tmp_path, places="{source} {hypothesis} {reference} {checkpoint}" + output)
    assert compute([comet], PREDICTIONS, TARGETS, ROWS) == {"comet[best.ckpt]": pytest.approx((1 + 0.5 + 0) / 3)}
    rows = row_statistics([comet], PREDICTIONS, TARGETS, ROWS)["comet[best.ckpt]"].rows
    assert [score for score, _ in rows] == [1.0, 0.5, 0.0]


def test_a_command_as_one_string_with_quotes(tmp_path):
    comet = spec(tmp_path)
    words = comet["kwargs"]["command"]
    comet["kwargs"]["command"] = f"{words[0]} '{words[1]}' " + " ".join(words[2:])
    assert "comet[mine]" in compute(
        [{**comet, "kwargs": {**comet["kwargs"], "label": "mine"}}], PREDICTIONS, TARGETS, ROWS
    )


def test_the_key_names_the_checkpoint_and_the_signature_the_command(tmp_path):
    checkpoint = tmp_path / "wmt22-comet-da.ckpt"
    checkpoint.write_text("weights")
    comet = spec(tmp_path, checkpoint=str(checkpoint))
    found = signatures([comet])
    assert list(found) == ["comet[wmt22-comet-da]"]
    assert f"checkpoint:{checkpoint}|source:prompt|command:{sys.executable}" in found["comet[wmt22-comet-da]"]


def test_two_lists_of_predictions_are_compared_by_row_scores(tmp_path):
    sides = [
        [{"prompt": "x", "prediction": text, "target": "a b"} for text in texts]
        for texts in (["a", "b", "c"], ["a b", "b", "b a"])
    ]
    found = paired_bootstrap(spec(tmp_path), *sides, samples=50)
    assert found.metric == "comet[best.ckpt]"
    assert (found.one, found.other) == (pytest.approx(1 / 3), pytest.approx(2.5 / 3))


def test_a_command_that_is_not_there_is_one_sentence():
    comet = {"name": "comet", "kwargs": {"command": "no-such-comet -t {hypothesis}", "checkpoint": "x"}}
    for ask in (lambda: compute([comet], ["a"], ["a"], [{"prompt": "a"}]), lambda: signatures([comet])):
        with pytest.raises(ImportError, match="COMET is not available: there is no command 'no-such-comet'; install"):
            ask()


def test_what_the_command_and_the_rows_lack(tmp_path):
    with pytest.raises(ValueError, match="the command has no {hypothesis}"):
        compute([spec(tmp_path, places="{source}")], PREDICTIONS, TARGETS, ROWS)
    for rows in (None, [{"text": "a"}] * 3):
        with pytest.raises(ValueError, match="rows with the source text in column 'prompt'; name it with `source`"):
            compute([spec(tmp_path)], PREDICTIONS, TARGETS, rows)
    assert compute([spec(tmp_path, source="text")], PREDICTIONS, TARGETS, [{"text": "a"}] * 3)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('no GPU', file=sys.stderr); sys.exit(3)", "failed with status 3; its output: no GPU"),
        ("", "one number for each of 3 rows as JSON, but wrote ''"),
        ("print('score: 0.8')", "but wrote 'score: 0.8'"),
        ("print([0.1, 0.2])", "but wrote 2 numbers"),
        ("print([0.1, 0.2, float('nan')])", "one number for each of 3 rows"),
        ("print('[0.1, 0.2, NaN]')", r"but wrote '\[0.1, 0.2, NaN\]'"),
        ("print('{\"scores\": [0.1, null, true]}')", "one number for each of 3 rows"),
        ('print(\'{"hypothesis.txt": [{"mt": 1}]}\')', "one number for each of 3 rows"),
    ],
)
def test_failures_and_bad_output(tmp_path, code, message):
    with pytest.raises(ValueError, match=f"metric 'comet': .*{message}"):
        compute([spec(tmp_path, code)], PREDICTIONS, TARGETS, ROWS)


def test_a_command_that_writes_no_output_file(tmp_path):
    with pytest.raises(ValueError, match="but wrote ''"):
        compute([spec(tmp_path, "print([1, 2, 3])", "{hypothesis} {output}")], PREDICTIONS, TARGETS, ROWS)


def test_a_timeout_ends_the_command_and_its_children(tmp_path):
    child = tmp_path / "child.pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"took longer than 1 s and was ended; raise `timeout`"):
        compute([spec(tmp_path, code, timeout=1)], PREDICTIONS, TARGETS, ROWS)
    assert time.monotonic() - started < 20
    if child.exists():  # on a very busy machine it may not have come so far
        assert gone(int(child.read_text()))


def gone(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_our_paths_do_not_reach_the_other_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    code = "import json, os; print(json.dumps([float('PYTHONPATH' in os.environ)] * 3))"
    assert list(compute([spec(tmp_path, code)], PREDICTIONS, TARGETS, ROWS).values()) == [0.0]


def test_the_stand_in_speaks_json_as_comet_score_does():
    """`comet-score --to_json` (unbabel-comet 2.2.7) writes {file: [{"src", "mt", "ref", "COMET"}]}; a list is enough too."""
    from rl_warmup.metrics.comet import _scores

    rows = [{"src": "a", "mt": "b", "ref": "c", "COMET": 0.7}, {"src": "a", "mt": "b", "ref": "c", "COMET": 0.9}]
    assert _scores(json.dumps({"hypothesis.txt": rows}), 2) == [0.7, 0.9]
    assert _scores(json.dumps(rows), 2) == [0.7, 0.9]  # so before 2.0
    assert _scores("[0.7, 0.9]", 2) == [0.7, 0.9]
    assert _scores("[0.7]", 1) == [0.7]
