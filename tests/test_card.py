"""The model card: one README.md from the files of a folder, with figures of its own weights alone, and nothing invented."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.cli.main import main
from rl_warmup.inference.card import write_card
from rl_warmup.metrics.significance import interval_over_rows, paired_bootstrap
from rl_warmup.models.plain_use import MARK
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_json, write_jsonl

ROWS = [{"prompt": f"a+{i % 4} b+{i % 3}", "target": f"b={i % 3} a={i % 4}"} for i in range(12)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    write_jsonl(folder / "rows.jsonl", ROWS)
    recipe = {
        "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "file", "task_kwargs": {"train": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl")},
        "metrics": ["chrf++", "exact_match"], "max_steps": 30, "learning_rate": 0.02, "max_warmup_length": 3,
        "max_target_length": 4, "num_warmups": 2, "proposals": [], "use_cpu": True,
        "per_device_train_batch_size": 6, "show_progress": False, "report_to": "none", "save_strategy": "no",
        "output_dir": str(folder / "run"),
    }  # fmt: skip
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", "--config", str(folder / "r.yaml")]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def page(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(folder: Path) -> dict:
    return yaml.safe_load(page(folder).split("---\n")[1])


def cells(folder: Path, metric: str) -> dict[str, list[str]]:
    """A metric's table: kind of warmup -> value, interval, difference, its interval."""
    table = page(folder).partition(f"**{metric}**")[2].partition("\n\n**")[0]
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in found[1:]}


def test_a_run_ends_with_a_card_of_its_own_result_files(trained):
    result = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    known = front_matter(trained)
    assert ModelCard.load(trained / "README.md").data.to_dict() == known
    (model,) = known["model-index"]
    listed = {m["type"]: m["value"] for r in model["results"] for m in r["metrics"]}
    assert listed == result["metrics"][""]
    assert model["results"][0]["dataset"]["args"] == {"rows": 12, "rows_hash": result["rows_hash"]}
    assert not {"license", "base_model", "language", "datasets"} & known.keys()  # nobody told
    rows = json.loads((trained / "environment.json").read_text(encoding="utf-8"))["training_rows"]
    assert rows["rows"] == 12
    text = page(trained)
    for fact in (
        result["rows_hash"],
        rows["sha256"],
        "2502.12304",
        "max_warmup_length: 3",
        result["signatures"]["chrf++"],
    ):
        assert fact in text
    assert str(trained.parent) not in text  # places on the disk are nobody's business
    for row in read_jsonl(trained / "predictions.jsonl")[:3]:
        assert re.search(rf"prompt +{re.escape(row['prompt'])}\nwarmup +{re.escape(row['warmup'])}", text)
    assert text.count(MARK) == text.count("# How to use this model") == 1


def test_values_are_those_of_metrics_json_and_intervals_those_of_the_predictions(trained):
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    rows = {c: read_jsonl(trained / f"predictions{'.' if c else ''}{c}.jsonl") for c in metrics}
    found = cells(trained, "chrf++")
    assert found["own warmup"][0] == f"{metrics['']['chrf++']:.2f}"
    value, (low, high) = interval_over_rows("chrf++", rows[""])
    assert value == pytest.approx(metrics[""]["chrf++"])
    assert low < value < high
    assert found["own warmup"][1] == f"{low:.2f} to {high:.2f}"
    difference = metrics["empty_warmup"]["chrf++"] - metrics[""]["chrf++"]
    tested = paired_bootstrap("chrf++", rows[""], rows["empty_warmup"])
    assert tested.difference == pytest.approx(difference)
    shown = ["{:+.2f} to {:+.2f}".format(*tested.interval) if difference else ""]
    assert found["no warmup"][2:] == [f"{difference:+.2f}", *shown]


def test_the_interval_is_that_of_a_share():
    values = [float(i % 4 == 0) for i in range(400)]
    value, (low, high) = interval_over_rows("exact_match", values)
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert value == 0.25
    assert (low, high) == pytest.approx((0.25 - error, 0.25 + error), abs=0.012)


