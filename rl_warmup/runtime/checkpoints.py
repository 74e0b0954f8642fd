"""Checkpoint folders: which are complete, which is the newest, which to remove, and what a resumed run may change.

Knows: folders and the `checkpoint.json` in each, names of settings. Must not know: how a checkpoint is made
(`resumable.py`), torch.

A checkpoint is written under `unfinished/` and gets its name `checkpoint-N` by one rename, after every process has written
its part and `checkpoint.json` lists all files with their sizes. A removal moves it back first. So after any kill, a folder
named `checkpoint-N` is complete, and `unfinished/` holds only rubbish.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rl_warmup.runtime.damage import first_damaged
from rl_warmup.runtime.documents import read_json
from rl_warmup.runtime.faults import connection_lost

UNFINISHED = "unfinished"
CONTENTS = "checkpoint.json"
PREFIX = "checkpoint-"
STATE = "trainer_state.json"
NUMBER, NONE = (int, float), type(None)
# key -> what it holds
KINDS: dict[str, Any] = {
    "step": int, "resumable": bool, "processes": int, "sharding": str, "rows_per_update": int, "files": dict, "settings": dict,
    "rows": dict,
}  # fmt: skip
STATE_KINDS: dict[str, Any] = {
    "global_step": int, "max_steps": int, "epoch": (*NUMBER, NONE), "num_train_epochs": NUMBER, "total_flos": NUMBER,
    "train_batch_size": (int, NONE), "save_steps": (*NUMBER, NONE), "eval_steps": (*NUMBER, NONE),
    "logging_steps": (*NUMBER, NONE), "log_history": list, "stateful_callbacks": (dict, NONE), "best_metric": (*NUMBER, NONE),
    "best_global_step": (int, NONE), "best_model_checkpoint": (str, NONE),
}  # fmt: skip
NEEDED = {"step", "processes", "sharding", "rows_per_update", "global_step", "max_steps"}
UNREAD = ("training_args.bin", "tokenizer*.json", "special_tokens_map.json", "generation_config.json")  # by a resume
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
# torch and safetensors give no error number for a full disk
DISK_WORDS = (
    "No space left",
    "PytorchStreamWriter failed",
    "file write failed",
    "unexpected pos",
    "Disk quota",
    "File too large",
)
INCOMPLETE = f"its {CONTENTS} is missing, does not fit the files, or shows that save_only_model was on"
GONE_WORDS = ("No such file", "does not exist")

# What a resumed run may change: where it writes, what it logs, on which machine it runs (`Makers` has the rest), ...
FREE = {
    "output_dir", "run_name", "project", "report_to", "logging_strategy", "logging_steps", "logging_first_step", "log_warmups",
    "include_num_input_tokens_seen", "skip_memory_metrics", "debug", "push_to_hub", "hub_model_id",
    "hub_strategy", "model_card", "hub_private_repo", "hub_always_push", "hub_revision", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "save_strategy", "save_steps", "save_total_limit", "save_only_model",
    "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "deepspeed", "fsdp", "fsdp_config", "use_cpu",
    "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing", "activation_checkpointing_kwargs", "torch_empty_cache_steps", "hang_timeout",
    "full_determinism", "on_divergence", "attn_implementation", "scoring", "sampling",
    "metrics", "controls", "predict_split",
}  # fmt: skip
# ... its validation, unless that changes the training (`fixed`), its length, and the names of its rows ...
EVALUATION = {
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "num_eval_warmups",
}  # fmt: skip
BUDGET = {"max_steps", "num_train_epochs"}
ROWS = {"task", "task_kwargs", "stored_warmups"}
# ... and without a message these.
UNREPORTED = {
    "resume_from_checkpoint", "overwrite", "show_progress", "disable_tqdm", "local_rank", "do_train", "do_eval", "do_predict",
    "log_level", "log_level_replica", "log_on_each_node",
}  # fmt: skip


class DiskFault(OSError):
    """The disk is full, broken or gone."""


@dataclass(frozen=True)
class Makers:
    """The processes that write a checkpoint; they must be the same again for an exact resume."""

    processes: int
    sharding: str  # "none" (one process or DDP), "zero-1" to "zero-3", "fsdp"
    rows_per_update: int  # of all processes; the position in the data is counted in updates

    def __str__(self) -> str:
        count = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        return count if self.sharding == "none" else f"{count} under {self.sharding}"


def seal(folder: Path, step: int, makers: Makers, resumable: bool, described: Mapping[str, Any] | None = None) -> None:
    """Write `checkpoint.json` into a finished folder, and flush all its files to the disk.

    Args:
        described: what `refuse_changes` compares later: `settings`, `rows` and the like.

    Raises:
        FileNotFoundError: the random state of a process is missing, as it wrote to another machine's disk.
    """
    states = [f"rng_state_{i}.pth" for i in range(makers.processes)] if makers.processes > 1 else ["rng_state.pth"]
    missing = [name for name in states if resumable and not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: not all processes write to this disk. Put output_dir on a disk that all "
            f"machines share."
        )
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(_files(folder))}
    contents = {"step": step, "resumable": resumable, **asdict(makers), **(described or {}), "files": files}
    (folder / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    for path in _files(folder):  # the contents must reach the disk before the rename
        with path.open("rb") as file:
            os.fsync(file.fileno())


def publish(folder: Path, run: Path) -> Path:
    """Move a sealed folder to its place in the run; it replaces one of the same step."""
    place = run / folder.name
    if place.exists():
        discard(place)
    folder.rename(place)
    return place


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; a kill meanwhile leaves no part of it under its name."""
    aside = checkpoint.parent / UNFINISHED / f"removed-{checkpoint.name}"
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def clear_unfinished(run: Path) -> None:
    """Remove what earlier kills left, and nothing else."""
    for name in (PREFIX, f"removed-{PREFIX}"):
        for left in (run / UNFINISHED).glob(f"{name}*"):
            shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):  # not there, or not empty
        (run / UNFINISHED).rmdir()


