"""What came out, in words and cells: is it better, by how much, how sure, at what cost, and is the warmup read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rl_warmup.experiments.collect import Arm, Section
from rl_warmup.experiments.compare import COSTS, ROWS, SEEDS, Difference, Entry, MetricResults, spent
from rl_warmup.experiments.report.curves import Chart, at_budget
from rl_warmup.options import CONTROL_NAMES as NAMES

BETTER, WORSE, UNCLEAR, UNTESTED = "better", "worse", "no difference shown", "not tested"
HEADER = ("arm", "warmup", "seeds", "mean ± sd", "95% interval", "difference", "its 95% interval", "p (Holm)")
LIKELIHOOD = (
    "log P(y|x) in nats per target, mean over rows ± standard error: exact without a warmup, else the bound from n sampled "
    "warmups, which grows towards it. Gain: with a sampled warmup minus without; no overlap: what a straight line "
    "leaves of it where no token of the target stands in the warmup, a guess where no such warmup was seen."
)
COST_HEADER = ("arm", "seeds", "updates", "seconds", "tokens", "FLOPs", "seconds per update", "time, control = 1")


class Finding(NamedTuple):
    """One sentence or two, after a verdict of a few words; `tone` is better, worse or nothing."""

    verdict: str
    tone: str
    text: str


@dataclass
class Cells:
    """A table as text; empty where there is nothing. `arms`: the arm of each row."""

    header: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    arms: list[str] = field(default_factory=list)

    def add(self, arm: str, *cells: str) -> None:
        """A row; only the first row of an arm shows its name."""
        self.rows.append(["" if arm in self.arms else arm, *cells])
        self.arms.append(arm)


def title(section: Section) -> str:
    return f"{section.task}, {section.model}"


def titles(sections: Sequence[Section]) -> list[str]:
    """A title per section, all different, as file names too: with the rows where task and model are those of another section,
    and with a number where the rows are as well."""
    found = [title(section) for section in sections]
    rows = [f"{s.rows} {s.split} rows, hash {s.rows_hash[:12] or 'unknown'}" for s in sections]
    for more in (rows, [f"metric settings {number}" for number in range(1, len(found) + 1)]):
        times = Counter(map(file_name, found))
        found = [f"{one}, {text}" if times[file_name(one)] > 1 else one for one, text in zip(found, more, strict=True)]
    return found


def file_name(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub(r"[^a-z0-9+]+", "-", text.lower()).strip("-")


def compared(section: Section, control: Arm | None, asked: bool) -> str:
    """What was compared, on which rows."""
    arms = ", ".join(f"{arm.name} ({plural(len(arm.runs), 'seed')})" for arm in section.arms)
    rows = f"the same {section.rows} {section.split} rows (hash {section.rows_hash[:12] or 'unknown'})"
    text = f"{arms}; all scored on {rows}. "
    if len(section.arms) == 1:
        return text + "There is only one arm, so nothing is compared but its own controls."
    if control is None:
        return text + "No arm is the control here: name one with --control-run, and differences are shown."
    why = "as asked for" if asked else "the SFT arm that trained longest"
    return text + f"The control is {control.name}, {why}. The headline is {section.metrics[0]}."


def findings(section: Section, results: MetricResults) -> list[Finding]:
    """A finding per arm against the control, then per arm whose warmups were shuffled."""
    own = [entry for entry in results.entries if not entry.control]
    own.sort(key=lambda entry: _rank(entry, results))
    against = [_against_control(entry, d, results) for entry in own if (d := entry.difference)]
    shuffled = [entry for entry in results.entries if entry.control == "shuffled"]
    read = [_is_read(entry, d, results) for entry in shuffled if (d := entry.difference)] + _warnings(section)
    if not against and not read:
        values = [f"{entry.arm.name} {_mean(entry, results.digits)}" for entry in own if entry.summary]
        return [Finding("", "", f"{results.metric}: {', '.join(values)}.")] if values else []
    return against + read


def notes(section: Section, results: Sequence[MetricResults]) -> list[str]:
    """What a reader has to know before believing the numbers."""
    varying = {arm.name: keys for arm in section.arms if (keys := arm.varying())}
    found = [f"The seeds of {name} differ in {', '.join(keys)} as well." for name, keys in varying.items()]
    single = [arm.name for arm in section.arms if len(arm.runs) == 1]
    if len(single) == len(section.arms):
        found.append("One seed per arm: nothing here says how much of a difference comes from the seed.")
    elif single:
        found.append(f"One seed only: {', '.join(single)}.")
    differences = [entry.difference for one in results for entry in one.entries]
    failed = dict.fromkeys(d.untested for d in differences if d and d.untested)
    return found + [f"A test could not be made: {reason}" for reason in failed]


def result_cells(results: MetricResults) -> Cells:
    """The results table of one metric."""
    cells = Cells(HEADER)
    for entry in results.entries:
        seeds, mean, interval, difference, *test = entry_cells(entry, results.digits)
        against = f"{difference} from {entry.difference.against}" if entry.difference else ""
        name = control_name(entry.control, entry.arm.objective)
        cells.add(entry.arm.name, name, seeds, mean, interval, against, *test)
    return cells


def entry_cells(entry: Entry, digits: int) -> list[str]:
    """Number of seeds, mean and deviation, interval, difference, its interval, p-value."""
    s, d = entry.summary, entry.difference
    shown = [str(s.n), _mean(entry, digits), between(s.interval, digits)] if s else [""] * 3
    if d is None:
        return shown + [""] * 3
    return [*shown, figure(d.value, digits, True), between(d.interval, digits, True), probability(d.p_holm)]


def how_tested(results: MetricResults) -> str:
    """The tests behind a table, named."""
    found = [d for entry in results.entries if (d := entry.difference) and d.p_value is not None]
    bounds = next((entry.bounds for entry in results.entries if entry.bounds), None)
    cut = f", cut at {bounds[0]:g} and {bounds[1]:g}" if bounds else ""
    intervals = f"Intervals of means: Student's t over seeds{cut}; none where the seeds do not vary."
    if not found:
        return f"{intervals} Nothing here could be tested."
    bootstrap = "paired bootstrap over the rows of one run each (no word on seeds)"
    ways = {SEEDS: "Welch's t test between seeds", ROWS: bootstrap}
    used = [text for basis, text in ways.items() if any(d.basis == basis for d in found)]
    count = found[0].family
    adjusted = f"p-values adjusted for the {count} comparisons of this table (Holm)" if count > 1 else "one comparison"
    return f"{intervals} Differences: {', or '.join(used)}; {adjusted}."


def cost_cells(section: Section, control: Arm | None) -> Cells:
    """What each arm spent, mean over seeds; without the columns that no run measured."""
    cells = Cells(COST_HEADER)
    base = spent(control).get("train_seconds") if control else None
    for arm in section.arms:
        cost = spent(arm)
        seconds, updates = cost.get("train_seconds"), cost.get("updates")
        speed = figure(seconds / updates, 3) if seconds is not None and updates else ""
        ratio = figure(seconds / base, 2) if seconds is not None and base else ""
        cells.add(arm.name, str(len(arm.runs)), *(amount(cost.get(key)) for key in COSTS), speed, ratio)
    kept = [i for i in range(len(COST_HEADER)) if any(row[i] for row in cells.rows)]
    return Cells([COST_HEADER[i] for i in kept], [[row[i] for i in kept] for row in cells.rows], cells.arms)


def likelihood_cells(section: Section) -> Cells | None:
    """log P(y|x) of every run that `evaluate --likelihood` measured: without a warmup, and by bounds of growing n."""
    runs = [(arm, run, found) for arm in section.arms for run in arm.runs if (found := run.result.get("likelihood"))]
    counts = sorted({n for *_, found in runs for n in found.get("bound", {})}, key=int)
    cells = Cells(["arm", "seed", "no warmup", *(f"n = {n}" for n in counts), "gain", "gain, no overlap"])
    for arm, run, found in runs:
        gain = found.get("gain", {})
        means = [found.get("without_warmup", {}), *(found.get("bound", {}).get(n, {}) for n in counts), gain]
        shown = [(one.get("mean"), one.get("std_error")) for one in means]
        shown.append((gain.get("at_no_overlap"), gain.get("at_no_overlap_std_error")))
        texts = [figure(mean, 3) + (f" ± {figure(error, 3)}" if error is not None else "") for mean, error in shown]
        cells.add(arm.name, str(run.seed), *texts)
    return cells if runs else None


def phases(ends: Mapping[str, Mapping[str, float]]) -> str:
    """What the bars above the curves mean, and where each ends. `ends`: see `curves.phase_ends`."""
    where = ", ".join(f"{arm} {amount(axes['updates'])}" for arm, axes in ends.items())
    return (
        "Bar at the top: as long as an arm trains on proposals or on samples of the starting model, before its own warmups "
        f"(cold start, reading); it ends at the dotted line, mean over seeds (update: {where})."
    )


def equal_compute_cells(chart: Chart, control: Arm | None) -> Cells | None:
    """Validation quality at the control's whole budget: the last evaluation of each arm that it pays for."""
    budget = spent(control) if control else {}
    axes = [axis for axis in chart.axes if axis in budget]
    cells = Cells(["arm", *(f"at {amount(budget[axis])} {COSTS[axis]}" for axis in axes)])
    for curve in chart.curves:
        points = [at_budget(curve, axis, budget[axis]) for axis in axes]
        cells.add(curve.arm, *(figure(p[1], 3 if abs(p[1]) <= 1 else 2) if p else "" for p in points))
    return cells if axes and len(chart.curves) > 1 else None