def test_figures_of_other_weights_stay_out(run):
    weights = load_file(run / "model.safetensors")
    save_file({name: tensor + 0.25 for name, tensor in weights.items()}, run / "model.safetensors", {"format": "pt"})
    assert main(["card", str(run)]) == 0
    assert "model-index" not in front_matter(run)
    assert "```text" not in page(run)
    assert "metrics.json was measured on other weights" in page(run)
    assert main(["evaluate", str(run), "--controls", "filler"]) == 0
    assert main(["card", str(run)]) == 0
    again = json.loads((run / "evaluation/test/metrics.json").read_text(encoding="utf-8"))
    assert front_matter(run)["model-index"][0]["results"][0]["metrics"][0]["value"] == again["metrics"][""]["chrf++"]
    assert set(cells(run, "chrf++")) == {"own warmup", "filler warmup"}


def test_evaluations_of_the_same_weights_add_their_controls(run):
    assert main(["evaluate", str(run), "--controls", "filler"]) == 0
    assert main(["card", str(run)]) == 0
    assert set(cells(run, "chrf++")) == {"own warmup", "shuffled warmup", "no warmup", "filler warmup"}


def test_metrics_measured_later_stand_beside_the_first_and_another_value_is_told(run):
    assert main(["evaluate", str(run), "--metrics", "exact_match", "bleu"]) == 0
    again = run / "evaluation/test/metrics.json"
    found = json.loads(again.read_text(encoding="utf-8"))
    found["signatures"] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["signatures"]
    write_json(again, {**found, "metrics": {"": {**found["metrics"][""], "exact_match": 0.125}}})
    write_card(run)
    listed = {m["type"] for m in front_matter(run)["model-index"][0]["results"][0]["metrics"]}
    assert listed == {"chrf++", "exact_match", *found["metrics"][""]}
    assert cells(run, "exact_match")["own warmup"][0] != "0.125"
    assert "evaluation/test/metrics.json has another value of exact_match" in page(run)


def test_settings_of_zero_are_shown(run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe |= {"max_grad_norm": 0, "empty_share": 0.0, "use_peft": False, "rewards": []}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    write_card(run)
    shown = yaml.safe_load(page(run).partition("defaults:\n\n```yaml\n")[2].partition("```")[0])
    assert (shown["max_grad_norm"], shown["empty_share"]) == (0, 0.0)
    assert not {"use_peft", "rewards"} & shown.keys()


def test_predictions_that_give_another_value_give_no_interval(run):
    rows = read_jsonl(run / "predictions.jsonl")
    write_jsonl(run / "predictions.jsonl", [{**row, "prediction": row["target"]} for row in rows])
    before = cells(run, "chrf++")
    write_card(run)
    assert cells(run, "chrf++")["own warmup"] == [before["own warmup"][0], "", "", ""]


def test_what_a_person_wrote_stays(run):
    assert main(["card", str(run), "--license", "mit", "--model_card", "{language: [en], tags: [sums]}"]) == 0
    known = front_matter(run)
    assert (known["license"], known["language"]) == ("mit", ["en"])
    assert {"sums", "rl_warmup"} <= set(known["tags"])
    first, card = page(run).split("\n---\n", 1)
    first = first.replace("tags:\n", "tags:\n- 2024\n") + "\ncustom: 1\nbase_model: gpt2"
    own = "My own words [More Information Needed]."
    (run / "README.md").write_text(f"{first}\n---\n{own}\n{card}", encoding="utf-8-sig")
    write_card(run)
    write_card(run)
    assert front_matter(run) == {**known, "custom": 1, "base_model": "gpt2", "tags": ["2024", *known["tags"]]}
    assert page(run).count(own) == 1
    assert page(run).index(own) < page(run).index("# run")


def test_a_page_of_somebody_in_latin_1_keeps_its_letters(run):
    (run / "README.md").write_bytes("Grüße aus Köln".encode("latin-1"))
    write_card(run)
    assert "Grüße aus Köln" in page(run)


def test_a_removed_page_comes_back_whole(run):
    before = page(run)
    (run / "README.md").unlink()
    write_card(run)
    assert page(run) == before


def test_texts_cannot_leave_their_fence(run):
    rows = read_jsonl(run / "predictions.jsonl")
    write_jsonl(run / "predictions.jsonl", [{**row, "warmup": "x\n````\n# Injected"} for row in rows])
    write_card(run)
    assert "\n`````text\n" in page(run)
    assert "\n# Injected" not in page(run)


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (["--model_card", "{licence: mit}"], ["licence", "license"]),
        (["--model_card", "{license: 3}"], ["license", "3"]),
        (["--model_card", "mit"], ["mit", "mapping"]),
        (["--license", "mit", "--model_card", "{license: mit}"], ["--license"]),
    ],
)
def test_faulty_fields_are_refused(run, capsys, args, facts):
    before = page(run)
    assert main(["card", str(run), *args]) == 2
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts)
    assert page(run) == before


