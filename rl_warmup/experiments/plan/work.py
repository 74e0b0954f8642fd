"""What one update has to do, as a recipe says it: how many prompts, warmups and tokens, at which precision.

Knows: the recipe's keys that matter for cost, and how long a task's rows are. Must not know: torch, hardware, formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl_warmup.experiments.plan.shapes import Shape, read_shape
from rl_warmup.models.starts import resolve
from rl_warmup.options import OBJECTIVES, TaskOptions, WarmupOptions
from rl_warmup.runtime.settings import scratch_faults
from rl_warmup.runtime.values import defaults_of, typed
from rl_warmup.tasks import Task, load_task
from rl_warmup.tasks.stream import SHUFFLE_BUFFER, Stream

SAMPLED_ROWS = 256
NO_LIMIT = (512, 128)  # tokens of a prompt and a target, where the recipe sets no limit and rows cannot be counted


@dataclass
class Inherited:
    """Settings of transformers.TrainingArguments and trl.ModelConfig that change cost, with their defaults there."""

    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_steps: int = -1
    num_train_epochs: float = 3.0
    bf16: bool = False
    dtype: str | None = None
    gradient_checkpointing: bool = False
    optim: str = "adamw_torch_fused"
    use_peft: bool = False
    model_name_or_path: str | None = None
    use_cpu: bool = False


READ = (TaskOptions, WarmupOptions, Inherited)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt, of a warmup without its separator, of a target with its end token."""

    prompt: float
    warmup: float
    target: float


@dataclass(frozen=True)
class Work:
    """One update, per process."""

    shape: Shape
    prompts: int  # B of one micro-batch
    micro_batches: int
    warmups: int  # n; 0 for the sft control
    trained: int  # k, warmups with a gradient
    empty_share: float
    anchors: int
    mean: Lengths  # what operations are counted for
    longest: Lengths  # what memory has to hold
    lengths_from: str
    precision: str  # float32; autocast (float32 weights, bf16 products); bfloat16 (weights too)
    checkpointing: bool
    reading_can_be_shared: bool
    optimizer_bytes: float  # per parameter, of the optimizer's own state at float32
    updates: int | None = None
    train_rows: int | None = None
    epochs: float = 0.0
    notes: tuple[str, ...] = ()

    def sft(self) -> Work:
        """The control on the same prompts: the target alone, in the same trainer."""
        return replace(self, warmups=0, trained=0, empty_share=0.0, anchors=0)

    def updates_on(self, processes: int) -> int | None:
        """Updates of the whole run; None where nobody can say without the data."""
        if self.updates is not None or self.train_rows is None:
            return self.updates
        return math.ceil(self.train_rows / (self.prompts * self.micro_batches * processes)) * math.ceil(self.epochs)


def read_work(values: Mapping[str, Any], lengths: Mapping[str, float] | None = None) -> Work:
    """The work of a flat recipe (`recipe.values`, or a YAML file as it is read).

    Args:
        lengths: tokens of `prompt`, `warmup`, `target` that replace what the recipe and its rows say.

    Raises:
        ValueError: a setting that matters here is missing or makes no sense. `rl-warmup train` checks all the others.
    """
    coerced, faults = typed({key: value for key, value in values.items() if key in _defaults()}, READ)
    faults += scratch_faults(coerced.get("scratch") or {})
    if faults:
        raise ValueError(
            faults[0] if len(faults) == 1 else "\n  - ".join([f"{len(faults)} settings cannot be used:", *faults])
        )
    said = {**_defaults(), **coerced}
    if not said["model_name_or_path"]:
        raise ValueError(
            "model_name_or_path is missing. Give a folder, a well-known name, scratch-t5 or scratch-llama."
        )
    said["model_name_or_path"] = resolve(str(said["model_name_or_path"]))
    sft = said["objective"] == "sft"
    if said["objective"] not in OBJECTIVES:
        raise ValueError(f"objective: {said['objective']!r} is not one of {', '.join(OBJECTIVES)}.")
    n = 0 if sft else said["num_warmups"]
    k = n if sft or said["backward_samples"] is None else said["backward_samples"]
    if not sft and not 1 <= k <= n:
        raise ValueError(f"backward_samples: {k} must lie between 1 and num_warmups ({n}); leave it empty for all.")
    scratch = str(said["model_name_or_path"]).startswith("scratch-")
    words = scratch and (said["scratch"] or {}).get("tokenizer") == "words"
    task = _task(said) if scratch or Path(said["model_name_or_path"], "tokenizer.json").is_file() else None
    vocab = _distinct_words(task, said["scratch"]) if words and task else None
    shape = read_shape(said["model_name_or_path"], said["scratch"], vocab)
    mean, longest, origin = _lengths(said, shape, task, words, lengths or {})
    half = str(said["dtype"]) in ("bfloat16", "bf16")
    return Work(
        shape, said["per_device_train_batch_size"], said["gradient_accumulation_steps"], n, k,
        0.0 if sft else float(said["empty_share"]),
        sum(n if name in ("reference", "stored") else 1 for name in said["proposals"]) * bool(said["anchor_weight"] and not sft),
        mean, longest, origin, "bfloat16" if half else "autocast" if said["bf16"] else "float32",
        bool(said["gradient_checkpointing"]), bool(said["disable_dropout"]), _optimizer_bytes(said["optim"]),
        said["max_steps"] if said["max_steps"] > 0 else None, len(task.splits["train"]) if task else None,
        float(said["num_train_epochs"]), _notes(said),
    )  # fmt: skip