def separated(sections: Sequence[Section]) -> str | None:
    """Why there are several sections, if there are."""
    if len(sections) < 2:
        return None
    same = "the same task, the same model, the same rows and the same metric settings"
    text = f"These runs make {len(sections)} separate comparisons. Runs stand in one table only if they have {same}"
    return " ".join([f"{text}; nothing is compared across sections.", *_other_data(sections)])


def _other_data(sections: Sequence[Section]) -> Iterator[str]:
    for i, one in enumerate(sections):
        for other in [section for section in sections[:i] if title(section) == title(one)]:
            if one.rows_hash != other.rows_hash or one.split != other.split:
                rows = [f"{s.rows} {s.split} rows, hash {s.rows_hash[:12] or 'unknown'}" for s in (other, one)]
                yield f"Different data: {title(one)} was scored on different rows ({rows[0]}; {rows[1]})."
            else:
                yield f"Different metric settings: {title(one)} was scored with {other.signatures} and {one.signatures}."


def _against_control(entry: Entry, d: Difference, results: MetricResults) -> Finding:
    control, digits = results.control_arm, results.digits
    assert control is not None, "else there is no difference"
    verdict, tone = _verdict(results, d)
    text = f"{entry.arm.name} {_mean(entry, digits)}, {d.against} {_mean(results.entry(control.name), digits)}"
    text += f" ({results.metric}): a difference of {figure(d.value, digits, True)}{_sureness(d, digits)}."
    return Finding(verdict, tone, text + _cost(entry.arm, control))


