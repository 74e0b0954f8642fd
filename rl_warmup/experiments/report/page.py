"""The report as one HTML page that loads nothing (text, style, scripts and data in a single file), and as Markdown.

The template escapes every text of a run; a content security policy allows only this page's own scripts, by their hash, and
no network.
"""

from __future__ import annotations

import base64
import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl_warmup.experiments.collect import Arm, Run, Section
from rl_warmup.experiments.compare import MetricResults, spent
from rl_warmup.experiments.report import words
from rl_warmup.experiments.report.curves import COLOURS, Chart
from rl_warmup.experiments.report.words import NAMES, Finding
from rl_warmup.runtime.run_folder import json_line
from rl_warmup.tasks.conversations import flat

Numbers = dict[tuple[Any, ...], int]  # texts of a row, each kept once -> its number
LIMIT = 20_000  # predictions in one page; a browser stays quick well beyond 10,000
GROUPS = 200  # of one run, at most


@dataclass
class Part:
    """A section with everything that is said about it."""

    section: Section
    title: str
    control: Arm | None
    asked: bool
    results: list[MetricResults]
    quality: list[Chart]
    training: list[Chart]
    phases: dict[str, dict[str, float]]  # see `curves.phase_ends`

    @property
    def findings(self) -> list[Finding]:
        return words.findings(self.section, self.results[0]) if self.results else []


def page(parts: Sequence[Part], examples: dict[str, Any], skipped: Sequence[str], question: str, pictures: bool) -> str:
    """The whole page. `pictures`: whether PNG files lie beside it."""
    names = ("page.css", "charts.js", "browser.js")
    style, *scripts = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)
    allowed = " ".join(_hash(script) for script in scripts)
    return rendered(
        "page.html", parts=parts, notices=_notices(parts, skipped), style=style, scripts=scripts, data=_data(parts, examples),
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {allowed}; base-uri 'none'; form-action 'none'",
        count=words.plural(sum(len(part.section.runs) for part in parts), "run"),
        left_out=f"{examples['left_out']:,}" if examples["left_out"] else "",
        colour=lambda section, arm: [one.name for one in section.arms].index(arm) % len(COLOURS),
        one_line=_one_line, blocks=_blocks, question=question, pictures=pictures,
    )  # fmt: skip


def summary(parts: Sequence[Part], skipped: Sequence[str], question: str, pictures: Sequence[Sequence[str]]) -> str:
    """summary.md. `pictures`: file names of PNGs per part."""
    text = rendered("summary.md", parts=parts, notices=_notices(parts, skipped), question=question, pictures=pictures)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _notices(parts: Sequence[Part], skipped: Sequence[str]) -> list[str]:
    return [text for text in [words.separated([part.section for part in parts]), *skipped] if text]


def rendered(template: str, **values: Any) -> str:
    """A template beside this file; HTML escapes every value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=lambda value: "" if value is None else value,
    )  # fmt: skip
    environment.filters |= {"plain": _plain, "table": _table}
    return environment.get_template(template).render(words=words, **values)


def _plain(text: str) -> str:
    """Text that stays text in Markdown."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(text.split()))


def _table(cells: words.Cells) -> str:
    return "\n".join(words.markdown_table(cells.header, [list(map(_plain, row)) for row in cells.rows]))


def as_json(value: Any) -> str:
    """Compact JSON that may stand inside a script element: no `<`, `>` or `&`, no line separators, no NaN."""
    escaped = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
    return json_line(value, separators=(",", ":")).translate(escaped)


def _data(parts: Sequence[Part], examples: dict[str, Any]) -> str:
    sections = [
        {
            "title": part.title,
            "arms": [arm.name for arm in part.section.arms],
            "sft": [arm.name for arm in part.section.arms if arm.objective == "sft"],
            "budget": spent(part.control) if part.control else {},
            "quality": [_chart(chart) for chart in part.quality],
            "training": [_chart(chart) for chart in part.training],
            "phases": part.phases,
        }
        for part in parts
    ]
    return as_json({"sections": sections, "names": NAMES, "examples": examples})


def _chart(chart: Chart) -> dict[str, Any]:
    curves = [
        {"arm": c.arm, "seeds": len(c.seeds), "xs": c.xs, "mean": c.mean, "low": c.low, "high": c.high}
        for c in chart.curves
    ]
    return {"key": chart.key, "title": chart.title, "unit": chart.unit, "curves": curves}


