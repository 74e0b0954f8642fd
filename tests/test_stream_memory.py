"""Memory does not grow with the file: training begins at once, and a pass over 300,000 rows needs what one over 10,000 does.

A million rows were measured by hand (docs/streams.md); the numbers of rows here keep the test short.
"""

from __future__ import annotations

import json
import subprocess
import sys

SMALL, LARGE, MARGIN = 10_000, 300_000, 8  # rows, rows, MiB; as dicts the large file's rows take about 150
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from rl_warmup.config import build_recipe
from rl_warmup.experiments.run import make_trainer, recipe_task

def trained(path):
    began, rows = time.process_time(), int(path.stem)
    recipe = build_recipe({
        "model_name_or_path": "scratch-t5", "scratch": {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"},
        "task": "file", "task_kwargs": {"train": str(path), "stream": True, "shuffle_buffer": 1000}, "max_steps": rows // 4,
        "per_device_train_batch_size": 4, "num_warmups": 2, "max_warmup_length": 3, "use_cpu": True, "logging_steps": 1,
        "output_dir": str(path.with_suffix(".run")), "show_progress": False, "save_strategy": "no", "log_warmups": 0,
    })
    trainer = make_trainer(recipe, recipe_task(recipe))
    seconds = time.process_time() - began
    trainer.args.max_steps = 3
    trainer.train()
    stream = trainer.train_dataset
    stream.rows_to_skip = rows - 2000  # as a run that is resumed near the end of its pass
    total = sum(int(row["id"]) for row in stream)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "total": total, "peak": peak, "loss": trainer.state.log_history[0]["loss"]}

paths = [Path(sys.argv[1], sys.argv[i]).with_suffix(".jsonl") for i in (2, 3)]
for path in paths:
    with path.open("w") as file:
        for i in range(int(path.stem)):
            file.write(json.dumps({"prompt": f"say {i} in words", "target": f"word {i % 97} of {i % 13}"}) + "\\n")
print("\\n" + json.dumps([trained(path) for path in paths]))
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(SMALL), str(LARGE)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout.splitlines()[-1])
    assert [small["total"], large["total"]] == [n * (n - 1) // 2 for n in (SMALL, LARGE)]  # every row of the pass
    assert large["peak"] - small["peak"] < MARGIN
    assert large["seconds"] < 2 * small["seconds"] + 1  # thirty times the rows
