"""Does a run that goes on and on keep its memory and its file handles, whatever happens to it?

    python -m benchmarks.soak --minutes 5          # more minutes, more updates

One tiny run with a checkpoint every 25 updates, a reward that fails for one warmup in ten (`on_failure: skip`) and a metric on
validation rows. Its first life is left alone for half of the time, to look at memory and handles; the others are killed (SIGKILL)
or may write no file over 60 kB, as on a full disk, by turns, and the same command goes on each time. The reward writes
down what the process holds. The script ends with 1 if the first life grew by over 2 MiB or by a handle in its second half,
or if a life ended in another way than by its kill or its disk.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

from benchmarks.kills import RECIPE

REWARD = """
import os, pathlib, random
log = pathlib.Path(__file__).with_name("held.txt")
page = os.sysconf("SC_PAGE_SIZE")
def flaky(completions, step=None, **kwargs):
    held = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * page
    fds = len(os.listdir("/proc/self/fd"))
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{os.getpid()} {held} {fds}\\n".encode())
    os.close(fd)
    if random.random() < 0.1:
        raise RuntimeError("the server is away")
    return [float(len(text)) / 100 for text in completions]
"""
DISK = 60_000  # bytes of a file that a full disk still takes


def recipe(folder: Path) -> Path:
    """The run that never ends by itself."""
    (folder / "flaky.py").write_text(REWARD)
    flaky = {"name": f"{folder / 'flaky.py'}:flaky", "on_failure": "skip", "weight": 0.1}
    changes = {
        "rewards": ["target_logprob", flaky],
        "save_steps": 25,
        "logging_steps": 100,  # transformers keeps every log in memory, some 2 kB each
        "eval_steps": 50,
        "guard": "warn",
        "max_steps": 10**6,
    }
    path = folder / "soak.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes, "output_dir": str(folder / "run")}))
    return path


def live(path: Path, seconds: float, full_disk: bool) -> str:
    """One life of the run; how it ended."""
    command = [sys.executable, "-m", "rl_warmup.cli.train", "--config", str(path), "--resume_from_checkpoint", "auto"]
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, DISK))) if full_disk else None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "killed"
    last = (said.strip().splitlines() or [""])[-1]
    if full_disk and process.returncode == 2 and "Traceback" not in said and last.startswith("rl-warmup train:"):
        return "full disk, with a sentence"
    return f"unexpected end ({process.returncode}): {last[:300]}"


def growth(values: list[int]) -> int:
    """How much the median of the last tenth lies above that of the tenth in the middle."""
    tenth = max(1, len(values) // 10)
    middle = len(values) // 2
    return round(statistics.median(values[-tenth:]) - statistics.median(values[middle : middle + tenth]))


def main() -> int:
    """Soak and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, end = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, ends = recipe(folder), Counter[str]()
        ends[live(path, 30 * options.minutes, False)] += 1
        while time.monotonic() < end:
            disk = sum(ends.values()) % 3 == 2
            ends[live(path, 60 if disk else draw.uniform(8, 25), disk)] += 1
        lines = [line.split() for line in (folder / "held.txt").read_text().splitlines()]
        first = [(int(held), int(fds)) for pid, held, fds in lines if pid == lines[0][0]]
        updates = len((folder / "run" / "timing.jsonl").read_text().splitlines())
        checkpoints = sorted(
            int(p.name.rpartition("-")[2]) for p in (folder / "run").glob("checkpoint-*") if p.name[-1].isdigit()
        )
    memory, handles = growth([held for held, _ in first]), growth([fds for _, fds in first])
    lives = len({line[0] for line in lines})
    print(
        f"{lives} lives trained, {len(lines)} updates done; newest checkpoints {checkpoints}, {updates} lines of timing"
    )
    print(f"ends: {dict(ends)}; {os.cpu_count()} cores, {options.minutes:g} minutes, seed {options.seed}")
    print(f"first life, {len(first)} updates: {first[-1][0] / 2**20:.0f} MiB and {first[-1][1]} handles at its end")
    print(f"grown in its second half by {memory / 2**10:.0f} KiB and {handles} handles")
    return int(memory > 2 * 2**20 or handles > 0 or any(end.startswith("unexpected") for end in ends))


if __name__ == "__main__":
    sys.exit(main())
