"""How long the program takes to answer: import, --help, and from launch to the first training step.

    python -m benchmarks.startup

Every command runs in a process of its own with one thread, the smallest of the rounds counts (a warm file cache). Targets
are for seconds by the wall clock; `cpu_ms` in the CSV file is processor time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import Row, arguments, grid, save

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "rl_warmup.cli.main"]
COMMANDS = ("train", "evaluate", "generate", "report", "demo")
RECIPE = ROOT / "recipes/demo/ledger.yaml"


def run(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command that ends by itself."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=_environment(), check=True, capture_output=True)
    wall, after = time.perf_counter() - began, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def first_step() -> tuple[float, float]:
    """Wall and processor seconds from launching `rl-warmup train` on the demo's model to the log of its first update."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max_steps", "1", "--logging_steps", "1", "--eval_strategy", "no", "--output_dir", folder]
        log = Path(folder, "timing.jsonl")
        command = [*PROGRAM, "train", "--config", str(RECIPE), *flags, "--overwrite", "true"]
        began = time.perf_counter()
        process = psutil.Popen(command, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not (log.is_file() and log.stat().st_size):
            if process.poll() is not None:
                raise SystemExit(f"startup: training ended before its first update.\n{process.stderr.read().decode()}")
            time.sleep(0.005)
        wall, spent = time.perf_counter() - began, process.cpu_times()
        process.kill()  # what follows (saving, predicting) is not measured
        process.wait()
    return wall, spent.user + spent.system


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    """Time everything and print the targets beside it."""
    args = arguments(__doc__, n=()).parse_args()
    jobs = {"import rl_warmup": (0.3, lambda: run([sys.executable, "-c", "import rl_warmup"]))}
    jobs["rl-warmup --help"] = (0.5, lambda: run([*PROGRAM, "--help"]))
    for name in COMMANDS:
        jobs[f"rl-warmup {name} --help"] = (0.5, lambda name=name: run([*PROGRAM, name, "--help"]))
    jobs["launch to first update"] = (7.0, first_step)
    rows, lines = [], []
    for name, (target, job) in jobs.items():
        rounds = [job() for _ in range(args.repeats)]
        wall, cpu = min(wall for wall, _ in rounds), min(cpu for _, cpu in rounds)
        rows.append(Row("startup", "", None, name, cpu_ms=cpu * 1e3))
        lines.append([name, f"{wall:.2f}", f"{cpu:.2f}", f"<= {target}", "yes" if wall <= target else "NO"])
        print(f"{name}: {wall:.2f} s", flush=True)
    save(args.out, "startup", rows, grid(["what", "wall s", "cpu s", "target", "met"], lines))


if __name__ == "__main__":
    main()
