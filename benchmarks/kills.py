"""Is anything lost when a run is killed? SIGKILL at random moments, again and again, against a run left alone.

    python -m benchmarks.kills                                                 # one process, 30 kills
    python -m benchmarks.kills --processes 2 --kills 6 --deepspeed deepspeed_configs/zero2.json

Every life of the run is the same command, `rl-warmup train ... --resume_from_checkpoint auto`, and nothing is repaired in
between. Lives are forked from a process that has imported the package and done nothing else, so that thirty of them take
minutes. Some end before they train, most while they do; a checkpoint follows every second update, so that many kills land inside
saving. Of several processes every second kill takes one, whose end ends the others as a launcher would see to, the rest take all.
At the end weights, metrics.jsonl and predictions must be, byte for byte, those of the run left alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

RECIPE = {
    "model_name_or_path": "scratch-t5", "scratch": {"width": 32, "layers": 2, "heads": 2, "tokenizer": "words"},
    "task": "ledger", "task_kwargs": {"length": 3, "modulus": 5, "train_size": 64, "validation_size": 8, "test_size": 8},
    "proposals": ["reverse", "head"], "readiness": -2.5, "target_ess": 2.0, "anchor_weight": 0.1, "guard": "act",
    "num_warmups": 3, "max_warmup_length": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
    "logging_steps": 3, "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 7,
    "use_cpu": True, "show_progress": False,
}  # fmt: skip
COMPARED = ("model.safetensors", "metrics.jsonl", "predictions.jsonl", "predictions.shuffled.jsonl", "warnings.jsonl")


def be(recipe: Path, place: dict[str, str], log: Path) -> None:
    """One process of one life, as the command would be."""
    from rl_warmup.cli.main import main as rl_warmup

    os.environ.update(place)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(rl_warmup(["train", "--config", str(recipe), "--resume_from_checkpoint", "auto"]))


def write_recipe(folder: Path, name: str, **changes: object) -> Path:
    """A recipe whose run is `folder/name`."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(folder / name), **changes}), encoding="utf-8")
    return path


class Life:
    """The processes of a run from one start to its end."""

    def __init__(self, recipe: Path, processes: int, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rl_warmup.experiments.run"])
        self.processes = []
        for rank in range(processes):
            place = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            self.processes.append(context.Process(target=be, args=(recipe, place, log)))
            self.processes[-1].start()

    def codes(self) -> list[int | None]:
        """Exit codes; None for what is alive."""
        return [process.exitcode for process in self.processes]

    def end(self) -> list[int | None]:
        """Wait for the end; as soon as one process fails, so do the others."""
        while None in self.codes() and not any(self.codes()):
            time.sleep(0.01)
        if any(self.codes()):
            self.kill()
        return self.codes()

    def kill(self, one: int | None = None) -> None:
        """SIGKILL to all processes, or first to one of them."""
        for process in self.processes if one is None else [self.processes[one], *self.processes]:
            process.kill()
            process.join()


def finish(recipe: Path, processes: int, log: Path) -> None:
    """A life that is left alone.

    Raises:
        SystemExit: it did not end well.
    """
    if any(Life(recipe, processes, log).end()):
        raise SystemExit(f"kills: the run of {recipe.name} failed:\n{log.read_text()[-3000:]}")


def updates(run: Path) -> int:
    """The last update in the log of a run."""
    path = run / "timing.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []  # the last may be torn
    return max((json.loads(line)["step"] for line in lines), default=0)


def place_of_death(run: Path, began: bool, max_steps: int) -> str:
    """What the run was doing, by what it left behind; `began` says whether training had begun again."""
    if not began:
        return "starting"
    unfinished = [path.name for path in (run / "unfinished").glob("*")]
    if any(name.startswith("checkpoint-") for name in unfinished):
        return "writing a checkpoint"
    if unfinished:
        return "removing a checkpoint"
    return "predicting" if (run / f"checkpoint-{max_steps}").is_dir() else "training"


def changed_at(path: Path) -> int:
    """When a file was last written; 0 where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def live_and_die(
    run: Path, recipe: Path, processes: int, longest: float, one: bool, rng: random.Random, log: Path
) -> str:
    """Start, let it come to some point, kill at a random moment after it; where that was.

    An eighth of the lives is killed wherever it may be, a quarter once it trains, the rest once it has saved: a machine that
    is busy with other things would never come further otherwise.
    """
    timing, max_steps = run / "timing.jsonl", yaml.safe_load(recipe.read_text(encoding="utf-8"))["max_steps"]
    began, saved = changed_at(timing), last_checkpoint(run)  # training begins with cutting the log
    life, chance = Life(recipe, processes, log), rng.random()
    waits = chance >= 1 / 8
    while waits and all(code is None for code in life.codes()):
        waits = changed_at(timing) == began if chance < 3 / 8 else last_checkpoint(run) == saved
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, longest))
    if any(code is not None for code in life.codes()):
        if any(life.end()):
            raise SystemExit(f"kills: the run could not go on:\n{log.read_text()[-3000:]}")
        return "finished before"
    life.kill(rng.randrange(processes) if one else None)
    return place_of_death(run, changed_at(timing) != began, max_steps)


def last_checkpoint(run: Path) -> int:
    """The number of updates in the newest checkpoint; 0 where there is none."""
    return max((int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*")), default=0)


def differences(one: Path, other: Path) -> list[str]:
    """Names of the compared files that differ, byte for byte."""
    return [name for name in COMPARED if _bytes(one / name) != _bytes(other / name)]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def torment(
    folder: Path,
    kills: int,
    processes: int = 1,
    longest: float = 1.5,
    seed: int = 0,
    show: bool = True,
    **changes: object,
) -> tuple[Counter[str], list[str]]:
    """Train `folder/alone` undisturbed and `folder/killed` with that many kills; where they landed, and what differs."""
    rng, places, log = random.Random(seed), Counter(), folder / "log.txt"
    alone, killed = (write_recipe(folder, name, **changes) for name in ("alone", "killed"))
    finish(alone, processes, log)
    for i in range(kills):
        one = processes > 1 and i % 2 == 1
        place = live_and_die(folder / "killed", killed, processes, longest, one, rng, log)
        places[place] += 1
        if show:
            print(f"kill {i + 1}: {place}, the log is at update {updates(folder / 'killed')}", flush=True)
        if place == "finished before":
            break
    finish(killed, processes, log)
    return places, differences(folder / "alone", folder / "killed")


def main() -> None:
    """Kill, count, compare; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--deepspeed", help="a JSON file of deepspeed_configs/")
    parser.add_argument("--max-steps", type=int, default=400)
    parser.add_argument("--longest", type=float, default=1.5, help="seconds a life may train")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    changes: dict[str, object] = {"max_steps": args.max_steps}
    if args.deepspeed:
        changes["deepspeed"] = str(Path(args.deepspeed).resolve())
    with tempfile.TemporaryDirectory() as folder:
        places, differ = torment(Path(folder), args.kills, args.processes, args.longest, args.seed, **changes)
    done = sum(count for place, count in places.items() if place != "finished before")
    print(
        f"{done} kills on {args.processes} process(es): {', '.join(f'{n} {where}' for where, n in places.most_common())}."
    )
    print("The end is that of the run left alone, byte for byte." if not differ else f"DIFFERENT: {', '.join(differ)}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