def _is_read(entry: Entry, d: Difference, results: MetricResults) -> Finding:
    before, after = (_mean(one, results.digits) for one in (results.entry(entry.arm.name), entry))
    start = (
        f"{entry.arm.name}, each prompt with another prompt's warmup: {results.metric} goes from {before} to {after}"
    )
    start += f"{_sureness(d, results.digits)}."
    if d.p_holm is None:
        return Finding(UNTESTED, "", start)
    if not d.shown:
        return Finding("use of the warmup not shown", "", f"{start} Nothing shows that what it says matters.")
    if results.better(d.value):
        return Finding("warmup harms", WORSE, f"{start} Its own warmups are worse than foreign ones.")
    return Finding("warmup is read", BETTER, start)


def _warnings(section: Section) -> list[Finding]:
    """What the collapse guard said, once per arm and rule."""
    said: dict[tuple[str, str], list[tuple[str, str]]] = {}
    warnings = [(arm.name, run.seed, warning) for arm in section.arms for run in arm.runs for warning in run.warnings]
    for arm, seed, warning in warnings:
        told = f"seed {seed}, update {warning.get('step')}", f"{warning.get('sees')}; {warning.get('means')}"
        said.setdefault((arm, str(warning.get("rule"))), []).append(told)
    texts = [f"{arm} ({', '.join(place for place, _ in told[:5])}): {told[0][1]}." for (arm, _), told in said.items()]
    return [Finding("the guard warned", WORSE, text) for text in texts]


