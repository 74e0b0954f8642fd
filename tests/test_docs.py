"""Every command and every Python block of the pages runs, in a folder with small runs and recipes; what no test runs is listed
here, with the reason."""

from __future__ import annotations

import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from rl_warmup.cli.main import main
from rl_warmup.config import build_recipe
from rl_warmup.method import objectives
from rl_warmup.runtime.run_folder import write_jsonl

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "recipes/**/*.md",
        "examples/**/*.md",
        "deepspeed_configs/*.md",
        "benchmarks/*.md",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
PROGRAMS = (
    "rl-warmup",
    "python",
    "python3",
    "accelerate",
    "torchrun",
    "make",
    "pip",
    "git",
    "eval",
    "pipx",
    "benchmarks/accelerator.sh",
)
# Blocks that another test runs: page -> the test, and the headings that they stand under.
ELSEWHERE = {
    "docs/objectives.md": ("test_docs.py", ["# ", "## "]),
    "docs/serving.md": ("test_serving_docs.py", ["# ", "## "]),
    "docs/sharing.md": ("test_push.py", ["# ", "## "]),
    "docs/data.md": ("test_own_data.py", ["## A first run", "## In Python"]),
    "examples/ledger-plugins/README.md": ("examples/test_ledger_plugins.py", ["# "]),
}
# What no test runs as it stands there: a pattern that the command or block begins with, and why.
NOT_RUN = {
    r"(git clone|make|pip|pipx|eval|python3 -m venv|OMP_NUM_THREADS=1 .venv)": "changes the environment, or runs the suite",
    r"(accelerate|torchrun|rl-warmup train --launch)": "several processes: tests/distributed starts these",
    r"(python -m benchmarks|benchmarks/accelerator|pip .* && python -m benchmarks)": "minutes, or an accelerator",
    r"rl-warmup demo": "minutes: tests/cli/test_demo.py runs it on small sweeps",
    r"rl-warmup \S+ .*(\[-|\.\.\.)": "a synopsis",
    r"rl-warmup sweep recipes/local/sweeps/NAME": "stands for several; tests/test_recipes.py reads them all",
    r"rl-warmup ceiling": "three trainings of a whole recipe: tests/cli/test_ceiling.py",
    r"trainer = WarmupTrainer\(\n    model_init": "names are the reader's: tests/e2e/test_search.py",
    r"from rl_warmup.metrics.significance import compare_runs": "runs of a demo of minutes",
    r"def arm\(name\)": "runs of a demo of minutes",
}  # fmt: skip
SMALL = {
    "ledger": {"length": 4, "modulus": 3, "train_size": 8, "validation_size": 4, "test_size": 4},
    "legs": {"train_size": 8, "validation_size": 4, "test_size": 4},
}  # fmt: skip
QUICK = {
    "train": [
        "--max_steps=1", "--logging_steps=1", "--eval_strategy=no", "--metric_for_best_model=loss", "--use_cpu",
        "--report_to=none", "--overwrite", "--controls=[]", "--per_device_train_batch_size=2",
    ],
    "sweep": ["--dry-run"],
}  # fmt: skip


class Block(NamedTuple):
    """A command in one line, or Python code, and where it stands."""

    kind: str
    text: str
    line: int

    @property
    def why_not(self) -> str | None:
        return next((why for start, why in NOT_RUN.items() if re.match(start, self.text)), None)


def blocks(page: Path) -> list[Block]:
    """The commands and Python blocks of a page, in order."""
    text, found = (ROOT / page).read_text(encoding="utf-8"), []

    def keep(kind: str, match: re.Match[str], body: str) -> str:
        found.append(Block(kind, body, match.string.count("\n", 0, match.start()) + 1))
        return re.sub(r"[^\n]", "", match.group())  # later matches keep their lines

    rest = re.sub(r"^ *```python\n(.*?)^ *```", lambda m: keep("python", m, m[1]), text, flags=re.M | re.S)
    here = r"^ +python - <<'PY'\n(.*?)^ +PY$"
    rest = re.sub(here, lambda m: keep("python", m, re.sub(r"^    ", "", m[1], flags=re.M)), rest, flags=re.M | re.S)
    shell = r"^ *```(?:sh|bash)\n(.*?)^ *```"
    rest = re.sub(shell, lambda m: "\n" + re.sub(r"^", "    ", m[1], flags=re.M), rest, flags=re.M | re.S)
    rest = re.sub(r"^ *```\w*\n.*?^ *```", lambda m: re.sub(r"[^\n]", "", m[0]), rest, flags=re.M | re.S)
    programs = "|".join(map(re.escape, PROGRAMS))
    line = rf"^ {{4,}}((?:[A-Z_]+=\S+ )*(?:\S*/)?(?:{programs})(?= )(?:[^\n]*\\\n)*[^\n]*)$"
    re.sub(line, lambda m: keep("command", m, re.sub(r"\s*\\\n\s*", " ", m[1])), rest, flags=re.M)
    return sorted(found, key=lambda block: block.line)


