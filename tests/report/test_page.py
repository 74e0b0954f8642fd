"""The page: one file, nothing loaded, nothing executed that a run wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rl_warmup.cli.main import main
from rl_warmup.experiments.report import write_report
from rl_warmup.experiments.report.page import as_json, example_data, likeness

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "<!--",
    "a & b \u2028 'c' \"d\"",
    "]]>",
)


class Reader(HTMLParser):
    """Elements with their attributes, and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)


def page_of(runs: Path, output: Path) -> str:
    return write_report([runs], output)[0].read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    return json.loads(Reader(page).scripts[0])


def test_it_has_every_part(pair, tmp_path):
    page = page_of(pair, tmp_path / "report")
    text = " ".join(Reader(page).words)
    for part in ("toy, scratch-t5", "the same 4 test rows (hash aaaaaaaaaaaa)", "The control is sft", "+0.500 from sft",
                 "shuffled warmup", "Learning curves", "Quality against compute", "Examples", "environment", "abacus",
                 "objective: marginal", "What the arms differ in", "One seed per arm"):  # fmt: skip
        assert part in text, part


def test_it_loads_nothing(pair, tmp_path):
    page = page_of(pair, tmp_path / "report")
    for tag, attributes in Reader(page).elements:
        assert not {"src", "srcset", "style"} & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    assert not re.search(r"url\(|@import", page)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", page)


def test_only_its_own_scripts_may_run(pair, tmp_path):
    page = page_of(pair, tmp_path / "report")
    reader = Reader(page)
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    for script in reader.scripts[1:]:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(re.findall("sha256-", policy)) == 3, "two scripts and the style"


def test_hostile_texts_stay_texts(tmp_path, run_folder):
    tame = run_folder(tmp_path / "tame" / "warmup-1")
    wild = run_folder(tmp_path / "wild" / "<b>arm</b>-1", texts=HOSTILE, recipe={"note": HOSTILE[1]})
    pages = [page_of(folder.parent, tmp_path / f"report{i}") for i, folder in enumerate((tame, wild))]
    tags = [[tag for tag, _ in Reader(page).elements if tag in ("script", "img", "b")] for page in pages]
    assert tags == [["script"] * 3] * 2
    prompts = [row[2] for row in data_of(pages[1])["examples"]["rows"]]
    assert " ".join(["question 0", *HOSTILE]) in prompts, "and they come out as they went in"
    assert "&lt;b&gt;arm&lt;/b&gt;" in pages[1]


def test_json_in_a_script_element():
    value = {"text": "".join(HOSTILE), "missing": None, "nan": float("nan"), "list": (1, 2.5)}
    text = as_json(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {**value, "nan": None, "list": [1, 2.5]}


def test_a_missing_value_is_an_empty_cell(pair, tmp_path):
    page = page_of(pair, tmp_path / "report")
    row = re.search(r"<tr[^>]*><th[^>]*><span[^>]*></span>sft</th>(.*?)</tr>", page)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row.group(1))
    assert cells == ["no warmup (SFT)", "1", "0.250", "", "", "", ""]


def test_different_data_are_split_and_it_says_so(tmp_path, run_folder):
    run_folder(tmp_path / "runs" / "sft-1", "sft")
    run_folder(tmp_path / "runs" / "warmup-1", rows_hash="b" * 64)
    page = page_of(tmp_path / "runs", tmp_path / "report")
    text = " ".join(Reader(page).words)
    assert "These runs make 2 separate comparisons" in text
    assert "Different data: toy, scratch-t5 was scored on different rows" in text
    assert "hash aaaaaaaaaaaa; 4 test rows, hash bbbbbbbbbbbb" in text
    assert " from sft" not in text, "no difference across data"
    assert [s["arms"] for s in data_of(page)["sections"]] == [["sft"], ["warmup"]]


