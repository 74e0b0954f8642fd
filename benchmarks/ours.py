"""Our side of a comparison: single steps of the real `WarmupTrainer`.

Knows: the trainer's public construction and its order of calls within one update. Must not know: rivals.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shapes import MAX_WARMUP
from benchmarks.stock import Step, update
from benchmarks.workloads import SEPARATOR, Workload
from rl_warmup import WarmupConfig, WarmupTrainer


def make_trainer(
    workload: Workload, model: Any, optimizer: torch.optim.Optimizer, folder: str, n: int, **options: Any
) -> WarmupTrainer:
    """A trainer whose one batch is the workload's. Several trainers may share a model and its optimizer.

    Args:
        folder: an existing folder for the run's files.
        n: warmups per prompt.
        options: further settings of `WarmupConfig`, e.g. `objective` or `backward_samples`.
    """
    settings = {"objective": "marginal", "proposals": [], **options}
    config = WarmupConfig(
        output_dir=folder, num_warmups=n, min_warmup_length=1, max_warmup_length=MAX_WARMUP, empty_share=0.0,
        separator=SEPARATOR, per_device_train_batch_size=workload.shape.rows, optim="adamw_torch_fused",
        use_cpu=workload.device.type == "cpu", report_to="none", disable_tqdm=True, log_warmups=0, **settings,
    )  # fmt: skip
    trainer = WarmupTrainer(
        model=model, args=config, train_dataset=workload.rows, processing_class=workload.tokenizer,
        optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # set by `train`, which is not called here
    if config.bf16:
        trainer.accelerator.prepare_model(model)  # autocast, likewise
    return trainer


def ours(workload: Workload, model: Any, optimizer: torch.optim.Optimizer, folder: str, n: int, **options: Any) -> Step:
    """One optimizer step as `train` takes it: draw a batch, roll out, score, weigh, backward, clip, step."""
    trainer = make_trainer(workload, model, optimizer, folder, n, **options)
    batch = list(trainer.train_dataset)

    def step() -> None:
        parts, tokens = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.training_step(trainer.model, parts[0], tokens)
        update(model, optimizer)

    return step
