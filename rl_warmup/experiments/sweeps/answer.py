"""The answer to a sweep's question: results.csv, results.md and the report, from the run folders.

Every arm is compared with the control on the sweep's own metric.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_warmup.experiments.collect import Arm
from rl_warmup.experiments.compare import SEEDS, Entry, MetricResults, compare_entries, mean_and_deviation, row_test
from rl_warmup.experiments.report import NAMES, text_table, write_report
from rl_warmup.experiments.report.words import entry_cells, markdown_table, plural
from rl_warmup.experiments.sweeps.jobs import Sweep, Variant, label
from rl_warmup.experiments.sweeps.study import DONE, FAILED, PRUNED, Queue
from rl_warmup.runtime.run_files import scored_with

COLUMNS = ("task", "model", "arm", "control", "seed", "metric", "value", "updates", "train_seconds")
HEADER = ("arm", "warmup at test", "seeds", "mean ± sd", "95 % interval", "difference", "95 % interval", "p (Holm)",
          "updates", "train seconds")  # fmt: skip


@dataclass
class Answer:
    """What a sweep came to. `failed`: run -> what it said."""

    text: str
    failed: dict[str, str]
    files: list[Path] = field(default_factory=list)


def write_answer(sweep: Sweep, queue: Queue, note: str | None) -> Answer:
    """Write results.csv, results.md and report/ into the sweep's folder; `note` is said beside the table."""
    variants = sweep.variants + [Variant(name, params, params) for name, params in queue.made().items()]
    failed, standing = queue.errors(), queue.standing()
    states = list(standing.values())
    # of such an arm the better seeds alone would be left
    pruned = {key.rpartition("/seed-")[0] or key for key, state in standing.items() if state == PRUNED}
    arms = sweep.arms([variant for variant in variants if variant.name not in pruned])
    notes = [note] if note else []
    if missing := queue.total - sum(state in (DONE, FAILED, PRUNED) for state in states):
        notes.append(f"{missing} of {queue.total} are not done; the same command goes on with them.")
    if pruned:
        notes.append(
            f"The pruner ended {states.count(PRUNED)} early: {', '.join(sorted(pruned))}, left out of the table."
        )
    notes += [f"FAILED {key}: {error}" for key, error in failed.items()]
    notes += _too_short(sweep, arms)
    if not arms:
        return Answer("\n".join(["No run has a result yet.", *notes]), failed)
    files = [sweep.output / "results.csv", sweep.output / "results.md"]
    write_csv(files[0], COLUMNS, csv_lines(arms))
    results = compare_with_control(sweep, arms)
    table, verdicts = _table(results), _verdicts(sweep, results)
    files[1].write_text(_page(sweep, variants, table, [*verdicts, *notes]), encoding="utf-8", errors="backslashreplace")
    try:
        control = results.control_arm.name if results.control_arm else None
        asked = sweep.question
        report = write_report(
            [sweep.output],
            sweep.output / "report",
            control,
            question=asked.question,
            metric=asked.metric,
            direction=asked.direction,
        )
        files.insert(0, report[0])
    except ImportError as error:
        notes.append(f"No report.html: {error}")
    shown = [sweep.question.question, "", text_table(HEADER, table), "", *verdicts, *notes]
    return Answer("\n".join(shown), failed, files)


def _too_short(sweep: Sweep, arms: Sequence[Arm]) -> Iterator[str]:
    """Runs of equal compute that had less of it in the end: their updates were chosen by the seconds of another run."""
    seconds = {(arm.name, run.seed): run.result["train_seconds"] for arm in arms for run in arm.runs}
    for name, rule in sweep.question.equal_compute.items():
        other = rule["seconds_of"]
        for (arm, seed), spent in seconds.items():
            wanted = seconds.get((other, seed), 0.0) if arm == name else 0.0
            if spent < wanted:
                yield (
                    f"{name}, seed {seed}: {spent:.3g} seconds of training, fewer than {other}'s {wanted:.3g}, so compute is not "
                    f"equal. Its updates were reckoned from the time of another run; longer runs are timed more evenly."
                )


def csv_lines(arms: Iterable[Arm], **named: str) -> Iterator[dict[str, Any]]:
    """A line per run, control and metric; `named`: columns that the caller knows better."""
    for arm in arms:
        for run in arm.runs:
            model = str(run.result["model"]).removeprefix("scratch-")
            fixed = {**run.result, "model": model, "arm": arm.name, "seed": run.seed, **named}
            for control, metrics in run.metrics.items():
                for metric, value in metrics.items():
                    yield {**fixed, "control": control, "metric": metric, "value": value}


