"""Random calls of everything that reads what people write: `python -m tests.robustness.fuzz --calls 20000 [--seed N]`.

A call may succeed, or raise what a command turns into one sentence and exit code 2. Anything else is a finding: it is printed
with its input, and the script ends with 1. A call that takes more than `SLOW` seconds is one too.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

EXPECTED = (ValueError, ImportError, OSError, ArithmeticError)  # as in rl_warmup.cli.main
SLOW = 20.0
WORDS = [
    "", " ", "a b", "x: y", "*", "@x", "{", "[1", "~", "null", "true", "1e-4", "1e400", ".nan", "-1", "\ud800", "\x00", "\x85", "名前",
    "file", "ledger", "exact_match", "bleu", "target_logprob", "reverse", "stored", "rows.jsonl", "scratch-t5", "out", ".", "/", "a:b",
    "no.py:f", "steps", "epoch", "no", "auto", "prompt", "target", "row", "warmup", "warmups", "id", "name", "kwargs", "weight",
]  # fmt: skip
NUMBERS = [
    0,
    1,
    -1,
    2,
    5,
    0.0,
    0.5,
    1e-9,
    1e30,
    10**19,
    10**40,
    10**400,
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    False,
    None,
]


def any_value(draw: random.Random, depth: int = 3) -> Any:
    """Numbers, texts, and lists and mappings of them."""
    kind = draw.random()
    if depth and kind < 0.15:
        return [any_value(draw, depth - 1) for _ in range(draw.randrange(4))]
    if depth and kind < 0.35:
        return {draw.choice(WORDS): any_value(draw, depth - 1) for _ in range(draw.randrange(4))}
    return draw.choice(NUMBERS) if kind < 0.65 else draw.choice(WORDS)


def mutated(draw: random.Random, text: bytes) -> bytes:
    """The same with a few bytes lost, changed, repeated or put in."""
    for _ in range(draw.randrange(4)):
        at, more = draw.randrange(len(text) + 1), draw.randrange(1, 9)
        part = text[at : at + more]
        new = draw.choice(
            [
                b"",
                part * 2,
                bytes(draw.randrange(256) for _ in part),
                draw.choice([b'"', b"{", b"[", b": ", b"\n", b"&a ", b"*a"]),
            ]
        )
        text = text[:at] + new + text[at + more :]
    return text


def changed(draw: random.Random, value: Any) -> Any:
    """A value with one of its parts replaced, removed, or something put beside it."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        rest = {name: one for name, one in value.items() if name != key}
        return rest if draw.random() < 0.2 else {**value, key: changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], changed(draw, value[at]), *value[at + 1 :]]
    return any_value(draw)


