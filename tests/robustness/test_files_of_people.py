"""Files as people have them: rows, stored warmups, and what a run wrote before it was damaged."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.robustness.conftest import run

ROW = {"prompt": "a b", "target": "b a"}
GOOD = json.dumps(ROW).encode() + b"\n"
DATA = [  # (file, content, what the message says)
    ("d.jsonl", b'{"prompt": "x", "target": ', "d.jsonl:1: is not valid JSON"), ("d.jsonl", GOOD + b"[1]\n", "d.jsonl:2: is a JSON list"),
    ("d.jsonl", GOOD + b"null\n", "d.jsonl:2: is a JSON null"), ("d.jsonl", GOOD + b"5\n", "d.jsonl:2: is a JSON number"),
    ("d.jsonl", GOOD + b'{"prompt": "x", "prompt": "y"}\n', "d.jsonl:2: the key 'prompt' stands there twice"),
    ("d.jsonl", b"", "file d.jsonl: no rows for the train split"), ("d.csv", b"", "file d.csv: no rows"),
    ("d.json", b"[]", "file d.json: no rows"), ("d.jsonl", b"\xff\xfe", "is not UTF-8"), ("d.jsonl", GOOD + b'{"prompt": "x"}\n', "d.jsonl:2: no column 'target'"),
    ("d.jsonl", GOOD + b'{"prompt": "", "target": "x"}\n', "column 'prompt' is empty"),
    ("d.jsonl", GOOD + b'{"prompt": "x", "target": null}\n', "d.jsonl:2"), ("d.jsonl", GOOD + b'{"prompt": "\\ud800", "target": "x"}\n', "half a character"),
    ("d.jsonl", GOOD + b'{"prompt": "x", "target": ' + b"9" * 5000 + b"}\n", "d.jsonl:2: holds a number of thousands of digits"),
    ("d.jsonl", b"[" * 100_000, "d.jsonl:1: is not valid JSON (nested too deep)"), ("d.jsonl", b"<!DOCTYPE html>", "d.jsonl:1: is not valid JSON"),
    ("d.json", b'{"data": []}', "holds a JSON object; give a list"), ("d.json", b"null", "holds a JSON null; give a list"),
    ("d.json", b'[{"prompt": "x"', "d.json:1: is not valid JSON"), ("d.json", b"[3]", "item 0: is a JSON number"), ("d.json", GOOD * 2, "d.json:2"),
    ("d.json", b"[" + GOOD + b", null]", "item 1: is a JSON null"), ("d.json", b"", "d.json:1"), ("d.json", b"[" * 100_000, "nested too deep"),
    ("d.csv", b"prompt,target\nx,y\na,b,c\n", "d.csv:3: 3 cells"), ("d.csv", b'prompt,target\n"x"y,z\n', "d.csv:2: not valid"),
    ("d.csv", b"prompt,prompt\nx,y\n", "column 'prompt' stands there twice"), ("d.csv", b"x,y\na,b\n", "no column 'prompt'"),
    ("d.csv", b'prompt,target\nx,"y\n', "mend the line"), ("d.csv", b"prompt,target\n", "no rows"), ("d.tsv", b"prompt\ttarget\nx\n", "d.tsv:2: 1 cells"),
    ("d.jsonl.gz", b"plain", "not a whole gzip file"), ("d.jsonl.gz", gzip.compress(GOOD * 50, mtime=0)[:30], "not a whole gzip file"),
    ("d.jsonl.gz", gzip.compress(GOOD * 500, mtime=0)[:20] + b"\xff" * 20 + gzip.compress(GOOD * 500, mtime=0)[40:], "not a whole gzip file"),
    ("d.parquet", b"", "not a readable Parquet file"), ("d.parquet", b"PAR1" + b"\0" * 50 + b"PAR1", "not a readable Parquet file"),
    ("d.xlsx", b"x", "unknown format '.xlsx'"), ("d.txt", b"hello\nworld\n", "d.txt"), ("d", b"x", "unknown format"),
    ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "d.jsonl:1: is not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), DATA, ids=lambda one: str(one[:30]))
def test_rows(name, content, said, place, check):
    (place / name).write_bytes(content)
    check(["train", "--config", "r.yaml", "--task_kwargs", f"{{train: {name}}}"], place, 2, said)


READ = [  # fine, however odd
    ("d.csv", b"\xef\xbb\xbfprompt,target\r\n" + b"a b,b\r\n" * 3), ("d.jsonl", b"\n\n" + GOOD * 3 + b"\n"), ("d.JSONL", GOOD * 3),
    ("d.csv", b"prompt,target,note\n" + 3 * (b"a b,b," + b"x" * 140_000 + b"\n")), ("d.json", b"[" + b",".join([GOOD] * 3) + b"]"),
    ("d.jsonl.gz", gzip.compress(GOOD * 3, mtime=0)), ("d.jsonl", GOOD * 2 + b'{"prompt": "x", "target": "y", "odd": [NaN, 1e400]}\n'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), READ, ids=lambda one: str(one[:30]))
def test_odd_rows_that_are_fine(name, content, place, check):
    (place / name).write_bytes(content)
    check(["train", "--config", "r.yaml", "--task_kwargs", f"{{train: {name}}}", "--max_steps", "1"], place, 0, "out")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_rows(split, place, check):
    (place / "d.jsonl").write_bytes(b"\n")
    given = f"{{train: rows.jsonl, validation: rows.jsonl, test: rows.jsonl, {split}: d.jsonl}}".replace(
        f"{split}: rows.jsonl, ", "", 1
    )
    check(
        ["train", "--config", "r.yaml", "--task_kwargs", given.replace(f"{split}: rows.jsonl, ", "")],
        place,
        2,
        f"for the {split} split",
    )


def test_a_chat_template_that_fails(place, check):
    (place / "d.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    (place / "t.jinja").write_text("{{ nosuch.x.y }}")
    argv = ["train", "--config", "r.yaml", "--task_kwargs", "{train: d.jsonl}", "--chat_template", "t.jinja"]
    check(argv, place, 2, "train row 0", "'nosuch' is undefined", "Mend the template (chat_template)")


def test_a_completion_that_is_a_conversation_says_nothing_else(place, check):
    row = {"prompt": [{"role": "user", "content": "a b"}], "completion": [{"role": "assistant", "content": "b a"}]}
    (place / "d.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    argv = [
        "train",
        "--config",
        "r.yaml",
        "--task_kwargs",
        "{train: d.jsonl}",
        "--chat_template",
        "none",
        "--max_steps",
        "1",
    ]
    ended = run(argv, place)
    assert ended.code == 0, ended.text
    assert "something else" not in ended.text


CUT, HTML, DEEP = b"cut", b"<!DOCTYPE html>\n<html>404</html>\n", b"[" * 100_000
REPORT = [  # (file of the run, content, what `report` says)
    *[("metrics.json", content, said) for content, said in [
        (b"", "is not valid JSON"), (CUT, "is not valid JSON"), (HTML, "is not valid JSON"), (DEEP, "nested too deep"),
        (b"[]", "is a JSON list"), (b"{}", "has no `metrics`"), (b"null", "is a JSON null"), (b"5", "is a JSON number"), (bytes(range(256)), "is not valid"),
    ]],
    *[("environment.json", content, said) for content, said in [
        (b"", "is not valid JSON"), (b"null", "is a JSON null"), (b'{"versions": "x"}', "`versions` is 'x', no object"), (CUT, "is not valid JSON"),
    ]],
    *[("recipe.yaml", content, said) for content, said in [
        (b"", "must be a mapping"), (b"5", "must be a mapping"), (b"[]", "must be a mapping"), (b"{}", "holds no settings"), (HTML, "recipe.yaml"),
        (b"null", "must be a mapping"), (b"seed: [1]", "`seed` is [1], no whole number"), (b"\xff\xfe\xff", "recipe.yaml"), (b"a: [1", "is not valid YAML"),
    ]],
    *[(name, content, said) for name in ("metrics.jsonl", "timing.jsonl", "warmups.jsonl", "predictions.jsonl") for content, said in [
        (CUT, ""), (b"[]", "line 1: is a JSON list"), (b"{}", "has no `"), (HTML, "line 1: is not valid JSON"), (b"null", "is a JSON null"),
    ]],
    ("metrics.jsonl", b'{"step": 1, "loss": "x"}\n', "`loss` is 'x', no number"), ("metrics.jsonl", b'{"step": "x"}\n', "`step` is 'x', no number"),
    ("timing.jsonl", b'{"step": 1, "train_seconds": [1]}\n', "`train_seconds` is [1], no number"),
    ("warmups.jsonl", b'{"step": 1, "warmups": [5]}\n', "`warmups` is [5], no list of objects"),
    ("predictions.jsonl", b'{"prediction": [1], "target": "x"}\n', "`prediction` is [1], no text"),
    ("predictions.jsonl", b'{"prediction": "x", "target": "x"}\n', "holds 1 predictions, and metrics.json says 8 rows"),
    ("evaluation/test/metrics.json", b"{}", "has no `metrics`"), ("evaluation/test/metrics.json", b"null", "is a JSON null"),
    ("evaluation/test/predictions.filler.jsonl", CUT, "predictions.filler.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), REPORT, ids=lambda one: str(one)[:40])
def test_a_report(name, content, said, trained, check):
    path = trained / "out" / name
    old = path.read_bytes()
    # not in the middle, where two lines of one length would part
    path.write_bytes(old[: len(old) // 3] if content == CUT else content)
    check(["report", "out", "--output", "page"], trained, 2, name, said)


PROMPTS = [  # (file, content, what `generate --file` says)
    ("p.jsonl", b'{"prompt": "\\ud800"}\n', "prompt 0: the prompt holds half a character"), ("p.txt", b"[]", "line 1: is a JSON list"),
    ("p.txt", b'{"prompt": "a"}\n{"prompt": " "}\n', "p.txt, line 2: has no prompt"), ("p.txt", b'[{"prompt": "a"}]', "line 1: is a JSON list"),
    ("p.jsonl", b'{"prompt": ["a"]}\n', "p.jsonl, line 1: column 'prompt' is"), ("p.txt", b"a\n\xe9\n", "p.txt, line 2: is no text in UTF-8"),
    ("p.jsonl", b'{"prompt": [{"role": 5, "content": "a"}]}\n', "line 1: message 0 of column 'prompt'"),
    ("p.csv", b"prompt\na\n", "p.csv is a table, or packed. Give a text file"), ("p.txt.gz", b"x", "is a table, or packed"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), PROMPTS, ids=lambda one: str(one)[:40])
def test_a_file_of_prompts(name, content, said, trained, check):
    (trained / name).write_bytes(content)
    check(["generate", "out", "--file", name], trained, 2, said)


def test_prompts_with_a_byte_order_mark(trained, check):
    (trained / "p.txt").write_bytes(b'\xef\xbb\xbf{"prompt": "a b"}\n')
    check(["generate", "out", "--file", "p.txt"], trained, 0, '{"prompt": "a b", ')


MODELS = [  # (file of the model, what is changed in it, what `generate` says)
    ("config.json", {"num_layers": 10**6}, "config.json: num_layers: is 1000000, must be at most 4096"),
    ("config.json", {"layer_norm_epsilon": "x"}, "expected float, got str"),
    ("tokenizer_config.json", {"eos_token": None}, "The tokenizer 'out' has no end-of-sequence token"),
    ("model.safetensors.index.json", {"weight_map": {"a": "b"}}, "model.safetensors.index.json has no mapping 'metadata'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), MODELS, ids=lambda one: str(one)[:40])
def test_a_model(name, changes, said, trained, check):
    path = trained / "out" / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))
    if name.endswith("index.json"):
        (trained / "out" / "model.safetensors").unlink()
    check(["generate", "out", "a b"], trained, 2, said)


@pytest.mark.parametrize(
    ("name", "content"), [("environment.json", b"[]"), ("recipe.yaml", b""), ("recipe.yaml", b"a: [1")]
)
def test_an_export_reads_before_it_writes(name, content, trained, check):
    (trained / "out" / name).write_bytes(content)
    check(["export", "out", "--output", "x"], trained, 2, f"out/{name}")
    assert not (trained / "x").exists()


VALUES = [  # (key of metrics.json, value, what `report` says)
    ("updates", "x", "`updates` is 'x', no number"), ("updates", None, "has no `updates`"), ("signatures", "x", "no object of texts"),
    ("signatures", {"a": 1}, "no object of texts"), ("metrics", [1], "no object of numbers"), ("metrics", {"": {"exact_match": "x"}}, "no object of"),
    ("rows", "8", "no whole number"), ("rows_hash", 5, "no text"), ("seed", [1], "no whole number"), ("task", {}, "no text"), ("model", 5, "no text"),
    ("train_seconds", True, "no number"), ("likelihood", 5, "no object"), ("likelihood", {"bound": {"x": {}}}, "no object"), ("objective", 1, "no text"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "said"), VALUES, ids=lambda one: str(one)[:30])
def test_a_result(key, value, said, trained, check):
    path = trained / "out" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    check(["report", "out", "--output", "page"], trained, 2, "metrics.json", said)


WARMUPS = [  # (command, a line, what it says)
    *[("score", line, said) for line, said in [
        ({**ROW, "warmups": ["x"]}, "'warmups' is no list of objects"), (ROW, "'warmup' is None"), ({**ROW, "warmup": 5}, "'warmup' is 5"),
        ({**ROW, "warmup": "\ud800"}, "half a character"), ([1], "is a JSON list"), ({}, "'prompt' is None"), (None, "is a JSON null"),
        ({**ROW, "warmup": "c", "target_logprob": "x"}, "'target_logprob' is no number"), ({**ROW, "warmups": 5}, "no list of objects"),
    ]],
    *[("train", line, said) for line, said in [
        ({"row": 0, "warmups": ["\ud800"]}, "half a character"), ({"row": 0}, "neither `warmups` nor `warmup`"), ({"row": -1, "warmups": ["a"]}, "`row` is -1"),
        ({"row": "x", "warmups": ["a"]}, "`row` is 'x'"), ({"row": 10**400, "warmups": ["a"]}, "line 1"), ({"row": 0, "warmups": [5]}, "warmup 0 is 5"),
        ({"row": 0, "warmups": []}, "Give a list of one text"), ({"row": 0, "warmups": [""]}, "is empty"), ([1], "is a JSON list"), ({"warmups": ["a"]}, "names no row"),
    ]],
    ("ceiling", {"row": 0}, "neither `warmups` nor `warmup`"), ("ceiling", {"warmups": ["a"]}, "names no row"),
    *[("sample", line, "is none of this command") for line in [{"row": 0}, [1], {"row": 0, "warmups": ["x"]}, {"warmups": [{"warmup": "a", "finish": "length"}]}]],
]  # fmt: skip


@pytest.mark.parametrize(("command", "line", "said"), WARMUPS, ids=lambda one: str(one)[:40])
def test_a_file_of_warmups(command, line, said, trained, check):
    name = "w.jsonl" if command == "sample" else "own.jsonl"
    (trained / name).write_text(json.dumps(line) + "\n")
    argv = {
        "score": ["score", name, "--reward", "target_overlap"],
        "train": [
            "train",
            "--config",
            "r.yaml",
            "--output_dir",
            "new",
            "--proposals",
            "[stored]",
            "--stored_warmups",
            name,
        ],
        "sample": ["sample", "out", "--output", name],
        "ceiling": ["ceiling", "--config", "r.yaml", "--metric", "exact_match", "--warmups", name],
    }[command]
    check(argv, trained, 2, f"{name}, line 1", said)
    assert not (trained / "runs").exists()  # `ceiling` reads the file before its first arm


def test_a_setting_in_a_runs_own_recipe(trained, check):
    recipe = trained / "out" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_warmup_length: 3", "max_warmup_length: -3"))
    check(["sample", "out", "--output", "new.jsonl"], trained, 2, "out/recipe.yaml", "max_warmup_length", "-3")


PLUGINS = [  # (flag, code, what the message says)
    ("rewards", "def f(completions, **k): return None", "Reward 'f' returned NoneType"), ("rewards", "def f(completions, **k): return [1.0]", "returned 1 values"),
    ("rewards", "def f(completions, **k): return [10**400] * len(completions)", "one finite number"), ("rewards", "f = 5", "cannot be called"),
    ("rewards", "def f(completions, **k): return ['a'] * len(completions)", "one finite number"), ("rewards", "import nosuch", "fails to run"),
    ("rewards", "def f(completions, **k): raise KeyError('x')", "KeyError: 'x'"), ("rewards", "def f(completions, **k): raise SystemExit", "end the process"),
    ("objective", "def f(*a, **k): return None", "Objective 'f' returned NoneType"), ("objective", "import sys; sys.exit()", "fails to run"),
    ("proposals", "def f(*a, **k): return 5", "Proposal 'f'"), ("metrics", "def f(predictions, targets, **k): return 0", "write f(predictions, targets, rows)"),
    ("metrics", "def f(predictions, targets, rows): return 'x'", "metric 'own.py:f' returned a str"),
    ("metrics", "def f(predictions, targets, rows): return 10**400", "metric 'own.py:f' returned a int; let it return a number"),
    ("task", "from rl_warmup.tasks import Task\ndef f(): return Task('x', {'train': [None], 'validation': [], 'test': []}, ('bleu',))", "row 0 is None"),
    ("task", "def f(): return None", "returned NoneType"), ("task", "def f(): raise KeyError('x')", "KeyError"),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "code", "said"), PLUGINS, ids=lambda one: one[:40])
def test_a_plugin(flag, code, said, place, check):
    (place / "own.py").write_text(code + "\n")
    value = "own.py:f" if flag in ("objective", "task") else "[own.py:f]"
    more = ["--task_kwargs", "null"] if flag == "task" else []
    more += ["--proposals", "[]"] if flag == "objective" else []
    check(["train", "--config", "r.yaml", f"--{flag}", value, *more], place, 2, said)


@pytest.mark.parametrize(
    "body", ["import os; os.chdir('/')", "import sys; sys.stdout.close()", "import sys; sys.stderr.close()"]
)
def test_a_plugin_that_takes_something_away(body, place, check):
    (place / "own.py").write_text(f"def f(completions, **k):\n    {body}\n    return [1.0] * len(completions)\n")
    check(["train", "--config", "r.yaml", "--rewards", "[own.py:f]"], place, 0, "exact_match")
    assert (place / "out" / "metrics.json").is_file()
    assert not (place / "None").exists()
