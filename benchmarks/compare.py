"""One recipe against its controls: every arm with every seed, one after another, and a report with intervals.

Knows: recipes, arms as changes of a recipe, finished run folders. Must not know: how a run works. One process; a run that is
finished is kept, so a broken-off comparison goes on where it stopped.

    python -m benchmarks.compare recipes/local/debian-sum-t5.yaml --seeds 1 2 3 --output runs/debian-sum-t5
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

EQUAL_COMPUTE = "sft_equal_compute"


def read_arms(path: Path | None, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arms as changes of the recipe: those of a YAML file, or SFT, SFT at equal compute, filler, proposal and warmup.

    Args:
        path: a mapping of names to mappings of settings; None for the five arms.
        names: the arms wanted; empty for all.

    Raises:
        ValueError: the file is no such mapping, or has no arm of a wanted name.
    """
    from rl_warmup.demo import ARMS

    arms = ARMS if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(arms, dict) or any(not isinstance(changes, dict) for changes in arms.values()):
        raise ValueError(f"{path} must map every arm to settings, `{{}}` for none.")
    unknown = [name for name in names if name not in arms]
    if unknown:
        raise ValueError(f"unknown arm {', '.join(unknown)}; known: {', '.join(arms)}.")
    return {name: arms[name] for name in names or arms}


def in_order(arms: Sequence[str]) -> list[str]:
    """The arms with SFT at equal compute last, as it needs the seconds of the others."""
    return sorted(arms, key=lambda name: name == EQUAL_COMPUTE)


def equal_compute(sft: dict[str, Any], warmup: dict[str, Any], margin: float) -> int:
    """Updates that take SFT `margin` times the warmup arm's training seconds, and never fewer than its own.

    Args:
        sft, warmup: metrics.json of one seed's runs.
    """
    return max(sft["updates"], math.ceil(margin * warmup["train_seconds"] / sft["train_seconds"] * sft["updates"]))


def run_arm(recipe: Path, changes: dict[str, Any], folder: Path, seed: int, flags: Sequence[str]) -> dict[str, Any]:
    """One run; a finished one is read, an unfinished one is begun again."""
    from rl_warmup.config import read_recipe
    from rl_warmup.run import RESULT, read_result, train_run

    if (folder / RESULT).is_file():
        return read_result(folder)
    settings = {**changes, "seed": seed, "output_dir": str(folder), "overwrite": True, "show_progress": False}
    return train_run(read_recipe(recipe, [*flags, *(f"{key}={json.dumps(value)}" for key, value in settings.items())]))


def compare(options: argparse.Namespace) -> None:
    """Run what is missing, print a line per run, and write the report."""
    from rl_warmup.demo import COMPUTE_MARGIN
    from rl_warmup.report import write_report

    arms = read_arms(options.arms_file, options.arms)
    began = time.perf_counter()
    for seed in options.seeds:
        results: dict[str, dict[str, Any]] = {}
        for name in in_order(list(arms)):
            changes = dict(arms[name])
            if name == EQUAL_COMPUTE:
                missing = [arm for arm in ("sft", "warmup") if arm not in results]
                if missing:
                    raise ValueError(f"{EQUAL_COMPUTE} needs the seconds of {' and '.join(missing)}; add these arms.")
                changes["max_steps"] = equal_compute(results["sft"], results["warmup"], COMPUTE_MARGIN)
            results[name] = run_arm(options.recipe, changes, options.output / f"{name}-{seed}", seed, options.flags)
            print(line(name, seed, results[name]), flush=True)
    written = write_report([options.output], options.output / "report", options.control)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; {written[0]}\n\n{written[1].read_text(encoding='utf-8')}")


def line(name: str, seed: int, result: dict[str, Any]) -> str:
    """A run on one line: its metrics with own warmups, then what it cost."""
    values = "  ".join(f"{metric} {value:.3f}" for metric, value in result["metrics"][""].items())
    return f"{name:<20} seed {seed}  {values}  {result['updates']} updates, {result['train_seconds']:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("recipe", type=Path, help="the warmup arm")
    parser.add_argument("flags", nargs="*", help="settings over the recipe for every arm, key=value")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs: ARM-SEED each, and report/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=[], help="only these")
    parser.add_argument(
        "--arms-file", type=Path, help="YAML, arm: {setting: value}; default: the five arms of the demo"
    )
    parser.add_argument("--control", help="the arm others are compared with; default: the SFT arm that trained longest")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