def write_csv(path: Path, columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> None:
    """These columns of the lines."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)


def compare_with_control(sweep: Sweep, arms: Sequence[Arm]) -> MetricResults:
    """Every entry against the control's entry with the same warmups at test (its own where it has no such).

    Arms that were scored on other rows, or with other settings of the metrics, are not compared.
    """
    metric, control = sweep.question.metric, sweep.question.control
    entries = [Entry(arm, name, arm.values(metric, name)) for arm in arms for name in sweep.question.warmups]
    entries = [entry for entry in entries if entry.values]
    of_control = {entry.control: entry for entry in entries if entry.arm.name == control}
    bases = [of_control.get(entry.control) or of_control.get("") for entry in entries]
    pairs = zip(entries, bases, strict=True)
    bases = [base if base and _comparable(entry.arm, base.arm) else None for entry, base in pairs]
    found = compare_entries(metric, entries, bases, row_test)
    arm = next((arm for arm in arms if arm.name == control), None)
    return MetricResults(metric, arm, found, sweep.question.direction)


def _comparable(arm: Arm, base: Arm) -> bool:
    """Whether all their runs were scored on the same rows with the same settings."""
    scored = [(run.result.get("rows_hash"), scored_with(run.result)) for run in (*arm.runs, *base.runs)]
    return arm is not base and all(one == scored[0] for one in scored)


def _table(results: MetricResults) -> list[list[str]]:
    rows = []
    for entry in results.entries:
        arm = entry.arm
        name = arm.name + (" (control)" if arm is results.control_arm else "")
        warmup = "none (SFT)" if arm.objective == "sft" and not entry.control else NAMES[entry.control]
        updates, seconds = ([run.result[key] for run in arm.runs] for key in ("updates", "train_seconds"))
        costs = [mean_and_deviation(updates, 0), mean_and_deviation(seconds, 1)]
        rows.append([name, warmup, *entry_cells(entry, results.digits), *costs])
    return rows


def _verdicts(sweep: Sweep, results: MetricResults) -> list[str]:
    """What the tests say, in words."""
    tested = [(entry, entry.difference) for entry in results.entries if entry.difference is not None]
    if not tested:
        return []
    metric, against, up = results.metric, sweep.question.control, sweep.question.direction == "maximize"

    def named(group: list[Entry]) -> str:
        return ", ".join(x.arm.name + (f" ({NAMES[x.control]})" if x.control else "") for x in group)

    gains = [x for x, d in tested if d.shown and (d.value > 0) == up]
    losses = [x for x, d in tested if d.shown and (d.value > 0) != up]
    groups = {
        f"{metric} better than {against}'s": gains,
        f"{metric} worse than {against}'s": losses,
        f"No difference from {against} shown": [x for x, d in tested if not d.shown and d.p_holm is not None],
    }
    for x, d in tested:
        if not d.shown and d.p_holm is None:
            missing = "no spread between its seeds" if d.basis == SEEDS else f"no test of {metric} over rows"
            groups.setdefault(f"Not tested against {against} ({(d.untested or missing).rstrip('.')})", []).append(x)
    said = [f"{what}: {named(group)}." for what, group in groups.items() if group]
    for x in (x for x, _ in tested if not x.control):
        result = "gains" if x in gains else "loses" if x in losses else ""
        said += filter(None, [_of_ceiling(sweep, x.arm.name, result)])
    basis = {d.basis for _, d in tested}
    how = "over rows of one seed (bootstrap), which says nothing of seeds"
    if SEEDS in basis:
        how = "between seeds (Welch)" + (" where there are two, else over rows of one" if len(basis) > 1 else "")
    family = tested[0][1].family
    holm = f", Holm over {plural(family, 'comparison')}" if family else ""
    return [*said, f"Tests {how}{holm}."]


def _of_ceiling(sweep: Sweep, arm: str, result: str) -> str:
    """What an arm that imitates given warmups alone says of those that could be found; nothing for any other arm.

    `result`: `gains`, `loses`, or nothing where no difference is shown.
    """
    changes = next((variant.changes for variant in sweep.variants if variant.name == arm), {})
    settings = sweep.base | sweep.question.settings | changes
    if settings.get("proposals") != ["stored"] or not settings.get("proposal_only"):
        return ""
    if result == "gains":
        return f"Warmups as good as those of {arm} pay here: a model that finds such warmups can gain as much."
    what = "does worse than" if result == "loses" else "is not shown to beat"
    said = f"A model that imitates the warmups of {arm} {what} {sweep.question.control}"
    return f"{said}: if no better warmups exist, there is nothing to find here."


def _page(sweep: Sweep, variants: Sequence[Variant], table: list[list[str]], said: list[str]) -> str:
    """results.md."""
    question = sweep.question
    changes = []
    for variant in variants:
        shown = [f"{key}: {label(value)}" for key, value in variant.changes.items()]
        if rule := question.equal_compute.get(variant.name):
            shown.append(f"updates for the seconds of {rule['seconds_of']}")
        changes.append(f"| {variant.name} | {', '.join(shown) or 'the base'} |")
    shared = ", ".join(f"{key}: {value}" for key, value in question.settings.items())
    split = (sweep.base | question.settings).get("predict_split", "test")
    parts = [
        f"# {question.question}", "",
        f"Base recipe `{question.base.name}`{f', with {shared}' if shared else ''}; metric {question.metric}; seeds "
        f"{', '.join(map(str, question.seeds))}; {split} rows.", "",
        *markdown_table(HEADER, table), "",
        *[f"- {text}" for text in said], *([""] if said else []),
        "| arm | changes |", "| --- | --- |", *changes,
    ]  # fmt: skip
    return "\n".join(parts).rstrip() + "\n"
