"""Ownership of run folders: which files a run writes, which process writes now, and a hash of the weights.

Knows: names of files, locks, bytes. Must not know: what the files mean, torch. docs/formats.md describes the rules.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rl_warmup.runtime.documents import parse_json, read_json

LOCK = "writing.lock"
RESULT = "metrics.json"
CARD = "<!-- written by rl_warmup"  # begins our part of a folder's README.md
LOGS = "RL_WARMUP_LOGS"  # folder for the output of all processes but the first
MARKS = ("environment.json", "recipe.yaml", "reference_warmups.jsonl")  # a folder with one of these is a run
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.*")
EVALUATED = (RESULT, "predictions.jsonl", "predictions.*.jsonl", LOCK)
MODEL = (
    *WEIGHTS, "*.safetensors.index.json", "*.bin.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "warmup_layout.json", "tokenizer*.json", "added_tokens.json", "tokenizer.model", "spiece.model", "spm*.model", "source.spm",
    "sentencepiece*.model", "target.spm", "tiktoken.model", "*.tiktoken", "special_tokens_map.json", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.*", "training_args.bin", "additional_chat_templates/*.jinja", "custom_generate/generate.py",
)  # fmt: skip
STATE = (
    "checkpoint.json", "trainer_state.json", "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "latest",
    "zero_to_fp32.py", "global_step*/**", "pytorch_model_fsdp*/**", "pytorch_model_fsdp*", "optimizer*/**",
)  # fmt: skip
REPORT = ("report.html", "summary.md", "*.png")
BEFORE = (
    "asked.yaml", "inputs.json", "train.log", "run.lock", LOCK, "logs/rank*.log", "heartbeats/process-*",
    "unfinished/checkpoint-*/**", "unfinished/removed-checkpoint-*/**",
)  # fmt: skip
OWN = (
    *MARKS, *BEFORE, *EVALUATED, *MODEL, "metrics.jsonl", "timing.jsonl", "warmups.jsonl", "warnings.jsonl", "resumes.jsonl",
    "diverged.jsonl", "reference_warmups.jsonl.*", "flags.json", "trainer_state.json", "all_results.json", "train_results.json",
    "eval_results.json", "predict_results.json", "events.out.tfevents.*", "runs/*/events.out.tfevents.*",
    "runs/*/*/events.out.tfevents.*", *(f"checkpoint-*/{name}" for name in (*MODEL, *STATE)),
    *(f"{place}evaluation/*/{name}" for place in ("", "checkpoint-*/") for name in EVALUATED),
    *(f"report/{name}" for name in REPORT),
)  # fmt: skip
PATHLESS = ("output_dir", "run_name", "logging_dir", "resume_from_checkpoint", "hub_model_id")
PARTS = ("checkpoint-*", "evaluation", "unfinished", "logs", "heartbeats")  # folders inside a run
HOLDERS = ("rewards", "metrics", "task_kwargs")  # settings whose texts may be folders, without a slash too
TRIAL = "run-*"  # a run of a search, in the folder of the search


# ---------------------------------------------------------------------- locks


@contextmanager
def file_lock(path: Path, wait: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold a lock on a file; yields its descriptor. A child that inherits the descriptor holds the lock too.

    A killed process leaves no lock behind. Does nothing on a disk without locks.

    Args:
        wait: called repeatedly while another process has the lock, and may raise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_link(path)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait()
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                    raise
                break
        yield file.fileno()


def refuse_link(path: Path) -> None:
    """Raises ValueError for a link in the place of a file that is written: in a received folder it may lead anywhere."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {path.readlink()}, and that file would be changed. Remove the link.")


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Lock the folder for writing.

    Raises ValueError: another process writes to or reads it (begins with `what`), or a file of a run there is a link.
    """

    def refuse() -> None:
        raise ValueError(f"{what}: {_busy(folder)}, or reads it. Give another folder, or wait for it to end.")

    with file_lock(folder / LOCK, refuse) as lock:
        (folder / LOCK).write_text(f"{os.getpid()}\n", encoding="utf-8")
        for path in (path for name in (*OWN, "README.md") for path in folder.glob(name)):
            refuse_link(path)
        try:
            yield
        finally:  # workers of a data loader inherited the lock, and may live on
            with suppress(OSError):  # a disk without locks
                fcntl.flock(lock, fcntl.LOCK_UN)


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Lock the folder against writing; several processes may read. Raises ValueError: another process writes to it."""
    with ExitStack() as held:
        with suppress(OSError):  # no lock file, so no writer; or a disk without locks
            file = held.enter_context((folder / LOCK).open("rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{what}: {_busy(folder)}. Wait for it to end.") from None
        yield


def _busy(folder: Path) -> str:
    with suppress(OSError):
        if number := (folder / LOCK).read_text(encoding="utf-8").strip():
            return f"another run writes to {folder} (process {number})"
    return f"another run writes to {folder}"


# ---------------------------------------------------------------------- which files belong to a run


def is_run(folder: Path) -> bool:
    """Whether a run began in the folder."""
    return any((folder / name).is_file() for name in MARKS)


def run_of(folder: Path) -> Path | None:
    """The run in this folder, or a run above it that has begun to train (a recipe.yaml alone does not count)."""
    place = folder.resolve()
    return place if is_run(place) else _run_above(place)


def _run_above(place: Path) -> Path | None:
    return next((above for above in place.parents if (above / MARKS[0]).is_file()), None)


def is_finished(folder: Path) -> bool:
    """Whether the folder holds the results of a run, or, without a recipe, its weights."""
    ends = (RESULT,) if (folder / "recipe.yaml").is_file() else (RESULT, *WEIGHTS)
    return any(any(folder.glob(name)) for name in ends)


def run_around(folder: Path) -> Path | None:
    """The run that the folder is a part of (`PARTS`), or None."""
    place = folder.resolve()
    for above in place.parents:
        part = place.relative_to(above).parts[0]
        if is_run(above) and any(fnmatch(part, name) for name in PARTS):
            return above
    return None


def is_free(folder: Path) -> bool:
    """Whether the folder holds only files that may exist before a run."""
    return not _others(folder, BEFORE)


def refuse_folder(
    folder: Path, overwrite: bool, resumes: bool, sources: Mapping[str, Path] | None = None, was_free: bool = False
) -> None:
    """Raise unless a run may begin in the folder.

    Args:
        overwrite: whether an earlier run may be removed.
        resumes: whether an unfinished run may be removed, as `auto` found no checkpoint in it.
        sources: setting -> a path that the new run reads.
        was_free: the caller found the folder free earlier, so files of a run in it are the caller's own.

    Raises:
        ValueError: the folder holds other files, an earlier run, or what the run reads.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir: {folder} is a file. Give a folder that is empty or not there yet.")
    for name, source in (sources or {}).items():
        above = (source, *source.resolve().parents) if folder.exists() and source.exists() else ()
        if any(place.samefile(folder) for place in above):
            raise ValueError(
                f"output_dir: {folder} holds {source}, which the run reads ({name}) and would replace. Give another output_dir."
            )
    place = folder.resolve()
    inside = _run_above(place) or run_around(folder)
    if inside and not (place.parent == inside and fnmatch(place.name, TRIAL)):
        raise ValueError(f"output_dir: {folder} lies in the run {inside}. Give a folder outside of it.")
    if not is_run(folder):
        found = [name for name in _others(folder, BEFORE) if not (was_free and _is_own(folder / name, folder))]
        if found:
            raise ValueError(
                f"output_dir: {folder} holds no run, but other files ({_first(found)}). Give an empty or a new folder."
            )
        return
    begun = _others(folder, (*BEFORE, *MARKS[:2]))  # or the run ended before its samples and its first update
    if begun and not overwrite and not (resumes and not is_finished(folder)):
        raise ValueError(
            f"output_dir: {folder} already holds a run. Choose another folder, resume it with `--resume_from_checkpoint auto`"
            f"{' (it has no complete checkpoint)' if resumes else ''}, or replace it with `--overwrite true`."
        )
    if foreign := foreign_files(folder):
        raise ValueError(
            f"output_dir: {folder} holds an earlier run, and files that no run writes ({_first(foreign)}), which might be lost. "
            f"Move them, or give another output_dir."
        )


def foreign_files(folder: Path) -> list[str]:
    """Paths in the folder that no run, evaluation, report or drawing writes, without hidden files."""
    return [str(path.relative_to(folder)) for path in _files(folder) if not _is_own(path, folder)]


def clear(folder: Path, kept: Iterable[str] = ()) -> None:
    """Remove an earlier run with its evaluations and reports; `MARKS` go last. Links are removed, their targets kept."""
    if not is_run(folder):
        return
    stay = {LOCK, "run.lock", *kept} | ({"logs"} if os.environ.get(LOGS) else set())  # this launch uses them
    own = [path for path in _files(folder) if path.relative_to(folder).parts[0] not in stay and _is_own(path, folder)]
    order = {RESULT: 0, **dict.fromkeys(MARKS, 2)}
    for path in sorted(own, key=lambda path: order.get(path.name, 1)):
        path.unlink()
    for place in sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        with suppress(OSError):  # not empty
            place.rmdir()


def clear_results(folder: Path) -> None:
    """Remove results and predictions, as a resumed run will end with other weights."""
    for path in (folder / RESULT, *folder.glob("predictions*.jsonl")):
        path.unlink(missing_ok=True)


def refuse_output(output: Path, run: Path, others: Iterable[Path] = (), asked: str = "--output") -> None:
    """Raises ValueError unless an evaluation of `run`, which also reads the folders `others`, may be written to the folder."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{asked}: {output} is a file. Give a folder for the results.")
    read = [place for place in (run, *others) if place.exists() and output.exists() and place.samefile(output)]
    if read or is_run(output):
        raise ValueError(
            f"{asked}: {output} is {'read by this evaluation' if read else 'a run'}, and its files would be replaced. Give "
            f"another folder, as {run}/evaluation/SPLIT."
        )
    owner = run_around(output)
    if owner is not None and not (run.exists() and owner.samefile(run)):
        raise ValueError(f"{asked}: {output} is a part of another run, {owner}. Give another folder.")
    if foreign := _others(output, EVALUATED):
        raise ValueError(f"{asked}: {output} holds other files than an evaluation's ({_first(foreign)}). Empty it.")


