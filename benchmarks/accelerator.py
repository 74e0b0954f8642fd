"""What waits for an accelerator, in parts: `benchmarks/accelerator.sh` calls this. Every part is a process of its own and ends
within ten minutes; a finished part leaves a CSV file and is not run again, so a repeated call goes on where the last one stopped.

    python -m benchmarks.accelerator --list          # the parts, and which are done
    python -m benchmarks.accelerator 'step-*'        # these, then the table of all that is there
    python -m benchmarks.accelerator --tiny          # all of them in miniature, on any machine

Knows: names and commands of parts. Must not know: torch, or what a part measures. A part whose weights or data are not here says
what it waits for.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.accelerator_rows import read_rows, table
from benchmarks.shapes import DEVICE_SHAPES

LIMIT = 600  # seconds of one part
SEEDS = (1, 2, 3)
GROUP_SIZES = (2, 4, 8, 16)
SMOLLM2 = "smollm2-135m-instruct"  # made by the fetching script of your weights; a plain folder
PRETRAINED = "t5-accelerator"  # made by the part `pretrain`
# Task -> its folder of data, its arms in the order in which they must run.
SMALL_ARMS = ("sft", "filler", "warmup", "sft_equal_compute")
ALL_ARMS = ("sft", "filler", "proposal", "warmup", "warmup_sampled", "sft_equal_compute")
ARMS_OF = {SMOLLM2: {"debian_sum": ALL_ARMS, "logic_rg": SMALL_ARMS}}
ARMS_OF[PRETRAINED] = {"ddtp_en_de": ALL_ARMS, "ddtp_en_fr": ALL_ARMS, "debian_sum": ALL_ARMS}
# Reading (docs/method.md): model -> generators whose habits it learns first, arms, seeds. The Llama has random weights.
LLAMA = "llama-3.2-1b"
GYM_ARMS = ("sft", "reading", "sft_equal_compute", "marginal_kl", "filler")
GYM: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]] = {
    SMOLLM2: (("leg_counting", "chain_sum", "gcd"), GYM_ARMS, SEEDS),
    LLAMA: (("leg_counting",), ("sft", "reading", "sft_equal_compute"), SEEDS[:1]),
}
GYM_UPDATES = "280"
RATES = {SMOLLM2: "1e-4", PRETRAINED: "1e-3", LLAMA: "1e-4"}
Launch = Callable[[list[str], int], int]


@dataclass
class Part:
    """One process. `needs`: files and folders that must be there; `makes`: what proves it is done."""

    name: str
    module: str
    arguments: list[str]
    makes: Path
    needs: list[Path] = field(default_factory=list)

    def missing(self) -> str:
        """The first thing this part waits for, or nothing."""
        if find_spec(self.module) is None:
            return f"the module {self.module}"
        return next((str(path) for path in self.needs if not path.exists()), "")


def parts(out: Path, models: Path, data: Path, tiny: bool) -> list[Part]:
    """All parts in the order in which they run."""
    small, once = (["--tiny"], ["--repeats", "1"]) if tiny else ([], [])
    found = _reading(SMOLLM2, out, models, data, tiny)
    for shape in DEVICE_SHAPES:
        for n in GROUP_SIZES:
            name = f"step-{shape}-n{n}"
            found.append(_part(name, "device_steps", out, [], "--shape", shape, "--n", str(n), *small, *once))
    for model, tasks in ARMS_OF.items():
        if model == PRETRAINED:
            found.append(_pretraining(models / model, data, tiny))
        folder = models / model
        given = {SMOLLM2: "scratch-llama", PRETRAINED: "scratch-t5"}[model] if tiny else str(folder)
        for task, arms in tasks.items():
            files = data / {"ddtp_en_de": "ddtp", "ddtp_en_fr": "ddtp"}.get(task, task)
            needs = [files, *([] if tiny else [folder])]
            for seed in SEEDS:
                found += [_arm(model, task, arm, seed, out, given, data, needs, tiny) for arm in arms]
    return found + _reading(LLAMA, out, models, data, tiny)


def _reading(model: str, out: Path, models: Path, data: Path, tiny: bool) -> list[Part]:
    """A model learns habits, then each arm on questions of reasoning-gym: all generators with one seed before the next seed."""
    kinds, arms, seeds = GYM[model]
    given, needs = models / model, [data / "gym"]
    learned = models / f"habits-{model}"
    name_of_model = model if model in DEVICE_SHAPES else "scratch-llama" if tiny else str(given)
    if name_of_model == str(given):
        needs.append(given)
    arguments = ["--model", name_of_model, "--kinds", *kinds, "--data", str(data), "--save", str(learned)]
    habits = _part(f"habits-{model}", "device_habits", out, needs, *arguments, *(["--tiny"] if tiny else []))
    habits.makes = learned  # the arms need the folder, and what carries results away may leave it behind
    found = [habits]
    for seed in seeds:
        for kind in kinds:
            for arm in arms:
                needs = [data / "gym", learned]
                part = _arm(model, f"gym_{kind}", arm, seed, out, str(learned), data, needs, tiny)
                part.arguments += ["--updates", GYM_UPDATES]
                found.append(part)
    return found


def _arm(
    model: str, task: str, arm: str, seed: int, out: Path, given: str, data: Path, needs: list[Path], tiny: bool
) -> Part:
    """An arm with one seed, from the model `given`."""
    arguments = ["--task", task, "--arm", arm, "--seed", str(seed), "--model", given, "--data", str(data)]
    arguments += ["--learning-rate", RATES[model], "--runs", str(out / "runs" / model)]
    arguments += ["--tiny", "--rows", "4"] if tiny else []
    needs = list(needs)
    if arm == "sft_equal_compute":
        main = "reading" if task.startswith("gym_") else "warmup"
        like = [out / f"{model}-{task}-{other}-{seed}.csv" for other in ("sft", main)]
        arguments += ["--like", *map(str, like)]
        needs += like
    return _part(f"{model}-{task}-{arm}-{seed}", "device_arms", out, needs, *arguments)


def _part(name: str, module: str, out: Path, needs: list[Path], *arguments: str) -> Part:
    made = out / f"{name}.csv"
    return Part(name, f"benchmarks.{module}", [*arguments, "--part", name, "--out", str(made)], made, needs)


def _pretraining(folder: Path, data: Path, tiny: bool) -> Part:
    """A T5 with a tokenizer of its own on English, German and French text (`benchmarks.pretrain`)."""
    files = [data / f"ddtp/ddtp-en-{lang}.train.jsonl.gz" for lang in ("de", "fr")]
    files += [data / "debian_sum/debian-sum.train.jsonl.gz"]
    columns = ["--columns", "en", "de", "fr", "document", "summary", "--output", str(folder)]
    size = ["--width", "512", "--layers", "6", "--heads", "8", "--feed-forward", "1024", "--vocab-size", "16000"]
    size += ["--batch", "256", "--updates", "3000", "--learning-rate", "2e-3", "--accelerator", "--bf16"]
    if tiny:
        size = ["--width", "16", "--layers", "1", "--heads", "2", "--feed-forward", "32", "--vocab-size", "500"]
        size += ["--batch", "2", "--updates", "2", "--held-out", "2", "--block", "24"]
    arguments = ["t5", *map(str, files), *columns, *size]
    return Part("pretrain", "benchmarks.pretrain", arguments, folder / "config.json", files)


def process(command: list[str], limit: int) -> int:
    """Run `python -m ...`; its exit status, 124 where it took too long."""
    try:
        return subprocess.run([sys.executable, "-m", *command], timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return 124


def write_tiny_data(folder: Path) -> None:
    """A few rows in the files that the parts read, from the texts that ship with the package."""
    from benchmarks.make_starts import leg_habits
    from rl_warmup.tasks import load_task

    pages = load_task("summarization").splits["test"][:8]
    pairs = load_task("translation", max_words=12).splits["test"][:8]
    puzzles = load_task("multiple_choice", train_size=0, validation_size=0, test_size=8).splits["test"]
    legs = load_task("legs", train_size=0, validation_size=0, test_size=8).splits["test"]
    told = [{key: row[key] for key in ("id", "prompt", "target")} | leg_habits(row["prompt"]) for row in legs]
    asked = [row | {"other": row["legs"]} for row in told]
    sets = {
        **{f"gym/{kind}": asked for kind in GYM[SMOLLM2][0]},
        "debian_sum/debian-sum": [
            {"id": r["id"], "document": r["prompt"][:200], "summary": r["target"]} for r in pages
        ],
        "logic_rg/logic-rg": [
            {
                "id": r["id"],
                "context": r["prompt"][:99],
                "question": "Which?",
                "choices": r["choices"],
                "answer": r["answer"],
            }
            for r in puzzles
        ],
        "ddtp/ddtp-en-de": [{"id": r["id"], "en": r["prompt"], "de": r["target"]} for r in pairs],
        "ddtp/ddtp-en-fr": [{"id": r["id"], "en": r["prompt"], "fr": r["target"]} for r in pairs],
    }
    import gzip

    for name, rows in sets.items():
        for split in ("train", "validation", "test", *(["habits"] if name.startswith("gym/") else [])):
            path = folder / f"{name}.{split}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))


def run_parts(chosen: Sequence[Part], launch: Launch) -> list[str]:
    """Run what is not done; the names of parts that failed or wait."""
    open_parts = []
    for part in chosen:
        if part.makes.exists():
            print(f"{part.name}: done before", flush=True)
        elif missing := part.missing():
            print(f"{part.name}: waits for {missing}", flush=True)
            open_parts.append(part.name)
        else:
            began = time.perf_counter()
            status = launch([part.module, *part.arguments], LIMIT)
            print(
                f"{part.name}: {'done' if status == 0 else f'FAILED ({status})'}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
            if status != 0:
                open_parts.append(part.name)
    return open_parts


def main(argv: list[str] | None = None, launch: Launch = process) -> int:
    """Run parts, print the table of all results; 0 when nothing that was asked for is open."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["*"], metavar="PART", help="names or patterns; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accelerator"), help="folder (%(default)s)")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of weights (%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data (%(default)s)")
    parser.add_argument("--list", action="store_true", help="name the parts and stop")
    parser.add_argument(
        "--tiny", action="store_true", help="miniature shapes, models and data, in a folder of their own"
    )
    options = parser.parse_args(argv)
    if options.tiny:
        options.out = options.out / "tiny"
        options.models, options.data = options.out / "models", options.out / "data"
        if not options.data.is_dir() and not options.list:
            write_tiny_data(options.data)
    everything = parts(options.out, options.models, options.data, options.tiny)
    chosen = [p for p in everything if any(fnmatch.fnmatch(p.name, pattern) for pattern in options.parts)]
    if not chosen:
        print(f"no part is called {' '.join(options.parts)}; --list names them", file=sys.stderr)
        return 2
    if options.list:
        for part in chosen:
            print(
                f"{part.name:<50} {'done' if part.makes.exists() else part.missing() and 'waits for ' + part.missing()}"
            )
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    still_open = run_parts(chosen, launch)
    results = [options.out / f"{part.name}.csv" for part in everything]
    rows = [row for path in results if path.exists() for row in read_rows(path)]
    text = table(rows)
    (options.out / "table.md").write_text(f"{text}\n", encoding="utf-8")
    print(
        f"\n{text}\n\n{len(chosen) - len(still_open)} of {len(chosen)} parts done; open: {', '.join(still_open) or 'none'}"
    )
    return 1 if still_open else 0


if __name__ == "__main__":
    sys.exit(main())
