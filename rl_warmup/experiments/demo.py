"""The demo: small experiments, each arm beside its controls, and one page of what came out.

Knows: the recipes in recipes/demo, what each arm changes of them, and how many processors there are. Must not know: how
a run works. Runs go through a pool of processes with one thread each, as tiny models gain nothing from more.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

from tqdm.auto import tqdm

from rl_warmup.experiments.compare import mean_and_deviation
from rl_warmup.experiments.demo_words import EXPLANATIONS
from rl_warmup.experiments.report import (
    NAMES,
    plot_curves,
    require_extras,
    text_table,
    write_report,
)
from rl_warmup.runtime.orphans import as_parent, start_worker
from rl_warmup.runtime.ownership import run_of
from rl_warmup.runtime.run_folder import read_jsonl
from rl_warmup.tasks.legs import worked

COLUMNS = ("task", "model", "arm", "control", "seed", "metric", "value", "updates", "train_seconds", "switched_at")
COMPUTE_MARGIN = 1.1  # SFT at equal compute gets at least the main arm's seconds, so err on its side
SEEDS = (1, 2, 3)
HEADLINE = "exact_match"
Curves = dict[str, list[list[tuple[float, float]]]]  # arm -> a line per seed

SFT = {"objective": "sft", "proposals": []}
FILLER = {"proposals": ["filler"], "proposal_only": True, "empty_share": 0.0, "anchor_weight": 0.0}
# What an arm changes of the recipe; the recipe itself is the arm `reading`, or `warmup` where a proposal is given.
SEARCHING: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "sft_equal_compute": SFT,
    "filler": FILLER,
    "marginal": {"proposals": [], "beta": 0.0},
    "marginal_kl": {"proposals": [], "beta": 0.1},
    "reading": {},
    # Good warmups imitated: what could be found at most. `Experiment.gold_file` has them.
    "ceiling": {"proposals": ["stored"], "proposal_only": True, "num_warmups": 1},
}
GIVEN: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft"},
    "sft_equal_compute": {"objective": "sft"},
    "filler": FILLER,
    "proposal": {"proposal_only": True, "anchor_weight": 0.0},
    "warmup": {},
}


@dataclass
class Experiment:
    """One recipe, and how often each of its arms runs.

    `name`: task and model, the folder of its runs. `arms`: seeds by arm. `sft`: settings of the SFT arms beside the recipe's,
    as they have their own best ones. `gold`: the warmup that works a row out; `gold_file`: those of the training rows.
    """

    name: str
    recipe: Path
    arms: dict[str, tuple[int, ...]]
    changes: dict[str, Any] = field(default_factory=dict)
    sft: dict[str, Any] = field(default_factory=dict)
    gold: Callable[[dict[str, Any]], str] | None = None
    gold_file: Path | None = None

    @property
    def task(self) -> str:
        """Its name in results.csv, without the model's."""
        return self.name.rpartition("-")[0]

    @property
    def main(self) -> str:
        """The arm that is compared with the others."""
        return "reading" if "reading" in self.arms else "warmup"

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """What each arm changes of the recipe."""
        return SEARCHING if self.main == "reading" else GIVEN


def _searching(name: str, recipes: Path, seeds: dict[str, tuple[int, ...]] | None = None) -> Experiment:
    """An experiment from an embedded starting model; all arms on three seeds unless told otherwise."""
    task = name.rpartition("-")[0]
    recipe = recipes / ("legs.yaml" if task == "legs" else "skills.yaml")
    arms: dict[str, tuple[int, ...]] = seeds or dict.fromkeys([arm for arm in SEARCHING if arm != "ceiling"], SEEDS)
    gold = _worked_legs if task == "legs" else _totals
    changes = {"model_name_or_path": f"start:{name}"}
    return Experiment(name, recipe, arms, changes, {"disable_dropout": False}, gold)


def _worked_legs(row: dict[str, Any]) -> str:
    """Products and running sums of the legs."""
    return worked(row["prompt"])


def _totals(row: dict[str, Any]) -> str:
    """The ledger's totals, oldest first."""
    return " ".join(reversed(row["target"].split()))


