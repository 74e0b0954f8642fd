"""The answer to a sweep's question: results.csv, results.md and the report, from the run folders.

Knows: metrics.json, the tests of `metrics.significance`, the report. Must not know: how runs were made. Every arm is compared
with the control on the sweep's own metric: between seeds (Welch) where both sides have two, else over the rows of one run
each (paired bootstrap); Holm over all of these.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rl_warmup.experiments.report import NAMES, mean_and_deviation, text_table, write_report
from rl_warmup.experiments.report.differences import ALPHA, ROWS, SEEDS, Difference, adjust
from rl_warmup.experiments.report.tables import between, figure, probability
from rl_warmup.experiments.sweeps.arms import Arm, Plan, label
from rl_warmup.experiments.sweeps.study import FAILED, PRUNED, Queue
from rl_warmup.metrics.significance import compare_runs, compare_seeds, over_seeds

COLUMNS = ("task", "model", "arm", "control", "seed", "metric", "value", "updates", "train_seconds")
HEADER = ("arm", "warmup at test", "seeds", "mean ± sd", "95 % interval", "difference", "95 % interval", "p (Holm)",
          "updates", "train seconds")  # fmt: skip


@dataclass
class Line:
    """One arm under one kind of warmup at test: a result per seed."""

    arm: str
    warmups: str
    results: dict[int, dict[str, Any]]
    values: dict[int, float]
    difference: Difference | None = None


@dataclass
class Outcome:
    """What a sweep came to. `failed`: run -> what it said."""

    text: str
    failed: dict[str, str]
    files: list[Path] = field(default_factory=list)


def write_answer(plan: Plan, queue: Queue, note: str | None) -> Outcome:
    """Write results.csv, results.md and report/ into the sweep's folder; `note` is said beside the table."""
    arms = plan.arms + [Arm(name, params, params) for name, params in queue.made().items()]
    found = {arm.name: _results(plan, arm) for arm in arms}
    failed = queue.errors()
    states = list(queue.standing().values())
    missing = queue.total - len(states) + sum(state not in ("done", FAILED, PRUNED) for state in states)
    notes = [note] if note else []
    if missing:
        notes.append(f"{missing} of {queue.total} are not done; the same command goes on with them.")
    if pruned := states.count(PRUNED):
        notes.append(f"{pruned} were ended early by the pruner and have no result.")
    notes += [f"FAILED {key}: {error}" for key, error in failed.items()]
    files = []
    if any(found.values()):
        _write_csv(plan.output / "results.csv", found)
        lines = compare(plan, _lines(plan, found))
        table = _table(plan, lines)
        text = _page(plan, arms, lines, table, notes)
        (plan.output / "results.md").write_text(text, encoding="utf-8")
        files = [plan.output / "results.csv", plan.output / "results.md"]
        try:
            control = plan.question.control if found.get(plan.question.control or "") else None
            files.insert(0, write_report([plan.output], plan.output / "report", control)[0])
        except ImportError as error:
            notes.append(f"No report.html: {error}")
        shown = [plan.question.question, "", text_table(HEADER, table), "", *_verdicts(plan, lines), *notes]
    else:
        shown = ["No run has a result yet.", *notes]
    return Outcome("\n".join(shown), failed, files)


