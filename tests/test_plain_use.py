"""A saved folder in plain transformers, in another process without rl_warmup, writes token for token what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from rl_warmup.cli.main import main
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_jsonl

WORDS = ["alpha", "beta", "gamma", "delta", "omega", "sigma"]
RECIPES = Path(__file__).parents[1] / "recipes" / "demo"
SIZE = {"width": 32, "layers": 2, "heads": 2, "tokenizer": "words"}
ARMS = {
    "sft": {"objective": "sft"},
    "by separator": {"proposals": ["reverse"], "proposal_only": True, "max_warmup_length": 6},
    "by limit": {"proposals": [], "max_warmup_length": 2, "min_warmup_length": 2, "max_steps": 4},
    "filler": {"proposals": ["filler"], "proposal_only": True, "max_warmup_length": 3},
}
# Reads a list of [folder, use code?], prints for each folder what `generate` writes for its prompts.
PLAIN = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
for folder, code in json.load(sys.stdin):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    t5 = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if t5 else AutoModelForCausalLM).from_pretrained(folder, trust_remote_code=code)
    out = []
    for line in open(folder + "/predictions.jsonl", encoding="utf-8"):
        inputs = tokenizer(json.loads(line)["prompt"], return_tensors="pt")
        written = model.generate(**inputs)[0].tolist()
        out.append(written[1 if t5 else inputs["input_ids"].size(1):])
    print(json.dumps(out))
assert "rl_warmup" not in sys.modules
"""


def plain(folders: list[tuple[Path, bool]], cache: Path) -> list[list[list[int]]]:
    """What stock transformers writes for each folder's prompts."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], input=json.dumps([[str(f), code] for f, code in folders]), text=True,
        capture_output=True, check=False, cwd=cache, env={"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "IndexError" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def split(ids: list[int], layout: dict) -> tuple[list[int], list[int]]:
    """The snippet of the folder's README."""
    place = ids.index(layout["separator_id"]) if layout["separator_id"] in ids else len(ids)
    return ids[:place], ids[place + 1 :][: layout["max_target_length"]]


def without_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def compare(folder: Path, written: list[list[int]], whole: bool, ended: bool = True) -> int:
    """How many predictions agree. All have to if `whole`, and those whose warmup ended by itself if `ended`."""
    layout = json.loads((folder / "warmup_layout.json").read_text(encoding="utf-8"))
    end = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    equal = 0
    for row, ids in zip(read_jsonl(folder / "predictions.jsonl"), written, strict=True):
        warmup, target = split(ids, layout)
        same = warmup == row["warmup_ids"] and without_end(target, end) == row["prediction_ids"]
        assert same or not (whole or (ended and row["warmup_finish"] in ("separator", "empty"))), (row, ids)
        equal += same
    return equal


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """A run of every arm for a Llama and a T5 whose decoder is deeper than its encoder."""
    folder, runs = tmp_path_factory.mktemp("plain"), {}
    rows = [
        {"prompt": " ".join(WORDS[i % 6 :][: 1 + i % 4]), "target": " ".join(WORDS[: 1 + i % 3])} for i in range(24)
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    for kind in ("t5", "llama"):
        for arm, settings in ARMS.items():
            size = {**SIZE, "encoder_layers": 1} if kind == "t5" else SIZE
            runs[f"{kind} {arm}"] = folder / f"{kind} {arm}"
            recipe = {
                "model_name_or_path": f"scratch-{kind}", "scratch": size, "task": "file", "learning_rate": 0.01,
                "task_kwargs": {"train": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl")},
                "max_target_length": 5, "num_warmups": 2, "max_steps": 40, "per_device_train_batch_size": 8, "use_cpu": True,
                "show_progress": False, "report_to": "none", "save_strategy": "no",
                "output_dir": str(runs[f"{kind} {arm}"]), **settings,
            }  # fmt: skip
            (folder / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
            assert main(["train", "--config", str(folder / "r.yaml")]) == 0
    return runs


def test_every_arm_is_written_alike_with_the_folders_code(trained, tmp_path):
    names = list(trained)
    finishes = set()
    for name, written in zip(names, plain([(trained[name], True) for name in names], tmp_path), strict=True):
        assert compare(trained[name], written, whole=True) == 24
        finishes |= {row["warmup_finish"] for row in read_jsonl(trained[name] / "predictions.jsonl")}
    assert finishes == {"separator", "length", "empty"}


def test_stock_fields_alone_suffice_unless_the_limit_ends_a_warmup(trained, tmp_path):
    names = list(trained)
    for name, written in zip(names, plain([(trained[name], False) for name in names], tmp_path), strict=True):
        equal = compare(trained[name], written, whole=name.endswith("sft"))
        assert equal == 24 or name.endswith(("limit", "filler"))


def test_the_tokenizer_splits_what_was_written(trained):
    """As servers do that know `response_template`; also in the middle of a target, and with padding after it."""
    for folder in trained.values():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        layout = json.loads((folder / "warmup_layout.json").read_text(encoding="utf-8"))
        for row in read_jsonl(folder / "predictions.jsonl"):
            ids = [*row["warmup_ids"], layout["separator_id"], *row["prediction_ids"]]
            for after in ([], [tokenizer.eos_token_id], [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * 2]):
                found = tokenizer.parse_response([*ids, *after], prefix=row["prompt"])
                assert found.get("content", "").strip() == row["prediction"]
                assert found.get("reasoning_content", "").strip() == row["warmup"]
        unfinished = tokenizer.parse_response([*row["warmup_ids"], *row["prediction_ids"]], prefix="")
        assert unfinished.get("content") is None


@pytest.mark.parametrize("arm", ["t5 sft", "llama by limit", "t5 by separator"])
def test_the_snippets_of_the_readme_run(trained, tmp_path, arm):
    check_snippets(trained[arm], tmp_path)


def test_without_the_folders_code_the_snippet_says_that_no_separator_came(trained, tmp_path):
    folder = trained["llama by limit"]
    layout = json.loads((folder / "warmup_layout.json").read_text(encoding="utf-8"))
    rows, (written,) = read_jsonl(folder / "predictions.jsonl"), plain([(folder, False)], tmp_path)
    lost = next(row for row, ids in zip(rows, written, strict=True) if layout["separator_id"] not in ids)
    done = run_snippet(folder, snippets(folder)[1].replace(", trust_remote_code=True", ""), lost["prompt"], tmp_path)
    assert done.returncode == 1
    assert not done.stdout
    assert "trust_remote_code" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_snippets_of_an_adapters_readme_run_with_the_prompts_template(trained, tmp_path):
    recipe = yaml.safe_load((trained["llama by limit"] / "recipe.yaml").read_text(encoding="utf-8"))
    more = {"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear", "output_dir": str(tmp_path / "adapter")}
    more |= {"model_name_or_path": str(trained["llama by limit"]), "scratch": None}
    recipe["task_kwargs"]["prompt_template"] = "sigma {text}"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe, **more}), encoding="utf-8")
    assert main(["train", "--config", str(tmp_path / "r.yaml")]) == 0
    check_snippets(tmp_path / "adapter", tmp_path, before="sigma ")


