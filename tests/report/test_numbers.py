"""Every figure of summary.md against one computed by hand."""

from __future__ import annotations

import json
import math

import pytest

from rl_warmup.experiments.collect import find_runs, sections
from rl_warmup.experiments.compare import compare_section, control_arm, mean_and_deviation
from rl_warmup.experiments.report import text_table, write_report
from rl_warmup.experiments.report.curves import at_budget, phase_ends, quality_charts, training_charts
from rl_warmup.experiments.report.words import (
    COST_HEADER,
    amount,
    between,
    cost_cells,
    equal_compute_cells,
    figure,
    likelihood_cells,
    probability,
    result_cells,
)


def only_section(path):
    (section,) = sections(find_runs([path])[0])
    return section


def cells(path):
    section = only_section(path)
    (results,) = compare_section(section, control_arm(section))
    found = result_cells(results)
    return {(arm, row[1]): row for row, arm in zip(found.rows, found.arms, strict=True)}


def test_mean_deviation_and_interval_over_three_seeds(seeds):
    row = cells(seeds)["sft", "no warmup (SFT)"]
    # 0, 1/4, 2/4: mean 0.25, deviation 0.25, half width 4.303 * 0.25 / sqrt(3)
    half = 4.302653 * 0.25 / math.sqrt(3)
    assert row[2:5] == ["3", "0.250 ± 0.250", f"0.000 to {0.25 + half:.3f}"], "a share is not below 0"
    assert row[5:] == ["", "", ""], "the control differs from nothing"


def test_difference_from_the_control_is_welchs(seeds):
    row = cells(seeds)["warmup", "own warmup"]
    # warmup 0.75, 1, 1: mean 11/12, deviation 1/sqrt(48); difference 2/3, error sqrt(1/16/3 + 1/48/3)
    error = math.sqrt(1 / 48 + 1 / 144)
    freedom = error**4 / ((1 / 48) ** 2 / 2 + (1 / 144) ** 2 / 2)
    assert freedom == pytest.approx(3.2)
    assert row[5] == "+0.667 from sft"
    from scipy.stats import t

    half = t.ppf(0.975, freedom) * error
    assert 2 / 3 + half > 1, "and no two shares differ by more than 1"
    assert row[6] == f"+{2 / 3 - half:.3f} to +1.000"
    p, against_own = 2 * t.sf(2 / 3 / error, freedom), 2 * t.sf((11 / 12 - 1 / 4) * 12, 2)
    assert against_own < p < 2 * against_own, "so Holm doubles the smaller, and the larger is never said to be less"
    assert row[7] == f"{2 * against_own:.3f}"
    assert cells(seeds)["warmup", "shuffled warmup"][7] == f"{2 * against_own:.3f}"


def test_one_seed_has_no_deviation_and_is_tested_over_rows(pair):
    row = cells(pair)["warmup", "own warmup"]
    assert row[2:5] == ["1", "0.750", ""]
    assert row[5] == "+0.500 from sft"
    low, high = row[6].split(" to ")
    assert (low, high) == ("0.000", "+1.000"), "of two rows in four that differ, a draw may hold none, or only such"


def test_cost_leaves_out_what_was_not_counted(pair, tmp_path, run_folder):
    section = only_section(pair)
    table = cost_cells(section, control_arm(section))
    assert [name for name in table.header if name in ("tokens", "FLOPs")] == []
    assert table.rows[0] == ["sft", "1", "100", "10", "0.100", "1.00"]
    assert table.rows[1] == ["warmup", "1", "100", "20", "0.200", "2.00"]
    run_folder(tmp_path / "counted" / "warmup-1", tokens=True)
    counted = cost_cells(only_section(tmp_path / "counted"), None)
    assert counted.header == [*COST_HEADER[:-1]]
    assert counted.rows == [["warmup", "1", "100", "20", "1,000", "1e+11", "0.200"]]


def test_equal_compute_is_the_last_point_that_the_control_pays_for(pair):
    section = only_section(pair)
    chart = quality_charts(section)[0]
    table = equal_compute_cells(chart, control_arm(section))
    assert table.header == ["arm", "at 100 updates", "at 10 seconds of training"]
    assert table.rows == [["sft", "0.250", "0.250"], ["warmup", "0.750", "0.375"]]
    assert at_budget(chart.curves[0], "train_seconds", 1.0) is None


def test_curves_over_all_axes(seeds, tmp_path, run_folder):
    section = only_section(seeds)
    exact, likelihood = quality_charts(section)
    assert exact.axes == ["updates", "train_seconds"]
    assert exact.curves[0].mean == [0.125, 0.25]
    assert (exact.curves[0].low, exact.curves[0].high) == ([0.0, 0.0], [0.25, 0.5])
    assert [curve.mean for curve in likelihood.curves] == [[-5, -10], [-5, -10]], "exact for SFT, the bound for warmup"
    assert [chart.key for chart in training_charts(section)] == ["loss", "ess"], "no chart without a curve"
    run_folder(tmp_path / "counted" / "warmup-1", tokens=True)
    (curve,) = quality_charts(only_section(tmp_path / "counted"))[0].curves
    assert curve.xs["train_tokens"] == [500, 1000]
    assert curve.xs["train_flops"] == [5e10, 1e11]