def contents(checkpoint: Path) -> dict[str, Any] | None:
    """The contents of `checkpoint.json`, if all files it lists are complete; None otherwise (after an interrupted copy)."""
    try:
        found = read_json(checkpoint / CONTENTS)
        whole = all((checkpoint / name).stat().st_size == size for name, size in found["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return found if whole else None


def require(checkpoint: Path) -> dict[str, Any]:
    """`contents` of a checkpoint to resume from. Raises ValueError: it is incomplete, or holds the model alone."""
    inside = contents(checkpoint)
    if inside is None or not inside.get("resumable"):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is no complete checkpoint ({INCOMPLETE}). `--resume_from_checkpoint auto` "
            f"takes the newest complete one."
        )
    return inside


def refuse_damaged(checkpoint: Path) -> None:
    """Raises ValueError for a file of a checkpoint that cannot be read, or holds a value of another kind; names the first."""
    inside, remedy = require(checkpoint), spare(checkpoint)
    read = (name for name in inside["files"] if not any(fnmatch(name, unread) for unread in UNREAD))
    if found := first_damaged((checkpoint / name for name in read), remedy):
        raise ValueError(f"resume_from_checkpoint: {found}")
    state = read_json(checkpoint / STATE) if (checkpoint / STATE).is_file() else {}
    needed = NEEDED | ({"rows"} if "settings" in inside else set())
    for name, values, kinds in ((CONTENTS, inside, KINDS), (STATE, state, STATE_KINDS)):
        for key, kind in kinds.items():
            if (key in values or key in needed) and not isinstance(values.get(key), kind):
                what = f"{key} is {values.get(key)!r:.80}, which no run writes"
                raise ValueError(f"resume_from_checkpoint: {checkpoint / name}: {what}. {remedy}")


def spare(checkpoint: Path) -> str:
    """What to do when a checkpoint cannot be used."""
    if others := [path for path in whole_checkpoints(checkpoint.parent) if path != checkpoint]:
        return f"Remove {checkpoint}, and `auto` takes {others[-1]}; or give that one, and another output_dir."
    return f"Remove {checkpoint}, and begin anew."


@contextmanager
def readable(checkpoint: str | Path | None, what: str, setting: str = "resume_from_checkpoint") -> Iterator[None]:
    """Raises ValueError for what a library raises while it reads a part of a checkpoint; names both, and the remedy.

    A full disk, too little memory and a lost connection say nothing of the checkpoint, and are raised as they are.
    """
    try:
        yield
    except Exception as error:
        no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        elsewhere = no_memory or getattr(error, "errno", None) in DISK_ERRORS or connection_lost(error)
        if checkpoint is None or elsewhere:
            raise
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200].rstrip(".: ")
        raise ValueError(
            f"{setting}: {what} of {checkpoint} cannot be read ({why}). {spare(Path(checkpoint))}"
        ) from error


