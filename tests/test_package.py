"""What a wheel holds and says of itself; `test_a_wheel_runs_in_an_empty_folder` builds one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import rl_warmup

ROOT = Path(__file__).parents[1]
DATA = ROOT / "rl_warmup/tasks/data"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
NO_DATA = {"__pycache__"}


def shipped_files() -> set[str]:
    """Every file that belongs into a wheel, by its path there."""
    folders = {"rl_warmup": ROOT / "rl_warmup"} | {there: ROOT / here for here, there in WHEEL["force-include"].items()}
    return {
        f"{there}/{path.relative_to(folder).as_posix()}"
        for there, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and not NO_DATA & set(path.parts)
    }


def test_folders_beside_the_package_go_into_it():
    assert WHEEL["packages"] == ["rl_warmup"]
    files = shipped_files()
    for name in (
        "py.typed", "recipes/demo/legs.yaml", "recipes/demo/quick/legs-llama.yaml", "recipes/sweeps/num_warmups.yaml",
        "deepspeed_configs/zero3.json", "experiments/report/page.html", "experiments/report/demo.md",
        "models/starts/legs-llama/model.safetensors", "tasks/data/legs/legs.train.jsonl.gz",
    ):  # fmt: skip
        assert f"rl_warmup/{name}" in files


def test_the_licence_names_the_texts():
    expression, files = PROJECT["project"]["license"], PROJECT["project"]["license-files"]
    texts = {path for pattern in files for path in ROOT.glob(pattern)}
    for folder in DATA.iterdir():
        assert {folder / "LICENSE", folder / "ATTRIBUTION.md"} <= texts
        named = set(re.findall(r"CC-BY-SA-\d\.\d", (folder / "ATTRIBUTION.md").read_text("utf-8")))
        assert named <= set(expression.split(" AND "))


def test_one_version():
    out = subprocess.run(
        [sys.executable, "-m", "rl_warmup", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == f"rl-warmup {rl_warmup.__version__}"
    assert "version" in PROJECT["project"]["dynamic"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == rl_warmup.__version__


def test_every_python_is_tested_at_every_end():
    """The workflows' jobs are those that pyproject.toml promises."""
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    jobs = {
        name: yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text("utf-8"))["jobs"]
        for name in ("tests", "weekly")
    }
    matrix = jobs["weekly"]["bounds"]["strategy"]["matrix"]
    assert jobs["tests"]["pinned"]["strategy"]["matrix"]["python"] == matrix["python"] == named
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}: RESOLUTION", makefile, re.MULTILINE) for target in matrix["versions"])


@pytest.mark.slow
def test_a_wheel_runs_in_an_empty_folder(tmp_path):
    """Needs a network or a cache for the build backend."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert shipped_files() <= names
        assert {name.split("/")[0] for name in names} == {"rl_warmup", f"rl_warmup-{rl_warmup.__version__}.dist-info"}
        archive.extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [
        sys.executable,
        "-m",
        "rl_warmup",
        "train",
        "--config",
        "ledger-small",
        "--max_steps=2",
        "--report_to=none",
    ]
    subprocess.run([*command, "--task_kwargs={length: 3, modulus: 3, train_size: 20, validation_size: 3, test_size: 3}"],
                   env=env, cwd=tmp_path, check=True)  # fmt: skip
    assert (tmp_path / "runs" / "ledger-small" / "metrics.json").is_file()