def _rank(entry: Entry, results: MetricResults) -> tuple[int, float]:
    """Better arms first, then those without a difference, then worse ones."""
    d = entry.difference
    if d is None:
        return 3, 0.0
    up = d.value if results.better(1.0) else -d.value
    return (0 if up > 0 else 2) if d.shown else 1, -up


def _verdict(results: MetricResults, d: Difference) -> tuple[str, str]:
    if not d.shown:
        return UNTESTED if d.p_holm is None else UNCLEAR, ""
    word = BETTER if results.better(d.value) else WORSE
    return (word if d.basis == SEEDS else f"{word} on these rows, one seed"), word


def _sureness(d: Difference, digits: int) -> str:
    """How sure: interval, p-value and what it is based on."""
    if d.p_value is None:
        return " (the seeds do not vary, so there is no test)" if d.basis == SEEDS else " (no test was possible)"
    interval = f"95% interval {between(d.interval, digits, True)}; " if d.interval else ""
    adjusted = f" after Holm for {d.family} comparisons" if d.family > 1 else ""
    p = probability(d.p_holm)
    return f" ({interval}p {p if p.startswith('<') else f'= {p}'}{adjusted}, over {d.basis})"


def _cost(arm: Arm, control: Arm) -> str:
    ours, theirs = spent(arm), spent(control).get("train_seconds")
    units = {"updates": "updates", "train_seconds": "s of training"}
    text = " and ".join(f"{amount(ours[key])} {unit}" for key, unit in units.items() if key in ours)
    if "train_seconds" in ours and theirs:
        text += f", {figure(ours['train_seconds'] / theirs, 2)} times the control's"
    return f" Cost: {text}." if text else ""


def _mean(entry: Entry | None, digits: int) -> str:
    if entry is None or (s := entry.summary) is None:
        return ""
    return figure(s.mean, digits) + ("" if s.std is None else f" ± {figure(s.std, digits)}")


def plural(count: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain table: the first column to the left, the others to the right; None is an empty cell."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join(map("  ".join, lines))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [header, rule, *rows]]


def result_table(result: dict[str, Any]) -> str:
    """The metrics of one run: a line per kind of warmup, a column per metric."""
    if not result["metrics"]:
        return f"\n{result['task']}: no rows in the {result['split']} split, so nothing was predicted or scored."
    names = list(next(iter(result["metrics"].values())))
    objective = "sft" if result.get("inference") == "empty" else result.get("objective")
    rows = [
        [control_name(control, objective), *(f"{values[name]:.4g}" for name in names)]
        for control, values in result["metrics"].items()
    ]
    title = f"{result['task']}, {result['split']} split, {result['rows']} rows"
    return f"\n{title}\n" + text_table(["warmup", *names], rows)


def control_name(control: str, objective: str | None = None) -> str:
    """How a control is called in tables; "" is the run's own warmups, or none for SFT."""
    return "no warmup (SFT)" if not control and objective == "sft" else NAMES.get(control, control)


def figure(value: float | None, digits: int, signed: bool = False) -> str:
    """A number at fixed digits with a true minus sign; empty where there is none."""
    if value is None or math.isnan(value):
        return ""
    text = f"{abs(value):.{digits}f}"
    sign = "" if not text.strip("0.") else "−" if value < 0 else "+" if signed else ""
    return sign + text


def between(interval: tuple[float, float] | None, digits: int, signed: bool = False) -> str:
    """An interval in words; empty where there is none."""
    if interval is None or any(map(math.isnan, interval)):
        return ""
    low, high = interval
    return f"{figure(low, digits, signed)} to {figure(high, digits, signed)}"


def probability(p: float | None) -> str:
    """A p-value: never printed as 0; empty where there is none."""
    if p is None or math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def amount(value: float | None) -> str:
    """A large count, shortly: 12,300 or 1.2e+12; empty where there is none."""
    if value is None:
        return ""
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"
