"""`accelerator.sh` in miniature: its parts run, keep what is done, say what they wait for, and end in one table."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.accelerator_rows import DeviceRow, read_rows, table, write_rows

ROOT = Path(__file__).parents[2]
OURS = {"sft", "sft_ours", "ours_all", "ours_k1", "ours_all_captured", "ours_k1_captured"}


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
        assert line["floor_ms"] == "" if line["variant"].endswith("_captured") else float(line["floor_ms"]) > 0
        assert line["value"] == ""
    arms = {line["variant"]: line for line in lines if line["task"] == "logic_rg"}
    assert set(arms) == {"sft", "filler", "warmup", "sft_equal_compute"}
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
