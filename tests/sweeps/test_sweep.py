"""Sweeps from file to answer: what is run, what is kept, what is said."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.experiments.sweeps import SweepSettings, run_sweep, show_jobs
from rl_warmup.experiments.sweeps.jobs import read_sweep
from rl_warmup.experiments.sweeps.worker import run_jobs
from rl_warmup.metrics.significance import compare_seeds, holm
from rl_warmup.runtime.orphans import _start_time

NAMES = [f"num_warmups={n}" for n in (1, 2, 3, 4)]


def results(stage) -> list[dict[str, str]]:
    with (stage.output / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_run_gets_a_complete_recipe_and_the_arms_are_compared(stage):
    stage = stage()
    outcome = run_sweep(stage.write(), SweepSettings(stage.output, jobs=2))
    assert outcome.failed == {}
    assert sorted(stage.lines("ended")) == sorted(f"{name}/seed-{seed}" for name in NAMES for seed in (1, 2, 3))
    asked = yaml.safe_load((stage.output / "num_warmups=3" / "seed-2" / "asked.yaml").read_text())
    assert (asked["num_warmups"], asked["seed"], asked["tau"]) == (3, 2, 1.0)  # defaults are written out
    rows = [row for row in results(stage) if row["control"] == ""]
    assert {(row["arm"], row["seed"]): float(row["value"]) for row in rows} == {
        (f"num_warmups={n}", str(seed)): pytest.approx(n / 10 + seed / 100) for n in (1, 2, 3, 4) for seed in (1, 2, 3)
    }
    values = {n: [n / 10 + seed / 100 for seed in (1, 2, 3)] for n in (1, 2, 3, 4)}
    p_values = {str(n): compare_seeds(values[2], values[n]).p_value for n in (1, 3, 4)}
    table = (stage.output / "results.md").read_text()
    assert "seeds 1, 2, 3; test rows." in table
    line = next(line for line in table.splitlines() if line.startswith("| num_warmups=3"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:6] == ["0.320 ± 0.010", "0.295 to 0.345", "+0.100"]
    assert cells[7] == "< 0.001"
    assert holm(p_values)["3"] < 0.001
    assert "better than num_warmups=2's: num_warmups=3, num_warmups=4." in table
    assert "worse than num_warmups=2's: num_warmups=1." in table
    page = (stage.output / "report" / "report.html").read_text()
    assert all(name in page for name in NAMES)
    assert f"<h1>{yaml.safe_load(stage.write().read_text())['question']}</h1>" in page


def test_what_could_not_be_tested_says_why(stage):
    """Two seeds that are equal leave nothing to test; one seed is tested over rows, of which these runs have none."""
    stage = stage()
    file = stage.write(grid={"num_warmups": [1, 2]}, seeds=2, warmups="shuffled")
    run_sweep(file, SweepSettings(stage.output))
    said = (stage.output / "results.md").read_text()
    assert "Not tested against num_warmups=2 (no spread between its seeds): num_warmups=1 (shuffled warmup)." in said
    run_sweep(stage.write(grid={"num_warmups": [1, 2]}, seeds=1), SweepSettings(stage.output))
    said = (stage.output / "results.md").read_text()
    reason = said[said.index("Not tested against num_warmups=2 (") :].splitlines()[0]
    assert "predictions.jsonl" in reason
    assert reason.endswith("): num_warmups=1.")


def test_a_failed_run_is_told_and_tried_again_only_when_asked(stage, capsys, monkeypatch):
    stage = stage()
    file = str(stage.write(grid={"num_warmups": [2, 5]}, seeds=[1, 2]))
    assert main(["sweep", file, "--output", str(stage.output)]) == 2
    told = capsys.readouterr()
    assert "2 runs failed: num_warmups=5/seed-1, num_warmups=5/seed-2. The others are intact" in told.err
    assert "FAILED num_warmups=5/seed-1: rl-warmup train: five are too many (exit code 1; " in told.out
    assert {row["arm"] for row in results(stage)} == {"num_warmups=2"}
    assert main(["sweep", file, "--output", str(stage.output)]) == 2
    assert len(stage.lines("started")) == 4
    monkeypatch.setenv("MENDED", "1")
    assert main(["sweep", file, "--output", str(stage.output), "--retry-failed"]) == 0
    assert stage.lines("started")[4:] == ["num_warmups=5/seed-1", "num_warmups=5/seed-2"]


def test_seeds_and_arms_can_be_added_and_changed_settings_are_refused(stage):
    stage = stage()
    run_sweep(stage.write(grid={"num_warmups": [1, 2]}, seeds=1), SweepSettings(stage.output))
    run_sweep(stage.write(grid={"num_warmups": [1, 2, 3]}, seeds=2), SweepSettings(stage.output))
    assert sorted(stage.lines("started")) == sorted(f"{name}/seed-{seed}" for name in NAMES[:3] for seed in (1, 2))
    with pytest.raises(ValueError, match=r"other settings \(tau 1.0 -> 2.0\). Choose another --output"):
        run_sweep(
            stage.write(grid={"num_warmups": [1, 2]}, seeds=1, settings={"tau": 2.0}), SweepSettings(stage.output)
        )


def test_a_file_that_changed_under_a_finished_run_is_refused(stage, tmp_path):
    """Its figures are those of the old contents; so are they in a dry run, which would call it done."""
    stage, mine = stage(), tmp_path / "mine.py"
    mine.write_text("def brevity(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    file = stage.write(
        grid={"num_warmups": [1, 2]}, seeds=1, settings={"rewards": ["target_logprob", f"{mine}:brevity"]}
    )
    run_sweep(file, SweepSettings(stage.output))
    run_sweep(file, SweepSettings(stage.output))
    assert len(stage.lines("started")) == 2
    mine.write_text(mine.read_text().replace("0.0", "1.0"))
    for again in (run_sweep, show_jobs):
        with pytest.raises(
            ValueError, match=r"seed-1 holds a run that read other contents of .*mine.py. Choose another"
        ):
            again(file, SweepSettings(stage.output))
    shutil.rmtree(stage.output / "num_warmups=1")
    shutil.rmtree(stage.output / "num_warmups=2")
    run_sweep(file, SweepSettings(stage.output))
    assert len(stage.lines("started")) == 4


def test_equal_compute_of_a_run_that_is_gone_is_refused(stage):
    stage = stage()
    arms = {"runs": {"sft": {"objective": "sft"}, "warmup": {}}, "grid": None, "control": "sft", "seeds": 1}
    file = stage.write(**arms, equal_compute={"longer": {"like": "sft", "seconds_of": "warmup"}})
    run_sweep(file, SweepSettings(stage.output))
    shutil.rmtree(stage.output / "warmup")
    for again in (run_sweep, show_jobs):
        with pytest.raises(
            ValueError, match=r"longer/seed-1 was given as many seconds as .*warmup/seed-1 took, which is gone"
        ):
            again(file, SweepSettings(stage.output))
    shutil.rmtree(stage.output / "longer")
    run_sweep(file, SweepSettings(stage.output))
    assert stage.lines("started") == [f"{arm}/seed-1" for arm in ("sft", "warmup", "longer", "warmup", "longer")]


def test_equal_compute_that_was_less_in_the_end_is_said(stage):
    stage = stage()
    arms = {"runs": {"sft": {"objective": "sft"}, "warmup": {}}, "grid": None, "control": "sft", "seeds": 2}
    file = stage.write(**arms, equal_compute={"longer": {"like": "sft", "seconds_of": "warmup"}})
    run_sweep(file, SweepSettings(stage.output))
    assert "compute is not equal" not in (stage.output / "results.md").read_text()
    result = stage.output / "longer/seed-2/metrics.json"
    result.write_text(result.read_text().replace('"train_seconds": 1.5', '"train_seconds": 1.2'))
    run_sweep(file, SweepSettings(stage.output))
    said = (stage.output / "results.md").read_text()
    assert "longer, seed 2: 1.2 seconds of training, fewer than warmup's 1.5, so compute is not equal" in said
    assert "longer, seed 1" not in said


def worker(file, output, *flags) -> subprocess.Popen:
    command = [sys.executable, "-m", "rl_warmup.cli.main", "sweep", str(file), "--output", str(output), *flags]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_a_sweep_killed_three_times_ends_with_every_result_and_none_twice(stage):
    """Two of the kills leave the runs in progress behind, alive: they are waited for, not started again."""
    stage = stage(seconds=0.4)
    file, killed = stage.write(), 0
    for kill_all in (False, True, False):
        started = len(stage.lines("started"))
        process = worker(file, stage.output, "--jobs", "2", "--patience", "2")
        wait_for(lambda started=started: len(stage.lines("started")) >= started + 2)
        process.kill()
        process.wait()
        if kill_all:
            killed += 2
            stage.kill_runs()
        process.stderr.close()
    outcome = run_sweep(file, SweepSettings(stage.output, jobs=2, patience=2))
    assert outcome.failed == {}
    everything = sorted(f"{name}/seed-{seed}" for name in NAMES for seed in (1, 2, 3))
    assert sorted(stage.lines("ended")) == everything
    assert sorted(set(stage.lines("started"))) == everything
    assert len(stage.lines("started")) <= 12 + killed  # only what died with its worker was begun again
    assert len([row for row in results(stage) if row["control"] == ""]) == 12


def test_a_worker_asked_to_end_takes_its_run_with_it_and_gives_it_back(stage):
    stage = stage(seconds=3.0)
    file = stage.write(grid={"num_warmups": [1, 2]}, seeds=1)
    process = worker(file, stage.output)
    wait_for(lambda: stage.lines("started"))
    process.terminate()
    assert "interrupted" in process.communicate(timeout=60)[1].decode()
    assert process.returncode == 143
    assert stage.lines("ended") == []
    assert run_sweep(file, SweepSettings(stage.output, jobs=2)).failed == {}
    assert sorted(stage.lines("ended")) == ["num_warmups=1/seed-1", "num_warmups=2/seed-1"]


def test_two_workers_share_a_study_without_double_work(stage):
    stage = stage(seconds=0.2)
    file = stage.write()
    other = worker(file, stage.output)
    outcome = run_sweep(file, SweepSettings(stage.output))
    error = other.communicate(timeout=120)[1].decode()
    assert other.returncode == 0, error
    assert outcome.failed == {}
    assert len(stage.lines("started")) == 12
    assert sorted(stage.lines("ended")) == sorted(set(stage.lines("ended")))


def test_the_budget_starts_no_run_that_would_not_end_in_time(stage):
    stage = stage(seconds=0.6)
    settings = SweepSettings(stage.output, budget=1.5)
    outcome = run_sweep(stage.write(), settings)
    assert 1 <= len(stage.lines("started")) <= 3
    assert stage.lines("started") == stage.lines("ended")
    assert "Stopped by --budget: " in outcome.text
    assert f"{12 - len(stage.lines('ended'))} of 12 are not done; the same command goes on with them." in outcome.text


def test_random_arms_are_the_same_for_everyone(stage):
    ranges = {"num_warmups": {"low": 1, "high": 4}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    file = stage().write(grid=None, control=None, trials=4, seeds=1, random=ranges)
    shown = show_jobs(file, SweepSettings())
    assert shown == show_jobs(file, SweepSettings())
    assert "4 runs" in shown
    assert "trial-0/seed-1" in shown


def test_tpe_makes_arms_and_a_pruner_ends_the_hopeless(stage):
    stage = stage(seconds=0.5)
    ranges = {"num_warmups": {"low": 1, "high": 4}}
    pruner = {"name": "percentile", "percentile": 50.0, "n_startup_trials": 1}
    file = stage.write(grid=None, control=None, random=ranges, trials=5, sampler="tpe", seeds=[1, 2], pruner=pruner,
                       settings={"eval_strategy": "steps", "eval_steps": 1})  # fmt: skip
    outcome = run_sweep(file, SweepSettings(stage.output))
    assert outcome.failed == {}
    ended = [name for name in stage.lines("ended") if name.endswith("seed-2")]
    if len(ended) < 5:
        assert f"The pruner ended {5 - len(ended)} early: trial-" in outcome.text
    assert {row["arm"] for row in results(stage)} == {name.partition("/")[0] for name in ended}  # no better half alone
    arms = {path.parent.parent.name for path in stage.output.glob("trial-*/seed-*/asked.yaml")}
    assert arms == {f"trial-{i}" for i in range(5)}
    run_sweep(file, SweepSettings(stage.output))
    assert {path.parent.parent.name for path in stage.output.glob("trial-*/seed-*/asked.yaml")} == arms


def test_arms_that_tpe_made_are_checked_and_completed_like_others(stage):
    stage = stage()
    ranges = {"num_warmups": {"low": 2, "high": 4}}
    asked = {"grid": None, "control": None, "random": ranges, "trials": 2, "sampler": "tpe"}
    run_sweep(stage.write(**asked, seeds=[1, 2]), SweepSettings(stage.output))
    for again in (run_sweep, show_jobs):
        with pytest.raises(ValueError, match=r"trial-0.seed-1 holds a run of other settings \(tau 1.0 -> 2.0\)"):
            again(stage.write(**asked, seeds=[1, 2], settings={"tau": 2.0}), SweepSettings(stage.output))
    known = {(row["arm"], row["seed"]): row["value"] for row in results(stage)}
    run_sweep(stage.write(**asked, seeds=[1, 2, 3]), SweepSettings(stage.output))
    now = {(row["arm"], row["seed"]): row["value"] for row in results(stage)}
    assert now.keys() == {(f"trial-{i}", str(seed)) for i in (0, 1) for seed in (1, 2, 3)}
    assert known.items() <= now.items()
    shutil.rmtree(stage.output / "trial-1" / "seed-2")
    run_sweep(stage.write(**asked, seeds=[1, 2, 3]), SweepSettings(stage.output))
    assert {(row["arm"], row["seed"]): row["value"] for row in results(stage)} == now
    assert sorted(stage.lines("ended")) == sorted([f"{arm}/seed-{seed}" for arm, seed in now] + ["trial-1/seed-2"])


def test_jobs_get_devices_and_one_seed_is_tested_over_rows(stage):
    stage = stage()
    file = stage.write(seeds=1, warmups=["own", "shuffled"], grid={"num_warmups": [1, 2]})
    outcome = run_sweep(file, SweepSettings(stage.output, jobs=2, devices=["4", "7"]))
    devices = {line.split(" ")[1] for line in (stage.folder / "started.txt").read_text().splitlines()}
    assert devices <= {"4", "7"}
    assert "over rows of one seed (bootstrap)" in outcome.text
    assert "shuffled warmup" in outcome.text


def test_a_real_sweep_of_two_runs(stage):
    stage = stage()
    file = stage.write(runs={"sft": {"objective": "sft"}, "warmup": {}}, grid=None, control="sft", seeds=1, launch=None)
    outcome = run_sweep(file, SweepSettings(stage.output))
    assert outcome.failed == {}
    result = json.loads((stage.output / "warmup" / "seed-1" / "metrics.json").read_text())
    assert result["updates"] == 2
    assert (stage.output / "report" / "report.html").is_file()
    assert "none (SFT)" in outcome.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_ends_with_its_sweep(stage, number):
    """A real one, which would train for hours."""
    stage = stage()
    file = stage.write(
        runs={"long": {}}, grid=None, control=None, seeds=1, launch=None, settings={"max_steps": 1000000}
    )
    process = worker(file, stage.output)
    folder = stage.output / "long" / "seed-1"
    wait_for((folder / "metrics.jsonl").is_file)
    writer = int((folder / "writing.lock").read_text())
    process.send_signal(number)
    wait_for(lambda: _start_time(writer) is None)
    process.communicate(timeout=60)


def test_a_run_put_there_by_somebody_else_is_no_result(stage):
    stage = stage()
    file = stage.write(grid={"num_warmups": [1, 2]}, seeds=1)
    assert run_sweep(file, SweepSettings(stage.output)).failed == {}
    folder = stage.output / "num_warmups=1" / "seed-1"
    (folder / "asked.yaml").unlink()  # `train --overwrite true` takes it away
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load((folder / "recipe.yaml").read_text()), "tau": 9.0})
    )
    with pytest.raises(ValueError, match=r"tau 9.0 -> 1.0"):
        run_sweep(file, SweepSettings(stage.output))
    with pytest.raises(ValueError, match="--output"):
        run_sweep(file, SweepSettings(folder))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"metrics": {}}, "it has no exact_match, only nothing"),
        ({"metrics": {"": {"exact_match": None}}}, "it has no exact_match"),
        ({"metrics": {"": 3}}, "`metrics` is {'': 3}, no object of numbers"), ({"train_seconds": None}, "has no `train_seconds`"),
    ],
)  # fmt: skip
def test_a_damaged_result_fails_its_run_alone(stage, changes, error):
    stage = stage()
    sweep = read_sweep(stage.write(grid={"num_warmups": [1, 2]}, seeds=1), stage.output)
    folder = sweep.folder("num_warmups=1", 1)
    folder.mkdir(parents=True)
    known = {"task": "ledger", "model": "scratch-t5", "updates": 2, "train_seconds": 1.0, "metrics": {}}
    (folder / "metrics.json").write_text(json.dumps({**known, **changes}))
    (queue,), _ = run_jobs([sweep], SweepSettings(stage.output))
    assert list(queue.errors()) == ["num_warmups=1/seed-1"]
    assert error in queue.errors()["num_warmups=1/seed-1"]
    assert stage.lines("ended") == ["num_warmups=2/seed-1"]


def test_an_arm_that_tpe_makes_and_nothing_can_run_fails(stage):
    stage = stage()
    ranges = {"num_warmups": {"low": -2, "high": 0}}
    file = stage.write(grid=None, control=None, random=ranges, trials=3, sampler="tpe", seeds=1)
    answer = run_sweep(file, SweepSettings(stage.output))
    assert [error.startswith("The arm trial-") for error in answer.failed.values()] == [True] * 3
    assert stage.lines("started") == []
