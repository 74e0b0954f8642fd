"""What one update has to do, as a recipe says it: how many prompts, warmups and tokens, at which precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rl_warmup.experiments.plan.shapes import Shape, read_shape
from rl_warmup.models.starts import resolve
from rl_warmup.options import OBJECTIVES, TaskOptions, WarmupOptions
from rl_warmup.runtime.settings import scratch_faults
from rl_warmup.runtime.values import defaults_of, typed
from rl_warmup.tasks import Row, load_task
from rl_warmup.tasks.conversations import flat
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


class Lengths(NamedTuple):
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
    not_counted: tuple[str, ...] = ()  # settings that change the cost otherwise; docs/plan.md says how

    def sft(self) -> Work:
        """The control on the same prompts: the target alone, in the same trainer."""
        return replace(self, warmups=0, trained=0, empty_share=0.0, anchors=0)

    def rows(self, lengths: Lengths, worst: bool = False) -> tuple[float, float]:
        """Rows with gradient behind one prompt, and their scored tokens, without separators; at worst one row is empty."""
        with_warmup = self.trained + self.anchors
        rows = with_warmup + (math.ceil(self.empty_share) if worst else self.empty_share) if self.warmups else 1
        return rows, with_warmup * lengths.warmup + rows * lengths.target

    def reads_once(self, alone: bool) -> bool:
        """Whether sampling and training share one reading of the prompts."""
        cut = self.micro_batches > 1 or self.checkpointing
        return alone and self.warmups > 0 and self.reading_can_be_shared and not cut

    def shares_prompts(self, alone: bool) -> bool:
        """Whether all rows with gradient follow one reading of their prompt."""
        return self.reads_once(alone) or (self.trained == self.warmups > 1 and not self.checkpointing)

    def weight_bytes(self, strategy: str) -> int:
        """Of one weight: DeepSpeed casts the weights themselves where `bf16` is set."""
        return 2 if self.precision == "bfloat16" or (self.precision == "autocast" and strategy != "ddp") else 4

    def tokens(self) -> dict[str, float]:
        """Tokens that one process reads and writes in one update."""
        x, c, y = self.mean
        rows, scored = self.rows(self.mean)
        parts = {"prompt": x, "warmup": self.warmups * c, "target": y, "trained_on": x + scored + rows}
        return {name: self.prompts * self.micro_batches * part for name, part in parts.items()}

    def updates_on(self, processes: int) -> int | None:
        """Updates of the whole run; None where nobody can say without the data."""
        if self.updates is not None or self.train_rows is None:
            return self.updates
        an_epoch = math.ceil(self.train_rows / (self.prompts * self.micro_batches * processes))
        return math.ceil(self.epochs * an_epoch)  # as Trainer counts


def read_work(values: Mapping[str, Any], lengths: Mapping[str, float] | None = None) -> Work:
    """The work of a flat recipe (`recipe.values`, or a YAML file as it is read); `lengths` as of `make_plan`.
    ValueError where a setting that matters here is missing or makes no sense. `rl-warmup train` checks all the others."""
    said = _settings(values)
    name, sft = resolve(str(said["model_name_or_path"])), said["objective"] == "sft"
    n = said["num_warmups"]
    k = n if said["backward_samples"] is None else said["backward_samples"]
    if not sft and not 1 <= k <= n:
        raise ValueError(f"backward_samples: {k} must lie between 1 and num_warmups ({n}); leave it empty for all.")
    sizes, folder = said["scratch"] or {}, Path(name)
    rows = _rows(said) if name.startswith("scratch-") or (folder / "tokenizer.json").is_file() else []
    words = name.startswith("scratch-") and sizes.get("tokenizer") == "words"
    known = (
        {"...", *(w for row in rows for part in ("prompt", "target") for w in flat(row[part]).split())} if words else ()
    )
    shape = read_shape(name, sizes, len(known) + 5 if rows and words else None)
    shape = replace(shape, name=str(said["model_name_or_path"]))
    mean, longest, origin = _lengths(said, _counted(rows, folder, words), lengths or {})
    held = said["beta"] if said["beta"] is not None else "reference" in said["proposals"]
    uncounted = [key for key, counts in (("beta", held), ("proposals", said["proposals"])) if counts and not sft]
    uncounted += ["use_peft"] * said["use_peft"]
    template, talks = said["chat_template"], any(isinstance(row["prompt"], list) for row in rows)
    laid_out = template != "none" and (template != "auto" or talks)  # `none` is the contents alone, which are counted
    uncounted += [key for key, counts in (("chat_template", laid_out), ("system", said["system"])) if counts]
    anchors = sum(n if proposal in ("reference", "stored") else 1 for proposal in said["proposals"])
    half, optim = str(said["dtype"]) in ("bfloat16", "bf16"), said["optim"]
    work = Work(
        shape=shape,
        prompts=said["per_device_train_batch_size"],
        micro_batches=said["gradient_accumulation_steps"],
        warmups=n,
        trained=k,
        empty_share=float(said["empty_share"]),
        anchors=anchors if said["anchor_weight"] else 0,
        mean=mean,
        longest=longest,
        lengths_from=origin,
        precision="bfloat16" if half else "autocast" if said["bf16"] else "float32",
        checkpointing=bool(said["gradient_checkpointing"]),
        reading_can_be_shared=bool(said["disable_dropout"]),
        # Adam keeps two float32 numbers per parameter; what is not known here is taken for Adam
        optimizer_bytes=0.0 if optim in ("sgd", "adafactor") else 2.0 if "8bit" in optim else 8.0,
        updates=said["max_steps"] if said["max_steps"] > 0 else None,
        train_rows=len(rows) or None,
        epochs=float(said["num_train_epochs"]),
        not_counted=tuple(uncounted),
    )
    return work.sft() if sft else work


def unread(values: Mapping[str, Any]) -> list[str]:
    """Keys of a recipe that change nothing here; a misspelt one is among them."""
    return [key for key in values if key not in defaults_of(READ)]


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are read here, checked, with their defaults."""
    defaults = defaults_of(READ)
    coerced, faults = typed({key: value for key, value in values.items() if key in defaults}, READ)
    said = defaults | coerced
    faults += scratch_faults(said["scratch"] or {})
    if not faults and not said["model_name_or_path"]:
        faults = ["model_name_or_path is missing. Give a folder, a well-known name, scratch-t5 or scratch-llama."]
    if not faults and said["objective"] not in OBJECTIVES and ":" not in said["objective"]:
        faults = [f"objective: {said['objective']!r} is not one of {', '.join(OBJECTIVES)}."]
    if faults:
        head = [f"{len(faults)} settings cannot be used:"] if len(faults) > 1 else []
        raise ValueError("\n  - ".join([*head, *faults]))
    return said