def refuse_export(output: Path) -> None:
    """Raises ValueError unless the folder is new or empty, and lies in no run."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is a file. Give a folder that is empty or not there yet.")
    if found := sorted(path.name for path in output.iterdir()) if output.exists() else []:
        raise ValueError(f"--output: {output} holds other files ({_first(found)}). Give an empty or a new folder.")
    if run := _run_above(output.resolve()) or run_around(output):
        raise ValueError(f"--output: {output} lies in the run {run}. Give a folder outside of it.")


def refuse_file(path: Path) -> None:
    """Raises ValueError for a file that belongs to a run or a checkpoint."""
    if path.is_dir():
        raise ValueError(f"--output: {path} is a folder. Give a file.")
    if path.exists() and not path.is_file():
        raise ValueError(f"--output: {path} is no ordinary file. Give another name.")
    run = next((place for place in path.absolute().parents if is_run(place)), None)
    if run is not None and _is_own(path.absolute(), run) and not drawn(path) and not _scored(path):
        raise ValueError(f"--output: {path} is a file of the run {run} itself. Give another name.")


def drawn(path: Path) -> bool:
    """Whether `rl-warmup sample` wrote this file."""
    return path.with_name(f"{path.name}.drawing.json").is_file()


def _scored(path: Path) -> bool:
    """Whether `rl-warmup score` wrote this file."""
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        first = parse_json(file.readline(10**7))
        return isinstance(first, dict) and {"prompt", "target", "warmup", "scores"} <= first.keys()
    return False


def sources(values: Mapping[str, Any]) -> dict[str, Path]:
    """The paths that a recipe reads, by setting: every text that names an existing file or folder."""
    found = {}
    for key, value in values.items():
        for text in _texts(value) if key not in PATHLESS else ():
            for name in (text, text.partition(":")[0]):  # path.py:function
                with suppress(OSError, ValueError):
                    plain = key == "model_name_or_path" or (key in HOLDERS and is_run(Path(name)))
                    if Path(name).exists() and (plain or "/" in name or "." in name):
                        found[key if key not in found else f"{key}, {name}"] = Path(name)
                        break
    if base := _base(Path(str(values.get("model_name_or_path")))):
        found["model_name_or_path, its base"] = base
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _files(folder: Path) -> Iterator[Path]:
    """All files below, without hidden ones and those of a search's trials (`run-0`, ...). Links are not followed."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from _files(path) if not (fnmatch(path.name, TRIAL) and is_run(path)) else ()
        elif not path.name.startswith("."):
            yield path