def test_blocks_are_found():
    assert {str(page) for page in PAGES if blocks(page)} >= {
        *ELSEWHERE,
        "README.md",
        "docs/metrics.md",
        "docs/stored-warmups.md",
    }
    (readme,) = [block for block in blocks(Path("README.md")) if block.kind == "python"]
    assert "trainer.train()" in readme.text


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_stands_in_a_block_that_is_run(page):
    """Python in an indented block would be no Python block to anybody, this test and the site among them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    outside = re.sub(r"^ *(```|python - <<'PY'\n).*?^ *(```|PY$)", "", text, flags=re.M | re.S)
    assert not re.findall(r"^ {4,}(?:from \w[\w.]* import|import \w+$|def \w+\().*", outside, re.M)


def test_every_reason_is_needed():
    every = [block for page in PAGES for block in blocks(page)]
    for start in NOT_RUN:
        assert any(re.match(start, block.text) for block in every), start
    for page, (test, headings) in ELSEWHERE.items():
        assert (ROOT / "tests" / test).is_file()
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        for block in blocks(Path(page)):
            above = next((line for line in reversed(lines[: block.line]) if re.match("##? ", line)), "")
            assert above.startswith(tuple(headings)), f"{page}:{block.line}: does {test} run this?"


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """A folder as the pages have it: two runs, recipes whose tasks are small, and the files that commands name."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for path in (folder / "recipes").rglob("*.yaml"):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        if recipe.get("task") in SMALL:
            recipe["task_kwargs"] = SMALL[recipe["task"]]
            path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    scratch = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
    recipe = {
        "model_name_or_path": "scratch-t5", "scratch": scratch, "task": "ledger", "task_kwargs": SMALL["ledger"], "max_steps": 2,
        "max_warmup_length": 4, "max_target_length": 5, "num_warmups": 2, "use_cpu": True, "per_device_train_batch_size": 4,
        "show_progress": False, "report_to": "none", "save_strategy": "no", "output_dir": "RUN",
    }  # fmt: skip
    for name in ("RECIPE", "RECIPE.yaml"):
        (folder / name).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    write_jsonl(
        folder / "german.jsonl",
        [{"prompt": "translate English to German: The house is small.", "target": "Das Haus ist klein."}],
    )
    rows = [{"prompt": "a+1 b+2 c+0", "target": "c=3 b=3 a=1"}, {"prompt": "b+1", "target": "b=1"}]
    for name in ("rows.jsonl", "prompts.jsonl"):
        write_jsonl(folder / name, rows)
    (folder / "prompts.txt").write_text("a+1 b+2 c+0\nb+1\n", encoding="utf-8")
    of_a_hub = [
        "--task=file",
        "--task_kwargs={train: german.jsonl}",
        "--output_dir=google-t5/t5-small",
    ]  # a folder is not fetched
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for settings in (["--output_dir=runs/mine"], ["--output_dir=runs/sft", "--objective=sft"], of_a_hub):
            assert main(["train", "RECIPE.yaml", *settings]) == 0
    (folder / "mine.py").write_text(
        "def brevity(completion_ids, **kwargs):\n    return [-len(ids) for ids in completion_ids]\n"
    )
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if str(page) not in ELSEWHERE and blocks(page)], ids=str)
def test_a_page_runs(page, stage, tmp_path, monkeypatch, capsys):
    home = shutil.copytree(stage, tmp_path / "stage")
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # reports draw dozens of pictures
    recipe = build_recipe(yaml.safe_load(Path("RECIPE.yaml").read_text(encoding="utf-8")))
    known = {"recipe": recipe, "predictions": ["a b"], "targets": ["a c"]}
    for block in blocks(page):
        where = f"{page}:{block.line}: {block.text}"
        if block.why_not:
            continue
        if block.kind == "python":
            if named := re.match(r"# (\w+\.py)\n", block.text):
                Path(named[1]).write_text(block.text, encoding="utf-8")
            exec(compile(block.text, where, "exec"), known)
            continue
        command, _, given = block.text.partition(" < ")
        if given:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(given).read_bytes()), "utf-8"))
        program, *words = shlex.split(command, comments=True)
        assert program == "rl-warmup", f"{where}\nNo test runs this: run it here, or give a reason in NOT_RUN."
        if "--max_steps" in words:
            del words[(place := words.index("--max_steps")) : place + 2]
        assert main([*words, *QUICK.get(words[0], [])]) == 0, f"{where}\n{capsys.readouterr().err}"


def test_the_page_of_objectives_shows_their_code():
    """docs/objectives.md: every rule and what it calls, word for word; an equation before each."""
    text = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    parts = [
        objectives.posterior,
        objectives.log_mean_exp,
        objectives._log_mean_exp_of_others,
        *objectives.RULES.values(),
    ]
    for part in parts:
        assert inspect.getsource(part).strip() in code, (
            f"{part.__name__} changed: paste its source into docs/objectives.md"
        )
    assert re.findall(r"^## (\w+)\n\n```text\n", text, re.M) == list(objectives.RULES)


def test_the_walk_names_what_is_there():
    """docs/architecture.md: every file and every function beside it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    found = re.findall(r"`(?:rl_warmup/)?([\w/]+\.py)`((?: ?`[\w.]+`,?)*)", text)
    assert len(found) > 30
    for file, names in found:
        source = (ROOT / "rl_warmup" / file).read_text(encoding="utf-8")
        for name in re.findall(r"[\w.]+", names):
            for part in name.split("."):
                assert re.search(rf"(def|class) {part}\b|import .*\b{part}\b", source), f"{file}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    """Files and folders, and headings of pages; the site's own build checks them as well."""
    for to, anchor in re.findall(r"\]\(([^)#\s:]*)(#[^)\s]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
        path = (ROOT / page).parent / to if to else ROOT / page
        assert path.exists(), f"{page}: {to}"
        if anchor and path.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            known = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor[1:] in known, f"{page}: {to}{anchor}"


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs_jupyter", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "notebooks" / "first-run.html").is_file()