class Fuzz:
    """What is called, each with a folder and a source of random numbers."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        from rl_warmup.config import WarmupConfig
        from rl_warmup.options import TaskOptions
        from rl_warmup.runtime import compat

        self.folder, self.draw = folder, draw
        parts = (TaskOptions, WarmupConfig, compat.model_config_class())
        self.names = sorted({f.name for part in parts for f in fields(part) if f.init})
        self.recipe = {
            "model_name_or_path": "scratch-t5", "task": "file", "task_kwargs": {"train": "rows.jsonl", "test": "rows.jsonl"},
            "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}, "use_cpu": True, "max_steps": 1,
            "rewards": ["target_logprob", {"name": "length_penalty", "weight": 0.5}], "metrics": ["exact_match", {"name": "bleu"}],
        }  # fmt: skip
        self.sweep = {
            "question": "Which?", "base": "base.yaml", "grid": {"num_warmups": [1, 2]}, "seeds": 2, "metric": "exact_match",
            "control": "num_warmups=2", "direction": "maximize", "warmups": [""], "settings": {"tau": 0.5},
        }  # fmt: skip
        self.row = {"id": "1", "prompt": "a b", "target": "b", "warmup": "c", "choices": ["x", "y"], "answer": 0}
        self.group = {
            "row": 0,
            "id": "1",
            "prompt": "a",
            "target": "b",
            "warmups": [{"warmup": "x", "finish": "length", "logprob": -1.0}],
        }
        self.run = {
            "metrics.json": {"task": "toy", "model": "m", "objective": "sft", "seed": 1, "updates": 2, "train_seconds": 1.0, "split": "test",
                             "rows": 2, "rows_hash": "h", "signatures": {"bleu": "s"}, "metrics": {"": {"exact_match": 0.5}},
                             "likelihood": {"bound": {"1": {"mean": -1.0, "std_error": 0.1}}, "gain": {"mean": 0.1}}},
            "environment.json": {"python": "3", "versions": {"torch": "2"}},
            "recipe.yaml": {"task": "toy", "seed": 1, "max_steps": 2},
            "metrics.jsonl": [{"step": 1, "loss": 1.0, "eval_exact_match": 0.5}, {"step": 2, "loss": 0.5}],
            "timing.jsonl": [{"step": 1, "train_seconds": 0.5}, {"step": 2, "train_seconds": 1.0}],
            "warmups.jsonl": [{**self.group, "step": 1}],
            "predictions.jsonl": [{"id": "1", "prompt": "p", "target": "t", "warmup": "w", "prediction": "t"}] * 2,
        }  # fmt: skip
        (folder / "rows.jsonl").write_text("".join(json.dumps({**self.row, "id": str(i)}) + "\n" for i in range(6)))
        (folder / "base.yaml").write_text(yaml.safe_dump(self.recipe))

    def write(self, name: str, value: Any) -> Path:
        """A value in a file, its text sometimes damaged too."""
        path = self.folder / name
        lines = value if isinstance(value, list) and name.endswith((".jsonl", ".txt")) else [value]
        text = "".join(json.dumps(line, ensure_ascii=self.draw.random() < 0.5) + "\n" for line in lines)
        if name.endswith((".yaml", ".yml")) and self.draw.random() < 0.7:
            text = yaml.safe_dump(value, allow_unicode=self.draw.random() < 0.5)
        raw = text.encode("utf-8", "surrogatepass")
        path.write_bytes(mutated(self.draw, raw) if self.draw.random() < 0.3 else raw)
        return path

    def some(self, value: Any) -> Any:
        for _ in range(self.draw.choice([0, 1, 1, 2])):
            value = changed(self.draw, value)
        return value

    # ------------------------------------------------------------------ calls

    def documents(self) -> None:
        from rl_warmup.runtime.documents import parse_json, parse_yaml

        raw = mutated(self.draw, json.dumps(any_value(self.draw)).encode("utf-8", "surrogatepass"))
        for parse in (parse_json, parse_yaml):
            with contextlib.suppress(ValueError):
                parse(raw if self.draw.random() < 0.5 else raw.decode("utf-8", "replace"))

    def rows(self) -> None:
        from rl_warmup.tasks import load_task

        suffix = self.draw.choice(["jsonl", "json", "csv", "tsv", "txt"])
        table = self.some([self.row] * self.draw.randrange(1, 4))
        if suffix in ("csv", "tsv"):
            path = self.folder / f"r.{suffix}"
            path.write_bytes(
                mutated(
                    self.draw,
                    b'prompt\ttarget\tid\nx y\tz\t1\n"q\tr\ts\n'.replace(b"\t", b"," if suffix == "csv" else b"\t"),
                )
            )
        else:
            path = self.write(f"r.{suffix}", table)
        more = {name: any_value(self.draw) for name in self.draw.sample(KWARGS, self.draw.choice([0, 0, 1, 2]))}
        load_task("file", **{"train": str(path), **more})

    def own_tasks(self) -> None:
        from rl_warmup.plugins import find_plugin
        from rl_warmup.tasks import TASKS, load_task

        name = self.draw.choice(
            [
                "ledger",
                "legs",
                "translation",
                "summarization",
                "multiple_choice",
                "hub",
                "file",
                self.draw.choice(WORDS),
            ]
        )
        load = find_plugin("task", TASKS[name], {})[0] if name in TASKS else lambda: None
        keys = list(inspect.signature(load).parameters)
        small = {"train_size": 5, "validation_size": 2, "test_size": 2} if name in ("ledger", "multiple_choice") else {}
        if name == "hub":
            small = {"dataset_name": str(self.folder / "none")}
        load_task(name, **{**small, **{key: any_value(self.draw) for key in self.draw.sample(keys, min(2, len(keys)))}})

    def settings(self) -> None:
        from rl_warmup.config import build_recipe

        build_recipe(
            {
                **self.recipe,
                **{name: any_value(self.draw) for name in self.draw.sample(self.names, self.draw.randrange(1, 4))},
            }
        )

    def recipes(self) -> None:
        from rl_warmup.config import read_recipe

        flags = []
        for name in self.draw.sample(self.names, self.draw.randrange(3)):
            flags += [f"--{name}", self.draw.choice([*WORDS, str(any_value(self.draw))])]
        read_recipe(self.write("r.yaml", self.some(self.recipe)), flags)

    def plans(self) -> None:
        from rl_warmup.cli.plan import command

        path = self.write("p.yaml", self.some(self.recipe))
        if (self.folder / "rows.jsonl").is_file():
            count, memory = (
                self.draw.choice(["8", "1", "2", "4", "0", "9" * 30]),
                self.draw.choice(["80", "80", "40", "0", "1.5", "x"]),
            )
            name = self.draw.choice(["A100", "CPU", "FOO", "h100"])
            command([str(path), "--hardware", f"{count}x{name}-{memory}GB"])

    def sweeps(self) -> None:
        from rl_warmup.experiments.sweeps.jobs import read_sweep

        path = self.write("s.yaml", self.some(self.sweep))
        read_sweep(path, self.folder / "sweep").jobs()

    def warmup_files(self) -> None:
        from rl_warmup.inference.scorecard import read_warmups
        from rl_warmup.method.warmup_files import read_lines

        read = self.draw.choice([read_warmups, read_lines])
        read(self.write("w.jsonl", self.some([self.draw.choice([self.row, self.group])] * self.draw.randrange(1, 3))))

    def runs(self) -> None:
        from rl_warmup.experiments.collect import find_runs, sections
        from rl_warmup.experiments.compare import compare_section
        from rl_warmup.experiments.report import curves, page

        damaged = self.draw.choice(list(self.run))
        for name, value in self.run.items():
            path = self.folder / "run" / name
            path.parent.mkdir(exist_ok=True)
            self.write(f"run/{name}", self.some(value)) if name == damaged else path.write_text(
                "".join(json.dumps(line) + "\n" for line in (value if isinstance(value, list) else [value]))
            )
        for section in sections(find_runs([self.folder / "run"])[0]):
            curves.quality_charts(section), curves.training_charts(section)
            compare_section(section, None)
        page.example_data(sections(find_runs([self.folder / "run"])[0]))

    def metrics(self) -> None:
        from rl_warmup.metrics import compute, signatures

        texts = [str(self.draw.choice(WORDS)) for _ in range(3)]
        for function in (signatures, lambda names: compute(names, texts, texts[::-1])):
            function(self.some(["exact_match", {"name": "bleu", "kwargs": {}}]))

    def rewards(self) -> None:
        from rl_warmup.rewards.loading import load_reward

        for spec in ("target_logprob", {"name": "length_penalty", "weight": 1.0, "kwargs": {"target_length": 3}}):
            load_reward(self.some(spec))


KWARGS = [
    "test", "train_size", "seed", "stream", "metrics", "prompt_column", "target_column", "id_column", "prompt_template", "choices_column",
    "answer_column", "target_style", "shuffle_buffer", "column_names", "quoted", "validation_fraction", "path",
]  # fmt: skip
CALLS = (
    "documents",
    "rows",
    "own_tasks",
    "settings",
    "recipes",
    "plans",
    "sweeps",
    "warmup_files",
    "runs",
    "metrics",
    "rewards",
)


def fuzz(
    calls: int, seed: int, show: Callable[[str], None] = print, only: str | None = None, verbose: bool = False
) -> tuple[Counter[str], list[str]]:
    """Make that many calls. Returns how often each ended how, and a text per kind of finding."""
    draw, ends, found = random.Random(seed), Counter[str](), {}

    def ring(signum: int, frame: Any) -> None:
        raise AssertionError(f"took more than {SLOW:g} s")

    signal.signal(signal.SIGALRM, ring)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        one = Fuzz(Path(name), draw)
        for number in range(calls):
            kind = only or CALLS[number % len(CALLS)]
            draw.seed(f"{seed}/{number}")
            signal.alarm(int(SLOW))
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    getattr(one, kind)()
                ends[f"{kind}: fine"] += 1
            except EXPECTED as error:
                assert not str(getattr(error, "name", None)).startswith("rl_warmup"), error  # of this script
                ends[f"{kind}: {'a sentence' if str(error) else 'nothing said'}"] += 1
                if verbose:
                    show(f"{kind}, call {number}: {error}")
                if not str(error):
                    found.setdefault(
                        f"{kind}, no words", f"{kind}, call {number}: {type(error).__name__} without words"
                    )
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                frames = traceback.extract_tb(error.__traceback__)
                ours = next(
                    (
                        f"{f.filename.rpartition('/rl_warmup/')[2]}:{f.lineno}"
                        for f in reversed(frames)
                        if "/rl_warmup/" in f.filename
                    ),
                    "",
                )
                ends[f"{kind}: unexpected"] += 1
                key = f"{kind} {type(error).__name__} {ours}"
                if key not in found:
                    found[key] = f"{kind}, call {number}: {type(error).__name__}: {str(error)[:200]} at {ours}"
                    show(found[key])
            finally:
                signal.alarm(0)
    return ends, list(found.values())


def main() -> int:
    """Fuzz and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CALLS)
    parser.add_argument("--verbose", action="store_true", help="print the sentences too")
    options = parser.parse_args()
    began = time.monotonic()
    ends, found = fuzz(options.calls, options.seed, lambda text: print(text, flush=True), options.only, options.verbose)
    for end, count in sorted(ends.items()):
        print(f"{count:7d}  {end}")
    print(
        f"{sum(ends.values())} calls in {time.monotonic() - began:.0f} s, seed {options.seed}: {len(found)} kinds of unexpected end"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
