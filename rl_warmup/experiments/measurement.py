"""What an update of a recipe really costs on this machine: the trainer of `run` makes a few, and leaves nothing behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from rl_warmup.config import build_recipe
from rl_warmup.experiments.run import make_trainer, recipe_task
from rl_warmup.models.starts import PREFIX
from rl_warmup.runtime import compat

# The policy writes every warmup, as a plan counts it; nothing is evaluated, saved or shown.
LEFT_OUT = (
    "proposals", "stored_", "anchor_", "eval_", "save_", "logging_", "load_best_", "metric", "greater_is_", "push_", "hub_",
    "resume_", "deepspeed", "fsdp", "num_train_epochs",
)  # fmt: skip
CHANGED = {
    "proposals": [], "max_steps": 3, "save_strategy": "no", "logging_strategy": "no", "log_warmups": 0, "report_to": "none",
    "guard": "off", "show_progress": False,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One update of one process."""

    device: str  # cpu or cuda
    seconds: float
    peak_bytes: float  # of torch's allocator
    flops: float  # products and attentions


def measured_values(values: Mapping[str, Any], warmup_tokens: float | None = None) -> dict[str, Any]:
    """The settings that are measured: the recipe's without `LEFT_OUT`, warmups at their limit or of these tokens.
    ValueError where the model is not on this machine."""
    name = str(values.get("model_name_or_path"))
    if not name.startswith(("scratch-", PREFIX)) and not Path(name).is_dir():
        cached = try_to_load_from_cache(name, "config.json") if name.count("/") <= 1 else None
        if not isinstance(cached, str):
            said = f"--measure: the model {name!r} is not on this machine, and plan downloads none."
            raise ValueError(f"{said} Give a folder that holds it as model_name_or_path, or leave --measure out.")
        name = str(Path(cached).parent)
    written = round(warmup_tokens or values.get("max_warmup_length", 32))
    kept = {key: value for key, value in values.items() if not key.startswith(LEFT_OUT)}
    return {**kept, **CHANGED, "model_name_or_path": name, "max_warmup_length": written, "min_warmup_length": written}


def measure_update(values: Mapping[str, Any]) -> Measured:
    """Three updates: one to warm up, whose operations are counted, one by the clock, one whose memory is watched."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        recipe = build_recipe({**values, "output_dir": str(Path(folder, "run"))})
        trainer = make_trainer(recipe, recipe_task(recipe))
        meter = _Meter(trainer)
        trainer.add_callback(meter)
        trainer.train()
    return Measured(trainer.args.device.type, meter.seconds, meter.state + meter.peak(), meter.flops.get_total_flops())


class _Meter(TrainerCallback):
    """Counts operations of the first update, seconds of the second, bytes of the third: each disturbs the others."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.cuda, self.seconds = trainer, trainer.args.device.type == "cuda", 0.0
        self.flops = FlopCounterMode(display=False, custom_mapping=compat.missing_flop_counts())
        self.memory = torch.autograd.profiler.profile(enabled=not self.cuda, profile_memory=True, use_kineto=True)
        self.counters = ExitStack()
        self.state = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._wait()
        if state.global_step == 2:
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            else:  # of the parameters and the optimizer; on a GPU within the allocator's own peak
                held = [*self.trainer.model.parameters()]
                held += [part for parts in self.trainer.optimizer.state.values() for part in parts.values()]
                self.state = sum(part.nbytes for part in held if torch.is_tensor(part))
            self.counters.enter_context(self.memory)
        elif state.global_step == 0:
            self.counters.enter_context(self.flops)
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._wait()
        if state.global_step == 2:
            self.seconds = time.perf_counter() - self.began
        self.counters.close()

    def peak(self) -> float:
        """Bytes at the fullest moment of the counted update; on a CPU beyond what was held before it."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        assert self.memory.kineto_results is not None, "the profiler has kept no events"
        events: list[Any] = [e for e in self.memory.kineto_results.events() if e.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return max(accumulate(changes, initial=0))

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
