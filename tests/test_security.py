"""Code that lies beside a model, a data set or a received run is not run, and tokens are not written down."""

from __future__ import annotations

import ast
import copy
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from rl_warmup.cli.launch import _masked
from rl_warmup.cli.main import main
from rl_warmup.config import WarmupConfig, build_recipe
from rl_warmup.metrics import compute
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.ownership import foreign_files
from rl_warmup.runtime.recipe_file import masked
from rl_warmup.runtime.run_folder import write_jsonl

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "rl_warmup").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
LOADERS = ("from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "pipeline")
BASE = {"model_name_or_path": "scratch-t5", "use_cpu": True}
TINY = {
    **BASE, "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}, "task": "file", "num_warmups": 2,
    "max_warmup_length": 3, "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "eval_strategy": "no",
    "controls": [], "show_progress": False,
}  # fmt: skip
PLUGIN = """
open("PWNED", "w")
from rl_warmup.tasks import Task
def f(*args, **kwargs): return 1.0
def rows():
    row = {"id": "0", "prompt": "a b", "target": "b a"}
    return Task("own", {"train": [row], "validation": [], "test": [row]}, ("exact_match",))
"""


def unsafe_calls(text: str) -> list[int]:
    """Lines of calls that load something by name and do not say `trust_remote_code=False`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        said = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if called in LOADERS and said.get("trust_remote_code") is not False:
            found.append(node.lineno)
    return found


def test_every_load_says_that_no_code_is_trusted():
    assert unsafe_calls("AutoModel.from_pretrained(x)\nload_dataset(x, trust_remote_code=True)\na.pipeline()") == [
        1,
        2,
        3,
    ]
    assert not unsafe_calls("AutoModel.from_pretrained(x, trust_remote_code=False)")
    calls = {str(path.relative_to(ROOT)): unsafe_calls(path.read_text("utf-8")) for path in FILES}
    assert not {path: lines for path, lines in calls.items() if lines}


@pytest.mark.parametrize("kind", ["own", "llama"])
def test_code_of_a_model_folder_never_runs(kind, tmp_path, monkeypatch, lab_of):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("configuration_evil", "modeling_evil"):
        (folder / f"{name}.py").write_text(f"open('PWNED-{name}', 'w')")
    auto_map = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": auto_map}))
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 20))
    with pytest.raises(ValueError, match="model_name_or_path"):
        load_model(str(folder))
    assert not list(tmp_path.glob("PWNED*"))


def test_the_setting_is_refused():
    with pytest.raises(ValueError, match="trust_remote_code: is True.*never run"):
        build_recipe({**BASE, "trust_remote_code": True})
    build_recipe({**BASE, "trust_remote_code": False})


def test_a_pushed_run_uploads_its_final_model_once_without_the_token(tmp_path, monkeypatch):
    made, uploaded = [], []

    class Hub:
        def create_repo(self, name, token, **kwargs):
            made.append((name, token))
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, folder_path, token, ignore_patterns, **kwargs):
            paths = (path for path in Path(folder_path).rglob("*") if path.is_file())
            names = {str(path.relative_to(folder_path)): path.read_bytes() for path in paths}
            kept = filter_repo_objects(names, ignore_patterns=ignore_patterns)
            uploaded.append((kwargs["repo_id"], token, {name: names[name] for name in kept}))

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"a b w{i}", "target": f"w{i} b"} for i in range(4)])
    recipe = {
        **TINY, "task_kwargs": {"train": str(tmp_path / "rows.jsonl")}, "max_steps": 2, "save_strategy": "steps",
        "save_steps": 1, "output_dir": str(tmp_path / "run"), "push_to_hub": True, "hub_model_id": "me/mine",
        "hub_token": "hf_SECRET",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(tmp_path / "recipe.yaml")]) == 0
    assert made == [("me/mine", "hf_SECRET")]
    ((name, token, files),) = uploaded
    assert (name, token) == ("me/mine", "hf_SECRET")
    assert {
        "model.safetensors",
        "tokenizer.json",
        "warmup_layout.json",
        "recipe.yaml",
        "training_args.bin",
    } <= files.keys()
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert not [name for name in files if name.startswith(("checkpoint-", "unfinished"))]
    assert not [name for name, content in files.items() if b"SECRET" in content]
    assert foreign_files(tmp_path / "run") == []


def test_tokens_are_masked_in_what_is_written(tmp_path):
    recipe = build_recipe({**BASE, "output_dir": str(tmp_path), "hub_token": "hf_SECRET",
                           "task_kwargs": {"api_token": "SECRET", "eos_token": "</s>", "max_token": 3},
                           "rewards": [{"name": "gain", "kwargs": {"api_key": "SECRET"}}]})  # fmt: skip
    assert recipe.config.hub_token == copy.deepcopy(recipe.config).hub_token == "hf_SECRET"
    assert "SECRET" not in repr(recipe.config)
    written = yaml.safe_load(recipe.save(tmp_path).read_text())
    assert "SECRET" not in str(written)
    assert (written["hub_token"], written["task_kwargs"]["eos_token"], written["task_kwargs"]["max_token"]) == (
        "<HUB_TOKEN>", "</s>", 3,
    )  # fmt: skip
    torch.save(recipe.config, tmp_path / "training_args.bin")
    assert b"SECRET" not in (tmp_path / "training_args.bin").read_bytes()
    kept = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (type(kept), kept.hub_token, kept.num_warmups) == (WarmupConfig, "<HUB_TOKEN>", 4)
    written["rewards"] = []
    assert build_recipe(written).config.hub_token is None  # a run's own recipe can be read again
    assert masked({"hub_token": None, "seed": 1}) == {"hub_token": None, "seed": 1}


def test_a_token_is_not_printed_with_the_launch_line():
    words = ["train", "--hub_token", "SECRET", "--seed", "1", "--hub_token=SECRET", "hub_token=SECRET"]
    assert _masked(words) == ["train", "--hub_token", "...", "--seed", "1", "--hub_token=...", "hub_token=..."]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rows."""
    place = tmp_path_factory.mktemp("received")
    rows = [{"prompt": "a b", "target": "b a"}, {"prompt": "a c", "target": "c a"}]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(place / "rows.jsonl"), "test": str(place / "rows.jsonl")}
    recipe = {**TINY, "task_kwargs": data, "output_dir": str(place / "out")}
    (place / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", str(place / "r.yaml")]) == 0
    (place / "out" / "evil.py").write_text(PLUGIN)
    return place / "out"


@pytest.mark.parametrize(
    ("change", "asked", "named"),
    [
        ({"objective": "{run}/evil.py:f"}, [], None),
        ({"rewards": ["{run}/evil.py:f"]}, [], None),
        ({"proposals": ["{run}/evil.py:f"]}, [], None),
        ({"metrics": ["{run}/evil.py:f"]}, [], "evil.py:f"),
        ({"metrics": [{"name": "{run}/evil.py:f"}]}, [], "evil.py:f"),
        ({"metrics": ["{run}/evil.py:f"]}, ["--metrics", "exact_match"], None),
        ({"task": "{run}/evil.py:rows", "task_kwargs": None}, [], "evil.py:rows"),
        ({"task": "os:system", "task_kwargs": {"command": "touch PWNED"}}, [], "os:system"),
        ({"task": "os:system", "task_kwargs": {"command": "touch PWNED"}}, ["--allow_code", "other:f"], "os:system"),
        ({"metrics": [{"name": "comet", "kwargs": {"checkpoint": "x", "command": "touch PWNED {hypothesis}"}}]}, [], "touch"),
        ({"metrics": [{"name": "reasoning_gym_score", "kwargs": {"allow_eval": True}}]}, [], "allow_eval"),
    ],
)  # fmt: skip
def test_evaluating_a_received_run_runs_no_code_of_its_recipe(run, tmp_path, monkeypatch, capsys, change, asked, named):
    monkeypatch.chdir(tmp_path)
    _rewrite(run, change, monkeypatch)
    assert main(["evaluate", str(run), "--controls", *asked, "--output", "o"]) == (2 if named else 0)
    assert not Path("PWNED").exists()
    if named:
        said = capsys.readouterr().err
        assert named in said
        assert "--allow_code" in said


@pytest.mark.parametrize("asked", [["--allow_code"], ["--allow_code", "{run}/evil.py:rows"]])
def test_code_runs_when_it_is_allowed_and_is_named(run, tmp_path, monkeypatch, capsys, asked):
    monkeypatch.chdir(tmp_path)
    _rewrite(run, {"task": "{run}/evil.py:rows", "task_kwargs": None}, monkeypatch)
    asked = [word.format(run=run) for word in asked]
    assert main(["evaluate", str(run), "--controls", "empty_warmup", "--output", "o", *asked]) == 0
    assert Path("PWNED").exists()
    assert f"task {run}/evil.py:rows" in capsys.readouterr().err


def test_sampling_from_a_received_run_runs_no_code_of_its_recipe(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = "{run}/evil.py:"
    _rewrite(
        run, {name: [f"{own}f"] for name in ("rewards", "metrics", "proposals")} | {"objective": f"{own}f"}, monkeypatch
    )
    assert main(["sample", str(run), "--output", "s.jsonl"]) == 0
    _rewrite(run, {"task": f"{own}rows", "task_kwargs": None}, monkeypatch)
    assert main(["sample", str(run), "--output", "s2.jsonl"]) == 2
    assert "--allow_code" in capsys.readouterr().err
    assert not Path("PWNED").exists()
    assert main(["sample", str(run), "--output", "s2.jsonl", "--allow_code"]) == 0
    assert Path("PWNED").exists()


def _rewrite(run: Path, change: dict, monkeypatch) -> None:
    """Change the run's recipe for one test, and forget plugins that other tests have loaded."""
    kept = run.parent / "recipe.kept.yaml"
    if not kept.is_file():
        kept.write_text((run / "recipe.yaml").read_text())
    placed = yaml.safe_load(yaml.safe_dump(change).replace("{run}", str(run)))
    for name in [name for name in sys.modules if "plugin_evil" in name]:
        monkeypatch.delitem(sys.modules, name)
    (run / "recipe.yaml").write_text(yaml.safe_dump({**yaml.safe_load(kept.read_text()), **placed}))


def test_reporting_a_received_run_runs_no_code(run, tmp_path, monkeypatch):
    result = json.loads((run / "metrics.json").read_text())
    evil = {**result, "metric_specs": [f"{run}/evil.py:f"], "metrics": {"": {"exact_match": 1.0, "f": 1.0}}}
    (tmp_path / "a").mkdir()
    for name in ("recipe.yaml", "predictions.jsonl", "environment.json"):
        (tmp_path / "a" / name).write_bytes((run / name).read_bytes())
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(evil))
    code = "import sys; from rl_warmup.cli.main import main; sys.exit(main(['report', '.']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("PWNED"))


def test_code_of_a_metric_s_model_never_runs(tmp_path, monkeypatch):
    pytest.importorskip("bert_score")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    for name in ("configuration_evil", "modeling_evil"):
        (tmp_path / "m" / f"{name}.py").write_text(f"open('PWNED-{name}', 'w')")
    auto_map = {"AutoConfig": "configuration_evil.C", "AutoModel": "modeling_evil.M"}
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 20))
    with pytest.raises(ValueError, match="bertscore"):
        compute([{"name": "bertscore", "kwargs": {"model": str(tmp_path / "m"), "num_layers": 1}}], ["a"], ["a"])
    assert not list(tmp_path.glob("PWNED*"))


class _Pickled:
    def __reduce__(self):
        return open, ("PWNED", "w")


def test_a_pickle_runs_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "got")
    (tmp_path / "got" / "training_args.bin").write_bytes(pickle.dumps(_Pickled()))
    (tmp_path / "got" / "model.safetensors").unlink()
    (tmp_path / "got" / "pytorch_model.bin").write_bytes(pickle.dumps(_Pickled()))
    with pytest.raises(ValueError, match="got"):
        load_model("got")
    assert not (tmp_path / "PWNED").exists()


def test_weights_that_are_not_finite_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "got")
    file = tmp_path / "got" / "model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] * float("nan")}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=name):
        load_model(str(tmp_path / "got"))
