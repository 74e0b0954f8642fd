"""Six generators of reasoning-gym, two architectures: do warmups that a model finds by itself beat fine-tuning on answers alone?

Knows: the demo's runner, habits of `gym_habits.py`. Must not know: how a run works.

    python -m benchmarks.gym                                    # whatever benchmarks/results/gym lacks
    python -m benchmarks.gym --kinds chain_sum --models llama   # a part

It may be stopped at any time: finished runs stay in runs/gym, and what is in the table is not run again (unless told `--again`).
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gym_habits import SETTINGS, difficulty, habits
from rl_warmup.experiments.demo import COLUMNS, run_files

RECIPE = Path("recipes/local/reasoning-gym.yaml")
STARTS = Path(
    "benchmarks/starts"
)  # where `start:gym-llama` lies until it is good enough to be shipped with the package
MODELS = ("llama", "t5")
SEEDS = (1, 2, 3)
SEARCHING: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft", "proposals": [], "disable_dropout": False},
    "filler": {"proposals": ["filler"], "proposal_only": True, "empty_share": 0.0, "anchor_weight": 0.0},
    "marginal": {"proposals": [], "beta": 0.0},
    "marginal_kl": {"proposals": [], "beta": 0.1},
    "reading": {},
    "ceiling": {"proposals": ["stored"], "proposal_only": True, "num_warmups": 1},  # good warmups imitated
}
EQUAL_COMPUTE = {"sft_equal_compute": {"like": "sft", "seconds_of": "reading"}}
ARMS = ("sft", "sft_equal_compute", *list(SEARCHING)[1:])
Result = dict[str, str]  # a line of results.csv
Run = tuple[str, str, str, str]  # task, model, arm, seed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gym", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/gym"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gym"))
    parser.add_argument("--again", action="store_true", help="run what the table has already")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    options = parser.parse_args()
    known = {_run(line) for line in _read(options.out / "results.csv")}
    for model in options.models:
        for kind in options.kinds:
            if not options.again and all(run in known for run in asked(kind, model, options.arms, options.seeds)):
                continue
            runs = options.runs / f"{kind}-{model}"
            file, worked = sweep_file(kind, model, options.arms, options.seeds, runs)
            by_prompt = {kind: lambda row, worked=worked: worked[row["prompt"]]}  # a run's log has no other columns
            print(run_files([file], runs, options.processes, by_prompt), flush=True)
            keep(options.out, runs, kind, model, options.arms, options.seeds)
    print(table(_read(options.out / "results.csv")))


def asked(kind: str, model: str, arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """The runs of one generator and model, as `_run` names them."""
    return [(kind, model, arm, str(seed)) for arm in arms for seed in seeds]


def sweep_file(
    kind: str, model: str, arms: Sequence[str], seeds: Sequence[int], runs: Path
) -> tuple[Path, dict[str, str]]:
    """One generator with the start of one architecture as a sweep file, and the gold warmups of its training rows by prompt."""
    from rl_warmup.config import read_recipe
    from rl_warmup.experiments.run import recipe_task

    settings = {**SETTINGS[kind], "name": kind, "prompt_style": "last_line"}
    sizes = {"train_size": 4000, "validation_size": 150, "test_size": 500}
    start = STARTS / f"gym-{model}"
    changes = {
        "model_name_or_path": str(start.resolve()) if start.is_dir() else f"start:gym-{model}",
        "task_kwargs": {**settings, **sizes},
    }
    runs.mkdir(parents=True, exist_ok=True)
    made = {arm: dict(SEARCHING[arm]) for arm in SEARCHING if arm in arms}
    flags = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    rows = recipe_task(read_recipe(str(RECIPE), flags)).splits["train"]
    if "ceiling" in made:
        lines = [json.dumps({"row": number, "warmup": gold(row)}) + "\n" for number, row in enumerate(rows)]
        (runs / "gold.jsonl").write_text("".join(lines), encoding="utf-8")
        made["ceiling"]["stored_warmups"] = str(runs / "gold.jsonl")
    question = {
        "question": f"Do warmups that a model finds by itself beat fine-tuning on answers alone ({kind})?",
        "base": str(RECIPE.resolve()), "settings": changes, "runs": made, "seeds": list(seeds), "metric": "exact_match",
        "equal_compute": {arm: rule for arm, rule in EQUAL_COMPUTE.items() if arm in arms}, "control": next(iter(made)),
    }  # fmt: skip
    file = runs / f"{kind}-{model}.yaml"
    file.write_text(json.dumps(question, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return file, {row["prompt"]: gold(row) for row in rows}


def gold(row: dict[str, Any]) -> str:
    """The worked-out warmup of a row of `task: reasoning_gym`."""
    return habits(row["generator"], _entry(row))["worked"]


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": ast.literal_eval(row["metadata"])}


def keep(out: Path, runs: Path, kind: str, model: str, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Put the lines of these runs, and exact match by difficulty of their arms, in place of older ones."""
    out.mkdir(parents=True, exist_ok=True)
    fresh = _read(runs / "results.csv")
    again = {_run(line) for line in fresh}
    lines = [*(line for line in _read(out / "results.csv") if _run(line) not in again), *fresh]
    _write(out / "results.csv", COLUMNS, lines)
    steps = by_difficulty(kind, model, arms, seeds, runs)
    again = {_run(line) for line in steps}
    steps = [*(line for line in _read(out / "difficulty.csv") if _run(line) not in again), *steps]
    _write(out / "difficulty.csv", DIFFICULTY, steps)
    (out / "results.md").write_text(table(lines), encoding="utf-8")
    plot(steps, out / "difficulty.png")


