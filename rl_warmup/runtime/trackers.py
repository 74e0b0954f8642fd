"""Tables and final figures for the trackers that a run reports to: wandb, trackio and TensorBoard.

Knows: transformers' callbacks of these three, tables as rows. Must not know: what the rows are about. A tracker's package is
imported only where the run reports to it. Seen with transformers 5.23.0 and trl 1.16.0, whose GRPOTrainer sends its tables
(`log_completions`) in the same way, under the same name, to the first two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

TABLE = "completions"  # TRL's name


class SameRun(TrainerCallback):
    """Gives trackio's run its name back in the arguments: it is closed when training ends, before the final figures come."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and args.run_name is None:
            import trackio

            run = trackio.context_vars.current_run.get()
            args.run_name = getattr(run, "name", None)


def reports_to_trackio(trainer: Any) -> bool:
    """Whether one of the trainer's callbacks is trackio's."""
    return any(isinstance(callback, TrackioCallback) for callback in trainer.callback_handler.callbacks)


def send_table(trainer: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Send rows with the same keys as a table to every tracker of the trainer; in TensorBoard it is a text in Markdown."""
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks if rows else ():
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text(TABLE, _markdown(rows), step)
        elif isinstance(callback, WandbCallback | TrackioCallback):
            _log_table("wandb" if isinstance(callback, WandbCallback) else "trackio", rows, step)


def send_figures(trainer: Any, split: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Send the final figures to every tracker of the trainer, as `test/METRIC` and `test/CONTROL_METRIC`.

    Args:
        split: validation rows are called `eval`, as during training.
        metrics: control ("" is the model's own warmups) -> metric -> value.
    """
    prefix = {"validation": "eval"}.get(split, split)
    named = {
        "_".join(filter(None, (prefix, control, name))): value
        for control, values in metrics.items() for name, value in values.items() if value is not None
    }  # fmt: skip
    about = trainer.args, trainer.state, trainer.control
    for callback in trainer.callback_handler.callbacks if named else ():
        if isinstance(callback, TensorBoardCallback | WandbCallback | TrackioCallback):
            callback.on_log(*about, logs=named, model=trainer.model)
        if isinstance(
            callback, TensorBoardCallback | TrackioCallback
        ):  # training has ended, and nobody else closes them
            callback.on_train_end(*about, model=trainer.model)


def _log_table(name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    from importlib import import_module

    import pandas as pd

    tracker = import_module(name)
    if name == "wandb" and tracker.run is None:
        return
    table = tracker.Table(dataframe=pd.DataFrame(list(rows)))
    tracker.log({TABLE: table, "train/global_step": step})


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in Markdown; what would end a cell or its line is escaped."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", " ").replace("\n", "<br>")

    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(map(cell, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
