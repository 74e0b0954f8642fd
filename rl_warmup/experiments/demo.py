"""The demo: the sweep files of its parts, run side by side, and one page of what came out.

The explanations below the tables are written beforehand, so they claim nothing about what came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_warmup.experiments.collect import Arm, Run
from rl_warmup.experiments.compare import mean_and_deviation
from rl_warmup.experiments.report import NAMES, plot_curves, require_extras, text_table, write_report
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

SKILLS = """\
The same question on a bed of our own. The starting model knows six ways to go on from a ledger (copy it, copy it
backwards, running totals oldest first, running maximum, differences, doubles) and was never shown this task: the
running totals newest first, of which the first word needs the whole sum. The pairs do not say that totals oldest first
would help."""
EXPLANATIONS = {
    "legs": """\
Questions that nobody here wrote (reasoning-gym's leg_counting), answers alone, no warmup given by anybody. The starting
model has four habits for such a question: it works it out, repeats it, repeats it backwards, or lists legs per animal.
`reading` first samples that model for every question and trains the generator on these samples while the policy stays
where it is; once the generator tells useful samples from others, the policy takes over, held by a KL to the start.
`marginal` is the same without the hold, `marginal_kl` has the KL from the first update, `sft` answers at once,
`sft_equal_compute` does so for at least the seconds of `reading` (the time to sample the start included), `filler` has
the same room for meaningless tokens. What this shows: a model that has a useful habit among others finds it from pairs
alone, and shuffling warmups across questions destroys the result: they are read. What it does not show: no skill is
invented, and the start was trained on such habits.""",
    "skills": SKILLS,
    "rare": SKILLS + " Here only one or two samples of a hundred are the useful skill.",
    "copies": """\
The counter-example: this start can only copy the ledger, so there is nothing to find. `reading` should notice that no
sample helps, say so (warnings.jsonl), go on as plain fine-tuning, and end where `sft` ends.""",
    "ledger": """\
What this shows: a warmup can carry computation. The target lists running totals newest first, so its first word needs
the whole sum at once: compare SFT, and where they run SFT at the warmup arm's training time and the filler (as many extra
positions without content). Shuffling warmups across prompts shows whether the warmup is what is read. What it
does not show: that a warmup is found. The proposal (the target's words reversed) is given and contains the easy order;
where there is an arm `proposal`, it only imitates it, and `warmup` goes on from there with its own samples.""",
}


def totals(row: dict[str, Any]) -> str:
    """The ledger's totals, oldest first."""
    return " ".join(reversed(row["target"].split()))


GOLD: dict[str, Gold] = {"skills": totals, "copies": totals, "rare": totals, "legs": lambda row: worked(row["prompt"])}


def run_demo(recipes: Path, output: Path, processes: int, parts: list[str]) -> str:
    """Run the sweep files of these parts; the page as text. ValueError for an unknown part or missing recipes too."""
    files: dict[str, Path] = {}
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts: {part!r} is not a part of the demo. Allowed: {', '.join(PARTS)}.")
        files |= {name: recipes / part / f"{name}.yaml" for name in PARTS[part]}
    for file in files.values():
        if not file.is_file():
            raise ValueError(f"{file} does not exist. Run the demo from the root of the repository.")
    return run_files(list(files.values()), output, processes)


def run_files(files: Sequence[Path], output: Path, processes: int, gold: Mapping[str, Gold] = GOLD) -> str:
    """Run sweep files called TASK-MODEL.yaml, write results.csv, curves and RESULTS.md into `output`; the page as text.

    Finished runs found in `output` are kept, so an interrupted demo goes on where it stopped. `gold` is, by task, the warmup
    that works a row out.

    Raises:
        ValueError: `output` is a run's folder, a recipe cannot be used, or a run failed (its log is named).
        ImportError: a library of the report or Optuna is missing.
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
    for name, who in named:
        _plot(name, arms[name], gold.get(who["task"]), output)
    parts = [text for name, who in named for text in _part(name, who["task"], arms[name])]
    page = "\n".join(["# Demo results", *parts]) + "\n"
    (output / "RESULTS.md").write_text(page, encoding="utf-8", errors="backslashreplace")
    report = write_report([output], output / "report")[0]
    minutes = (time.perf_counter() - began) / 60
    return (
        f"{page}\nThis took {minutes:.1f} minutes. Everything to look through, in a browser: {report}\n"
        f"Also in {output}: RESULTS.md, results.csv, *.png and a folder per run."
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


def _part(name: str, task: str, arms: list[Arm]) -> list[str]:
    """What the page says about one sweep: its table, examples of its main arm, and an explanation."""
    metrics = list(arms[0].runs[0].metrics[""])
    rows = [row for arm in arms for row in _rows(arm, metrics)]
    table = text_table(["arm", "warmup at test", *metrics, "updates", "train seconds"], rows).splitlines()
    most = max(len(arm.runs) for arm in arms)
    seeds = f"{most} seeds, mean ± standard deviation; one where none is given" if most > 1 else "one seed"
    main = next((arm for arm in arms if arm.name == "reading"), arms[-1])
    shown = "\n".join(f"    {line}".rstrip() for line in table)
    examples = _examples(main, 10 if task == "legs" else 2)
    return [f"\n## {name} ({seeds}; test rows)\n\n{shown}", examples, EXPLANATIONS.get(task, "")]


def _rows(arm: Arm, metrics: list[str]) -> list[list[str]]:
    """A line per kind of warmup of one arm, over its seeds."""
    spent = ([run.result[key] for run in arm.runs] for key in ("updates", "train_seconds"))
    costs, rows = [mean_and_deviation(values, 0) for values in spent], []
    for control in arm.controls:
        label = NAMES[control] if control or arm.objective != "sft" else "none"
        values = [mean_and_deviation(list(arm.values(metric, control).values())) for metric in metrics]
        rows.append(["", label, *values, "", ""] if control else [arm.name, label, *values, *costs])
    return rows


def _examples(arm: Arm, count: int) -> str:
    """The first test rows of an arm's first seed."""
    run = arm.runs[0]
    lines = [f"\nWhat the arm {arm.name} writes (seed {run.seed}, first test rows):\n"]
    for row in run.predictions.get("", [])[:count]:
        lines += [f"    {name:<10} {row[name]}" for name in ("prompt", "warmup", "prediction", "target")] + [""]
    return "\n".join(lines)