def test_summary_says_it_with_the_same_numbers(seeds, tmp_path):
    write_report([seeds], tmp_path / "report")
    text = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")
    assert "warmup 0.917 ± 0.144, sft 0.250 ± 0.250 (exact_match): a difference of +0.667" in text
    assert "100 updates and 20 s of training, 2.00 times the control's" in text
    assert "| warmup | own warmup | 3 | 0.917 ± 0.144 |" in text
    assert "the same 4 test rows (hash aaaaaaaaaaaa)" in text
    assert "**warmup is read**: warmup, each prompt with another prompt's warmup" in text


def test_where_samples_and_proposals_end(tmp_path, run_folder):
    def run(name, phases, updates=100, **ends):
        folder = run_folder(tmp_path / "runs" / name, seed=int(name[-1]), tokens=True, recipe={"note": name[:-2]})
        logs = [{"step": 50 * (i + 1), "loss": 1.0, "phase": phase} for i, phase in enumerate(phases)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, logs)))
        result = json.loads((folder / "metrics.json").read_text()) | {"updates": updates, **ends}
        (folder / "metrics.json").write_text(json.dumps(result))

    run("read-1", ["reading", "own warmups"], switched_at=60)
    run("read-2", ["reading", "own warmups"], switched_at=80)
    run("lost-1", ["reading", "plain"], switched_at=None, gave_up_at=75)
    run("given-1", ["cold start", "cold start"])
    run("own-1", ["own warmups", "own warmups"])
    found = phase_ends(only_section(tmp_path / "runs"))
    assert {arm: ends["updates"] for arm, ends in found.items()} == {"read": 70, "lost": 75, "given": 100}
    # 10 tokens and 0.2 s an update, logged at 50 and 100 and 0 at 0
    assert found["read"] == pytest.approx(
        {"updates": 70, "train_seconds": 14, "train_tokens": 700, "train_flops": 7e10}
    )


def test_likelihood_and_warnings_are_told(pair, tmp_path):
    folder = pair / "warmup-1"
    result = json.loads((folder / "metrics.json").read_text())
    one = {"mean": -3.0, "std_error": None, "per_token": -1.0}
    result["likelihood"] = {
        "without_warmup": {**one, "std_error": 0.5}, "bound": {"1": one, "16": {**one, "mean": -2.0}},
        "gain": {"mean": 1.0, "std_error": 0.25, "at_no_overlap": None, "at_no_overlap_std_error": None},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(result))
    (folder / "warnings.jsonl").write_text(json.dumps({"step": 30, "rule": "short", "sees": "S", "means": "M"}))
    section = only_section(pair)
    table = likelihood_cells(section)
    assert table.header == ["arm", "seed", "no warmup", "n = 1", "n = 16", "gain", "gain, no overlap"]
    assert table.rows == [["warmup", "1", "−3.000 ± 0.500", "−3.000", "−2.000", "1.000 ± 0.250", ""]]
    write_report([pair], tmp_path / "report")
    text = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")
    assert "- **the guard warned**: warmup (seed 1, update 30): S; M." in text
    assert "| warmup | 1 | −3.000 ± 0.500 |" in text
    assert "−3.000 ± 0.500" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_another_control_can_be_named_by_arm_or_folder(pair, tmp_path):
    for name in ("warmup", str(pair / "warmup-1")):
        write_report([pair], tmp_path / "report", control=name)
        text = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")
        assert "The control is warmup, as asked for" in text
        assert "−0.500 from warmup" in text
    with pytest.raises(ValueError, match=r"no run belongs to 'nobody'. Give one of the arms \(sft, warmup\)"):
        write_report([pair], tmp_path / "report", control="nobody")


def test_how_numbers_are_printed():
    assert [figure(x, 2, True) for x in (0.004, -0.004, 1.5, -1.5, None, math.nan)] == [
        "0.00",
        "0.00",
        "+1.50",
        "−1.50",
        "",
        "",
    ]
    assert [probability(p) for p in (0.0001, 0.0123, 0.5, None)] == ["< 0.001", "0.012", "0.50", ""]
    assert [amount(x) for x in (0, 12.34, 12345, 2e12, None)] == ["0", "12.3", "12,345", "2e+12", ""]
    assert between(None, 2) == ""
    assert mean_and_deviation([1.0]) == "1.000"
    assert mean_and_deviation([1.0, 2.0]) == "1.500 ± 0.707"
    assert text_table(["a", "b"], [["x", None]]).splitlines()[-1].rstrip() == "x"
