import json
import random

import pytest

from rl_warmup.metrics import compute
from rl_warmup.metrics.significance import METHODS, compare_runs
from rl_warmup.tasks.rows import rows_hash


def run_folder(folder, rows, share, control="", **extra):
    """A run whose predictions are right in about `share` of the rows."""
    rng = random.Random(str(folder))
    said = [{**row, "prediction": row["target"] if rng.random() < share else "no idea"} for row in rows]
    folder.mkdir(exist_ok=True)
    name = f"predictions.{control}.jsonl" if control else "predictions.jsonl"
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in said), encoding="utf-8")
    scores = compute(["exact_match", "chrf++"], [r["prediction"] for r in said], [r["target"] for r in said])
    result = {
        "task": "toy", "split": "test", "rows": len(rows), "rows_hash": rows_hash(rows),
        "metrics": {"": {**scores, "unparsed": 0.0, "comet[x]": 0.8}}, **extra,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def rows(count, word="row"):
    return [{"id": str(i), "prompt": f"{word} {i}", "target": f"the target of {word} {i}"} for i in range(count)]


def test_two_runs_metric_by_metric(tmp_path):
    one, other = run_folder(tmp_path / "sft", rows(200), 0.4), run_folder(tmp_path / "warmup", rows(200), 0.7)
    found = compare_runs(one, other)
    assert [comparison.metric for comparison in found] == ["exact_match", "chrf++"]  # others cannot be computed again
    for comparison in found:
        assert comparison.difference > 0
        assert comparison.interval[0] > 0
        assert comparison.p_value < comparison.p_holm < 0.05
        assert comparison.family == 2
        assert comparison.rows == 200
        assert comparison.method == "paired bootstrap"
    recorded = json.loads((one / "metrics.json").read_text())["metrics"][""]
    assert found[1].one == pytest.approx(recorded["chrf++"])
    swapped = compare_runs(other, one, ["exact_match"], method="approximate randomization")
    assert swapped[0].difference == -found[0].difference
    assert swapped[0].p_holm == swapped[0].p_value


def test_two_controls_of_one_run(tmp_path):
    folder = run_folder(tmp_path / "warmup", rows(50), 0.9)
    run_folder(folder, rows(50), 0.0, control="shuffled")
    (found,) = compare_runs(folder, folder, ["exact_match"], other_control="shuffled")
    assert found.one > 0.7
    assert found.other == 0


def test_different_rows_are_refused_with_both_hashes(tmp_path):
    one, other = run_folder(tmp_path / "a", rows(20), 0.5), run_folder(tmp_path / "b", rows(30), 0.5)
    with pytest.raises(ValueError, match="different rows and cannot be compared") as error:
        compare_runs(one, other)
    for count in (20, 30):
        assert f"rows_hash {rows_hash(rows(count))[:12]}... ({count} rows, test split, toy)" in str(error.value)


def test_a_hash_that_does_not_fit_its_predictions_is_noticed(tmp_path):
    one = run_folder(tmp_path / "a", rows(5), 0.5)
    other = run_folder(tmp_path / "b", rows(5, "line"), 0.5, rows_hash=rows_hash(rows(5)))
    with pytest.raises(ValueError, match="row 0 differs: its prompt is 'row 0' in one list and 'line 0' in the other"):
        compare_runs(one, other)
    short = run_folder(tmp_path / "c", rows(5), 0.5)
    (short / "predictions.jsonl").write_text((one / "predictions.jsonl").read_text().partition("\n")[0])
    with pytest.raises(ValueError, match=r"holds 1 predictions, and metrics\.json says 5 rows"):
        compare_runs(one, short)


def test_what_is_missing_is_named(tmp_path):
    one, other = run_folder(tmp_path / "a", rows(5), 0.5), run_folder(tmp_path / "b", rows(5), 0.5)
    with pytest.raises(
        ValueError, match=r"holds no predictions\.filler\.jsonl \(predictions there: predictions\.jsonl\)"
    ):
        compare_runs(one, other, other_control="filler")
    (other / "predictions.jsonl").unlink()
    with pytest.raises(ValueError, match=r"b holds no predictions\.jsonl \(predictions there: none\)"):
        compare_runs(one, other)
    with pytest.raises(ValueError, match=r"nothing holds no metrics\.json"):
        compare_runs(one, tmp_path / "nothing")
    old = run_folder(tmp_path / "old", rows(5), 0.5, rows_hash=None)
    with pytest.raises(ValueError, match="has no rows_hash, so its rows are unknown"):
        compare_runs(one, old)
    bare = run_folder(tmp_path / "bare", rows(5), 0.5, metrics={"": {"own": 1.0}})
    with pytest.raises(ValueError, match="share no metric that needs no settings"):
        compare_runs(one, bare)
    with pytest.raises(ValueError, match=f"method='t test'; choose one of: {', '.join(METHODS)}"):
        compare_runs(one, bare, method="t test")
