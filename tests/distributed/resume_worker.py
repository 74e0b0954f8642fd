"""One of two processes that train the runs named on the command line; started by `test_resume.py`.

    resume_worker.py FOLDER KIND DEEPSPEED-JSON-OR-NONE RUN...

A run that has a checkpoint goes on from it. At its end lie the consolidated model and the logits it gives for a fixed input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.layouts.loading import load_model
from rl_warmup.tasks import load_task

UPDATES = 16
SIZE = {"width": 32, "layers": 1, "heads": 2, "tokenizer": "words"}
SETTINGS = {
    "max_steps": UPDATES, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "logging_steps": 3,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "use_cpu": True,
    "num_warmups": 3, "max_warmup_length": 4, "proposals": ["reverse", "head"], "readiness": -3.5, "target_ess": 2.0,
    "anchor_weight": 0.1, "guard": "act", "disable_dropout": False, "disable_tqdm": True, "report_to": "none",
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
    with torch.no_grad():
        return model.eval()(**inputs).logits


def train(folder: Path, kind: str, deepspeed: str | None) -> None:
    """To the last update, from the newest checkpoint if there is one; then save what came out."""
    config = WarmupConfig(output_dir=str(folder), deepspeed=deepspeed, **SETTINGS)
    task = load_task("ledger", length=3, modulus=3, train_size=25, validation_size=1, test_size=1)
    texts = [row[part] for row in task.splits["train"] for part in ("prompt", "target")]
    model, tokenizer = load_model(kind, lambda: texts, SIZE, 0)
    trainer = WarmupTrainer(
        model=model, args=config, train_dataset=task.splits["train"], processing_class=tokenizer
    )  # fmt: skip
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(str(folder))
    answer = logits(trainer.model_wrapped, model.config.is_encoder_decoder)
    if trainer.is_world_process_zero():
        torch.save(answer, folder / "logits.pt")


def main() -> None:
    """Every run in turn."""
    torch.set_num_threads(1)
    folder, kind, deepspeed, *runs = sys.argv[1:]
    if deepspeed != "none":
        start_deepspeed()
    for run in runs:
        train(Path(folder, run), kind, None if deepspeed == "none" else deepspeed)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
