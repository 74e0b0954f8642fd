"""Every YAML under recipes/ is read, planned and run: a typo must not wait until someone pays for a GPU.

Two updates each with a tiny model of the same architecture, on tiny data of the same columns (`recipe_twins`).
"""

from __future__ import annotations

import copy
import importlib
import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from rl_warmup.cli.evaluate import _metric
from rl_warmup.config import Recipe, build_recipe, read_recipe
from rl_warmup.experiments.run import recipe_task, train_run
from rl_warmup.metrics import compute, signatures

sys.path.insert(0, str(Path(__file__).parent))

import recipe_twins as twins

ROOT = Path(__file__).parents[1]
FILES = {str(path.relative_to(ROOT / "recipes")): path for path in sorted((ROOT / "recipes").rglob("*.yaml"))}
SWEEPS = {name: path for name, path in FILES.items() if "question" in yaml.safe_load(path.read_text("utf-8"))}
RECIPES = {name: path for name, path in FILES.items() if name not in SWEEPS}
PAPER = [name for name in RECIPES if name.startswith("paper/")]
TRANSLATION = [name for name in PAPER if re.fullmatch(r"paper/.*/..-..\.yaml", name)]
LANGUAGES = {"de": "German", "fr": "French", "ru": "Russian", "zh": "Chinese", "en": "English"}
EXPECTED = {
    *(f"paper/mt5-base/{a}-{b}.yaml" for x in ("de", "fr", "ru", "zh") for a, b in ((x, "en"), ("en", x))),
    *(f"paper/{model}/{task}.yaml" for model in ("t5-base", "llama-3.2-1b") for task in ("xsum", "logiqa2")),
    "paper/llama-3.2-1b/de-en.yaml",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    return twins.save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch, tmp_path):
    """No network, and data/ of the current folder."""
    monkeypatch.setattr(datasets, "load_dataset", twins.load_dataset)
    twins.write_files(tmp_path / "data")
    monkeypatch.chdir(tmp_path)


def read(path: Path, *flags: str) -> Recipe:
    """A shipped recipe; bf16 asks for a GPU unless the CPU is named."""
    return read_recipe(path, ["--use_cpu", "true", *flags])


def small(values: dict[str, Any], models: dict[str, str], folder: Path) -> dict[str, Any]:
    """A recipe's values with a tiny model and few, short rows; all that is not a size stays as it is shipped."""
    values = copy.deepcopy(values)
    kwargs = values.get("task_kwargs") or {}
    sizes = {"train_size": 8, "validation_size": 2, "test_size": 2}
    if values["task"] not in ("file", "hub"):
        sizes["train_size"] = 24
    kind = twins.architecture(values["model_name_or_path"])
    if kind is not None:
        values["model_name_or_path"] = models[kind]
    else:
        values["scratch"] |= {"width": 16, "layers": 1, "heads": 2}
    if values.get("prompt_truncation", "error") != "right":
        values["max_prompt_length"] = 1024  # a tiny vocabulary makes long prompts of short ones
    whole = "min_words" in kwargs or values["task"] == "ledger"  # nothing cuts these targets
    longest = 1024 if whole else min(values.get("max_target_length", 24), 24)
    steps = {key: 2 for key in ("eval_steps", "save_steps") if key in values}
    return {
        **values, "task_kwargs": kwargs | sizes, **steps, "output_dir": str(folder), "max_steps": 2, "warmup_steps": 0,
        "per_device_train_batch_size": 2, "max_target_length": longest,
        "max_warmup_length": min(values["max_warmup_length"], 8),
        "use_cpu": True, "show_progress": False, "report_to": "none", "log_warmups": 0,
    }  # fmt: skip


def sample_warmups(path: Path, rows: int) -> None:
    """What `rl-warmup sample` would have written before, for as many training rows as `small` leaves."""
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"row": row, "warmup": "The house"}) + "\n" for row in range(rows)), "utf-8")


def test_every_row_of_the_paper_has_its_recipe():
    assert set(PAPER) == EXPECTED


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_as_it_is(name):
    recipe = read(RECIPES[name])
    assert recipe.config.output_dir.startswith("runs/")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_for_two_updates_and_scores_its_test_rows(name, models, tmp_path):
    values = read(RECIPES[name]).values
    if values["task"] == "reasoning_gym":
        pytest.importorskip("reasoning_gym", reason="needs pip install 'rl_warmup[reasoning_gym]'")
    if "stored_warmups" in values:
        sample_warmups(Path(values["stored_warmups"]), 24)
    result = train_run(build_recipe(small(values, models, tmp_path / "run")))
    assert result["updates"] == 2
    assert set(result["metrics"]) == {"", *values.get("controls", ("shuffled", "empty_warmup"))}
    row = json.loads((tmp_path / "run/predictions.jsonl").read_text("utf-8").splitlines()[0])
    assert row["prompt"]
    assert row["target"]


