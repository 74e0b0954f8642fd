"""The demo: the sweep files of its parts, run side by side, and one page of what came out.

The page is `report/demo.md`; its explanations are written beforehand, so they claim nothing about what came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_warmup.experiments.collect import Arm, Run
from rl_warmup.experiments.compare import mean_and_deviation
from rl_warmup.experiments.report import NAMES, can_plot, plot_curves, require_extras, text_table, write_report
from rl_warmup.experiments.report.page import rendered
from rl_warmup.experiments.sweeps.answer import COLUMNS as SWEEP_COLUMNS
from rl_warmup.experiments.sweeps.answer import csv_lines, write_csv
from rl_warmup.experiments.sweeps.jobs import read_sweep
from rl_warmup.experiments.sweeps.worker import SweepSettings, run_jobs
from rl_warmup.runtime.ownership import run_of
from rl_warmup.tasks.legs import worked

# Sweep files of a part, recipes/demo/PART/TASK-MODEL.yaml. Two parts may have one of the same name: then the later one counts.
PARTS = {
    "quick": ("legs-llama", "ledger-t5"), "legs": ("legs-llama",), "legs-t5": ("legs-t5",),
    "skills": ("skills-llama", "skills-t5"), "copies": ("copies-llama", "copies-t5"), "rare": ("rare-llama",),
    "ledger": ("ledger-t5", "ledger-llama"),
}  # fmt: skip
COLUMNS = (*SWEEP_COLUMNS, "switched_at")
HEADLINE = "eval_exact_match"
Point = tuple[float, float]
Gold = Callable[[dict[str, Any]], str]  # the warmup that works a row out


def totals(row: dict[str, Any]) -> str:
    """The ledger's totals, oldest first."""
    return " ".join(reversed(row["target"].split()))


GOLD: dict[str, Gold] = {"skills": totals, "copies": totals, "rare": totals, "legs": lambda row: worked(row["prompt"])}


def run_demo(recipes: Path, output: Path, processes: int, parts: list[str]) -> str:
    """Run the sweep files of these parts; the page as text. ValueError for an unknown part or missing recipes too."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"parts: {unknown[0]!r} is not a part of the demo. Allowed: {', '.join(PARTS)}.")
    files = {name: recipes / part / f"{name}.yaml" for part in parts for name in PARTS[part]}
    if missing := [file for file in files.values() if not file.is_file()]:
        raise ValueError(
            f"{missing[0]} does not exist. Give the folder of the demo's recipes as --recipes, or leave that out."
        )
    return run_files(list(files.values()), output, processes)


def run_files(files: Sequence[Path], output: Path, processes: int, gold: Mapping[str, Gold] = GOLD) -> str:
    """Run sweep files called TASK-MODEL.yaml, write results.csv, curves and RESULTS.md into `output`; the page as text.

    Finished runs found in `output` are kept, so an interrupted demo goes on where it stopped. `gold` is, by task, the warmup
    that works a row out.

    ValueError where `output` is a run's folder, a recipe cannot be used, or a run failed (its log is named); ImportError
    without Optuna or a library of the report.
    """
    if run_of(output):
        raise ValueError(f"--output: {output} lies in a run's folder. Give a folder for the runs of the demo.")
    began = time.perf_counter()
    require_extras()
    sweeps = [read_sweep(file, output / file.stem) for file in files]  # reads every recipe before a run
    queues, _ = run_jobs(sweeps, SweepSettings(jobs=processes, threads=1, retry_failed=True, patience=20))
    for queue in queues:
        for key, error in queue.errors().items():
            folder = queue.sweep.output / key
            raise ValueError(f"The run {folder.relative_to(output)} failed: {error} Its log: {folder / 'train.log'}")
    arms = {sweep.output.name: sweep.arms() for sweep in sweeps}
    named = [(name, dict(zip(("task", "model"), name.rsplit("-", 1), strict=True))) for name in arms]
    write_csv(output / "results.csv", COLUMNS, (line for name, who in named for line in csv_lines(arms[name], **who)))
    for name, who in named if can_plot() else ():
        _plot(name, arms[name], gold.get(who["task"]), output)
    page = rendered("demo.md", parts=[_part(name, who["task"], arms[name]) for name, who in named])
    (output / "RESULTS.md").write_text(page, encoding="utf-8", errors="backslashreplace")
    report = write_report([output], output / "report")[0]
    minutes = (time.perf_counter() - began) / 60
    return (
        f"{page}\nThis took {minutes:.1f} minutes. Everything to look through, in a browser: {report}\n"
        f"Also in {output}: RESULTS.md, results.csv, a folder per run and, with matplotlib, *.png."
    )


def _plot(name: str, arms: list[Arm], gold: Gold | None, output: Path) -> None:
    """Learning curves on validation rows, and, where warmups are searched, how many of the sampled ones are worked out."""
    quality = _curves(arms, lambda run: [(log["step"], log[HEADLINE]) for log in run.logs if HEADLINE in log])
    if not quality:
        return
    panels = [(quality, f"{name}: the model's own warmup, validation rows", "exact match")]
    if gold and (found := _curves(arms, lambda run: worked_out(run, gold))):
        panels.append((found, "worked out, of the warmups that an update trains on", "share"))
    switches = [run.result["switched_at"] for arm in arms if arm.name == "reading" for run in arm.runs]
    plot_curves(panels, output / f"{name}.png", "updates", list(filter(None, switches)), "the policy takes over")


def _curves(arms: list[Arm], points: Callable[[Run], list[Point]]) -> dict[str, list[list[Point]]]:
    """A line for each run that has points, by arm."""
    lines = {arm.name: [line for run in arm.runs if (line := points(run))] for arm in arms}
    return {name: found for name, found in lines.items() if found}


def worked_out(run: Run, gold: Gold) -> list[Point]:
    """(update, share of the logged warmups that are worked out right)."""
    right: dict[int, list[bool]] = {}
    for row in run.groups:
        wanted = gold(row)
        right.setdefault(row["step"], []).extend(" ".join(w["warmup"].split()) == wanted for w in row["warmups"])
    return [(step, sum(values) / len(values)) for step, values in right.items()]


def _part(name: str, task: str, arms: list[Arm]) -> dict[str, Any]:
    """What the page says about one sweep: its table, and examples of its main arm."""
    metrics = list(arms[0].runs[0].metrics[""])
    rows = [row for arm in arms for row in _rows(arm, metrics)]
    table = text_table(["arm", "warmup at test", *metrics, "updates", "train seconds"], rows).splitlines()
    main = next((arm for arm in arms if arm.name == "reading"), arms[-1])
    return {
        "name": name, "task": task, "most": max(len(arm.runs) for arm in arms), "arm": main.name, "run": main.runs[0],
        "table": "\n".join(line.rstrip() for line in table),
    }  # fmt: skip


def _rows(arm: Arm, metrics: list[str]) -> list[list[str]]:
    """A line per kind of warmup of one arm, over its seeds."""
    spent = ([run.result[key] for run in arm.runs] for key in ("updates", "train_seconds"))
    costs, rows = [mean_and_deviation(values, 0) for values in spent], []
    for control in arm.controls:
        label = NAMES[control] if control or arm.objective != "sft" else "none"
        values = [mean_and_deviation(list(arm.values(metric, control).values())) for metric in metrics]
        rows.append(["", label, *values, "", ""] if control else [arm.name, label, *values, *costs])
    return rows