def test_sections_of_one_task_and_model_have_titles_and_pictures_of_their_own(tmp_path, run_folder):
    run_folder(tmp_path / "runs" / "sft-1", "sft")
    run_folder(tmp_path / "runs" / "other-1", "sft", rows_hash="b" * 64)
    run_folder(tmp_path / "runs" / "third-1", "sft", rows_hash="b" * 64)
    result = json.loads((tmp_path / "runs" / "third-1" / "metrics.json").read_text())
    (tmp_path / "runs" / "third-1" / "metrics.json").write_text(json.dumps(result | {"signatures": {"bleu": "tok:zh"}}))
    page, _, *pictures = write_report([tmp_path / "runs"], tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    titles = [section["title"] for section in data_of(text)["sections"]]
    assert len(set(titles)) == 3
    assert all(title.startswith("toy, scratch-t5") for title in titles)
    for title in titles:
        assert f'<a href="#s{titles.index(title)}">{title}</a>' in text
    assert len(set(pictures)) == len(pictures)
    assert len([path for path in pictures if "exact-match-updates" in path.name]) == 3


def test_question_and_metric_of_a_sweep_come_first(tmp_path, run_folder):
    for seed in (1, 2):
        for name, objective, errors in (("sft", "sft", 2.0), ("warmup", "marginal", 1.0)):
            folder = run_folder(tmp_path / "runs" / f"{name}-{seed}", objective, seed, shuffled=None)
            result = json.loads((folder / "metrics.json").read_text())
            result["metrics"][""]["errors"] = errors + 0.01 * seed
            (folder / "metrics.json").write_text(json.dumps(result))
    asked = {"question": "Fewer <errors>?", "metric": "errors"}
    page, summary, *_ = write_report([tmp_path / "runs"], tmp_path / "up", **asked)
    assert "<h1>Fewer &lt;errors&gt;?</h1>" in page.read_text(encoding="utf-8")
    assert data_of(page.read_text(encoding="utf-8"))["sections"][0]["quality"][0]["key"] == "eval_exact_match"
    text = summary.read_text(encoding="utf-8")
    assert text.index("### errors") < text.index("### exact_match")
    assert "**worse**: warmup" in text, "more is better, where nothing else is said"
    _, summary, *_ = write_report([tmp_path / "runs"], tmp_path / "down", direction="minimize", **asked)
    assert "**better**: warmup" in summary.read_text(encoding="utf-8")


def test_the_page_needs_no_matplotlib(pair, tmp_path, monkeypatch, capsys):
    drawn = page_of(pair, tmp_path / "drawn")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    files = write_report([pair], tmp_path / "report")
    assert [path.name for path in files] == ["report.html", "summary.md"]
    page = files[0].read_text(encoding="utf-8")
    assert data_of(page)["sections"] == data_of(drawn)["sections"], "the curves are the browser's"
    assert "PNG" not in page
    assert main(["report", str(pair), "--output", str(tmp_path / "again")]) == 0
    assert "matplotlib" in capsys.readouterr().out


def test_the_browser_gets_every_prediction_and_group(pair, tmp_path):
    examples = data_of(page_of(pair, tmp_path / "report"))["examples"]
    files = {(f["arm"], f["control"]): f["items"] for f in examples["files"]}
    assert {key: len(items) for key, items in files.items()} == {
        ("warmup", ""): 4,
        ("warmup", "shuffled"): 4,
        ("sft", ""): 4,
    }
    assert [item[4] for item in files["warmup", ""]] == [1, 1, 1, 0]
    row, warmup, finish, prediction, right, alike = files["warmup", "shuffled"][1]
    assert examples["rows"][row] == [0, "test-1", "question 1", "three four"]
    assert (warmup, finish, prediction, right, alike) == ("foreign", "separator", "no idea", 0, 0)
    assert len(examples["rows"]) == 5, "texts are kept once, however many runs answered them"
    assert examples["groups"] == [[0, "warmup", 1, 50, 4, [["hm", "length", -2.5, -1.25, 0.75]]]]
    assert examples["left_out"] == 0


def test_too_many_predictions_are_thinned_alike_and_counted(pair):
    from rl_warmup.experiments.collect import find_runs, sections

    found = example_data(sections(find_runs([pair])[0]), limit=7)
    assert [len(f["items"]) for f in found["files"]] == [2, 2, 2]
    assert found["left_out"] == 6


def test_likeness_counts_words_or_characters():
    assert likeness("a b x", "a b c") == 67
    assert likeness("今日", "今晩") == 50
    assert likeness("", "") == 100


def test_the_command(pair, capsys, monkeypatch):
    monkeypatch.chdir(pair.parent)
    assert main(["report", "runs/sft-1", "runs/warmup-1"]) == 0
    files = {path.name for path in (pair / "report").iterdir()}
    assert {"report.html", "summary.md", "toy-scratch-t5-eval-exact-match-updates.png"} <= files
    assert "report.html" in capsys.readouterr().out
    assert main(["report", "runs", "--output", "elsewhere"]) == 0
    assert (pair.parent / "elsewhere" / "report.html").is_file()


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_mistake_is_one_sentence(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", name]) == 2
    assert capsys.readouterr().err.startswith("rl-warmup report: ")
