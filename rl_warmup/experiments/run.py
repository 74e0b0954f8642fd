"""A run is a recipe, a seed and a folder: train, predict, score, and leave every result as a file."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from rl_warmup.config import Recipe, TaskOptions, void_note, without_effect
from rl_warmup.inference.evaluation import Evaluation, score_predictions
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.inference.rehearsal import rehearse
from rl_warmup.metrics import signatures
from rl_warmup.models.loading import load_model
from rl_warmup.plugins import code_hashes
from rl_warmup.runtime import compat
from rl_warmup.runtime.checkpoints import disk_faults, newest, refuse_damaged
from rl_warmup.runtime.launched import refuse_quantized
from rl_warmup.runtime.ownership import RESULT, reading, refuse_folder, sources
from rl_warmup.runtime.recipe_file import masked
from rl_warmup.runtime.run_folder import write_json
from rl_warmup.runtime.sharing import refuse_differences
from rl_warmup.runtime.trackers import send_figures
from rl_warmup.tasks import Task, load_task, rows_hash
from rl_warmup.tasks.conversations import flat
from rl_warmup.tasks.stream import SHUFFLE_BUFFER, Stream
from rl_warmup.trainer import WarmupTrainer


def train_run(recipe: Recipe) -> dict[str, Any]:
    """Train one recipe, predict its test split with the policy's own warmups and under the controls, and save all of it.

    Files in `output_dir`: recipe.yaml, metrics.jsonl, timing.jsonl, warmups.jsonl, environment.json, the model with its
    tokenizer and warmup_layout.json, predictions.jsonl (one more per control) and metrics.json.

    Returns what metrics.json holds: updates, train_seconds, switched_at, and `metrics` by control ("" is own warmups). All
    processes predict; the main process alone scores and writes, and the others return an empty dict. ValueError where a
    setting, a row or the folder cannot be used.
    """
    folder = Path(str(recipe.config.output_dir))
    resume = _early(recipe, folder)
    size, progress = (
        recipe.config.per_device_eval_batch_size,
        recipe.task.show_progress and not recipe.config.disable_tqdm,
    )
    evaluation = Evaluation(recipe.task.controls, batch_size=size, show_progress=progress)
    evaluation.check()
    task = recipe_task(recipe)
    refuse_differences(identity(task, recipe.values))
    for note in task.notes if not recipe.config.process_index else ():
        print(f"{task.name}: {note}.")
    trainer = make_trainer(recipe, task)
    _rehearse(recipe, task, trainer)
    with trainer.own_folder(resume):
        if trainer.is_world_process_zero():
            recipe.save(folder)
        trainer.train(resume_from_checkpoint=resume)
        return _predict(recipe, trainer, task, evaluation)


def _predict(recipe: Recipe, trainer: WarmupTrainer, task: Task, evaluation: Evaluation) -> dict[str, Any]:
    """Save the trained model, predict and score with it; the main process gets and writes the result."""
    folder = Path(str(recipe.config.output_dir))
    with disk_faults(folder):
        trainer.save_model(str(folder), _internal_call=True)  # the hub gets it with its results, below
    # Without autocast, as `rl-warmup evaluate` will predict with the saved weights.
    with trainer.shared_generator() as generator, torch.autocast(generator.model.device.type, enabled=False):
        scored = _scored(recipe, task, evaluation, generator)
    result = _result(recipe, trainer, task, scored) if trainer.is_world_process_zero() else {}
    if recipe.config.push_to_hub:
        trainer.push_to_hub()  # with the card
    else:
        trainer.create_model_card()
    return result


def _result(recipe: Recipe, trainer: WarmupTrainer, task: Task, scored: dict[str, Any]) -> dict[str, Any]:
    """Write metrics.json."""
    folder = Path(str(recipe.config.output_dir))
    truncation = trainer.encoder.counts + trainer.eval_encoder.counts + Counter(scored.pop("truncation", {}))
    result = {
        "task": task.name,
        "model": recipe.model.model_name_or_path,
        **trainer.about(folder),
        "truncation": dict(truncation),
        **scored,
    }
    write_json(folder / RESULT, result)
    send_figures(trainer, result["split"], result["metrics"])
    return result


def _rehearse(recipe: Recipe, task: Task, trainer: WarmupTrainer) -> None:
    """Try what the splits that will be predicted need; a split without rows is no fault, but it is said."""
    split = recipe.task.predict_split
    if not task.splits[split] and trainer.is_world_process_zero():
        print(f"The task {task.name} has no rows in its {split} split: after training nothing is predicted or scored.")
    warmup_generator = trainer.warmup_generator()
    rehearse(task, split, warmup_generator.encoder(), warmup_generator, recipe.task.controls)
    if recipe.config.eval_strategy != "no" and split != "validation":
        rehearse(task, "validation", trainer.eval_encoder)


def _scored(recipe: Recipe, task: Task, evaluation: Evaluation, warmup_generator: WarmupGenerator) -> dict[str, Any]:
    """The part of metrics.json about the predicted split; without rows it holds no metrics."""
    split, folder = recipe.task.predict_split, Path(str(recipe.config.output_dir))
    if task.splits[split]:
        return evaluation.run(warmup_generator, task, split, folder)
    return {
        "split": split, "rows": 0, "rows_hash": rows_hash([]), "signatures": signatures(task.metrics),
        "metric_specs": list(task.metrics), "inference": warmup_generator.mode, "metrics": {},
    }  # fmt: skip


def identity(task: Task, values: Mapping[str, Any]) -> dict[str, str]:
    """What has to be the same on all processes of a launch: rows, the recipe, the files of plugins. Of a stream, no rows."""
    named = [item for value in values.values() for item in (value if isinstance(value, list) else [value])]
    found = {f"{name} rows": rows_hash(rows) for name, rows in task.splits.items() if not isinstance(rows, Stream)}
    return {
        **found,
        "settings": json.dumps(values, default=str, sort_keys=True),
        "plugin files": str(code_hashes(named)),
    }


def recipe_task(recipe: Recipe) -> Task:
    return load_recipe_task(recipe.task)


def load_recipe_task(options: TaskOptions) -> Task:
    """A task, with the recipe's metrics where it names any; a metric that cannot work says so here."""
    task = load_task(options.task, **(options.task_kwargs or {}))
    if options.metrics:
        task = dataclasses.replace(task, metrics=tuple(options.metrics))
    signatures(task.metrics)
    return task