def _blocks(run: Run) -> Iterator[tuple[str, str]]:
    """Environment, recipe and result of a run, each as text."""
    env = run.environment
    versions = ", ".join(f"{k} {v}" for k, v in (env.get("versions") or {}).items() if v)
    place = f"{env.get('device', '')}, Python {env.get('python', '')}, threads: {env.get('threads', '')}" if env else ""
    yield "environment", f"{place}\n{versions}".strip()
    yield "recipe", _dump(run.recipe)
    yield "result", _dump({k: v for k, v in run.result.items() if k not in ("metrics", "signatures")})


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip() if value else ""


def _one_line(value: Any) -> str:
    """A setting in one line; one that is not there is empty."""
    if value is None:
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return text.removesuffix("\n...\n").strip()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def example_data(sections: Sequence[Section], limit: int = LIMIT) -> dict[str, Any]:
    """What the browser shows.

    Returns:
        `rows`: [section, id, prompt, target]; `files`: {section, arm, seed, control, items}, with items [row, warmup,
        finish, prediction, right (0 or 1), likeness (0 to 100)]; `groups`: [section, arm, seed, step, row, warmups],
        with warmups [warmup, finish, log P(c|x), log P(y|x,c), posterior]; `left_out`: how many predictions were.
    """
    runs = [(i, arm, run) for i, section in enumerate(sections) for arm in section.arms for run in arm.runs]
    warmups_first = sorted(runs, key=lambda place: (place[0], place[1].objective == "sft"))
    found = [
        (index, arm.name, run, control, predictions)
        for index, arm, run in warmups_first
        for control, predictions in run.predictions.items()
    ]
    share = _share([len(predictions) for *_, predictions in found], limit)
    rows: Numbers = {}
    files = [
        {
            "section": index, "arm": arm, "seed": run.seed, "control": control,
            "items": [_item(rows, index, row) for row in predictions[:share]],
        }
        for index, arm, run, control, predictions in found
    ]  # fmt: skip
    groups = [
        [index, arm.name, run.seed, *_group(rows, index, group)]
        for index, arm, run in runs
        for group in _thinned(run.groups)
    ]
    left_out = sum(max(0, len(predictions) - share) for *_, predictions in found)
    return {"rows": list(rows), "files": files, "groups": groups, "left_out": left_out}


def likeness(prediction: str, target: str) -> int:
    """How much two texts share, 0 to 100: the F1 of their words, or of characters where the target has no spaces."""
    split = str.split if len(target.split()) > 1 else list
    one, other = Counter[str](split(prediction)), Counter[str](split(target))
    total = one.total() + other.total()
    return round(200 * (one & other).total() / total) if total else 100 * (prediction == target)


def _number(rows: Numbers, section: int, row: dict[str, Any]) -> int:
    """The number of a row, which is the next one where its texts are new."""
    key = (section, str(row.get("id", "")), str(flat(row.get("prompt", ""))), str(row.get("target", "")))
    return rows.setdefault(key, len(rows))


def _share(sizes: Sequence[int], limit: int) -> int:
    """How many rows of each file fit into the limit: the first rows of all of them, so that they can be compared."""
    most = range(max(sizes, default=0) + 1)
    return bisect_right(most, limit, key=lambda share: sum(min(size, share) for size in sizes)) - 1


def _item(rows: Numbers, section: int, row: dict[str, Any]) -> list[Any]:
    prediction, target = str(row.get("prediction", "")), str(row.get("target", ""))
    right = int(prediction.split() == target.split())  # as the metric exact_match has it
    number = _number(rows, section, row)
    return [number, row.get("warmup"), row.get("warmup_finish"), prediction, right, likeness(prediction, target)]


def _thinned(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return groups if len(groups) <= GROUPS else [groups[i * len(groups) // GROUPS] for i in range(GROUPS)]


def _group(rows: Numbers, section: int, group: dict[str, Any]) -> list[Any]:
    keys = ("warmup", "finish", "warmup_logprob", "target_logprob", "posterior")
    values = [[warmup.get(key) for key in keys] for warmup in group.get("warmups", ())]
    warmups = [[float(f"{x:.4g}") if isinstance(x, float) else x for x in warmup] for warmup in values]
    return [group.get("step"), _number(rows, section, group), warmups]