def _is_named(checkpoint: Path) -> bool:
    return checkpoint.name.removeprefix(PREFIX).isdigit()


def whole_checkpoints(run: Path, resumable: bool = True) -> list[Path]:
    """The complete checkpoints of a run, oldest first; if not `resumable`, also those that hold the model alone."""
    found = filter(_is_named, run.glob(f"{PREFIX}*"))
    known = {path: contents(path) for path in sorted(found, key=step_of)}
    return [path for path, inside in known.items() if inside and (inside.get("resumable") or not resumable)]


def newest(run: Path) -> Path | None:
    """The complete checkpoint with the most updates, or None."""
    return next(reversed(whole_checkpoints(run)), None)


def passed_over(run: Path, taken: Path | None) -> str | None:
    """A sentence about the checkpoints with more updates than the newest complete one, `taken`; None if there are none."""
    later = [
        path for path in filter(_is_named, run.glob(f"{PREFIX}*")) if taken is None or step_of(path) > step_of(taken)
    ]
    if not later:
        return None
    names = ", ".join(path.name for path in sorted(later, key=step_of))
    return f"resume_from_checkpoint: auto passes over {names} in {run}: no complete checkpoint ({INCOMPLETE})."


def beside(checkpoint: Path, step: int) -> Path | None:
    """The complete checkpoint of another update in the same folder, or None."""
    place = checkpoint.parent / f"{PREFIX}{step}"
    return place if contents(place) is not None else None


def step_of(checkpoint: Path) -> int:
    """The number of updates in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def rotate(run: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest complete checkpoints until `limit` are left; never the newest, nor the `best`."""
    if not limit or limit < 1:
        return
    whole = whole_checkpoints(run, resumable=False)
    spare = [path for path in whole[:-1] if best is None or path.resolve() != Path(best).resolve()]
    for path in spare[: max(0, len(whole) - limit)]:
        discard(path)


def later_than(checkpoint: Path, run: Path) -> list[Path]:
    """Checkpoints of the same run with more updates."""
    if checkpoint.resolve().parent != run.resolve():
        return []
    step = require(checkpoint)["step"]  # it may have been renamed
    return [path for path in whole_checkpoints(run) if step_of(path) > step]


def refuse_other_makers(checkpoint: Path, now: Makers) -> str | None:
    """A sentence about what a resume by these processes changes, or None.

    Raises ValueError: they cannot resume it, or would read other rows; with the remedy.
    """
    inside = require(checkpoint)
    before = Makers(inside["processes"], inside["sharding"], inside["rows_per_update"])
    weights = "To start a new run from its weights alone: --model_name_or_path " + str(checkpoint)
    sharded = {before.sharding, now.sharding} != {"none"}
    if before.sharding != now.sharding or (sharded and before.processes != now.processes):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} was written by {before}, and now there are {now}. Only the processes that "
            f"wrote sharded optimizer states can read them: launch as before. {weights}, with a fresh optimizer."
        )
    if before.rows_per_update != now.rows_per_update:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} counts updates of {before.rows_per_update} rows, and now they would have "
            f"{now.rows_per_update}, so rows would be left out or repeated. Set per_device_train_batch_size x "
            f"gradient_accumulation_steps x processes to {before.rows_per_update}. {weights}."
        )
    if before.processes == now.processes:
        return None
    return (
        f"{checkpoint.name} was written by {before} and is resumed by {now}: weights, optimizer, schedule and rows are kept, "
        f"but warmups come from other random streams, so the run will differ from an uninterrupted one."
    )


