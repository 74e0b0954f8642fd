"""One of the processes of a launch: trains the cases of a file one after the other and tells what ran, as JSON.

Started through a launcher by `test_layouts_of_processes.py`, which also calls `train_case` itself for the one-process runs.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

RANK = int(os.environ.get("RANK", "0"))
GLOBAL_BATCH = 4
SETTINGS = {
    "max_steps": 3, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
    "num_warmups": 2, "max_warmup_length": 4, "empty_share": 0.0, "log_warmups": 0, "disable_tqdm": True, "report_to": [],
    # The update is lr * m / (sqrt(v) + epsilon): a larger epsilon leaves it sensitive to the gradient's size, and keeps
    # rounding errors of gradients near 0 from becoming whole steps.
    "adam_epsilon": 1e-2, "max_grad_norm": 100.0, "guard": "off",  # a clipped gradient has the same size whatever it was
}  # fmt: skip


def silent_on_rank_1(completions: list[str], **kwargs: Any) -> list[float | None]:
    """The length of a warmup in characters, which scores nothing on one process."""
    return [None if RANK == 1 else float(len(text)) for text in completions]


def optimizer_elements(optimizer: Any) -> int:
    """Adam's first moments that lie on this process."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    states = (state["exp_avg"] for state in optimizer.state.values())
    return sum((s.to_local() if hasattr(s, "to_local") else s).numel() for s in states)


def what_ran(trainer: Any) -> dict[str, Any]:
    """Engine and shards of this process, looked up without the package's help."""
    engine, parameters = trainer.model_wrapped, list(trainer.model.parameters())
    found = {
        "engine": type(engine).__name__,
        "classes": [cls.__name__ for cls in type(engine).__mro__],
        "count": trainer.accelerator.num_processes,
        "index": trainer.accelerator.process_index,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        "trained": sum(getattr(p, "ds_numel", p.numel()) for p in parameters if p.requires_grad),
        "optimizer_here": optimizer_elements(trainer.optimizer),
        "tied": trainer.model.get_output_embeddings().weight is trainer.model.get_input_embeddings().weight,
    }
    if found["engine"] == "DeepSpeedEngine":
        found["stage"] = engine.zero_optimization_stage()
        found["gradients_sharded"] = engine.zero_optimization_partition_gradients()
    if hasattr(parameters[0], "ds_tensor"):
        found["parameters_here"] = sum(p.ds_tensor.numel() for p in parameters)
        found["released"] = sum(p.numel() == 0 for p in parameters) / len(parameters)
    if hasattr(parameters[0], "to_local"):
        found["parameters_here"] = sum(p.to_local().numel() for p in parameters)
    return found


def train_case(case: dict[str, Any], folder: Path) -> None:
    """Train one case; leaves `rank<n>.json`, metrics.jsonl and the model in the folder."""
    from peft import LoraConfig
    from transformers import TrainerCallback

    from rl_warmup import WarmupConfig, WarmupTrainer

    class Told(TrainerCallback):
        """Rows and warmups of every update on this process. Once, something goes wrong while warmups are written."""

        def __init__(self) -> None:
            self.warmups: list[list[list[int]]] = []
            self.ids: list[list[str]] = []

        def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                with suppress(KeyError), trainer._writing():
                    raise KeyError("a tokenizer that fails")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.warmups.append([warmup.ids for warmup in trainer.update.shown[0].warmups])
            self.ids.append([row["id"] for row in trainer.update.rows])

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulate = case["settings"].get("gradient_accumulation_steps", 1)
    batch = GLOBAL_BATCH // processes // accumulate
    settings = {**SETTINGS, "per_device_train_batch_size": batch, **case["settings"]}
    settings |= case.get("on_rank_1", {}) if RANK == 1 else {}
    config = WarmupConfig(output_dir=str(folder), use_cpu=True, **settings)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu(config)
    told = Told()
    trainer = WarmupTrainer(
        case["model"], config, train_dataset=case["rows"], callbacks=[told], reward_funcs=case.get("rewards"),
        peft_config=LoraConfig(r=2, **case["lora"]) if "lora" in case else None,
    )  # fmt: skip
    trainer.train()
    ran = what_ran(trainer)
    trainer.save_model()
    ran |= {"warmups": told.warmups, "ids": told.ids, "updates": trainer.state.global_step}
    Path(folder, f"rank{RANK}.json").write_text(json.dumps(ran), encoding="utf-8")


def shard_on_cpu(config: Any) -> None:
    """accelerate never shards on a CPU; two values that it keeps for itself make it."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    config.distributed_state.distributed_type = DistributedType.MULTI_GPU
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main() -> None:
    """Every case of the file named first, each in a folder of its own below the one named second."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(240, exit=True)  # says where it hangs, and ends the launch
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for name, case in cases.items():
        train_case(case, Path(sys.argv[2], name))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # as a process of a launch ends: destructors of C++ abort now and then


if __name__ == "__main__":
    main()
