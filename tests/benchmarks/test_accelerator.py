"""`accelerator.sh` in miniature: its parts run, keep what is done, say what they wait for, and end in one table."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.accelerator_rows import DeviceRow, read_rows, table, write_rows

ROOT = Path(__file__).parents[2]
OURS = {"sft", "sft_ours", "ours_all", "ours_k1"}


@pytest.fixture
def here(monkeypatch):
    """A part within this process: torch is loaded already."""

    def launch(command, limit):
        assert limit == 600
        monkeypatch.setattr(sys, "argv", command)
        importlib.import_module(command[0]).main()
        return 0

    return launch


def test_all_kinds_of_parts_run_and_end_in_one_table(tmp_path, capsys, here):
    wanted = ["step-llama-3.2-1b-n2", "step-mt5-base-n2", "smollm2-*-logic_rg-*-1"]
    if importlib.util.find_spec("benchmarks.pretrain") is not None:
        wanted.append("pretrain")
    wanted.append("t5-accelerator-ddtp_en_de-proposal-1")
    assert accelerator.main([*wanted, "--tiny", "--out", str(tmp_path)], here) == 0
    text = (tmp_path / "tiny/table.md").read_text("utf-8")
    assert text.strip() in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    header, lines = cells[0], [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    assert header[:5] == ["model", "task", "n", "variant", "seeds"]
    steps = {(line["model"], line["variant"]): line for line in lines if line["task"] == "one step"}
    assert {v for m, v in steps if m == "mt5-base"} == OURS
    assert {v for m, v in steps if m == "llama-3.2-1b"} == OURS | {"trl_grpo"}
    for line in steps.values():
        assert float(line["step_ms"]) > 0
        assert float(line["tokens_per_s"]) > 0
        assert float(line["floor_ms"]) > 0
        assert line["value"] == ""
    arms = {line["variant"]: line for line in lines if line["task"] == "logic_rg"}
    controls = {f"{arm}, {control}" for arm in ("filler", "warmup") for control in ("shuffled", "empty_warmup")}
    assert set(arms) == {"sft", "filler", "warmup", "sft_equal_compute"} | controls
    assert arms["warmup, shuffled"]["updates"] == arms["warmup, shuffled"]["seconds"] == ""
    assert int(arms["sft"]["updates"]) == int(arms["warmup"]["updates"]) == 2
    assert all(0 <= float(line["value"]) <= 1 and line["metric"] == "accuracy" for line in arms.values())
    assert list((tmp_path / "tiny/runs").rglob("predictions.shuffled.jsonl"))

    def never(command, limit):
        raise AssertionError(f"{command} was done before")

    assert accelerator.main([*wanted, "--tiny", "--out", str(tmp_path)], never) == 0


def test_a_part_waits_for_what_is_not_there_and_a_failed_one_stays_open(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--models", str(tmp_path), "--data", str(tmp_path)]
    name = "smollm2-135m-instruct-debian_sum-sft-1"
    assert accelerator.main([name, *arguments]) == 1
    assert f"{name}: waits for {tmp_path}/debian_sum" in capsys.readouterr().out
    assert accelerator.main(["step-t5-base-n*", *arguments], lambda command, limit: 124) == 1
    out = capsys.readouterr().out
    assert "step-t5-base-n2: FAILED (124)" in out
    assert "0 of 4 parts done; open: step-t5-base-n2, step-t5-base-n4, step-t5-base-n8, step-t5-base-n16" in out
    assert accelerator.main(["no-such-part", *arguments]) == 2


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text("import time\ntime.sleep(60)\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        assert accelerator.process(["sleeper"], 1) == 124
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def test_the_script_lists_its_parts_without_loading_torch():
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(ROOT / "benchmarks/accelerator.sh"), "--list", "step-*"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 12
    code = "import sys, benchmarks.accelerator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_seeds_become_mean_and_deviation_and_what_is_missing_stays_empty(tmp_path):
    rows = [
        DeviceRow("p", "D", "m", "t", "warmup", n=4, seed=s, metric="bleu", value=v) for s, v in ((1, 1.0), (2, 2.0))
    ]
    write_rows(tmp_path / "p.csv", rows)
    assert read_rows(tmp_path / "p.csv") == rows
    assert not (tmp_path / "p.part").exists()
    line = table(rows).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "m", "t", "4", "warmup", "2", "", "", "", "", "", "", "bleu", "1.5000 ± 0.7071", "",
    ]  # fmt: skip


def test_equal_compute_means_as_many_updates_as_the_seconds_of_the_warmup_arm_allow(tmp_path):
    from benchmarks import device_arms

    paths = [tmp_path / "sft.csv", tmp_path / "warmup.csv"]
    for path, seconds in zip(paths, (10.0, 35.0), strict=True):
        write_rows(path, [DeviceRow("p", "D", "m", "t", "a", updates=100, seconds=seconds)])
    options = type("Options", (), {"arm": "sft_equal_compute", "like": paths, "updates": 7})
    assert device_arms._updates(options) == 350
    options.like = None
    with pytest.raises(ValueError, match="needs --like SFT.csv WARMUP.csv"):
        device_arms._updates(options)


def test_a_model_learns_habits_and_reads_its_own_samples(tmp_path, here):
    arms = ["sft", "reading", "sft_equal_compute", "marginal_kl"]
    wanted = ["habits-*", *(f"smollm2-*-gym_leg_counting-{arm}-1" for arm in arms), "llama-*-reading-1"]
    assert accelerator.main([*wanted, "--tiny", "--out", str(tmp_path)], here) == 0
    tiny = tmp_path / "tiny"
    files = {path.stem: read_rows(path) for path in tiny.glob("*.csv")}
    habits = {row.task: row for row in files["habits-smollm2-135m-instruct"]}
    assert set(habits) == {"gym_leg_counting", "gym_chain_sum", "gym_gcd"}
    assert all(row.metric == "worked out" and row.value is not None and row.updates == 2 for row in habits.values())
    assert [row.task for row in files["habits-llama-3.2-1b"]] == ["gym_leg_counting"]
    for arm in arms:
        rows = files[f"smollm2-135m-instruct-gym_leg_counting-{arm}-1"]
        controls = [] if arm.startswith("sft") else [f"{arm}, shuffled", f"{arm}, empty_warmup"]
        assert [row.variant for row in rows] == [arm, *controls]
        assert all(row.model == "habits-smollm2-135m-instruct" and row.metric == "exact_match" for row in rows)
        assert rows[0].updates == 2
    assert len(files["llama-3.2-1b-gym_leg_counting-reading-1"]) == 3
    drawn = {path.parent.name for path in (tiny / "runs").rglob("reference_warmups.jsonl")}
    assert drawn == {"gym_leg_counting-reading-1"}

    shutil.rmtree(tiny / "models" / "habits-smollm2-135m-instruct")  # as where only results were carried away
    again = []

    def launch(command, limit):
        again.append(command[0])
        return 1

    assert accelerator.main([*wanted, "--tiny", "--out", str(tmp_path)], launch) == 1
    assert again == ["benchmarks.device_habits"]


def test_the_reading_of_one_model_comes_first_and_one_seed_of_all_its_questions_before_the_next():
    names = [part.name for part in accelerator.parts(Path("out"), Path("models"), Path("data"), tiny=False)]
    assert names[:3] == [
        "habits-smollm2-135m-instruct",
        *(f"smollm2-135m-instruct-gym_leg_counting-{a}-1" for a in ("sft", "reading")),
    ]
    gym = [name for name in names if name.startswith("smollm2-135m-instruct-gym_")]
    assert len(gym) == 3 * 5 * 3
    assert [name.rpartition("-")[2] for name in gym] == ["1"] * 15 + ["2"] * 15 + ["3"] * 15
    assert len(names) == len(set(names))


def test_questions_in_files_have_habits_and_those_to_learn_from_are_none_of_the_tasks(tmp_path):
    pytest.importorskip("reasoning_gym")
    from benchmarks.gym_habits import FILED, SHARES, write_files

    write_files(tmp_path, {"train": 20, "validation": 4, "test": 6}, 12)
    texts = {path.name: gzip.decompress(path.read_bytes()).decode() for path in tmp_path.iterdir()}
    files = {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}
    assert {name: len(rows) for name, rows in files.items()} == {
        f"{kind}.{split}.jsonl.gz": size
        for kind in FILED
        for split, size in (("train", 20), ("validation", 4), ("test", 6), ("habits", 12))
    }
    for kind in FILED:
        asked = [
            row["prompt"] for split in ("train", "validation", "test") for row in files[f"{kind}.{split}.jsonl.gz"]
        ]
        assert not {row["prompt"] for row in files[f"{kind}.habits.jsonl.gz"]} & set(asked)
        for row in files[f"{kind}.habits.jsonl.gz"]:
            assert set(SHARES) < set(row)
            steps = row["worked"].split(" ; ")
            assert row["target"] == (steps[-2] if kind == "gcd" else steps[-1])
    terms = [row["copy"].count(";") + 1 for row in files["chain_sum.habits.jsonl.gz"]]
    assert set(terms) <= {2, 3, 4, 5, 11, 12}
    assert min(terms) < 6 < max(terms)
