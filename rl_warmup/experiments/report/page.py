"""The report as one HTML page that loads nothing: text, style, scripts and data in a single file.

Knows: what a `Part` holds, and the CSS and JavaScript beside this file. Must not know: how its numbers were made. Every
text of a run is escaped; a content security policy allows only this page's own scripts, by their hash, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl_warmup.experiments.report import words
from rl_warmup.experiments.report.collect import Arm, Run, Section
from rl_warmup.experiments.report.curves import Chart
from rl_warmup.experiments.report.differences import Scores
from rl_warmup.experiments.report.tables import NAMES
from rl_warmup.experiments.report.words import Finding, Table

COLOURS = 8
LIKELIHOOD = (
    "log P(y|x) in nats per target, mean over rows ± standard error: exact without a warmup, else the bound from n sampled "
    "warmups, which grows towards it. Gain: with a sampled warmup minus without; no overlap: what a straight line "
    "leaves of it where no token of the target stands in the warmup, a guess where no such warmup was seen."
)


@dataclass
class Part:
    """A section with everything that is said about it."""

    section: Section
    control: Arm | None
    asked: bool
    scores: list[Scores]
    quality: list[Chart]
    training: list[Chart]

    @property
    def findings(self) -> list[Finding]:
        return words.findings(self.section, self.scores[0]) if self.scores else []


def page(parts: Sequence[Part], examples: dict[str, Any], skipped: Sequence[str]) -> str:
    """The whole page."""
    style, *scripts = (_file(name) for name in ("page.css", "charts.js", "browser.js"))
    allowed = " ".join(_hash(script) for script in scripts)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {allowed}; base-uri 'none'; form-action 'none'"
    links = [(f"#s{i}", words.title(part.section)) for i, part in enumerate(parts)]
    links += [("#examples", "Examples"), ("#runs", "Runs")]
    nav = "".join(f'<li><a href="{href}">{_(name)}</a></li>' for href, name in links)
    notices = [text for text in [words.separated([part.section for part in parts]), *skipped] if text]
    notice = f'<div class="notice" role="note">{"".join(f"<p>{_(n)}</p>" for n in notices)}</div>' if notices else ""
    count = sum(len(part.section.runs) for part in parts)
    runs = f"{count} run{'' if count == 1 else 's'}"
    body = "".join(_part(part, i) for i, part in enumerate(parts))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>rl_warmup: report on {runs}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">To the results</a>
<header><h1>Report on {runs}</h1>
<p class="soft">Is it better, by how much, how sure, at what cost, and is the warmup read.</p></header>
<nav aria-label="sections"><ul>{nav}</ul></nav>
<main id="main">{notice}{body}{_browser(examples)}{_runs(parts)}</main>
<footer><p>Written by <code>rl-warmup report</code>. One file that loads nothing. Summary and pictures lie beside it.</p>
</footer>
<noscript><p>Curves and the browser of examples need JavaScript; the same curves lie beside this page as PNG files.</p></noscript>
<script type="application/json" id="data">{_data(parts, examples)}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def as_json(value: Any) -> str:
    """Compact JSON that may stand inside a script element: no `<`, `>` or `&`, no line separators, no NaN."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(parts: Sequence[Part], examples: dict[str, Any]) -> str:
    sections = [
        {
            "title": words.title(part.section),
            "arms": [arm.name for arm in part.section.arms],
            "sft": [arm.name for arm in part.section.arms if arm.objective == "sft"],
            "budget": words.spent(part.control) if part.control else {},
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


def _part(part: Part, index: int) -> str:
    section = part.section
    listed = "".join(
        f'<li><span class="verdict {finding.tone}">{_(finding.verdict)}</span> '
        f"{_(finding.text).replace(' ± ', '&nbsp;±&nbsp;')}</li>"
        for finding in part.findings
    )
    notes = "".join(f'<p class="small soft">{_(note)}</p>' for note in words.notes(section, part.scores))
    finding = f'<div class="finding"><p>{_(words.compared(section, part.control, part.asked))}</p><ul>{listed}</ul>{notes}</div>'
    cost = _table(words.cost_cells(section, part.control), section, "Means over seeds; evaluations are not counted.")
    likelihood = words.likelihood_cells(section)
    measured = f"<h3>Likelihood of the targets</h3>{_table(likelihood, section, LIKELIHOOD)}" if likelihood else ""
    measured = _signatures(section) + measured
    results = "".join(_results(scores, section, i) for i, scores in enumerate(part.scores))
    return (
        f'<section id="s{index}" aria-labelledby="h{index}"><h2 id="h{index}">{_(words.title(section))}</h2>{finding}'
        f"<h3>Results on {section.rows} {_(section.split)} rows</h3>{results}{measured}{_curves(part, index)}"
        f"<h3>Cost</h3>{cost}{_changes(section)}</section>"
    )


def _results(scores: Scores, section: Section, index: int) -> str:
    table = _table(words.result_cells(scores), section, f"{scores.metric}. {words.how_tested(scores)}")
    return table if index == 0 else f"<details><summary>{_(scores.metric)}</summary>{table}</details>"


def _curves(part: Part, index: int) -> str:
    """Places for the curves, which the script fills in."""
    parts = []
    bands = "Line: mean over seeds; band: lowest to highest seed."
    if part.quality:
        parts.append(
            f'<h3>Learning curves, validation rows</h3><p class="small soft">{bands}</p>'
            f'<div data-section="{index}" data-kind="quality"></div><h3>Quality against compute</h3>'
            '<p class="small soft">The large mark ends a run; the dashed upright line is all that the control spent. '
            "Compare arms along it for equal compute.</p>"
            f'<div data-section="{index}" data-kind="compute"></div>{_equal(part)}'
        )
    if part.training:
        parts.append(
            f'<h3>While training, training rows</h3><p class="small soft">{bands}</p>'
            f'<div data-section="{index}" data-kind="training"></div>'
        )
    return "".join(parts)


def _equal(part: Part) -> str:
    table = words.equal_compute_cells(part.quality[0], part.control) if part.control else None
    if table is None:
        return ""
    caption = (
        f"{part.quality[0].title} on validation rows at the last evaluation that the control's whole budget pays for."
    )
    return _table(table, part.section, caption)


def _table(table: Table, section: Section, caption: str) -> str:
    """A table that turns into cards on a phone."""
    order = [arm.name for arm in section.arms]
    left = {"arm", "warmup"}
    head = "".join(f'<th scope="col"{_text(name in left)}>{_(name)}</th>' for name in table.header)
    rows = []
    for cells, arm, first in zip(table.rows, table.arms, table.firsts, strict=True):
        chip = f'<span class="chip c{order.index(arm) % COLOURS}" aria-hidden="true"></span>' if first else ""
        shown = _(cells[0]) or f'<span class="hidden">{_(arm)}</span>'
        name = f'<th scope="row" class="text">{chip}{shown}</th>'
        rest = (
            f'<td{_text(label in left)} data-label="{_(label)}">{_(cell)}</td>' if cell else "<td></td>"
            for label, cell in zip(table.header[1:], cells[1:], strict=True)
        )  # fmt: skip
        kind = ' class="arm"' if first else ""
        rows.append(f"<tr{kind}>{name}{''.join(rest)}</tr>")
    return (
        f'<div class="wide"><table class="cards figures"><caption>{_(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _signatures(section: Section) -> str:
    lines = "".join(f"<br><code>{_(name)}: {_(text)}</code>" for name, text in section.signatures.items())
    return f'<p class="small soft">Rows: <code>{_(section.rows_hash)}</code>{lines}</p>'


def _changes(section: Section) -> str:
    """What the recipes of the arms differ in."""
    changes = section.recipe_changes()
    if not changes:
        return ""
    arms = [arm.name for arm in section.arms]
    head = "".join(f'<th scope="col" class="text">{_(name)}</th>' for name in ["setting", *arms])
    rows = "".join(
        f'<tr><th scope="row" class="text">{_(key)}</th>'
        + "".join(f'<td class="text" data-label="{_(a)}">{_(_yaml(v))}</td>' for a, v in zip(arms, values, strict=True))
        + "</tr>"
        for key, values in changes.items()
    )
    return (
        '<h3>What the arms differ in</h3><div class="wide"><table class="cards"><caption>Recipe settings that are not the '
        f"same in all arms (of their first seed).</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _browser(examples: dict[str, Any]) -> str:
    left_out = examples["left_out"]
    note = f"<p>{left_out:,} predictions are left out, to keep the page quick.</p>" if left_out else ""
    return (
        '<section id="examples" aria-labelledby="he"><h2 id="he">Examples</h2><p class="soft small">Right means equal to the '
        "target, spaces aside; per cent alike counts the words they have in common (characters, where there are no "
        f'spaces).</p>{note}<div id="browser"></div></section>'
    )


def _runs(parts: Sequence[Part]) -> str:
    items = [_run(arm, run) for part in parts for arm in part.section.arms for run in arm.runs]
    return f'<section id="runs" aria-labelledby="hr"><h2 id="hr">Runs: environment and recipe</h2>{"".join(items)}</section>'


def _run(arm: Arm, run: Run) -> str:
    env = run.environment
    versions = ", ".join(f"{k} {v}" for k, v in (env.get("versions") or {}).items() if v)
    place = f"{env.get('device', '')}, Python {env.get('python', '')}, {env.get('threads', '')} threads" if env else ""
    blocks = [("environment", f"{place}\n{versions}".strip()), ("recipe", _dump(run.recipe))]
    result = {k: v for k, v in run.result.items() if k not in ("metrics", "signatures")}
    blocks.append(("result", _dump(result)))
    shown = "".join(f"<div><h3>{name}</h3><pre><code>{_(text)}</code></pre></div>" for name, text in blocks if text)
    name = f"{arm.name}, seed {run.seed}"
    return (
        f'<details class="run"><summary>{_(run.result.get("task"))}, {_(run.model)}: {_(name)} <span class="soft small">'
        f'{_(run.folder)}</span></summary><div class="two">{shown}</div></details>'
    )


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip() if value else ""


def _yaml(value: Any) -> str:
    """A setting in one line; one that is not there is empty."""
    if value is None:
        return ""
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).removesuffix("\n...\n").strip()
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _text(left: bool) -> str:
    return ' class="text"' if left else ""


def _(text: Any) -> str:
    return html.escape("" if text is None else str(text))