def test_the_snippets_of_a_model_of_conversations_run(trained, tmp_path):
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}{{ last }}")
    recipe = yaml.safe_load((trained["llama by separator"] / "recipe.yaml").read_text(encoding="utf-8"))
    more = {"chat_template": str(tmp_path / "chat.jinja"), "system": "omega", "chat_template_kwargs": {"last": "sigma"}}
    more |= {"output_dir": str(tmp_path / "chat"), "max_prompt_length": 5, "prompt_truncation": "left"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe, **more}), encoding="utf-8")
    assert main(["train", "--config", str(tmp_path / "r.yaml")]) == 0
    text = (tmp_path / "chat" / "README.md").read_text(encoding="utf-8")
    assert "apply_chat_template" in text
    assert "keeps its begin token" in text
    check_snippets(tmp_path / "chat", tmp_path)


def check_snippets(folder: Path, tmp_path: Path, before: str = "") -> None:
    """Run both snippets of a folder's README for one of its predictions, whose prompt is the text with this before it."""
    row = read_jsonl(folder / "predictions.jsonl")[3]
    wanted = [row["warmup"], row["prediction"]]
    for code, lines in zip(snippets(folder), (wanted[1:], wanted), strict=True):
        done = run_snippet(folder, code, row["prompt"].removeprefix(before), tmp_path)
        assert done.stdout.split("\n")[: len(lines)] == lines, done.stderr[-2000:]


def snippets(folder: Path) -> list[str]:
    """Those of a folder's README: with rl_warmup, and with transformers alone."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def run_snippet(folder: Path, code: str, prompt: str, cache: Path) -> subprocess.CompletedProcess[str]:
    env = {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", code.replace("a prompt", prompt)]
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sweep", ["quick/ledger-t5", "quick/legs-llama", "ledger/ledger-llama", "ledger/ledger-t5"])
def test_every_arm_of_the_demo_is_written_alike(tmp_path, sweep):
    """The demo's arms, trained shortly: what they write then is ended by separator and limit."""
    place = RECIPES / f"{sweep}.yaml"
    asked = yaml.safe_load(place.read_text(encoding="utf-8"))
    base = yaml.safe_load((place.parent / asked["base"]).read_text(encoding="utf-8"))
    short = {
        "max_steps": 60,
        "eval_strategy": "no",
        "metric_for_best_model": None,
        "load_best_model_at_end": False,
        "save_strategy": "no",
        "save_total_limit": None,
        "show_progress": False,
        "controls": [],
    }
    short["task_kwargs"] = {**base["task_kwargs"], "train_size": 1000, "test_size": 40}
    runs = {}
    for arm, settings in asked["runs"].items():
        runs[arm] = tmp_path / arm
        recipe = {**base, **asked["settings"], **settings, **short, "report_to": "none", "output_dir": str(runs[arm])}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        assert main(["train", "--config", str(tmp_path / "r.yaml")]) == 0
    jobs = [(folder, code) for folder in runs.values() for code in (True, False)]
    for (folder, code), written in zip(jobs, plain(jobs, tmp_path), strict=True):
        # half trained, a model may want to write the end token in a warmup, which the stock fields cannot keep out
        equal = compare(folder, written, whole=code or folder.name == "sft", ended=code)
        print(f"{sweep} {folder.name}, {'with' if code else 'without'} the folder's code: {equal} of 40")
