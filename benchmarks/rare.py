"""How long does reading take to find a habit that is rare?

Knows: the starts, the demo's runner. Must not know: how a run works.

    python -m benchmarks.rare --seeds 1              # shares of 17 to 1 in 100 of what a start was trained on; 4 minutes each
    python -m benchmarks.rare --num_warmups 8 32     # the same with more samples of every prompt, which take longer

Every start goes on from `skills-llama`, with the useful one of its six habits at another share, and reads as
`recipes/demo/skills.yaml` does, for longer. It may be stopped at any time: finished runs stay in runs/rare, and lines of
runs that were not asked for stay in the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from dataclasses import replace
from pathlib import Path

from benchmarks.make_starts import RECORD, SKILLS, STARTS, make
from rl_warmup.experiments.demo import run_files

RECIPE = Path("recipes/demo/skills.yaml")
SHARES = (0.17, 0.14, 0.11, 0.08, 0.04, 0.02, 0.01)
UPDATES = {"max_steps": 1500, "max_reading_updates": 1200, "eval_steps": 25}
FOUND = 0.9  # exact match on validation rows; fine-tuning alone has .2
COLUMNS = ("share_trained", "share_of_samples", "num_warmups", "seed", "switched_at", "found_at", "exact_match")

RUN = ("share_trained", "num_warmups", "seed")
Line = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="(%(default)s)")
    parser.add_argument("--num_warmups", nargs="+", type=int, default=[8], help="samples of every prompt (%(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="(%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/rare"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    options = parser.parse_args()
    starts = {share: make_start(share, options.runs / "starts") for share in options.shares}
    arms = {f"share-{share:g}-of-{n}": (share, n) for share in options.shares for n in options.num_warmups}
    question = {
        "question": "How long does reading take to find a habit that is rare?",
        "base": str(RECIPE.resolve()), "settings": UPDATES, "seeds": options.seeds, "metric": "exact_match",
        "runs": {
            arm: {"model_name_or_path": str(starts[share].resolve()), "num_warmups": n} for arm, (share, n) in arms.items()
        },
        "control": next(iter(arms)),
    }  # fmt: skip
    file = options.runs / "rare-llama.yaml"
    file.write_text(json.dumps(question, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    print(run_files([file], options.runs, options.processes))
    fresh = [
        line(starts[share], n, options.runs / file.stem / arm, seed)
        for arm, (share, n) in arms.items()
        for seed in options.seeds
    ]
    lines = keep(fresh, options.out / "rare.csv")
    plot(lines, options.out / "rare.png")


def make_start(share: float, home: Path) -> Path:
    """The start whose useful habit has this share, in `home`; one that is there is kept."""
    others = (1 - share) / (len(SKILLS) - 1)
    shares = {skill: share if skill == SKILLS[0] else others for skill in SKILLS}
    folder = home / f"share-{share:g}"
    if not (folder / RECORD).is_file():
        make(folder.name, replace(STARTS["rare-llama"], shares=shares), home=home)
    return folder


def line(start: Path, num_warmups: int, arm: Path, seed: int) -> Line:
    """What a run of one start and seed says; empty where it did not switch, or did not find the habit."""
    record = json.loads((start / RECORD).read_text(encoding="utf-8"))
    folder = arm / f"seed-{seed}"
    logs = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [log["step"] for log in logs if log.get("eval_exact_match", 0) >= FOUND]
    result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    values = (
        record["trained_on"][SKILLS[0]], record["samples"][SKILLS[0]], num_warmups, seed,
        result["switched_at"], min(found, default=None), result["metrics"][""]["exact_match"],
    )  # fmt: skip
    return {name: "" if value is None else str(value) for name, value in zip(COLUMNS, values, strict=True)}


def keep(fresh: list[Line], table: Path) -> list[Line]:
    """Put lines in the place of older ones of the same runs; gives the whole table, the most frequent habit first."""
    old: list[Line] = []
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            old = list(csv.DictReader(file))
    lines = {tuple(one[name] for name in RUN): one for one in [*old, *fresh]}
    ordered = sorted(
        lines.values(), key=lambda one: (-float(one["share_trained"]), int(one["num_warmups"]), int(one["seed"]))
    )
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ordered)
    return ordered


def plot(lines: list[Line], path: Path) -> None:
    """Updates until the habit was found against its share of the start's samples; runs without it stand at the top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(figsize=(7, 4.2), dpi=150)
    for index, n in enumerate(sorted({int(one["num_warmups"]) for one in lines})):
        for is_found, mark, label in ((True, "o", f"{n} samples, found"), (False, "x", f"{n} samples, not found")):
            chosen = [one for one in lines if int(one["num_warmups"]) == n and bool(one["found_at"]) == is_found]
            if not chosen:
                continue
            ends = [int(one["found_at"] or UPDATES["max_steps"]) for one in chosen]
            axes.plot([float(one["share_of_samples"]) for one in chosen], ends, mark, color=f"C{index}", label=label)
    axes.set(
        xscale="log", ylim=(0, None), xlabel="share of the useful habit among the starting model's samples",
        ylabel=f"updates until exact match {FOUND}",
    )  # fmt: skip
    axes.legend(frameon=False)
    drawing.tight_layout()
    drawing.savefig(path)


if __name__ == "__main__":
    main()
