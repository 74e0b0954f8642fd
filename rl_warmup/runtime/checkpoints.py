"""Which checkpoints of a run are whole, which is the newest, which may go, and what a run that goes on may change.

Knows: folders and the `checkpoint.json` in each, names of settings. Must not know: how a checkpoint is made
(`resumable.py`), torch.

A checkpoint is written under `unfinished/` and gets its name `checkpoint-N` by one rename, after every process has written
its part and `checkpoint.json` lists all files with their sizes. It leaves by the same door. So whatever is killed when,
a folder named `checkpoint-N` is whole, and what lies in `unfinished/` is rubbish.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl_warmup.runtime.documents import read_json

UNFINISHED = "unfinished"
CONTENTS = "checkpoint.json"
PREFIX = "checkpoint-"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
# torch and safetensors report a full disk without an error number
DISK_WORDS = ("No space left", "PytorchStreamWriter failed", "file write failed", "unexpected pos", "Disk quota")
GONE_WORDS = ("No such file", "does not exist")


# What a run that goes on may change: where it writes and what it says, on which machine it runs (`Makers` has the rest), ...
FREE = {
    "output_dir", "run_name", "project", "report_to", "logging_strategy", "logging_steps", "logging_first_step", "log_warmups",
    "include_num_input_tokens_seen", "skip_memory_metrics", "debug", "push_to_hub", "hub_model_id",
    "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "save_strategy", "save_steps", "save_total_limit", "save_only_model",
    "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "deepspeed", "fsdp", "fsdp_config", "use_cpu",
    "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing", "activation_checkpointing_kwargs", "torch_empty_cache_steps", "hang_timeout",
    "full_determinism", "attn_implementation", "scoring", "sampling",
    "metrics", "controls", "predict_split",
}  # fmt: skip
# ... how it is validated, unless that chooses the model it ends with, how long it is, and how its rows are named ...
EVALUATION = {
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "num_eval_warmups",
}  # fmt: skip
BUDGET = {"max_steps", "num_train_epochs"}
ROWS = {"task", "task_kwargs", "stored_warmups"}
# ... of which these are not worth a word.
UNSAID = {
    "resume_from_checkpoint", "overwrite", "show_progress", "disable_tqdm", "local_rank", "do_train", "do_eval", "do_predict",
    "log_level", "log_level_replica", "log_on_each_node",
}  # fmt: skip


class DiskFault(OSError):
    """A full, broken or vanished disk, said in a sentence."""


@dataclass(frozen=True)
class Makers:
    """Who writes a checkpoint: what must be the same again for the run to go on as if nothing had happened."""

    processes: int
    sharding: str  # "none" (one process or DDP: every process holds everything), "zero-1" to "zero-3", "fsdp"
    rows_per_update: int  # of all processes; the position in the data is counted in updates


def seal(folder: Path, step: int, makers: Makers, resumable: bool, described: Mapping[str, Any] | None = None) -> None:
    """Write `checkpoint.json` over the finished contents of a folder, and make sure that all of it is on the disk.

    Args:
        described: what `refuse_changes` compares later: `settings`, `rows` and the like.

    Raises:
        FileNotFoundError: the random state of a process is not there, as it wrote to another machine's disk.
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
    for path in _files(folder):  # a rename that reaches the disk before the contents would name an empty checkpoint
        with path.open("rb") as file:
            os.fsync(file.fileno())


def publish(folder: Path, run: Path) -> Path:
    """Give a sealed folder its place in the run; one of the same step steps aside first."""
    place = run / folder.name
    if place.exists():
        discard(place)
    folder.rename(place)
    return place


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; a kill meanwhile leaves no half of it under its name."""
    aside = checkpoint.parent / UNFINISHED / f"removed-{checkpoint.name}"
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def clear_unfinished(run: Path) -> None:
    """Remove what earlier kills left half-written or half-removed."""
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def contents(checkpoint: Path) -> dict[str, Any] | None:
    """What `checkpoint.json` says, if all it lists is there in full; None otherwise (an interrupted copy, say)."""
    try:
        found = read_json(checkpoint / CONTENTS)
        whole = all((checkpoint / name).stat().st_size == size for name, size in found["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return found if whole else None


def require(checkpoint: Path) -> dict[str, Any]:
    """`contents` of a checkpoint to go on from.

    Raises:
        ValueError: it is incomplete, or holds the model alone.
    """
    inside = contents(checkpoint)
    if inside is None or not inside["resumable"]:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is no complete checkpoint (its {CONTENTS} is missing, does not fit the "
            f"files, or says that save_only_model was on). `--resume_from_checkpoint auto` takes the newest complete one."
        )
    return inside


def whole_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run that a run can go on from, oldest first."""
    found = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    found.sort(key=step_of)
    return [path for path in found if (inside := contents(path)) and inside["resumable"]]


def newest(run: Path) -> Path | None:
    """The whole checkpoint with the most updates, or None."""
    return max(whole_checkpoints(run), key=step_of, default=None)


def beside(checkpoint: Path, step: int) -> Path | None:
    """The whole checkpoint of another update in the same folder, or None."""
    place = checkpoint.parent / f"{PREFIX}{step}"
    return place if contents(place) is not None else None


