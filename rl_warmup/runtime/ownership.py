"""Whose a run folder is: which files a run writes, who is writing them now, and which weights a number was measured on.

Knows: names of files, locks, bytes. Must not know: what the files say, torch. docs/formats.md describes the rules.
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
LOGS = "RL_WARMUP_LOGS"  # folder for what all processes but the first print
MARKS = ("environment.json", "recipe.yaml", "reference_warmups.jsonl")  # one of these makes a folder a run's
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.*")
EVALUATED = (RESULT, "predictions.jsonl", "predictions.*.jsonl", LOCK)
MODEL = (
    *WEIGHTS, "*.safetensors.index.json", "*.bin.index.json", "config.json", "generation_config.json",
    "adapter_config.json", "warmup_layout.json", "tokenizer*.json", "*.model", "*.spm", "*.tiktoken", "added_tokens.json",
    "special_tokens_map.json", "vocab.*", "merges.txt", "chat_template.*", "additional_chat_templates/*.jinja",
    "training_args.bin",
)  # fmt: skip
STATE = (
    "checkpoint.json", "trainer_state.json", "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "latest",
    "zero_to_fp32.py", "global_step*/**", "pytorch_model_fsdp*/**", "pytorch_model_fsdp*", "optimizer*/**",
)  # fmt: skip
REPORT = ("report.html", "summary.md", "*.png")
# of a run, and may be there before it
BESIDE = (
    "asked.yaml", "train.log", "run.lock", LOCK, "logs/rank*.log", "heartbeats/process-*", "unfinished/**",
)  # fmt: skip
OWN = (
    *MARKS, *BESIDE, *EVALUATED, *MODEL, "metrics.jsonl", "timing.jsonl", "warmups.jsonl", "warnings.jsonl", "resumes.jsonl",
    "reference_warmups.jsonl.*", "flags.json", "trainer_state.json", "all_results.json", "train_results.json",
    "eval_results.json", "predict_results.json", "events.out.tfevents.*", "runs/*/events.out.tfevents.*",
    "runs/*/*/events.out.tfevents.*", *(f"checkpoint-*/{name}" for name in (*MODEL, *STATE)),
    *(f"{place}evaluation/*/{name}" for place in ("", "checkpoint-*/") for name in EVALUATED),
    *(f"report/{name}" for name in REPORT),
)  # fmt: skip
PATHLESS = ("output_dir", "run_name", "logging_dir", "resume_from_checkpoint", "hub_model_id")


# ---------------------------------------------------------------------- one run at a time


@contextmanager
def file_lock(path: Path, wait: Callable[[], None] | None = None) -> Iterator[int]:
    """Hold a lock on a file; the descriptor may be handed to a child, and the lock lasts as long as either lives.

    A killed process leaves no lock behind. Where the disk knows no locks, nothing is held.

    Args:
        wait: called again and again while another process has the lock, and may raise; None waits silently.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is not None:
                    wait()
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                    raise
                break
        yield file.fileno()


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder for the one who writes to it, from the first byte to the last.

    Args:
        what: begins the sentence.

    Raises:
        ValueError: another one holds it, or reads it.
    """

    def refuse() -> None:
        raise ValueError(f"{what}: {_busy(folder)}, or reads it. Give another folder, or wait for it to end.")

    with file_lock(folder / LOCK, refuse):
        (folder / LOCK).write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Let nobody write to the folder meanwhile; many may read.

    Raises:
        ValueError: somebody writes to it.
    """
    with ExitStack() as held:
        with suppress(OSError):  # no lock file, so nobody writes; or a disk without locks
            file = held.enter_context((folder / LOCK).open("rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{what}: {_busy(folder)}. Wait for it to end.") from None
        yield


def _busy(folder: Path) -> str:
    with suppress(OSError):
        number = (folder / LOCK).read_text(encoding="utf-8").strip()
        return f"another run writes to {folder}" + (f" (process {number})" if number else "")
    return f"another run writes to {folder}"


# ---------------------------------------------------------------------- what is whose


PARTS = ("checkpoint-*", "evaluation", "unfinished", "logs", "heartbeats")  # folders inside a run


def is_run(folder: Path) -> bool:
    """Whether a run began in the folder."""
    return any((folder / name).is_file() for name in MARKS)


def run_of(folder: Path) -> Path | None:
    """The run whose folder this is, or in which it lies once that has begun to train (and not merely beside a recipe.yaml)."""
    place = folder.resolve()
    return place if is_run(place) else next((above for above in place.parents if (above / MARKS[0]).is_file()), None)


def is_finished(folder: Path) -> bool:
    """Whether the folder holds what a run ends with: results, or weights where no recipe asked for results."""
    ends = (RESULT,) if (folder / "recipe.yaml").is_file() else (RESULT, *WEIGHTS)
    return any(any(folder.glob(name)) for name in ends)


def run_around(folder: Path) -> Path | None:
    """The run of which the folder is a part; a folder that merely lies beside somebody's recipe.yaml is none."""
    place = folder.resolve()
    for above in place.parents:
        part = place.relative_to(above).parts[0]
        if is_run(above) and any(fnmatch(part, name) for name in PARTS):
            return above
    return None


def is_free(folder: Path) -> bool:
    """Whether nothing lies in the folder but what may lie there before a run."""
    return not any(not _fits(path.relative_to(folder), BESIDE) for path in _files(folder))


def refuse_folder(
    folder: Path, overwrite: bool, resumes: bool, sources: Mapping[str, Path] | None = None, was_free: bool = False
) -> None:
    """Nothing, where a run may begin in the folder.

    Args:
        overwrite: an earlier run may be removed.
        resumes: so may one that was told to go on (`auto`) and has nothing to go on from: no checkpoint, no result.
        sources: setting -> a path that the new run reads.
        was_free: who asks saw it free, so what a run writes is theirs: an evaluation before the training, say.

    Raises:
        ValueError: it is somebody else's, an earlier run's, or holds what the run starts from.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir: {folder} is a file. Give a folder that is empty or not there yet.")
    for name, source in (sources or {}).items():
        if folder.exists() and source.exists() and _holds(folder, source):
            raise ValueError(
                f"output_dir: {folder} holds {source}, which the run reads ({name}), and would write over it. Give another "
                f"output_dir."
            )
    if inside := run_around(folder):
        raise ValueError(f"output_dir: {folder} is a part of the run {inside}. Give a folder of its own.")
    if not is_run(folder):
        found = [
            str(path.relative_to(folder))
            for path in _files(folder)
            if not _fits(path.relative_to(folder), BESIDE) and not (was_free and _is_own(path, folder))
        ]
        if found:
            raise ValueError(
                f"output_dir: {folder} holds no run, but other files ({_listed(found)}). Give a folder that is empty or not "
                f"there yet."
            )
        return
    if not overwrite and not (resumes and not is_finished(folder)):
        raise ValueError(
            f"output_dir: {folder} already holds a run. Choose another folder, continue it with "
            f"`--resume_from_checkpoint auto`{' (it has no whole checkpoint)' if resumes else ''}, or replace it with "
            f"`--overwrite true`."
        )
    if foreign := foreign_files(folder):
        raise ValueError(
            f"output_dir: {folder} holds an earlier run, and files that no run writes ({_listed(foreign)}), which would be "
            f"lost or mixed up with the new one's. Move them, or give another output_dir."
        )


def _holds(folder: Path, path: Path) -> bool:
    return any(place.samefile(folder) for place in (path, *path.resolve().parents))


def foreign_files(folder: Path) -> list[str]:
    """Paths in the folder that no run, evaluation, report or drawing writes. Hidden ones do not count."""
    return [str(path.relative_to(folder)) for path in _files(folder) if not _is_own(path, folder)]


def clear(folder: Path) -> None:
    """Remove what an earlier run, and whoever looked at it, wrote; what makes the folder a run goes last.

    Links are removed, and not what they point to.
    """
    if not is_run(folder):
        return
    kept = {LOCK, "run.lock"} | ({"logs"} if os.environ.get(LOGS) else set())  # in use by this launch
    own = [path for path in _files(folder) if path.relative_to(folder).parts[0] not in kept and _is_own(path, folder)]
    order = {RESULT: 0, **dict.fromkeys(MARKS, 2)}
    for path in sorted(own, key=lambda path: order.get(path.name, 1)):
        path.unlink()
    for place in sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        with suppress(OSError):  # not empty
            place.rmdir()


def clear_results(folder: Path) -> None:
    """Remove what was said of weights that a run which goes on will not end with."""
    for path in (folder / RESULT, *folder.glob("predictions*.jsonl")):
        path.unlink(missing_ok=True)


def refuse_output(output: Path, run: Path, others: Iterable[Path] = ()) -> None:
    """Nothing, where an evaluation of `run` may be written to the folder.

    Args:
        others: folders that the evaluation reads.

    Raises:
        ValueError: it is a run, a folder that is read, or holds what no evaluation writes.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is a file. Give a folder for the results.")
    read = [place for place in (run, *others) if place.exists() and output.exists() and place.samefile(output)]
    if read or is_run(output):
        raise ValueError(
            f"--output: {output} is {'read by this evaluation' if read else 'a run'}, whose own files it would replace. Give "
            f"another folder; the default is {run}/evaluation/SPLIT."
        )
    owner = run_around(output)
    if owner is not None and not (run.exists() and owner.samefile(run)):
        raise ValueError(f"--output: {output} is a part of another run, {owner}. Give another folder.")
    if foreign := [str(p.relative_to(output)) for p in _files(output) if not _fits(p.relative_to(output), EVALUATED)]:
        raise ValueError(
            f"--output: {output} holds files that no evaluation writes ({_listed(foreign)}). Give an empty folder."
        )


def refuse_file(path: Path) -> None:
    """Raises ValueError where a file of that name, in that folder, is a run's or a checkpoint's own."""
    if path.is_dir():
        raise ValueError(f"--output: {path} is a folder. Give a file.")
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
    """The paths that a recipe reads, by setting: every text in it that is the name of a file or folder."""
    found = {}
    for key, value in values.items():
        for text in _texts(value) if key not in PATHLESS else ():
            for name in (text, text.partition(":")[0]):  # path.py:function
                with suppress(OSError, ValueError):
                    if Path(name).exists() and (key == "model_name_or_path" or "/" in name or "." in name):
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
    """All files below, but hidden ones and those of a search's trials (`run-0`, ...), which are runs of their own.

    Links are not followed, and a folder with nothing in it counts as nothing.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from _files(path) if not (fnmatch(path.name, "run-*") and is_run(path)) else ()
        elif not path.name.startswith("."):
            yield path


def _is_own(path: Path, folder: Path) -> bool:
    """Whether a run in the folder wrote this file, or somebody who looked at the run."""
    inside, name = path.relative_to(folder), path.name
    if _fits(inside, OWN) or name.endswith(".drawing.json") or drawn(path) or _scored(path):
        return True
    if name.endswith(".part"):  # what a kill left of one
        return _is_own(path.with_name(name.removesuffix(".part")), folder)
    if name == "README.md":  # of an adapter or a model card
        return path.read_text(encoding="utf-8", errors="replace").startswith("---\n")
    looked = {RESULT: EVALUATED, "report.html": REPORT}  # `evaluate --output`, `report --output` inside of the run
    return any((path.parent / mark).is_file() and _fits(Path(name), names) for mark, names in looked.items())


def _fits(path: Path, patterns: Iterable[str]) -> bool:
    """Whether a relative path has one of these forms; `**` at the end is anything below."""
    for pattern in patterns:
        wanted, parts = pattern.split("/"), path.parts
        if wanted[-1] == "**" and len(parts) >= len(wanted):
            wanted, parts = wanted[:-1], parts[: len(wanted) - 1]
        if len(parts) == len(wanted) and all(map(fnmatch, parts, wanted)):
            return True
    return False


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---------------------------------------------------------------------- which weights


def fingerprint(folder: Path) -> str | None:
    """The first 16 hex digits of the SHA-256 over the weights of a saved model, an adapter's settings and its base included.

    None where the folder holds no weights.
    """
    digest, base = hashlib.sha256(json.dumps(_adapter(folder), sort_keys=True).encode()), _base(folder)
    for place in (folder, base) if base else (folder,):
        files = sorted({path for name in WEIGHTS for path in place.glob(name)})
        if not files:
            return None
        for path in files:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _adapter(folder: Path) -> dict[str, Any]:
    """An adapter's settings, without the place of its base. peft writes sets as lists in an order that varies."""
    with suppress(OSError, ValueError):
        found = read_json(folder / "adapter_config.json")
        ordered = {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in found.items()}
        return {key: value for key, value in ordered.items() if key != "base_model_name_or_path"}
    return {}


def _base(folder: Path) -> Path | None:
    """The folder of an adapter's base model, if it is one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        base = Path(read_json(folder / "adapter_config.json")["base_model_name_or_path"])
        return base if base.is_dir() and not base.samefile(folder) else None
    return None
