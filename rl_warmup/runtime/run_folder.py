"""Writes the files of a run: metrics.jsonl, timing.jsonl, warmups.jsonl, environment.json, predictions.jsonl.

Knows: the trainer's logs and where they go. Must not know: how anything is trained. A missing value is left out or empty,
never 0. Times are in timing.jsonl, so that metrics.jsonl of a resumed run equals that of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, ProgressCallback

from rl_warmup.runtime.documents import whole_records
from rl_warmup.runtime.ownership import refuse_link

CLOCK_KEYS = ("runtime", "per_second", "total_flos", "train_loss")  # Trainer's train_loss covers only this session
PACKAGES = ("torch", "transformers", "accelerate", "trl", "datasets", "peft", "deepspeed", "sacrebleu", "rl_warmup")


def clock() -> float:
    """Seconds: processor time on a CPU, as other jobs slow the wall clock; wall time elsewhere."""
    import torch

    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class RunFolder(TrainerCallback, ExportableState):
    """Writes the logs of a run. On resume it first removes lines after the checkpoint."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.processes: dict[str, Any] | None = None  # `launched.describe`, once training begins
        self.settings: dict[str, Any] | None = None  # of a run without a recipe.yaml
        self.training_rows: dict[str, Any] | None = None  # `training_data.hash_of_rows`
        self.train_seconds = 0.0  # spent on updates, over all sessions, without evaluations
        self.train_tokens, self.train_flops = 0, 0.0  # of the main process
        self.spent_before = 0.0  # seconds spent before the first update
        self.started = 0.0
        self.paused = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get("RunFolder") if state.global_step else None
        nothing = {"train_seconds": 0.0, "train_tokens": 0, "train_flops": 0.0}
        for name, value in (saved["attributes"] if saved else nothing).items():
            setattr(self, name, value)
        self.train_seconds += self.spent_before
        self.started, self.paused, self.spent_before = clock(), 0.0, 0.0
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "timing.jsonl", "warmups.jsonl", "warnings.jsonl"):
                _keep_until(self.folder / name, state.global_step)
            more = {"settings": self.settings, "training_rows": self.training_rows}
            known = {key: value for key, value in more.items() if value}
            write_json(self.folder / "environment.json", {**environment(self.processes), **known})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        clock = {k: v for k, v in logs.items() if any(part in k for part in CLOCK_KEYS)}
        rest = {k: v for k, v in logs.items() if k not in clock}
        if rest.keys() - {"epoch"}:
            append_jsonl(self.folder / "metrics.jsonl", [{"step": state.global_step, **rest}])
        append_jsonl(self.folder / "timing.jsonl", [{"step": state.global_step, **self._spent(), **clock}])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last update too, so that a run of fewer than `logging_steps` updates tells something."""
        if state.global_step >= state.max_steps and args.logging_strategy == "steps":
            control.should_log = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.train_seconds, self.started = self.seconds(), 0.0

    def count(self, tokens: int, flops: float) -> None:
        """Add the cost of a micro-batch."""
        self.train_tokens += tokens
        self.train_flops += flops

    def pause(self, seconds: float) -> None:
        """Subtract time that was not spent on updates."""
        self.paused += seconds

    def seconds(self) -> float:
        """Seconds spent on updates so far."""
        return self.train_seconds + (clock() - self.started - self.paused if self.started else 0.0)

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"args": {"folder": str(self.folder)}, "attributes": self._spent()}

    def _spent(self) -> dict[str, float]:
        return {"train_seconds": self.seconds(), "train_tokens": self.train_tokens, "train_flops": self.train_flops}


class ProgressBar(ProgressCallback):
    """Trainer's progress bar; `ProgressLine` prints the logs."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""


def tells(args: Any) -> bool:
    """Whether lines about the run are printed: as `args.lines` says, else where bars are shown."""
    lines = getattr(args, "lines", None)
    return not args.disable_tqdm if lines is None else lines


class ProgressLine(TrainerCallback):
    """Prints one readable line per log."""

    SHOWN = (
        "loss", "target_logprob", "gain", "ess", "tau", "warmup_logp", "read", "kl", "completions/mean_length", "learning_rate",
    )  # fmt: skip

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not tells(args) or not logs:
            return
        validation = [k for k in logs if k.startswith("eval_") and "/" not in k and "_per_second" not in k]
        shown = [k for k in logs if k in self.SHOWN or k in validation]
        if shown:
            values = "  ".join(f"{k.rpartition('/')[2]} {logs[k]:.4g}" for k in shown)
            phase = f" [{logs['phase']}]" if "phase" in logs else ""
            tqdm.write(f"step {state.global_step}/{state.max_steps}{phase}  {values}")


def json_line(value: Any, **settings: Any) -> str:
    """A value as JSON. Types that JSON lacks become strings, numbers that are not finite become null, lone surrogates are
    escaped.

    Raises:
        TypeError, ValueError: the keys of a mapping are no strings or numbers, or a value contains itself.
    """
    settings = {"ensure_ascii": False, "default": str, **settings}
    try:
        text = json.dumps(value, allow_nan=False, **settings)
    except ValueError:  # a number is not finite, or the value contains itself
        text = json.dumps(_finite(value), **settings)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records, one JSON object a line."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json_line(record) + "\n" for record in records)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records, one JSON object a line; the file appears whole or not at all."""
    _write_whole(path, "".join(json_line(record) + "\n" for record in records))


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value; the file appears whole or not at all."""
    _write_whole(path, json_line(value, indent=2) + "\n")


def environment(processes: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a result depends on besides its recipe: versions, processes, threads, processor."""
    import torch

    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "device": device,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    refuse_link(part)
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _keep_until(path: Path, step: int) -> None:
    """Remove lines after `step` and a line that a kill left incomplete; a new run (step 0) starts an empty file.

    Says how many lines are lost where a line before the last is damaged.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    found = whole_records(path)
    fine = list(takewhile(lambda record: isinstance(record, dict) and isinstance(record.get("step"), int), found))
    lost = len(lines) - len(fine)
    if step and lines and lost > (not lines[-1].endswith(b"\n")):
        tqdm.write(f"{path}, line {len(fine) + 1}: is damaged; it and all after it are left out ({lost} lines).")
    write_jsonl(path, [record for record in fine if step and record["step"] <= step])