def _ledger(kind: str, recipes: Path, seeds: dict[str, tuple[int, ...]]) -> Experiment:
    return Experiment(f"ledger-{kind}", recipes / "ledger.yaml", seeds, {"model_name_or_path": f"scratch-{kind}"})


PARTS: dict[str, Callable[[Path], list[Experiment]]] = {
    "quick": lambda recipes: [
        _searching(
            "legs-llama", recipes,
            dict.fromkeys(("sft", "sft_equal_compute", "reading"), SEEDS)
            | dict.fromkeys(("filler", "marginal", "marginal_kl"), SEEDS[:1]),
        ),
        _ledger("t5", recipes, dict.fromkeys(("sft", "warmup"), SEEDS[:1])),
    ],
    "legs": lambda recipes: [_searching("legs-llama", recipes)],
    "legs-t5": lambda recipes: [_searching("legs-t5", recipes)],
    "skills": lambda recipes: [_searching(f"skills-{kind}", recipes) for kind in ("llama", "t5")],
    "copies": lambda recipes: [
        _searching(f"copies-{kind}", recipes, dict.fromkeys(("sft", "reading"), SEEDS)) for kind in ("llama", "t5")
    ],
    "rare": lambda recipes: [_searching("rare-llama", recipes, dict.fromkeys(("sft", "reading"), SEEDS))],
    "ledger": lambda recipes: [
        _ledger("t5", recipes, dict.fromkeys(GIVEN, SEEDS)),
        _ledger("llama", recipes, dict.fromkeys(("sft", "filler", "warmup"), SEEDS[:1])),
    ],
}  # fmt: skip


def experiments(recipes: Path, parts: list[str]) -> list[Experiment]:
    """The experiments of these parts, none twice.

    Raises:
        ValueError: there is no such part.
    """
    chosen: dict[str, Experiment] = {}
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts: {part!r} is not a part of the demo. Allowed: {', '.join(PARTS)}.")
        chosen |= {experiment.name: experiment for experiment in PARTS[part](recipes)}
    return list(chosen.values())


@dataclass
class Job:
    """One run of the demo and the runs that must be done before it."""

    experiment: Experiment
    arm: str
    seed: int
    after: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.experiment.name}/{self.arm}-{self.seed}"


def run_demo(recipes: Path, output: Path, processes: int, parts: list[str]) -> str:
    """Run everything, write results.csv, curves and RESULTS.md into `output`; the page as text.

    Finished runs found in `output` are kept, so an interrupted demo goes on where it stopped.

    Raises:
        ValueError: the recipes are not there, or a run failed (its log is named).
    """
    plan = experiments(recipes, parts)
    for experiment in plan:
        if not experiment.recipe.is_file():
            raise ValueError(f"{experiment.recipe} does not exist. Run the demo from the root of the repository.")
    return run_experiments(plan, output, processes)


def run_experiments(plan: list[Experiment], output: Path, processes: int) -> str:
    """`run_demo` for any experiments.

    Raises:
        ValueError: `output` is a run's folder, or a run failed (its log is named).
    """
    if run_of(output):
        raise ValueError(f"--output: {output} lies in a run's folder. Give a folder for the runs of the demo.")
    began = time.perf_counter()
    jobs = [job for experiment in plan for job in _jobs(experiment)]
    _check(jobs, output)
    results = _run_jobs(jobs, output, processes)
    _write_csv(output / "results.csv", plan, results)
    for experiment in plan:
        _plot(experiment, output)
    page = _page(plan, results, output)
    (output / "RESULTS.md").write_text(page, encoding="utf-8")
    report = write_report([output], output / "report")[0]
    minutes = (time.perf_counter() - began) / 60
    return (
        f"{page}\nThis took {minutes:.1f} minutes. Everything to look through, in a browser: {report}\n"
        f"Also in {output}: RESULTS.md, results.csv, *.png and a folder per run."
    )


def _jobs(experiment: Experiment) -> list[Job]:
    jobs = []
    for arm, seeds in experiment.arms.items():
        for seed in seeds:
            base = f"{experiment.name}/%s-{seed}"
            after = (base % "sft", base % experiment.main) if arm == "sft_equal_compute" else ()
            jobs.append(Job(experiment, arm, seed, after))
    return jobs