def unread(values: Mapping[str, Any]) -> list[str]:
    """Keys of a recipe that change nothing here; a misspelt one is among them."""
    return [key for key in values if key not in _defaults()]


def _defaults() -> dict[str, Any]:
    return defaults_of(READ)


def _optimizer_bytes(name: str) -> float:
    """Adam keeps two float32 numbers per parameter; what is not known here is taken for Adam."""
    return 0.0 if name in ("sgd", "adafactor") else 2.0 if "8bit" in name else 8.0


def _notes(said: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    if said["use_peft"]:
        notes.append("use_peft: an adapter is not counted; memory and operations are those of training every weight.")
    if said["objective"] != "sft" and (said["beta"] or (said["beta"] is None and "reference" in said["proposals"])):
        notes.append(
            "beta: the frozen starting model is not counted: its weights once more, and a forward over the warmups that get a "
            "gradient. With an adapter there is no second model."
        )
    if said["proposals"] and said["objective"] != "sft":
        notes.append("An update that imitates proposals is cheaper; counted is one with the policy's own warmups.")
    return tuple(notes)


def _task(said: dict[str, Any]) -> Task | None:
    """The task's rows where they are at hand offline, of a stream the first ones; None for the hub's and functions of a user."""
    if said["task"] == "hub" or ":" in said["task"]:
        return None
    task = load_task(said["task"], **(said["task_kwargs"] or {}))
    if isinstance(train := task.splits["train"], Stream):
        task.splits["train"] = train.first(SHUFFLE_BUFFER)  # whose words a scratch model's tokenizer knows
    return task


def _distinct_words(task: Task, scratch: Mapping[str, Any]) -> int:
    """Vocabulary of a scratch model's word tokenizer: five special tokens, the filler, and every word of the rows."""
    words = {"..."} | {w for row in task.splits["train"] for part in ("prompt", "target") for w in row[part].split()}
    return min(len(words) + 5, scratch.get("vocab_size", 4000))


def _lengths(
    said: dict[str, Any], shape: Shape, task: Task | None, words: bool, given: Mapping[str, float]
) -> tuple[Lengths, Lengths, str]:
    """Mean and longest lengths, and where they come from."""
    limits = [said["max_prompt_length"] or NO_LIMIT[0], said["max_target_length"] or NO_LIMIT[1]]
    counted = _counted(task, Path(said["model_name_or_path"]), words)
    means, longest = list(map(float, limits)), list(map(float, limits))
    origin = "the recipe's limits, so an upper bound"
    if counted is not None:
        for part, (tokens, limit) in enumerate(zip(counted, limits, strict=True)):
            cut = [min(count, limit) for count in tokens]
            means[part], longest[part] = sum(cut) / len(cut), max(cut)
        origin = f"{len(counted[0]):,} of the task's training rows; warmups at their limit"
    warmup = float(said["max_warmup_length"])
    mean = Lengths(given.get("prompt", means[0]), given.get("warmup", warmup), given.get("target", means[1]))
    most = Lengths(
        max(mean.prompt, given.get("prompt", longest[0])), max(mean.warmup, given.get("warmup", warmup)),
        max(mean.target, given.get("target", longest[1])),
    )  # fmt: skip
    return mean, most, f"{', '.join(given)} as given, else {origin}" if given else origin


def _counted(task: Task | None, folder: Path, words: bool) -> tuple[list[int], list[int]] | None:
    """Tokens of sampled rows' prompts and targets, with the token that ends each of them."""
    if task is None or not task.splits["train"]:
        return None
    rows = task.splits["train"]
    rows = rows if words else rows[:: max(1, len(rows) // SAMPLED_ROWS)][:SAMPLED_ROWS]
    if words:
        return [len(r["prompt"].split()) + 1 for r in rows], [len(r["target"].split()) + 1 for r in rows]
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    prompts = tokenizer.encode_batch([row["prompt"] for row in rows])
    targets = tokenizer.encode_batch([row["target"] for row in rows], add_special_tokens=False)
    return [len(x.ids) for x in prompts], [len(y.ids) + 1 for y in targets]
