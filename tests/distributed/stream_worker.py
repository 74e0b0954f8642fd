"""One of two processes that train on a stream, whole and resumed; started by `test_streams.py`, writes JSON.

Arguments: the recipe as JSON, the folder of the whole run, the folder of the run that is resumed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from rl_warmup.config import build_recipe
from rl_warmup.experiments.run import train_run
from rl_warmup.trainer import WarmupTrainer


def record_ids(seen: list[list[str]]) -> None:
    """Let every trainer note the ids of its rows, update by update."""
    take = WarmupTrainer.get_batch_samples

    def noted(self, *args):
        update, tokens = take(self, *args)
        seen.append([row["id"] for part in update for row in part])
        return update, tokens

    WarmupTrainer.get_batch_samples = noted


def main() -> None:
    """Train; then resume from the checkpoint after the third update."""
    torch.set_num_threads(1)
    settings, whole, resumed = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    seen: list[list[str]] = []
    record_ids(seen)
    results = [train_run(build_recipe({**settings, "output_dir": str(whole)}))]
    if results[0]:  # the main process
        shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    torch.distributed.barrier()
    results.append(train_run(build_recipe({**settings, "output_dir": str(resumed), "resume_from_checkpoint": "auto"})))
    rows = [result.get("rows") for result in results]
    print("\n" + json.dumps({"ids": seen, "rows": rows}), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # as a process of a launch ends: destructors of C++ abort now and then


if __name__ == "__main__":
    main()
