"""Shipped files by name: `--config demo/ledger`, `rl-warmup recipes`, in a clone and where a wheel was installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.config import read_recipe
from rl_warmup.experiments.sweeps.question import read_question
from rl_warmup.runtime import shipped
from rl_warmup.runtime.shipped import find_recipe, recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_file_has_a_name():
    assert set(recipes().values()) == set((ROOT / "recipes").rglob("*.yaml"))
    for name, path in recipes().items():
        assert find_recipe(name) == find_recipe(f"{name}.yaml") == find_recipe(f"recipes/{name}.yaml") == path


def test_a_file_comes_before_a_name():
    own = Path("demo/ledger")
    own.mkdir(parents=True)
    assert find_recipe("demo/ledger") == ROOT / "recipes/demo/ledger.yaml"  # a folder is no recipe
    own.rmdir()
    own.write_text("seed: 7\n")
    assert find_recipe("demo/ledger") == own


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("demo/legder", ["demo/legder", "demo/ledger", "rl-warmup recipes"]),
        ("ledger", ["demo/ledger", "rl-warmup recipes"]),
        ("/demo/ledger", ["/demo/ledger", "does not exist"]),
        ("../recipes/demo/ledger", ["does not exist"]),
        (".", ["folder"]),
    ],
)
def test_what_is_neither_is_one_sentence(given, facts, capsys):
    assert main(["train", "--config", given]) == 2
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts)
    assert said.count("\n") == 1


def test_commands_take_names(capsys):
    assert main(["plan", "demo/ledger", "--hardware", "2xA100-40GB"]) == 0
    assert "--config demo/ledger" in capsys.readouterr().out
    assert main(["sweep", "sweeps/num_warmups", "--dry-run"]) == 0
    assert "12 runs" in capsys.readouterr().out
    assert read_recipe("ledger-small", ["--seed", "7"]).config.seed == 7


def test_bases_lie_beside_a_sweep_file_or_have_a_name():
    assert read_question("demo/quick/legs-llama").base.resolve() == ROOT / "recipes/demo/legs.yaml"
    sweep = {"question": "Which?", "metric": "exact_match", "runs": {"a": {}}, "seeds": 1, "base": "demo/legs"}
    Path("own.yaml").write_text(yaml.safe_dump(sweep))
    assert read_question("own.yaml").base == ROOT / "recipes/demo/legs.yaml"
    Path("own.yaml").write_text(yaml.safe_dump(sweep | {"base": "demo/leg"}))
    with pytest.raises(ValueError, match=r"base: .*demo/leg[ \n].*demo/legs"):
        read_question("own.yaml")


def test_the_list_has_a_line_for_each(capsys):
    assert main(["recipes"]) == 0
    above, below = capsys.readouterr().out.split("sweep files")
    recipe_names, sweep_names = (
        {line.split()[0] for line in part.splitlines() if line[:2] == "  "} for part in (above, below)
    )
    assert recipe_names | sweep_names == set(recipes())
    assert sweep_names == {
        name for name, path in recipes().items() if "question" in yaml.safe_load(path.read_text("utf-8"))
    }
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in above.splitlines() if line[:2] == "  ")
    assert main(["recipes", "demo/legs"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(
        (ROOT / "recipes/demo/legs.yaml").read_text("utf-8")
    )
    assert main(["recipes", "demo/leg"]) == 2
    assert "demo/legs" in capsys.readouterr().err


def test_an_installed_package_has_its_own_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "site-packages" / "rl_warmup")
    with pytest.raises(FileNotFoundError, match="recipes"):
        recipes()
    beside = tmp_path / "site-packages" / "recipes"
    inside = tmp_path / "site-packages" / "rl_warmup" / "recipes"
    for folder in (beside, inside):
        folder.mkdir(parents=True)
    (inside / "mine.yaml").write_text("seed: 1\n")
    assert recipes() == {"mine": inside / "mine.yaml"}