def _results(plan: Plan, arm: Arm) -> dict[int, dict[str, Any]]:
    """metrics.json by seed, of the runs that are finished."""
    found = {}
    for seed in plan.question.seeds:
        path = plan.output / arm.name / f"seed-{seed}" / "metrics.json"
        if path.is_file():
            found[seed] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write_csv(path: Path, found: dict[str, dict[int, dict[str, Any]]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for arm, results in found.items():
            for seed, result in results.items():
                model = str(result["model"]).removeprefix("scratch-")
                for control, metrics in result["metrics"].items():
                    for metric, value in metrics.items():
                        fixed = [result["updates"], result["train_seconds"]]
                        writer.writerow([result["task"], model, arm, control, seed, metric, value, *fixed])


def _lines(plan: Plan, found: dict[str, dict[int, dict[str, Any]]]) -> list[Line]:
    lines = []
    for arm, results in found.items():
        for warmups in plan.question.warmups:
            values = {
                seed: result["metrics"][warmups][plan.question.metric]
                for seed, result in results.items()
                if plan.question.metric in result["metrics"].get(warmups, {})
            }
            if values:
                lines.append(Line(arm, warmups, results, values))
    return lines


def compare(plan: Plan, lines: Sequence[Line]) -> list[Line]:
    """Every line against the control's line with the same warmups at test (its own where it has no such), Holm over all.

    Arms that were scored on other rows, or with other settings of the metrics, are not compared.
    """
    control = plan.question.control
    bases = {line.warmups: line for line in lines if line.arm == control}
    tested = []
    for line in lines:
        base = bases.get(line.warmups) or bases.get("")
        same = base is not None and _comparable(line, base)
        tested.append(
            replace(line, difference=_difference(plan, line, base)) if same and base and base is not line else line
        )
    adjusted = adjust([line.difference for line in tested])
    return [replace(line, difference=d) for line, d in zip(tested, adjusted, strict=True)]


def _comparable(line: Line, base: Line) -> bool:
    facts = [{json.dumps([r.get("rows_hash"), r.get("signatures")]) for r in x.results.values()} for x in (line, base)]
    return line.arm != base.arm and facts[0] == facts[1] and len(facts[0]) == 1


def _difference(plan: Plan, line: Line, base: Line) -> Difference:
    if len(line.values) > 1 and len(base.values) > 1:
        seeds = compare_seeds(list(base.values.values()), list(line.values.values()))
        return Difference(base.arm, seeds.difference, seeds.interval, seeds.p_value, SEEDS)
    shared = [seed for seed in line.values if seed in base.values]
    one, other = (shared[0], shared[0]) if shared else (next(iter(base.values)), next(iter(line.values)))
    value = line.values[other] - base.values[one]
    folders = plan.output / base.arm / f"seed-{one}", plan.output / line.arm / f"seed-{other}"
    try:
        found = compare_runs(*folders, one_control=base.warmups, other_control=line.warmups)
    except ValueError:  # a metric that cannot be resampled, or predictions that were removed
        return Difference(base.arm, value, None, None, ROWS)
    rows = next((item for item in found if item.metric == plan.question.metric), None)
    if rows is None:
        return Difference(base.arm, value, None, None, ROWS)
    return Difference(base.arm, value, rows.interval, rows.p_value, ROWS)


def _table(plan: Plan, lines: Sequence[Line]) -> list[list[str]]:
    digits = 3 if all(abs(value) <= 1 for line in lines for value in line.values.values()) else 2
    rows = []
    for line in lines:
        summary, difference = over_seeds(list(line.values.values())), line.difference
        results = list(line.results.values())
        name = line.arm + (" (control)" if line.arm == plan.question.control else "")
        sft = results[0].get("objective") == "sft"
        rows.append([
            name, "none (SFT)" if sft and not line.warmups else NAMES[line.warmups], str(summary.n),
            figure(summary.mean, digits) + (f" ± {figure(summary.std, digits)}" if summary.std is not None else ""),
            _interval(summary.interval, digits),
            figure(difference.value, digits, signed=True) if difference else "",
            _interval(difference.interval if difference else None, digits, signed=True),
            probability(difference.p_holm if difference else None),
            mean_and_deviation([r["updates"] for r in results], 0), mean_and_deviation([r["train_seconds"] for r in results], 1),
        ])  # fmt: skip
    return rows


def _interval(interval: tuple[float, float] | None, digits: int, signed: bool = False) -> str:
    return between(interval[0], interval[1], digits, signed) if interval else ""


def _verdicts(plan: Plan, lines: Sequence[Line]) -> list[str]:
    """What the tests say, in words."""
    tested = [(line, line.difference) for line in lines if line.difference is not None]
    if not tested:
        return []
    metric, against, up = plan.question.metric, plan.question.control, plan.question.direction == "maximize"
    clear = [(x, d.value) for x, d in tested if d.p_holm is not None and d.p_holm <= ALPHA]

    def named(group: list[Line]) -> str:
        return ", ".join(x.arm + (f" ({NAMES[x.warmups]})" if x.warmups else "") for x in group)

    gains = [x for x, value in clear if (value > 0) == up]
    losses = [x for x, value in clear if (value > 0) != up]
    unclear = [x for x, _ in tested if x not in gains + losses]
    said = [f"{metric} better than {against}'s: {named(gains)}."] if gains else []
    said += [f"{metric} worse than {against}'s: {named(losses)}."] if losses else []
    said += [f"No difference from {against} shown: {named(unclear)}."] if unclear else []
    basis = {d.basis for _, d in tested}
    how = (
        "between seeds (Welch)"
        if basis == {SEEDS}
        else "over rows of one seed (bootstrap), which says nothing of seeds"
    )
    if len(basis) > 1:
        how = "between seeds (Welch) where there are two, else over rows of one"
    family = tested[0][1].family
    said += [text for x, _ in tested if (text := _of_ceiling(plan, x, x in gains))]
    return [*said, f"Tests {how}, Holm over {family} comparison{'' if family == 1 else 's'}."]


def _of_ceiling(plan: Plan, line: Line, gains: bool) -> str:
    """What an arm that imitates given warmups alone says of those that could be found; nothing for any other arm."""
    changes = next((arm.changes for arm in plan.arms if arm.name == line.arm), {})
    settings = plan.base | plan.question.settings | changes
    if line.warmups or settings.get("proposals") != ["stored"] or not settings.get("proposal_only"):
        return ""
    if gains:
        return f"Warmups as good as those of {line.arm} pay here: a model that finds such warmups can gain as much."
    return (
        f"Not even the warmups of {line.arm}, imitated, are shown to beat {plan.question.control}: if they are as good as can "
        "be, there is nothing to find here."
    )


def _page(plan: Plan, arms: list[Arm], lines: list[Line], table: list[list[str]], notes: list[str]) -> str:
    """results.md."""
    question = plan.question
    rule = ["---" if i == 0 else "---:" for i in range(len(HEADER))]
    changes = [
        f"| {arm.name} | {', '.join(f'{k}: {label(v)}' for k, v in arm.changes.items()) or 'the base'} |"
        for arm in arms
    ]
    shared = ", ".join(f"{key}: {value}" for key, value in question.settings.items())
    said = [*_verdicts(plan, lines), *notes]
    split = (plan.base | question.settings).get("predict_split", "test")
    parts = [
        f"# {question.question}", "",
        f"Base recipe `{question.base.name}`{f', with {shared}' if shared else ''}; metric {question.metric}; seeds "
        f"{', '.join(map(str, question.seeds))}; {split} rows.", "",
        *["| " + " | ".join(row) + " |" for row in [list(HEADER), rule, *table]], "",
        *[f"- {text}" for text in said], *([""] if said else []),
        "| arm | changes |", "| --- | --- |", *changes,
    ]  # fmt: skip
    return "\n".join(parts).rstrip() + "\n"
