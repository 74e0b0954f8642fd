"""One process of a launch: evaluates 5 rows, trains two passes over 7 rows, evaluates again; what came out, as JSON.

Started by `test_evaluating.py`, which runs it in its own process too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch


def evaluate(model: str, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Figures before any training, and the rows of every update on this process."""
    from transformers import TrainerCallback

    from rl_warmup import WarmupConfig, WarmupTrainer

    class Rows(TrainerCallback):
        """The ids of each update."""

        ids: list[list[str]]

        def __init__(self) -> None:
            self.ids = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ids.append([row["id"] for row in trainer.update.rows])

    def told(predictions: list[dict[str, Any]]) -> dict[str, float]:
        written = sum(map(sum, (row["prediction_ids"] for row in predictions)))
        return {"rows": len(predictions), "written": written}

    seen = Rows()
    config = WarmupConfig(
        output_dir=str(folder), use_cpu=True, num_train_epochs=2, per_device_train_batch_size=2, save_strategy="no",
        per_device_eval_batch_size=2, num_warmups=2, max_warmup_length=4, max_target_length=6, disable_tqdm=True,
        report_to=[], guard="off",
    )  # fmt: skip
    trainer = WarmupTrainer(
        model, config, train_dataset=rows[:7], eval_dataset=rows[7:12], compute_metrics=told, callbacks=[seen]
    )
    before, predicted = trainer.evaluate(), trainer.predict(rows[12:15])
    trainer.train()
    after = trainer.evaluate(rows[15:16])  # fewer rows than processes
    texts = [[row["warmup_ids"], row["prediction_ids"]] for row in predicted.predictions]
    return {"before": before, "predicted": texts, "test": predicted.metrics, "after": after, "ids": seen.ids}


def main() -> None:
    """Arguments: model, file of rows, folder of results."""
    torch.set_num_threads(1)
    rows, folder = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3])
    found = evaluate(sys.argv[1], rows, folder)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # as a process of a launch ends: destructors of C++ abort now and then


if __name__ == "__main__":
    main()