def refuse_changes(checkpoint: Path, now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that a resumed run changes: key -> [before, now].

    Args:
        now: `settings` by name, `fixed`, names of those that may not change; `rows`, their `training_data.rows_digest`; `start`,
            a hash of the starting model; `code`, hashes of plugin files; `eval_rows`, digests of the validation rows where they
            choose the model.

    Raises:
        ValueError: naming rows, start, code, or settings outside `FREE` that differ.
    """
    before = contents(checkpoint) or require(checkpoint)  # of the model alone too, where that is the best
    if "settings" not in before:
        return {"settings": ["unknown, as an older version wrote the checkpoint", "not compared"]}
    known, wanted = before["settings"], now["settings"]
    compared = [key for key in wanted if key in known and key not in UNREPORTED]
    differ = {key: [known[key], wanted[key]] for key in compared if known[key] != wanted[key]}
    free = FREE | EVALUATION
    free |= {key for key in BUDGET if key in differ and 0 < differ[key][0] < differ[key][1]}
    free |= set(ROWS if "count" in now["rows"] else ())  # not all rows of a stream can be compared
    free -= set(now.get("fixed", ()))
    faults = [f"{key} was {old!r}, now {new!r}" for key, (old, new) in differ.items() if key not in free]
    if before["rows"] != now["rows"]:
        faults.append(_other_rows(before["rows"], now["rows"]))
    if before.get("eval_rows", now.get("eval_rows")) != now.get("eval_rows"):
        faults.append("validation rows, which choose the model that the run ends with, are others")
    if "start" in before and "start" in now and before["start"] != now["start"]:
        faults.append("the starting model has other weights (of an adapter: its base model)")
    code, code_now = before.get("code", {}), now.get("code", {})
    faults += [f"{path} has other contents" for path, found in code_now.items() if code.get(path, found) != found]
    if faults:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of another run: {'; '.join(faults)}. Restore them, or start a new run "
            f"from its weights: --model_name_or_path {checkpoint} --output_dir OTHER."
        )
    return differ


def of_this_run(checkpoint: Path, now: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is complete and `refuse_changes` finds no fault in it."""
    try:
        refuse_changes(checkpoint, now)
    except ValueError:
        return False
    return True


def plain(value: Any) -> Any:
    """`default` for `json.dumps`: the same in every process."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _other_rows(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Which training rows differ, by the hashes of their blocks."""
    count = "first" if "first" in now else "count"
    if before.keys() != now.keys():
        kinds = ("a list", "a stream") if count == "first" else ("a stream", "a list")
        return "training rows were {}, now {}".format(*kinds)
    if before[count] != now[count]:
        counts = f"there were {before[count]} training rows, now {now[count]}"
        return counts if count == "count" else "the stream is shorter"
    size = max(1, -(-now[count] // len(now["blocks"])))
    pairs = enumerate(zip(before["blocks"], now["blocks"], strict=True))
    places = [place for place, (old, new) in pairs if old != new]
    first, last = places[0] * size, min(now[count], (places[0] + 1) * size) - 1
    where = f"row {first}" if first == last else f"rows {first} to {last}"
    more = f" and {len(places) - 1} more such blocks" if len(places) > 1 else ""
    return f"training {where}{more} {'has' if first == last and not more else 'have'} other contents"


@contextmanager
def disk_faults(run: Path) -> Iterator[None]:
    """Raise an error of the disk as a DiskFault that names the last good checkpoint."""
    try:
        yield
    except DiskFault:
        raise
    except Exception as error:  # SafetensorError is an Exception and nothing more
        words = DISK_WORDS if run.is_dir() else (*DISK_WORDS, *GONE_WORDS)
        if getattr(error, "errno", None) not in DISK_ERRORS and not any(word in str(error) for word in words):
            raise
        raise DiskFault(_disk_sentence(run, error)) from error


def _disk_sentence(run: Path, error: Exception) -> str:
    what = str(error).strip().splitlines()[0]
    if not run.is_dir():
        return f"The run's folder {run} vanished during training, with its checkpoints ({what})."
    free, remedy = shutil.disk_usage(run).free / 2**20, "There is no checkpoint yet: make room and start again."
    if last := newest(run):
        remedy = f"{last} is the last good checkpoint: make room, then resume with `--resume_from_checkpoint auto`."
    return f"The run's files cannot be written to {run} ({what}; {free:,.0f} MiB are free there). {remedy}"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != CONTENTS]
