"""One of two processes that train a few runs in turn; `test_resume.py` forks it with GIVEN among its globals.

A run that has a checkpoint goes on from it. At its end lie the consolidated model and the logits it gives for a fixed input.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.models.loading import load_model
from rl_warmup.tasks import load_task

UPDATES = 16
SIZE = {"width": 32, "layers": 1, "heads": 2, "tokenizer": "words"}
SETTINGS = {
    "max_steps": UPDATES, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "logging_steps": 3,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "use_cpu": True,
    "num_warmups": 3, "max_warmup_length": 4, "proposals": ["reverse", "head"], "readiness": -3.5, "target_ess": 2.0,
    "anchor_weight": 0.1, "guard": "act", "disable_dropout": False, "disable_tqdm": True, "report_to": "none",
}  # fmt: skip
READING = {
    "proposals": ["reference"], "imitation": "posterior", "min_reading_updates": 8, "reading_threshold": 0.0,
    "anchor_weight": 0.0,
}  # fmt: skip
INPUT = [[5, 6, 7, 8, 9, 10]]


def start_deepspeed() -> None:
    """Over gloo, and without its operator that takes most of a minute to compile."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def logits(model: torch.nn.Module, is_encoder_decoder: bool) -> torch.Tensor:
    """What a model answers to INPUT."""
    ids = torch.tensor(INPUT)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if is_encoder_decoder else {})}
    model.eval()
    with torch.no_grad():
        return model(**inputs).logits


def make_trainer(folder: Path, kind: str, deepspeed: str | None = None, **changes: Any) -> WarmupTrainer:
    """The same run wherever it is made."""
    config = WarmupConfig(output_dir=str(folder), deepspeed=deepspeed, **{**SETTINGS, **changes})
    rows = load_task("ledger", length=3, modulus=3, train_size=25, validation_size=1, test_size=1).splits["train"]
    texts = [row[part] for row in rows for part in ("prompt", "target")]
    model, tokenizer = load_model(kind, lambda: texts, SIZE, 0)
    return WarmupTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def train(folder: Path, kind: str, deepspeed: str | None, changes: dict[str, Any]) -> None:
    """To the last update, from the newest checkpoint if there is one; then save what came out."""
    trainer = make_trainer(folder, kind, deepspeed, **changes)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(str(folder))
    answer = logits(trainer.model_wrapped, trainer.model.config.is_encoder_decoder)
    if trainer.is_world_process_zero():
        torch.save(answer, folder / "logits.pt")


def main(
    place: dict[str, str], folder: str, kind: str, deepspeed: str | None, changes: dict[str, Any], runs: list[str]
) -> None:
    """Every run in turn; output goes to `folder/log.txt`."""
    os.environ.update(place)
    with Path(folder, "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    if deepspeed is not None:
        start_deepspeed()
    for run in runs:
        train(Path(folder, run), kind, deepspeed, changes)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(**globals()["GIVEN"])
