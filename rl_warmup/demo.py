"""The demo: every arm of three small experiments, side by side, and one page of what came out.

Knows: the recipes in recipes/demo, what each arm changes of them, and how many processors there are. Must not know: how
a run works. Runs go through a pool of processes with one thread each, as tiny models gain nothing from more.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

from tqdm.auto import tqdm

from rl_warmup.report import NAMES, plot_curves, spread, text_table, write_report
from rl_warmup.run_folder import read_jsonl

COLUMNS = ("task", "model", "arm", "control", "seed", "metric", "value", "updates", "train_seconds")
COMPUTE_MARGIN = 1.2  # SFT at equal compute gets at least the warmup arm's seconds, so err on its side

# what an arm changes of the recipe; the recipe itself is the warmup arm
ARMS: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft"},
    "sft_equal_compute": {"objective": "sft"},
    "filler": {"proposals": ["filler"], "proposal_only": True, "empty_share": 0.0, "anchor_weight": 0.0},
    "proposal": {"proposal_only": True, "anchor_weight": 0.0},
    "warmup": {},
}


@dataclass
class Experiment:
    """One recipe with the arms and seeds to run. `start`: arms that continue from a run of `sft_start` first."""

    name: str
    recipe: Path
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    sft_start: float = 0.0  # share of the warmup arm's updates that are plain SFT, in a run of their own

    @property
    def headline(self) -> str:
        """The metric of its table and picture."""
        return "exact_match" if self.name.startswith("ledger") else "chrf++"


def experiments(recipes: Path) -> list[Experiment]:
    """(a) ledger with a T5, (b) ledger with a Llama, (c) real translation with a Llama."""
    small = {"model_name_or_path": "scratch-llama"}
    return [
        Experiment("ledger-t5", recipes / "ledger.yaml", tuple(ARMS), (1, 2, 3)),
        Experiment("ledger-llama", recipes / "ledger.yaml", ("sft", "filler", "warmup"), (1,), small),
        Experiment("translation-llama", recipes / "translation.yaml", ("sft", "sft_equal_compute", "warmup"), (1,)),
    ]


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


def run_demo(recipes: Path, output: Path, processes: int) -> str:
    """Run everything, write results.csv, curves and RESULTS.md into `output`; the page as text.

    Finished runs found in `output` are kept, so an interrupted demo goes on where it stopped.

    Raises:
        ValueError: the recipes are not there, or a run failed (its log is named).
    """
    plan = experiments(recipes)
    for experiment in plan:
        if not experiment.recipe.is_file():
            raise ValueError(f"{experiment.recipe} does not exist. Run the demo from the root of the repository.")
    began = time.perf_counter()
    results = _run_jobs([job for experiment in plan for job in _jobs(experiment)], output, processes)
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
    for seed in experiment.seeds:
        for arm in experiment.arms:
            base = f"{experiment.name}/%s-{seed}"
            after = (base % "sft", base % "warmup") if arm == "sft_equal_compute" else ()
            jobs.append(Job(experiment, arm, seed, after))
    return jobs


def _run_jobs(jobs: list[Job], output: Path, processes: int) -> dict[str, dict[str, Any]]:
    """Results by job key. Long arms first; a job waits for the ones it depends on."""
    results: dict[str, dict[str, Any]] = {}
    waiting = sorted(jobs, key=lambda job: (job.arm != "warmup", job.experiment.name.startswith("ledger")))
    running: dict[Future, Job] = {}
    context = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread)
    with workers as pool, tqdm(total=len(jobs), desc="runs", unit="run") as bar:
        while waiting or running:
            for job in [j for j in waiting if all(key in results for key in j.after)]:
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


def _settings(job: Job, output: Path, results: dict[str, dict[str, Any]]) -> list[str]:
    """The flags of one run over its recipe."""
    values = {
        **job.experiment.changes, **ARMS[job.arm], "seed": job.seed, "output_dir": str(output / job.key),
        "show_progress": False, "overwrite": True,
    }  # fmt: skip
    if job.arm == "sft_equal_compute":
        sft, warmup = (results[key] for key in job.after)
        ratio = COMPUTE_MARGIN * warmup["train_seconds"] / sft["train_seconds"]
        values["max_steps"] = max(sft["updates"], math.ceil(ratio * sft["updates"]))
        values["eval_steps"] = max(1, values["max_steps"] // 6)
    return ["--config", str(job.experiment.recipe), *(f"{key}={json.dumps(value)}" for key, value in values.items())]


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _run(flags: list[str], folder: Path) -> dict[str, Any]:
    """One run inside a worker; what it prints goes to `<folder>.log`. A finished run of the same flags is kept."""
    from rl_warmup.config import read_recipe
    from rl_warmup.run import read_result, train_run

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
    value = result["metrics"][""][job.experiment.headline]
    name = f"{job.experiment.name} {job.arm} seed {job.seed}"
    return f"{name:<40} {job.experiment.headline} {value:.3f}  {result['updates']} updates, {result['train_seconds']:.0f} s"


def _write_csv(path: Path, plan: list[Experiment], results: dict[str, dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for experiment in plan:
            for job in _jobs(experiment):
                result = results[job.key]
                fixed = [result["updates"], result["train_seconds"]]
                for control, metrics in result["metrics"].items():
                    for metric, value in metrics.items():
                        model = result["model"].removeprefix("scratch-")
                        writer.writerow([result["task"], model, job.arm, control, job.seed, metric, value, *fixed])


def _plot(experiment: Experiment, output: Path) -> None:
    """Learning curves on validation rows, where the recipe evaluates during training."""
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for job in _jobs(experiment):
        points = [
            (record["step"], record[f"eval_{experiment.headline}"])
            for record in read_jsonl(output / job.key / "metrics.jsonl")
            if f"eval_{experiment.headline}" in record
        ]
        if points:
            curves.setdefault(job.arm, []).append([(0, 0.0), *points])
    if curves:
        title = f"{experiment.name}: the model's own warmup, validation rows"
        plot_curves(curves, output / f"{experiment.name}.png", title, "updates", experiment.headline.replace("_", " "))


def _page(plan: list[Experiment], results: dict[str, dict[str, Any]], output: Path) -> str:
    parts = ["# Demo results"]
    for experiment in plan:
        header = ["arm", "warmup at test", *_metrics(experiment, results), "updates", "train seconds"]
        rows = [row for arm in experiment.arms for row in _rows(experiment, arm, results)]
        seeds = f"{len(experiment.seeds)} seeds, mean ± standard deviation" if len(experiment.seeds) > 1 else "one seed"
        table = indent("\n".join(line.rstrip() for line in text_table(header, rows).splitlines()), "    ")
        parts.append(f"\n## {experiment.name} ({seeds}; test rows)\n\n{table}")
        parts.append(_examples(experiment, output))
        parts.append(EXPLANATIONS[experiment.name])
    return "\n".join(parts) + "\n"


def _metrics(experiment: Experiment, results: dict[str, dict[str, Any]]) -> list[str]:
    return list(results[_jobs(experiment)[0].key]["metrics"][""])


def _rows(experiment: Experiment, arm: str, results: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """A line per kind of warmup of one arm, over its seeds."""
    runs = [results[job.key] for job in _jobs(experiment) if job.arm == arm]
    updates = spread([run["updates"] for run in runs], 0)
    seconds = spread([run["train_seconds"] for run in runs], 0)
    rows = []
    for control in runs[0]["metrics"]:
        first = not control
        label = ("none" if arm.startswith("sft") else "own warmup") if first else NAMES[control]
        values = [spread([run["metrics"][control][m] for run in runs]) for m in _metrics(experiment, results)]
        rows.append([arm if first else "", label, *values, updates if first else "", seconds if first else ""])
    return rows


def _examples(experiment: Experiment, output: Path, count: int = 2) -> str:
    """A few test rows of the warmup arm's first seed."""
    folder = output / Job(experiment, "warmup", experiment.seeds[0]).key
    lines = [f"\nWhat the warmup arm writes (seed {experiment.seeds[0]}, first test rows):\n"]
    for row in read_jsonl(folder / "predictions.jsonl")[:count]:
        lines += [f"    {name:<10} {row[name]}" for name in ("prompt", "warmup", "prediction", "target")] + [""]
    return "\n".join(lines)


EXPLANATIONS = {
    "ledger-t5": """\
What this proves: a warmup can carry computation. The target lists running totals newest first, so its first word needs
the whole sum at once; SFT, also at the warmup arm's training time, and the filler (the same number of extra positions,
without content) stay low, and shuffling warmups across prompts destroys the result: the warmup is what is read. What it
does not prove: that a warmup is discovered from nothing. The proposal (the target's words reversed) contains the easy
order; `proposal` only imitates it, and `warmup` goes on from there with its own samples, so compare these two for what
the objective adds.""",
    "ledger-llama": """\
The same recipe with the model line changed: a decoder-only model behaves alike. One seed, so differences of a few points
mean nothing.""",
    "translation-llama": """\
Real text, a few minutes of training from random weights on a few thousand sentences: none of these is a usable
translator, one seed has no error bar, and the figures are printed as they come out, better or worse. Compare `warmup`
with `sft_equal_compute`, which trained for at least as many seconds, and its own warmup with the shuffled one: where they score
alike, the warmup is not read. (A T5 of this size learned less in the same time, so this part uses the Llama.)""",
}