def _others(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Paths in the folder that match none of the patterns."""
    inside = [path.relative_to(folder) for path in _files(folder)]
    return [str(path) for path in inside if not _fits(path, patterns)]


def _is_own(path: Path, folder: Path) -> bool:
    """Whether a run in the folder wrote this file, or an evaluation, report or drawing of it."""
    inside, name = path.relative_to(folder), path.name
    if _fits(inside, OWN) or name.endswith(".drawing.json") or drawn(path) or _scored(path):
        return True
    if name.endswith(".part"):  # left by a kill
        return _is_own(path.with_name(name.removesuffix(".part")), folder)
    if name == "README.md":  # of an adapter or a model card
        return path.read_text(encoding="utf-8", errors="replace").startswith(("---\n", CARD))
    outputs = {RESULT: EVALUATED, "report.html": REPORT}  # of `evaluate` and `report`, by a file that marks the folder
    return any((path.parent / mark).is_file() and _fits(Path(name), names) for mark, names in outputs.items())


def _fits(path: Path, patterns: Iterable[str]) -> bool:
    """Whether a relative path matches one of the patterns; `**` at the end matches anything below."""
    for pattern in patterns:
        wanted, parts = pattern.split("/"), path.parts
        if wanted[-1] == "**" and len(parts) >= len(wanted):
            wanted, parts = wanted[:-1], parts[: len(wanted) - 1]
        if len(parts) == len(wanted) and all(map(fnmatch, parts, wanted)):
            return True
    return False


def _first(names: list[str]) -> str:
    """The first three names and the number of others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---------------------------------------------------------------------- hash of the weights


def fingerprint(folder: Path) -> str | None:
    """16 hex digits of the SHA-256 of a model's weights, of an adapter with its settings and base; None without weights."""
    # lists sorted, as peft writes sets in any order
    adapter = {key: sorted(v, key=str) if isinstance(v, list) else v for key, v in _adapter(folder).items()}
    adapter.pop("base_model_name_or_path", None)
    digest, base = hashlib.sha256(json.dumps(adapter, sort_keys=True).encode()), _base(folder)
    for place in (folder, base) if base else (folder,):
        files = sorted({path for name in WEIGHTS for path in place.glob(name)})
        if not files:
            return None
        for path in files:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _adapter(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of a folder; empty where there is none."""
    with suppress(OSError, ValueError):
        return read_json(folder / "adapter_config.json")
    return {}


def read_base(folder: Path) -> str | None:
    """The base model that an adapter's settings name, a folder or a name on the hub; None for other models."""
    name = _adapter(folder).get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def _base(folder: Path) -> Path | None:
    """The folder of an adapter's base model, or None."""
    name = read_base(folder)
    with suppress(OSError, ValueError):
        return Path(name) if name and Path(name).is_dir() and not Path(name).samefile(folder) else None
    return None