def make_trainer(recipe: Recipe, task: Task) -> WarmupTrainer:
    """The trainer a recipe describes, with its model, rows and headline metrics in place."""
    config, choice = recipe.config, recipe.model
    config.lines = recipe.task.show_progress  # type: ignore[misc]  # of this run
    config.disable_tqdm = bool(config.disable_tqdm) or not recipe.task.show_progress
    if config.disable_tqdm:
        transformers_logging.disable_progress_bar()
    if not task.splits["train"]:
        raise ValueError(f"The task {task.name} has no training rows.")
    if config.eval_strategy != "no" and not task.splits["validation"]:
        said = f"eval_strategy: is {config.eval_strategy.value}, but the task {task.name} has no validation rows."
        raise ValueError(f"{said} Give it some (task_kwargs), or leave eval_strategy out.")
    kwargs: dict[str, Any] = {"dtype": choice.dtype or "float32", "revision": choice.model_revision}
    if choice.attn_implementation:
        kwargs["attn_implementation"] = choice.attn_implementation
    kwargs |= compat.quantization(choice)
    void = without_effect(config, choice, recipe.task)
    if "scratch" in void and not config.process_index:
        print(void_note({"scratch": void["scratch"]}))
    rows = task.splits["train"]
    if isinstance(rows, Stream):
        rows = dataclasses.replace(rows, seed=config.seed if config.data_seed is None else config.data_seed)
    name, sizes = choice.model_name_or_path, recipe.task.scratch
    model, tokenizer = load_model(name, lambda: _texts(rows), sizes, config.seed, **kwargs)
    validation = task.splits["validation"] if config.eval_strategy != "no" else None
    trainer = WarmupTrainer(
        model=model, args=config, train_dataset=rows, eval_dataset=validation or None,
        processing_class=tokenizer, peft_config=compat.peft_config(choice),
        compute_metrics=lambda predictions: score_predictions(task, predictions), dtype="auto",  # it was loaded as asked
    )  # fmt: skip
    trainer.recipe |= masked({**vars(recipe.task), **vars(choice)})
    trainer.settings = dataclasses.replace(trainer.settings, prompt_template=task.prompt_template)
    return trainer


def _texts(rows: list[dict[str, Any]] | Stream) -> Iterator[str]:
    """What the tokenizer of a scratch model is made of: all training texts, or the first of a stream."""
    known = rows.first(SHUFFLE_BUFFER) if isinstance(rows, Stream) else rows
    return (text for row in known for text in (flat(row["prompt"]), row["target"]))


def _early(recipe: Recipe, folder: Path) -> str | bool | None:
    """What to resume from; refuses an engine or a folder that cannot be used, before anything is loaded.
    `WarmupTrainer.train` looks again, under the lock."""
    refuse_quantized(recipe.config, recipe.model.load_in_4bit or recipe.model.load_in_8bit)
    asked = recipe.config.resume_from_checkpoint
    resume = True if asked in (True, "auto", "true") else str(asked) if asked else None
    checkpoint = newest(folder) if resume is True else Path(resume) if resume else None
    if checkpoint is not None:
        refuse_damaged(checkpoint)
    if recipe.config.process_index == 0:  # others of this launch may come after it has begun to write
        with reading(folder, "output_dir"):
            pass
        if checkpoint is None or checkpoint.resolve().parent != folder.resolve():
            refuse_folder(folder, recipe.config.overwrite, resume is True, sources(recipe.values))
    return resume