def _check(jobs: list[Job], output: Path) -> None:
    """Read every run's recipe before the first one starts: a fault must not wait for its turn."""
    from rl_warmup.config import read_recipe
    from rl_warmup.experiments.run import recipe_task

    require_extras()
    spent = {job.key: {"updates": 1, "train_seconds": 1.0} for job in jobs}
    recipes = {
        job.experiment.recipe: read_recipe(job.experiment.recipe, _settings(job, output, spent)[2:]) for job in jobs
    }
    for recipe in recipes.values():
        recipe_task(recipe)  # its metrics need libraries


def _run_jobs(jobs: list[Job], output: Path, processes: int) -> dict[str, dict[str, Any]]:
    """Results by job key. A job waits for the ones it depends on; long ones go first, so that no process is idle at the end."""
    results: dict[str, dict[str, Any]] = {}
    waiting = sorted(jobs, key=lambda job: (_place(job), job.seed))
    running: dict[Future, Job] = {}
    context = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(processes, mp_context=context, initializer=start_worker, initargs=(as_parent(),))
    with workers as pool, tqdm(total=len(jobs), desc="runs", unit="run") as bar:
        while waiting or running:
            ready = [job for job in waiting if all(key in results for key in job.after)]
            for job in ready[: processes - len(running)]:
                waiting.remove(job)
                running[pool.submit(_run, _settings(job, output, results), output / job.key)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                try:
                    results[job.key] = future.result()
                except Exception as error:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise ValueError(f"The run {job.key} failed: {error} Its log: {output / job.key}.log") from error
                bar.update()
                bar.write(_line(job, results[job.key]))
    return results


def _place(job: Job) -> int:
    """In which order arms start: the two that SFT at equal compute waits for, then it, then the others, long ones first."""
    order = (job.experiment.main, "sft", "sft_equal_compute", "marginal_kl", "marginal")
    return order.index(job.arm) if job.arm in order else len(order)


def _settings(job: Job, output: Path, results: dict[str, dict[str, Any]]) -> list[str]:
    """The flags of one run over its recipe."""
    values = {
        **job.experiment.changes, **job.experiment.settings[job.arm],
        **(job.experiment.sft if job.arm.startswith("sft") else {}), "seed": job.seed, "output_dir": str(output / job.key),
        "show_progress": False, "overwrite": True,
    }  # fmt: skip
    if job.arm == "ceiling":
        values["stored_warmups"] = str(job.experiment.gold_file)
    if job.arm == "sft_equal_compute":
        sft, main = (results[key] for key in job.after)
        ratio = COMPUTE_MARGIN * main["train_seconds"] / sft["train_seconds"]
        values["max_steps"] = max(sft["updates"], math.ceil(ratio * sft["updates"]))
        values["eval_steps"] = max(1, values["max_steps"] // 10)
    return ["--config", str(job.experiment.recipe), *(f"{key}={json.dumps(value)}" for key, value in values.items())]


def _run(flags: list[str], folder: Path) -> dict[str, Any]:
    """One run inside a worker; what it prints goes to `<folder>.log`. A finished run of the same flags is kept."""
    import torch

    from rl_warmup.config import read_recipe
    from rl_warmup.experiments.run import read_result, train_run

    torch.set_num_threads(1)
    asked = folder / "flags.json"
    if asked.is_file() and json.loads(asked.read_text()) == flags:
        with contextlib.suppress(ValueError):
            return read_result(folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(folder.name + ".log")
    with log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        result = train_run(read_recipe(flags[1], flags[2:]))
    asked.write_text(json.dumps(flags))
    return result


def _line(job: Job, result: dict[str, Any]) -> str:
    name, value = f"{job.experiment.name} {job.arm} seed {job.seed}", result["metrics"][""][HEADLINE]
    return f"{name:<40} {HEADLINE} {value:.3f}  {result['updates']} updates, {result['train_seconds']:.0f} s"


def _write_csv(path: Path, plan: list[Experiment], results: dict[str, dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for experiment in plan:
            for job in _jobs(experiment):
                result = results[job.key]
                fixed = [result["updates"], result["train_seconds"], result["switched_at"]]
                task, _, model = experiment.name.rpartition("-")
                for control, metrics in result["metrics"].items():
                    for metric, value in metrics.items():
                        writer.writerow([task, model, job.arm, control, job.seed, metric, value, *fixed])


def _plot(experiment: Experiment, output: Path) -> None:
    """Learning curves on validation rows, and, where warmups are searched, how many of the sampled ones are worked out."""
    quality: Curves = {}
    found: Curves = {}
    marks = []
    for job in _jobs(experiment):
        folder = output / job.key
        logs = read_jsonl(folder / "metrics.jsonl")
        points = [(log["step"], log[f"eval_{HEADLINE}"]) for log in logs if f"eval_{HEADLINE}" in log]
        if points:
            quality.setdefault(job.arm, []).append(points)
        if shares := _worked_out(experiment, folder):
            found.setdefault(job.arm, []).append(shares)
        if job.arm == "reading":
            marks += [step for step in [json.loads((folder / "metrics.json").read_text())["switched_at"]] if step]
    panels = [(quality, f"{experiment.name}: the model's own warmup, validation rows", HEADLINE.replace("_", " "))]
    if found:
        panels.append((found, "worked out, of the warmups that an update trains on", "share"))
    if quality:
        plot_curves(panels, output / f"{experiment.name}.png", "updates", marks, "the policy takes over")


def _worked_out(experiment: Experiment, folder: Path) -> list[tuple[float, float]]:
    """(update, share of the logged warmups that are worked out right); nothing for an experiment that knows no such thing."""
    if experiment.gold is None:
        return []
    right: dict[int, list[bool]] = {}
    for row in read_jsonl(folder / "warmups.jsonl"):
        gold = experiment.gold(row)
        right.setdefault(row["step"], []).extend(" ".join(w["warmup"].split()) == gold for w in row["warmups"])
    return [(step, sum(values) / len(values)) for step, values in right.items()]


def _page(plan: list[Experiment], results: dict[str, dict[str, Any]], output: Path) -> str:
    parts = ["# Demo results"]
    for experiment in plan:
        header = ["arm", "warmup at test", *_metrics(experiment, results), "updates", "train seconds"]
        rows = [row for arm in experiment.arms for row in _rows(experiment, arm, results)]
        most = max(map(len, experiment.arms.values()))
        seeds = f"{most} seeds, mean ± standard deviation; one where none is given" if most > 1 else "one seed"
        table = indent("\n".join(line.rstrip() for line in text_table(header, rows).splitlines()), "    ")
        parts.append(f"\n## {experiment.name} ({seeds}; test rows)\n\n{table}")
        parts.append(_examples(experiment, output))
        parts.append(EXPLANATIONS.get(experiment.task, ""))
    return "\n".join(parts) + "\n"


def _metrics(experiment: Experiment, results: dict[str, dict[str, Any]]) -> list[str]:
    return list(results[_jobs(experiment)[0].key]["metrics"][""])


def _rows(experiment: Experiment, arm: str, results: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """A line per kind of warmup of one arm, over its seeds."""
    runs = [results[job.key] for job in _jobs(experiment) if job.arm == arm]
    updates, seconds = (mean_and_deviation([run[key] for run in runs], 0) for key in ("updates", "train_seconds"))
    rows = []
    for control in runs[0]["metrics"]:
        first = not control
        label = ("none" if arm.startswith("sft") else "own warmup") if first else NAMES[control]
        values = [
            mean_and_deviation([run["metrics"][control][m] for run in runs]) for m in _metrics(experiment, results)
        ]
        rows.append([arm if first else "", label, *values, updates if first else "", seconds if first else ""])
    return rows


def _examples(experiment: Experiment, output: Path) -> str:
    """The first test rows of the main arm's first seed."""
    arm, count = experiment.main, 10 if experiment.task == "legs" else 2
    seed = experiment.arms[arm][0]
    folder = output / Job(experiment, arm, seed).key
    lines = [f"\nWhat the arm {arm} writes (seed {seed}, first test rows):\n"]
    for row in read_jsonl(folder / "predictions.jsonl")[:count]:
        lines += [f"    {name:<10} {row[name]}" for name in ("prompt", "warmup", "prediction", "target")] + [""]
    return "\n".join(lines)