DIFFICULTY = ("task", "model", "arm", "seed", "steps", "rows", "right")


def by_difficulty(kind: str, model: str, arms: Sequence[str], seeds: Sequence[int], runs: Path) -> list[Result]:
    """Test rows and right answers of each run, by the number of steps that a question takes."""
    found: list[Result] = []
    for run in asked(kind, model, arms, seeds):
        right: dict[int, list[bool]] = defaultdict(list)
        file = runs / f"{kind}-{model}" / run[2] / f"seed-{run[3]}" / "predictions.jsonl"
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            right[difficulty(kind, _entry(row))].append(row["prediction"].strip() == row["target"].strip())
        for steps, hits in sorted(right.items()):
            found.append(dict(zip(DIFFICULTY, map(str, (*run, steps, len(hits), sum(hits))), strict=True)))
    return found


def _run(line: Result) -> Run:
    return line["task"], line["model"], line["arm"], line.get("seed", "")


def table(lines: Iterable[Result]) -> str:
    """Exact match of every arm as Markdown: mean over seeds and its 95 % interval, and what reading gains over each control."""
    from rl_warmup.metrics.significance import compare_seeds, over_seeds

    cells: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        if line["metric"] == "exact_match":
            arm = line["arm"] if not line["control"] else f"{line['arm']}, {line['control']}"
            cells[line["task"], line["model"]][arm][line["seed"]] = float(line["value"])
    shown = [*ARMS, "reading, shuffled"]
    parts = [
        f"| task | model | seeds | {' | '.join(shown)} | reading - sft_equal_compute |",
        "|---" * (len(shown) + 4) + "|",
    ]
    for (task, model), arms in sorted(cells.items()):
        values = []
        for arm in shown:
            one = over_seeds(list(arms[arm].values())) if arms.get(arm) else None
            half = f" ± {one.interval[1] - one.mean:.3f}" if one and one.interval else ""
            values.append(f"{one.mean:.3f}{half}" if one else "")
        seeds = max(map(len, arms.values()))
        gain = ""
        if arms.get("reading") and arms.get("sft_equal_compute"):
            compared = compare_seeds(list(arms["sft_equal_compute"].values()), list(arms["reading"].values()))
            between = "" if compared.interval is None else " ({:+.3f} to {:+.3f})".format(*compared.interval)
            gain = f"{compared.difference:+.3f}{between}"
        parts.append(f"| {task} | {model} | {seeds} | {' | '.join(values)} | {gain} |")
    return "\n".join(parts) + "\n\n± and brackets: 95 % intervals over seeds (Student, Welch).\n"


def plot(lines: list[Result], path: Path) -> None:
    """A panel for each task and model: exact match against steps, a line for each arm (rows of all its seeds together)."""
    from rl_warmup.experiments.report import plot_curves

    found: dict[tuple[str, str], dict[str, dict[int, list[int]]]] = defaultdict(dict)
    for line in lines:
        total = found[line["task"], line["model"]].setdefault(line["arm"], {}).setdefault(int(line["steps"]), [0, 0])
        total[0] += int(line["rows"])
        total[1] += int(line["right"])
    panels: dict[tuple[str, str], dict[str, list[list[tuple[float, float]]]]] = defaultdict(dict)
    for panel, arms in found.items():
        for arm, steps in arms.items():
            # fewer than 20 rows say nothing
            panels[panel][arm] = [[(x, right / rows) for x, (rows, right) in sorted(steps.items()) if rows >= 20]]
    drawn = [(curves, f"{task}, {model}", "exact match") for (task, model), curves in sorted(panels.items())]
    plot_curves(drawn, path, "steps of the question")


def _read(path: Path) -> list[Result]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Iterable[str], lines: Iterable[Result]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