@pytest.mark.parametrize("name", PAPER)
def test_the_header_of_a_paper_recipe_can_be_followed(name, models, tmp_path, monkeypatch):
    text = RECIPES[name].read_text("utf-8")
    header = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    header = header.replace("\\ ", "")
    assert (
        "accelerate launch --config_file deepspeed_configs/zero2.yaml --num_processes 4 -m rl_warmup.cli.train"
        in header
    )
    assert f"--config recipes/{name}" in header
    for words in ("Data:", "Hardware:", "Expected:", "Ours, as the paper's is not known:"):
        assert words in header
    flags = re.search(r"SFT control: the same with (--objective sft --output_dir \S+)", header).group(1)
    control = read(RECIPES[name], *shlex.split(flags))
    result = train_run(build_recipe(small(control.values, models, tmp_path / "sft")))
    assert (result["updates"], result["objective"], set(result["metrics"])) == (2, "sft", {""})

    planned = re.search(r"rl-warmup plan (\S+) --hardware (\S+)", header).groups()
    assert planned == (f"recipes/{name}", "4xA100-40GB")
    if find_spec("rl_warmup.experiments.plan") is not None:
        plan = importlib.import_module("rl_warmup.experiments.plan")
        found = plan.make_plan(read(RECIPES[name]).values, plan.read_hardware(planned[1]))
        assert {option.strategy: option.fits for option in found.options}["zero2"]

    evaluate = shlex.split(re.search(r"rl-warmup evaluate (.*?)(?= Expected:)", header).group(1))
    assert evaluate[0] == read(RECIPES[name]).config.output_dir
    if "--metrics" in evaluate:
        check_metrics([_metric(word) for word in evaluate[2:]], control, tmp_path, monkeypatch)


def check_metrics(specs: list[Any], recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every metric of the line is known with these settings; COMET finds its source text, through a stand-in command."""
    command = tmp_path / "bin/comet-score"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "lines = open(sys.argv[sys.argv.index('-s') + 1], encoding='utf-8').read().splitlines()\n"
        "json.dump([len(line) for line in lines], open(sys.argv[sys.argv.index('--to_json') + 1], 'w'))\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    assert signatures(specs)
    for spec in specs:
        if isinstance(spec, dict) and spec["name"] == "comet":
            rows = recipe_task(recipe_of_size(recipe)).splits["test"][:2]
            sources = [row[spec["kwargs"]["source"]] for row in rows]
            found = compute(spec, ["a", "b"], ["c", "d"], rows)
            assert found == {"comet[Unbabel/wmt22-comet-da]": sum(map(len, sources)) / 2}
            assert all(
                source in row["prompt"] and source != row["prompt"] for source, row in zip(sources, rows, strict=True)
            )


def recipe_of_size(recipe: Any) -> Any:
    """The recipe on as many rows as the stand-ins have."""
    kwargs = {**recipe.values["task_kwargs"], "train_size": 8, "validation_size": 2}
    return build_recipe({**recipe.values, "task_kwargs": kwargs})


@pytest.mark.parametrize("name", TRANSLATION)
def test_a_direction_says_the_same_everywhere(name):
    source, target = Path(name).stem.split("-")
    kwargs = read(RECIPES[name]).values["task_kwargs"]
    other = source if target == "en" else target
    assert kwargs["dataset_config"] == "-".join(sorted(("en", other)))
    assert (kwargs["prompt_column"], kwargs["target_column"]) == (f"translation.{source}", f"translation.{target}")
    for split in ("validation", "test"):
        columns = kwargs[split]["prompt_column"], kwargs[split]["target_column"]
        assert columns == (twins.FLORES[source], twins.FLORES[target])
    assert f"ranslate {LANGUAGES[source]} to {LANGUAGES[target]}" in kwargs["prompt_template"]
    assert kwargs["metrics"] == ["bleu_zh" if target == "zh" else "bleu", "chrf++"]


def test_the_eight_directions_differ_in_nothing_else():
    seen = []
    for name in TRANSLATION:
        if "mt5-base" in name:
            values = read(RECIPES[name]).values
            kwargs = values.pop("task_kwargs")
            assert values.pop("output_dir") == f"runs/{name.removesuffix('.yaml')}"
            seen.append((values, {key: kwargs[key] for key in ("train_size", "validation_size", "max_chars")}))
    assert len(seen) == 8
    assert all(one == seen[0] for one in seen)


def test_empty_and_wrong_pairs_are_no_training_rows():
    for name in TRANSLATION:
        recipe = read(RECIPES[name])
        kwargs = {**recipe.values["task_kwargs"], "train_size": None, "validation_size": None}
        task = recipe_task(build_recipe({**recipe.values, "task_kwargs": kwargs}))
        assert len(task.splits["train"]) == len(twins.SENTENCES)
        assert len(task.splits["test"]) == len(twins.SENTENCES)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_arm_of_a_sweep_is_a_recipe(name):
    sweep = yaml.safe_load(SWEEPS[name].read_text("utf-8"))
    base = read(SWEEPS[name].parent / sweep["base"]).values
    arms = {
        arm: build_recipe({**base, **sweep.get("settings", {}), **changes})
        for arm, changes in sweep.get("runs", {}).items()
    }
    if name.startswith("paper/"):
        assert set(arms) == {"sft", "sft_equal_compute", "filler", "warmup"}
        assert sweep["control"] == "sft"
    if find_spec("rl_warmup.experiments.sweeps") is not None:
        question = importlib.import_module("rl_warmup.experiments.sweeps.question").read_question(SWEEPS[name])
        assert set(question.runs) == set(arms)


@pytest.mark.parametrize("name", RECIPES)
def test_a_table_names_every_recipe(name):
    """The one in recipes/, or one in a folder between it and the recipe."""
    folders = [folder for folder in RECIPES[name].parents if folder.is_relative_to(ROOT / "recipes")]
    named = [
        str(RECIPES[name].relative_to(folder).with_suffix("")) in (folder / "README.md").read_text("utf-8")
        for folder in folders
        if (folder / "README.md").is_file()
    ]
    assert any(named), f"no README.md under recipes/ has a line for {name}"