def step_of(checkpoint: Path) -> int:
    """The number of updates in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def rotate(run: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest whole checkpoints until `limit` are left; never the newest, nor the `best`."""
    if not limit or limit < 1:
        return
    whole = [path for path in run.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and contents(path)]
    whole.sort(key=step_of)
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
    """What a resume by other processes changes, in a sentence, or None where nothing does.

    Raises:
        ValueError: it cannot go on, or would read other rows; with the remedy.
    """
    inside = require(checkpoint)
    before = Makers(inside["processes"], inside["sharding"], inside["rows_per_update"])
    weights = "To start a new run from its weights alone: --model_name_or_path " + str(checkpoint)
    sharded = {before.sharding, now.sharding} != {"none"}
    if before.sharding != now.sharding or (sharded and before.processes != now.processes):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} was written by {_spell(before)}, and now there are {_spell(now)}. "
            f"Sharded optimizer states fit the processes that wrote them alone: launch as before. {weights}, with a fresh "
            f"optimizer."
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
        f"{checkpoint.name} was written by {_spell(before)} and goes on with {_spell(now)}: weights, optimizer, schedule and "
        f"rows are kept, but warmups are drawn from other random streams, so the run will not be equal to one left alone."
    )


def refuse_changes(checkpoint: Path, now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings in which a run that goes on differs from the one that wrote the checkpoint: key -> [before, now].

    Args:
        now: `settings` by name; `rows`, their `training_data.rows_digest`; `start`, a hash of the model that the run starts
            from; `code`, hashes of the files of plugins.

    Raises:
        ValueError: naming what differs, where that makes it another run: rows, a start, code, or a setting that is not in
            `FREE`.
    """
    before = require(checkpoint)
    if "settings" not in before:
        return {"settings": ["not known, as an older version wrote the checkpoint", "not compared"]}
    known, wanted = before["settings"], now["settings"]
    differ = {key: [known[key], wanted[key]] for key in wanted if key in known and known[key] != wanted[key]}
    differ = {key: pair for key, pair in differ.items() if key not in UNSAID}
    free = {*FREE, *(EVALUATION if not wanted.get("load_best_model_at_end") else ())}
    free |= {key for key in BUDGET if key in differ and 0 < differ[key][0] < differ[key][1]}
    free |= set(ROWS if "count" in now["rows"] else ())  # of a stream not all rows can be compared
    faults = [f"{key} was {old!r}, now {new!r}" for key, (old, new) in differ.items() if key not in free]
    if before["rows"] != now["rows"]:
        faults.append(_other_rows(before["rows"], now["rows"]))
    if "start" in before and "start" in now and before["start"] != now["start"]:
        faults.append("the model that it started from has other weights (of an adapter: its base model)")
    code = before.get("code", {})
    faults += [
        f"{path} has other contents" for path, found in now.get("code", {}).items() if code.get(path, found) != found
    ]
    if faults:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of another run: {'; '.join(faults)}. Set them as they were, or start a new "
            f"run from its weights: --model_name_or_path {checkpoint} --output_dir OTHER."
        )
    return differ


def plain(value: Any) -> Any:
    """What JSON does not know, as `json.dumps` wants it from `default`: the same in every process."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _other_rows(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Which training rows differ, as far as the hashes of their blocks tell."""
    if before.keys() != now.keys():
        return (
            "training rows were a list, now a stream" if "first" in now else "training rows were a stream, now a list"
        )
    count = "first" if "first" in now else "count"
    if before[count] != now[count]:
        return (
            f"there were {before[count]} training rows, now {now[count]}"
            if count == "count"
            else "the stream is shorter"
        )
    size = max(1, -(-now[count] // len(now["blocks"])))
    places = [
        place for place, pair in enumerate(zip(before["blocks"], now["blocks"], strict=True)) if pair[0] != pair[1]
    ]
    first, last = places[0] * size, min(now[count], (places[0] + 1) * size) - 1
    where = f"row {first}" if first == last else f"rows {first} to {last}"
    more = f" and {len(places) - 1} more such blocks" if len(places) > 1 else ""
    return f"training {where}{more} have other contents"


def _spell(makers: Makers) -> str:
    many = f"{makers.processes} process{'es' if makers.processes > 1 else ''}"
    return many if makers.sharding == "none" else f"{many} under {makers.sharding}"


def is_disk_fault(run: Path, error: BaseException) -> bool:
    """Whether the disk is the cause: full, gone, or read-only."""
    if not run.is_dir() and any(word in str(error) for word in GONE_WORDS):
        return True
    return (isinstance(error, OSError) and error.errno in DISK_ERRORS) or any(word in str(error) for word in DISK_WORDS)


@contextmanager
def disk_faults(run: Path) -> Iterator[None]:
    """Turn an error of the disk into a sentence that names the last good checkpoint.

    Raises:
        DiskFault: with that sentence.
    """
    try:
        yield
    except DiskFault:
        raise
    except Exception as error:  # SafetensorError is an Exception and nothing more
        if not is_disk_fault(run, error):
            raise
        raise DiskFault(_disk_sentence(run, error)) from error


def _disk_sentence(run: Path, error: Exception) -> str:
    what = str(error).strip().splitlines()[0]
    if not run.is_dir():
        return f"The run's folder {run} has vanished while it trained, and its checkpoints with it ({what})."
    last = newest(run)
    free = shutil.disk_usage(run).free / 2**20
    good = (
        f"{last} is the last good checkpoint, and intact: make room, then go on with `--resume_from_checkpoint auto`."
        if last
        else "There is no checkpoint yet: make room and start again."
    )
    return f"The run's files cannot be written to {run} ({what}; {free:,.0f} MiB are free there). {good}"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != CONTENTS]
