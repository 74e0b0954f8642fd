"""Knows how to have COMET (Rei et al. 2020) scored by a command; must not know COMET's package, which pins old libraries.

    {"name": "comet", "kwargs": {"command": "/opt/comet/bin/comet-score -s {source} -t {hypothesis} -r {reference}
     --model {checkpoint} --to_json {output} --gpus 0 --quiet", "checkpoint": "/models/wmt22-comet-da.ckpt"}}

Protocol: {source}, {hypothesis} and {reference} are UTF-8 files with one row a line. The command writes JSON to {output},
or, if it does not mention that, to its standard output (alone, or as the last line): a list of one number per row,
{"scores": [...]}, or what `comet-score --to_json` writes. It ends with status 0. The value is the mean over rows.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

from rl_warmup.metrics.registry import Rows, metric

COMMAND = (
    "comet-score -s {source} -t {hypothesis} -r {reference} --model {checkpoint} --to_json {output} --gpus 0 --quiet"
)
TIMEOUT = 3600.0
Command = str | Sequence[str]


def comet_label(*, checkpoint: str, label: str | None = None, **other: Any) -> str:
    """The key of the result."""
    return f"comet[{label or (Path(checkpoint).stem if Path(checkpoint).exists() else checkpoint)}]"


def comet_signature(*, checkpoint: str, command: Command = COMMAND, source: str = "prompt", **other: Any) -> str:
    """Checkpoint, source column and command.

    Raises ImportError, ValueError: the command is not there, or names no {hypothesis}.
    """
    words = _words(command)
    return f"checkpoint:{checkpoint}|source:{source}|command:{shlex.join(words)}"


@metric("comet", signature=comet_signature, label=comet_label)
def comet(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None, *,
    checkpoint: str, command: Command = COMMAND, source: str = "prompt", timeout: float = TIMEOUT, label: str | None = None,
) -> list[float]:  # fmt: skip
    """The checkpoint's score of each row, on the checkpoint's own scale.

    Args:
        checkpoint: what the command is given as {checkpoint}: a file, or a name it knows.
        command: words, or a string that is split as a shell splits it (no shell runs); see the protocol above.
        source: the column of the rows that holds the source text, without an instruction around it.
        timeout: seconds after which the command and what it started are ended.
        label: how the checkpoint is called in the key; its name, or its file's name, by default.

    Raises:
        ImportError: the command is not there.
        ValueError: the command failed, took too long, or wrote something else than one number per row.
    """
    words = _words(command)
    if rows is None or any(not isinstance(row.get(source), str) for row in rows):
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
    return _scores(printed, len(predictions))


def _words(command: Command) -> list[str]:
    words = shlex.split(command) if isinstance(command, str) else list(command)
    if not any("{hypothesis}" in word for word in words):
        raise ValueError(
            f"metric 'comet': the command has no {{hypothesis}}: {shlex.join(words)!r}; it may name {{source}}, "
            "{hypothesis}, {reference}, {checkpoint} and {output}"
        )
    if shutil.which(words[0]) is None:
        raise ImportError(
            f"COMET is not available: there is no command '{words[0]}'; install unbabel-comet in an environment of its "
            "own and give its comet-score with full path as `command` (docs/metrics.md)"
        )
    return words


def _run(words: list[str], timeout: float) -> str:
    """Standard output of the command, run without our PYTHONPATH, as it belongs to another environment."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=timeout)
    except BaseException as error:
        # the group is the command's own, and lives as long as one of its processes
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ValueError(
                f"metric 'comet': '{words[0]}' took longer than {timeout:g} s and was ended; raise `timeout`"
            ) from None
        raise
    if process.returncode:
        said = "; ".join(line.strip() for line in (errors or out).strip().splitlines()[-3:]) or "nothing"
        raise ValueError(f"metric 'comet': '{words[0]}' failed with status {process.returncode}; it said: {said}")
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
            f"metric 'comet': the command has to write one number for each of {count} rows as JSON, and wrote {got}; "
            "see docs/metrics.md for the form"
        )
    return [float(x) for x in found]


def _json(text: str) -> Any:
    """JSON as the whole text or, after lines of a log, in the last line; None if there is none."""
    for part in (text, *text.strip().splitlines()[-1:]):
        with suppress(json.JSONDecodeError):
            return json.loads(part)
    return None
