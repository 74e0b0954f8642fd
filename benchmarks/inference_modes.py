"""Quality against cost of each way to predict, and `generate` beside sorted `model.generate`: docs/inference.md's tables.

    python -m benchmarks.inference_modes RUN [--limit 200] [--batch-size 32]

RUN is a finished run of `rl-warmup train`. Seconds are processor seconds on one thread; `x` is the cost of the likeliest warmup.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rl_warmup import WarmupGenerator
from rl_warmup.config import read_task
from rl_warmup.experiments.run import load_recipe_task
from rl_warmup.inference.generation import WINDOW
from rl_warmup.metrics import compute
from rl_warmup.models.plain_use import stock_settings

MODES: dict[str, dict[str, Any]] = {
    "likeliest warmup": {},
    "no warmup": {"warmup": ""},
    "likeliest warmup, 4 beams": {"num_beams": 4},
    "sampled warmup": {"sample_warmup": True},
    "sampled warmup and target": {"sample_warmup": True, "sample_target": True},
    **{
        f"{n} warmups, {select}": {"num_warmups": n, "select": select}
        for n in (4, 16)
        for select in ("marginal", "mbr", "vote")
    },
}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and its processor seconds."""
    began = time.process_time()
    return work(), time.process_time() - began


def sorted_generate(w: WarmupGenerator, prompts: list[list[int]], batch_size: int) -> None:
    """Stock `model.generate` over batches of prompts of similar length, and the texts."""
    settings = stock_settings(w.model, w.settings, w.layout.tokens)
    prompts = sorted(prompts, key=len)
    for start in range(0, len(prompts), batch_size):
        ids, mask = w.layout.prompt_inputs(prompts[start : start + batch_size])
        written = w.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        w.tokenizer.batch_decode(written, skip_special_tokens=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="of the comparison with model.generate")
    parser.add_argument("--mixed", type=int, default=10_000, help="rows of mixed lengths")
    options = parser.parse_args()
    torch.set_num_threads(1)
    w = WarmupGenerator.load(options.run, "cpu")
    task = load_recipe_task(read_task(Path(options.run, "recipe.yaml")))
    metric = task.metrics[0]
    rows = w.encoded(task.splits["test"][: options.limit])
    w.generate(rows[: options.batch_size])  # warm
    gate, seconds = timed(lambda: w.calibrate_gate(task.splits["validation"], metric))
    print(f"{gate}\ncalibrated in {seconds:.1f} s\n")
    modes = {**MODES, "gate": {"gate": gate}}
    base = 0.0
    print(f"| mode | {metric} | ms per row | x |\n|---|---|---|---|")
    for name, settings in modes.items():
        out, seconds = timed(lambda s=settings: w.generate(rows, batch_size=options.batch_size, logprobs=False, **s))
        base = base or seconds
        value = compute([metric], [p["prediction"] for p in out], [row["target"] for row in rows], rows)
        skipped = f" ({sum(p['gated'] for p in out) / len(out):.0%} without a warmup)" if name == "gate" else ""
        print(
            f"| {name}{skipped} | {next(iter(value.values())):.3f} | {1000 * seconds / len(rows):.1f} | {seconds / base:.1f} |"
        )
    prompts = [row["prompt_ids"] for row in rows]
    stock, ours, scored = [], [], []
    for _ in range(options.repeats):
        stock.append(timed(lambda: sorted_generate(w, prompts, options.batch_size))[1])
        ours.append(timed(lambda: w.generate(rows, batch_size=options.batch_size, logprobs=False))[1])
        scored.append(timed(lambda: w.generate(rows, batch_size=options.batch_size))[1])
    print(f"\nsorted model.generate {statistics.median(stock):.2f} s, WarmupGenerator.generate {statistics.median(ours):.2f} s, "
          f"with log-probabilities {statistics.median(scored):.2f} s; medians of {options.repeats}")  # fmt: skip
    mixed(w, rows, options.mixed, options.batch_size)


def mixed(w: WarmupGenerator, rows: list[dict[str, Any]], count: int, batch_size: int) -> None:
    """Many rows of mixed lengths through `iterate`, in turn with sorted `model.generate`: seconds, and memory as rows go by."""
    cut = [
        {"id": "", "prompt": "", "prompt_ids": rows[i % len(rows)]["prompt_ids"][i % 4 :] * (1 + i % 5)}
        for i in range(count)
    ]
    parts = [cut[start : start + WINDOW * batch_size] for start in range(0, count, WINDOW * batch_size)]
    ways: list[Callable[[Any], Any]] = [
        lambda part: sorted_generate(w, [row["prompt_ids"] for row in part], batch_size),
        lambda part: sum(1 for _ in w.iterate(iter(part), batch_size, logprobs=False)),
    ]
    seconds, peaks = [[], []], []  # type: ignore[var-annotated]
    for number, part in enumerate(parts):
        for way in (0, 1) if number % 2 else (1, 0):  # whoever comes second finds a warmer machine
            seconds[way].append(timed(lambda way=way, part=part: ways[way](part))[1])
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    stock, ours = map(sum, seconds)
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    print(
        f"{count} rows of mixed lengths in {len(parts)} parts, in turn: sorted model.generate {stock:.1f} s, iterate "
        f"{ours:.1f} s, median ratio {ratio:.3f}; peak {peaks[0]:.0f} MiB after the first part, {peaks[-1]:.0f} after the last"
    )


if __name__ == "__main__":
    main()