def test_a_folder_without_our_model_is_refused(tmp_path, capsys):
    assert main(["card", str(tmp_path)]) == 2
    assert "warmup_layout.json" in capsys.readouterr().err


def test_a_broken_front_matter_is_named(run, capsys):
    (run / "README.md").write_text("---\na: [\n---\ntext\n", encoding="utf-8")
    assert main(["card", str(run)]) == 2
    assert "README.md" in capsys.readouterr().err


def test_a_python_run_of_an_adapter_has_one_card(trained, tmp_path):
    from peft import LoraConfig

    config = WarmupConfig(
        output_dir=str(tmp_path / "py"), max_steps=2, num_warmups=2, max_warmup_length=3, use_cpu=True, report_to="none",
        disable_tqdm=True, model_card={"license": "mit"}, max_target_length=4, save_strategy="no",
    )  # fmt: skip
    peft = LoraConfig(r=2, target_modules="all-linear")
    trainer = WarmupTrainer(str(trained), config, ROWS, peft_config=peft)
    trainer.train()
    trainer.save_model()
    assert "model-index" not in front_matter(tmp_path / "py")
    result = trainer.evaluate_controls(ROWS)
    trainer.create_model_card(language="en", tags="demo")
    known, text = front_matter(tmp_path / "py"), page(tmp_path / "py")
    assert known["model-index"][0]["results"][0]["metrics"][0]["value"] == result["metrics"][""]["exact_match"]
    assert (known["library_name"], known["license"], known["language"]) == ("peft", "mit", "en")
    assert str(trained.parent) not in text
    assert "More Information Needed" not in text
    assert text.count(MARK) == 1
    shutil.move(trained, tmp_path / "moved")
    with pytest.raises(ValueError, match="its adapter's base, .* is no folder"):
        trainer.create_model_card()
    shutil.move(tmp_path / "moved", trained)
    assert page(tmp_path / "py") == text
    with pytest.raises(ValueError, match="dataset"):
        trainer.create_model_card(dataset="x")


def test_the_recipe_gives_fields_and_hub_names_are_told_from_folders(run, tmp_path, monkeypatch):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe |= {"model_name_or_path": "google-t5/t5-small", "task": "hub", "model_card": {"license": "apache-2.0"}}
    recipe["task_kwargs"] = {"dataset_name": "me/data", "api_key": "SECRET"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    first = page(run)
    (run / "README.md").write_text(first[first.index(MARK) :], encoding="utf-8")  # as training left it
    write_card(run)
    known = front_matter(run)
    assert (known["base_model"], known["datasets"], known["license"]) == ("google-t5/t5-small", "me/data", "apache-2.0")
    assert "SECRET" not in page(run)
    (tmp_path / "me" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (run / "README.md").write_text(first[first.index(MARK) :], encoding="utf-8")
    write_card(run)
    assert "datasets" not in front_matter(run)


def test_older_results_without_a_hash_of_weights_stay_out(run):
    result = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    del result["weights"]
    write_json(run / "metrics.json", result)
    write_card(run)
    assert "model-index" not in front_matter(run)