def _rows(said: dict[str, Any]) -> list[Row]:
    """Training rows that are at hand offline, of a stream the first ones: not the hub's, nor a user's own function's."""
    if said["task"] == "hub" or ":" in said["task"]:
        return []
    rows = load_task(said["task"], **(said["task_kwargs"] or {})).splits["train"]
    return rows.first(SHUFFLE_BUFFER) if isinstance(rows, Stream) else rows


def _lengths(
    said: dict[str, Any], counted: list[list[int]] | None, given: Mapping[str, float]
) -> tuple[Lengths, Lengths, str]:
    """Mean and longest lengths, and where they come from."""
    limits = (said["max_prompt_length"] or NO_LIMIT[0], said["max_target_length"] or NO_LIMIT[1])
    origin = "the recipe's limits, so an upper bound"
    if counted:
        origin = f"{len(counted[0]):,} of the task's training rows; warmups at their limit"
    origin = f"{', '.join(given)} as given, else {origin}" if given else origin
    cut = [[min(n, limit) for n in part or [limit]] for part, limit in zip(counted or ([], []), limits, strict=True)]
    (x, y), c = (sum(part) / len(part) for part in cut), said["max_warmup_length"]
    mean, longest = Lengths(x, c, y), Lengths(max(cut[0]), c, max(cut[1]))
    return mean._replace(**given), longest._replace(**given), origin


def _counted(rows: list[Row], folder: Path, words: bool) -> list[list[int]] | None:
    """Tokens of sampled rows' prompts and targets, with the token that ends each of them."""
    file = folder / "tokenizer.json"
    if not rows or not (words or file.is_file()):
        return None
    if words:
        return [[len(flat(row[part]).split()) + 1 for row in rows] for part in ("prompt", "target")]
    from tokenizers import Tokenizer

    rows, tokenizer = rows[:: max(1, len(rows) // SAMPLED_ROWS)][:SAMPLED_ROWS], Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    prompts = tokenizer.encode_batch([flat(row["prompt"]) for row in rows])
    targets = tokenizer.encode_batch([row["target"] for row in rows], add_special_tokens=False)
    return [[len(x.ids) for x in prompts], [len(y.ids) + 1 for y in targets]]
