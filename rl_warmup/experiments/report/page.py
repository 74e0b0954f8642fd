"""The report as one HTML page that loads nothing: text, style, scripts and data in a single file.

The template escapes every text of a run; a content security policy allows only this page's own scripts, by their hash, and
no network.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl_warmup.experiments.collect import Arm, Run, Section
from rl_warmup.experiments.compare import MetricResults, spent
from rl_warmup.experiments.report import words
from rl_warmup.experiments.report.curves import Chart
from rl_warmup.experiments.report.words import NAMES, Finding
from rl_warmup.runtime.run_folder import json_line

COLOURS = 8


@dataclass
class Part:
    """A section with everything that is said about it."""

    section: Section
    control: Arm | None
    asked: bool
    results: list[MetricResults]
    quality: list[Chart]
    training: list[Chart]

    @property
    def findings(self) -> list[Finding]:
        return words.findings(self.section, self.results[0]) if self.results else []


def page(parts: Sequence[Part], examples: dict[str, Any], skipped: Sequence[str]) -> str:
    """The whole page."""
    names = ("page.css", "charts.js", "browser.js")
    style, *scripts = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)
    allowed = " ".join(_hash(script) for script in scripts)
    return _rendered(
        "page.html", parts, skipped, style=style, scripts=scripts, data=_data(parts, examples),
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {allowed}; base-uri 'none'; form-action 'none'",
        count=words.plural(sum(len(part.section.runs) for part in parts), "run"),
        left_out=f"{examples['left_out']:,}" if examples["left_out"] else "",
        colour=lambda section, arm: [one.name for one in section.arms].index(arm) % COLOURS,
        one_line=_one_line, blocks=_blocks,
    )  # fmt: skip


def summary(parts: Sequence[Part], skipped: Sequence[str], pictures: Sequence[Sequence[str]]) -> str:
    """summary.md. `pictures`: file names of PNGs per part."""
    return re.sub(r"\n{3,}", "\n\n", _rendered("summary.md", parts, skipped, pictures=pictures)).strip() + "\n"


def _rendered(template: str, parts: Sequence[Part], skipped: Sequence[str], **values: Any) -> str:
    """A template beside this file; HTML escapes every value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=lambda value: "" if value is None else value,
    )  # fmt: skip
    environment.filters |= {"plain": _plain, "table": _table}
    notices = [text for text in [words.separated([part.section for part in parts]), *skipped] if text]
    return environment.get_template(template).render(parts=parts, notices=notices, words=words, **values)


def _plain(text: str) -> str:
    """Text that stays text in Markdown."""
    return re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(text.split()))


def _table(cells: words.Cells) -> str:
    return "\n".join(words.markdown_table(cells.header, [list(map(_plain, row)) for row in cells.rows]))


def as_json(value: Any) -> str:
    """Compact JSON that may stand inside a script element: no `<`, `>` or `&`, no line separators, no NaN."""
    text = json_line(value, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(parts: Sequence[Part], examples: dict[str, Any]) -> str:
    sections = [
        {
            "title": words.title(part.section),
            "arms": [arm.name for arm in part.section.arms],
            "sft": [arm.name for arm in part.section.arms if arm.objective == "sft"],
            "budget": spent(part.control) if part.control else {},
            "quality": [_chart(chart) for chart in part.quality],
            "training": [_chart(chart) for chart in part.training],
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
    place = f"{env.get('device', '')}, Python {env.get('python', '')}, {env.get('threads', '')} threads" if env else ""
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
