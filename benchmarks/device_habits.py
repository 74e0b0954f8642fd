"""Part of `accelerator.sh`: a model learns four ways to go on from a question, by a short plain fine-tuning, and is saved.

    python -m benchmarks.device_habits --model models/smollm2-135m-instruct --save models/habits --out habits.csv

Its questions have other numbers of terms than the task's, or larger ones, and it never sees an answer. What it then writes after
the task's own questions goes into its rows: an arm can only find what is among these samples. Knows: habits in files, language
modelling. Must not know: warmups, objectives.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator_rows import DeviceRow, write_rows
from benchmarks.gym_habits import FILED, SHARES, build_tokenizer
from benchmarks.make_starts import Start, habit_shares, pretrain
from benchmarks.shapes import DEVICE_SHAPES

# Untuned. Random weights have to learn words and sums first.
PRETRAINED: dict[str, Any] = {"updates": 1000, "rate": 2e-4, "rows": 64}
RANDOM: dict[str, Any] = {"updates": 1800, "rate": 3e-4, "rows": 64}
TINY: dict[str, Any] = {"updates": 2, "rate": 1e-3, "rows": 1}
PROBES = 100  # of each generator


def run(options: argparse.Namespace) -> list[DeviceRow]:
    """Train, probe, save; a row for each generator, whose value is the share of samples that are worked out to the letter."""
    import torch

    from benchmarks.device_steps import device_name

    told = {
        prompt: habits for kind in options.kinds for prompt, habits in _habits(options.data, f"{kind}.habits").items()
    }
    prompts = list(told)
    model, tokenizer = _start(options, [text for prompt in prompts for text in (prompt, *told[prompt].values())])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = TINY if options.tiny else RANDOM if options.model in DEVICE_SHAPES else PRETRAINED
    start = Start(
        "llama", lambda: (prompts, []), told.__getitem__, SHARES, tokenizer=build_tokenizer, **settings,
    )  # fmt: skip
    torch.manual_seed(options.seed)
    rng, began = random.Random(options.seed), time.perf_counter()
    updates = pretrain(model, tokenizer, start, prompts, rng, options.part, 60 * options.minutes)
    seconds = round(time.perf_counter() - began, 3)
    rows = []
    for kind in options.kinds:
        asked = _habits(options.data, f"{kind}.validation")
        probes = list(asked)[: 4 if options.tiny else PROBES]
        shares = habit_shares(model, tokenizer, asked.__getitem__, probes, options.seed)
        note = ", ".join(f"{habit} {share:.2f}" for habit, share in shares.items())
        row = DeviceRow(options.part, device_name(), options.save.name, f"gym_{kind}", "habits", seed=options.seed)
        row.updates, row.seconds, row.metric, row.value = updates, seconds, "worked out", shares["worked"]
        row.note = note
        rows.append(row)
    unfinished = options.save.with_name(f"{options.save.name}.part")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    write_rows(options.out, rows)
    unfinished.rename(options.save)  # last: the folder tells that the part is done
    return rows


def _start(options: argparse.Namespace, texts: list[str]) -> tuple[Any, Any]:
    """A folder's model; or random weights of a shape, all rows of its vocabulary included, with a tokenizer for these texts."""
    from benchmarks.workloads import random_model
    from rl_warmup.models.loading import load_model
    from rl_warmup.models.tiny import TinySize, build_model

    if options.model not in DEVICE_SHAPES:
        scratch = {"width": 16, "layers": 1, "heads": 2, "vocab_size": 400} if options.tiny else None
        return load_model(options.model, lambda: texts, scratch, options.seed)
    tokenizer = build_tokenizer(False, texts)
    if options.tiny:
        return build_model("llama", tokenizer, TinySize(width=16, layers=1, heads=2), options.seed), tokenizer
    return random_model(DEVICE_SHAPES[options.model]), tokenizer


def _habits(data: Path, name: str) -> dict[str, dict[str, str]]:
    """What each habit writes, by question."""
    from rl_warmup.tasks.formats import read

    rows = (record for _, record in read(data / "gym" / f"{name}.jsonl.gz"))
    return {row["prompt"]: {habit: row[habit] for habit in SHARES} for row in rows}


def main(argv: list[str] | None = None) -> None:
    """Make one start and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help=f"a folder with a model, or random weights: {', '.join(DEVICE_SHAPES)}"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(FILED), default=list(FILED), help="generators (all)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with gym/ (%(default)s)")
    parser.add_argument("--save", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=7.0, help="of training, at most (%(default)s)")
    parser.add_argument("--part", default="habits", help="name in the table")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--tiny", action="store_true", help="two updates, to see that all of this runs")
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
