"""Knows how to run a command that computes COMET (Rei et al. 2020); must not import COMET, which needs old libraries.

    {"name": "comet", "kwargs": {"command": "/opt/comet/bin/comet-score -s {source} -t {hypothesis} -r {reference}
     --model {checkpoint} --to_json {output} --gpus 0 --quiet", "checkpoint": "/models/wmt22-comet-da.ckpt"}}

Protocol: {source}, {hypothesis} and {reference} are UTF-8 files with one row per line. The command writes JSON to {output},
or, without {output}, to its standard output (alone, or as the last line): a list of one number per row,
{"scores": [...]}, or the format of `comet-score --to_json`. It ends with status 0. The value is the mean over rows.
"""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_warmup.metrics.segments import Segments, mean_segments

FILES = "-s {source} -t {hypothesis} -r {reference}"
COMMAND = f"comet-score {FILES} --model {{checkpoint}} --to_json {{output}} --gpus 0 --quiet"
TIMEOUT = 3600.0

Rows = Sequence[dict[str, Any]]
Command = str | Sequence[str]


def comet_segments(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None, *, checkpoint: str,
    command: Command = COMMAND, source: str = "prompt", timeout: float = TIMEOUT, label: str | None = None,
) -> dict[str, Segments]:  # fmt: skip
    """The mean of the checkpoint's row scores, on the checkpoint's scale, under `comet[label]`.

    Args:
        checkpoint: replaces {checkpoint} in the command: a file, or a name that it knows.
        command: words, or a string that is split like in a shell (no shell runs); see the protocol above.
        source: the column with the source text, without an instruction.
        timeout: seconds after which the command and its children are killed.
        label: name of the checkpoint in the key; by default its name or file name.

    Raises:
        ImportError: the command does not exist.
        ValueError: the command failed, took too long, or did not write one number per row.
    """
    words = _words(command)
    if rows is None or any(source not in row for row in rows):
        raise ValueError(f"metric 'comet' needs rows with the source text in column '{source}'; name it with `source`")
    texts = {"source": [row[source] for row in rows], "hypothesis": predictions, "reference": targets}
    with tempfile.TemporaryDirectory(prefix="rl-warmup-comet-") as folder:
        places = {"checkpoint": checkpoint, "output": str(Path(folder, "scores.json"))}
        for kind, lines in texts.items():
            places[kind] = str(Path(folder, f"{kind}.txt"))
            flat = "".join(" ".join(line.split()) + "\n" for line in lines)
            Path(places[kind]).write_text(flat, encoding="utf-8", errors="replace")
        for place, text in places.items():
            words = [word.replace(f"{{{place}}}", text) for word in words]
        printed = _run(words, timeout)
        if any(places["output"] in word for word in words):
            output = Path(places["output"])
            printed = output.read_text(encoding="utf-8") if output.is_file() else ""
    scores = _scores(printed, len(predictions))
    return {comet_label(checkpoint=checkpoint, label=label): mean_segments(scores)}


def comet_label(*, checkpoint: str, label: str | None = None, **other: Any) -> str:
    """The key of the result."""
    name = Path(checkpoint).stem if Path(checkpoint).exists() else checkpoint
    return f"comet[{label or name}]"


def comet_signature(*, checkpoint: str, command: Command = COMMAND, source: str = "prompt", **other: Any) -> str:
    """Checkpoint, source column and command.

    Raises:
        ImportError, ValueError: the command does not exist, or has no {hypothesis}.
    """
    return f"checkpoint:{checkpoint}|source:{source}|command:{shlex.join(_words(command))}"


def _words(command: Command) -> list[str]:
    words = shlex.split(command) if isinstance(command, str) else list(command)
    if not any("{hypothesis}" in word for word in words):
        raise ValueError(
            f"metric 'comet': the command has no {{hypothesis}}: {shlex.join(words)!r}; it may name {{source}}, "
            "{hypothesis}, {reference}, {checkpoint} and {output}"
        )
    if shutil.which(words[0]) is None:
        raise ImportError(
            f"COMET is not available: there is no command '{words[0]}'; install unbabel-comet in a separate environment and "
            "give the full path of its comet-score as `command` (docs/metrics.md)"
        )
    return words


def _run(words: list[str], timeout: float) -> str:
    """Standard output of the command, run without our PYTHONPATH, as it may use another environment."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=timeout)
    except BaseException as error:
        # the command and its children are a process group
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            message = f"'{words[0]}' took longer than {timeout:g} s and was ended; raise `timeout`"
            raise ValueError(f"metric 'comet': {message}") from None
        raise
    if process.returncode:
        last = "; ".join(line.strip() for line in (errors or out).strip().splitlines()[-3:]) or "nothing"
        raise ValueError(f"metric 'comet': '{words[0]}' failed with status {process.returncode}; its output: {last}")
    return out


def _scores(text: str, count: int) -> list[float]:
    found = _json(text)
    if isinstance(found, dict) and "scores" in found:
        found = found["scores"]
    elif isinstance(found, dict) and len(found) == 1:  # comet-score: {file: [{"src": ..., "mt": ..., "COMET": 0.8}]}
        found = next(iter(found.values()))
    if isinstance(found, list):
        found = [row.get("COMET") if isinstance(row, dict) else row for row in found]
    good = isinstance(found, list) and all(type(x) in (int, float) and math.isfinite(x) for x in found)
    if not good or len(found) != count:
        got = f"{len(found)} numbers" if good else repr(text.strip()[:80])
        raise ValueError(
            f"metric 'comet': the command has to write one number for each of {count} rows as JSON, but wrote {got}; "
            "see docs/metrics.md for the format"
        )
    return [float(x) for x in found]


def _json(text: str) -> Any:
    """JSON in the whole text, or in its last line after log lines; None if there is none."""
    for part in (text, *text.strip().splitlines()[-1:]):
        try:
            return json.loads(part)
        except json.JSONDecodeError:
            continue
    return None
