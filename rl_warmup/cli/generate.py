"""`rl-warmup generate MODEL "a prompt" ...`: write warmups and targets for prompts from arguments, a file, a pipe or a terminal.

FILE or the pipe holds a prompt per line, or JSON lines with `prompt`, `messages` or `conversations` (an answer at their end is
left out) or another --prompt-column (a text of any number of lines, or a conversation); then the answers are JSON lines too, with
the further keys of each. In a terminal without prompts it asks for one after another.
Also `accelerate launch -m rl_warmup.cli.generate MODEL --file PROMPTS`: the processes share the prompts.
"""

from __future__ import annotations

import argparse
import codecs
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rl_warmup.cli.main import OptionParser, count, quantity, quick_imports, run_command
from rl_warmup.runtime.faults import processes

TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".gz", ".zst", ".zip")
# An object begins, or a list of some. A text may begin with [INST].
JSON = re.compile(rb"\s*(\{|\[\s*[{\]])")


def command(args: list[str]) -> None:
    """One warmup and one target per prompt, as text or as JSON lines."""
    options = _parser().parse_args(args)
    asks = not options.prompts and options.file is None and processes() == 1
    _refuse_idle(options)
    talks = asks and sys.stdin is not None and sys.stdin.isatty()
    rows = [] if talks else [{"prompt": prompt} for prompt in options.prompts] or _rows(options)
    if not rows and not talks:
        where = f"--file: {options.file} holds none" if options.file is not None else "none was given"
        raise ValueError(f"No prompt: {where}. Write it after the model, use --file, or pipe one per line.")

    with quick_imports():
        from rl_warmup.inference.generation import WarmupGenerator
        from rl_warmup.runtime.sharing import initialize_distributed, is_main

    warmup_generator = WarmupGenerator.load(options.model, initialize_distributed())
    warmup_generator.shared = True
    if warmup_generator.settings.prompt_template is None and is_main():
        note = "this model's training prompts had several columns; prompts are used without a template."
        print(f"rl-warmup generate: {note}", file=sys.stderr)
    names = ("warmup", "num_warmups", "select", "utility", "sample_target", "temperature", "num_beams", "gate", "seed")
    settings = {name: getattr(options, name) for name in names} | {"sample_warmup": options.sample}
    settings["logprobs"] = options.json
    if talks:
        _talk(warmup_generator, settings, options.json)
        return
    for written, row in zip(warmup_generator.iterate(rows, options.batch_size, **settings), rows, strict=True):
        if is_main():
            _show(written, row, options.json)


def _parser() -> OptionParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OptionParser(prog="rl-warmup generate", description=__doc__, formatter_class=formatter)
    parser.add_argument("model", help="folder that training wrote, or a checkpoint or adapter of it")
    parser.add_argument("prompts", nargs="*", help="prompts; default: from --file, standard input or the terminal")
    parser.add_argument("--file", help="text file with one prompt per line, or JSON lines with `prompt`")
    parser.add_argument("--prompt-column", metavar="NAME", default="prompt",
                        help="of JSON lines, the key that holds the prompt; dotted paths allowed")  # fmt: skip
    parser.add_argument("--warmup", help="use this warmup instead of the model's own ('' is none)")
    parser.add_argument("--sample", action="store_true", help="sample the warmup instead of the likeliest tokens")
    parser.add_argument("--num-warmups", type=count, default=1, help="sample so many, and take the target of one")
    parser.add_argument("--select", choices=["marginal", "mbr", "vote"], default="marginal",
                        help="which of them: likeliest over all warmups, nearest to all, most frequent")  # fmt: skip
    parser.add_argument("--utility", choices=["chrf", "rouge"], default="chrf", help="of --select mbr")
    parser.add_argument("--sample-target", action="store_true", help="sample the target too")
    parser.add_argument("--temperature", type=quantity, default=1.0, help="of --sample-target")
    parser.add_argument("--num-beams", type=count, default=1, help="beams of the target")
    parser.add_argument("--gate", type=_nats, metavar="NATS",
                        help="no warmup where the target without one has this mean log-probability per token")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of everything sampled")
    parser.add_argument("--batch-size", type=count, default=32)
    parser.add_argument("--json", action="store_true",
                        help="JSON lines: prompt, warmup, prediction, how they ended, log-probabilities")  # fmt: skip
    return parser


def _nats(text: str) -> float:
    """The type of an option: any finite number."""
    with suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a finite number")


def _refuse_idle(options: argparse.Namespace) -> None:
    """Raises ValueError for prompts given twice, a prompt without text, and flags that would do nothing."""
    if options.file is not None and options.prompts:
        raise ValueError(f"--file: prompts are given beside it, such as {options.prompts[0]!r:.60}. Give either.")
    if blank := [number for number, prompt in enumerate(options.prompts, 1) if not prompt.strip()]:
        raise ValueError(f"Prompt {blank[0]} is empty. Give a text.")
    given, several = options.warmup is not None, options.num_warmups > 1
    idle = {
        "--select": (options.select != "marginal" and not several, "without --num-warmups of at least 2"),
        "--utility": (options.utility != "chrf" and options.select != "mbr", "without --select mbr"),
        "--temperature": (options.temperature != 1 and not options.sample_target, "without --sample-target"),
        "--prompt-column": (options.prompt_column != "prompt" and bool(options.prompts), "beside prompts"),
        "--sample": (options.sample and (given or several), "beside --warmup or --num-warmups"),
    }
    for flag, (is_idle, why) in idle.items():
        if is_idle:
            raise ValueError(f"{flag}: has no effect {why}. Leave it out.")


def _show(written: dict[str, Any], row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        kept = {k: v for k, v in written.items() if not k.endswith("_ids") and (k != "id" or "id" in row)}
        print(json.dumps(kept, ensure_ascii=False, default=str), flush=True)
    else:
        print("\n".join(f"{key:<11} {written[key]}" for key in ("prompt", "warmup", "prediction")) + "\n", flush=True)


def _talk(warmup_generator: Any, settings: dict[str, Any], as_json: bool) -> None:
    """Ask for a prompt and answer it, until the input ends."""
    plain = {"num_warmups": 1, "sample_target": False, "num_beams": 1, "gate": None, "sample_warmup": False}
    streams = not as_json and all(settings[name] == value for name, value in plain.items())
    for prompt in _asked():
        if not streams:
            _show(warmup_generator.generate(prompt, **settings)[0], {}, as_json)
            continue
        part = ""
        for begun, piece in warmup_generator.stream(prompt, settings["warmup"]):
            print(piece if begun == part else f"{chr(10) if part else ''}{begun:<11} {piece}", end="", flush=True)
            part = begun
        print("\n")


def _asked() -> Iterator[str]:
    while True:
        try:
            prompt = input("prompt      ")
        except EOFError:
            print()
            return
        if prompt.strip():
            yield prompt


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The prompts of a file or a pipe; sets `options.json` where they are JSON lines.

    Raises:
        ValueError: no such file, or a line that holds no prompt, with its number.
    """
    path, name = options.file, options.file or "standard input"
    if path is None and processes() > 1:
        raise ValueError("Several processes cannot share the standard input. Give the prompts with --file.")
    if path is not None and (not Path(path).is_file() or path.endswith(TABLES)):
        what = "is a table, or packed" if Path(path).is_file() else "does not exist"
        what = "is a folder" if Path(path).is_dir() else what
        raise ValueError(
            f"--file: {path} {what}. Give a text file with a prompt on each line, or JSON lines with `prompt`."
        )
    piped = sys.stdin.buffer if path is None and sys.stdin is not None else None
    data = Path(path).read_bytes() if path is not None else piped.read() if piped else b""
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if str(path).endswith((".jsonl", ".json")) or JSON.match(data):
        options.json = True
        return _objects(lines, name, options.prompt_column)
    if lines and options.prompt_column != "prompt":
        raise ValueError(f"--prompt-column: {name} holds a prompt per line, not JSON lines. Leave it out.")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            raise ValueError(f"{name}, line {number}: is no text in UTF-8. Save it as UTF-8.") from None
        if not text.strip():
            raise ValueError(f"{name}, line {number}: is empty. Remove it, or give JSON lines with `prompt`.")
        rows.append({"prompt": text})
    return rows


def _objects(lines: list[bytes], name: str, column: str) -> list[dict[str, Any]]:
    """The rows of JSON lines, their prompt in `column`. Raises ValueError: a line is no object with a prompt; names it."""
    from rl_warmup.runtime.documents import records
    from rl_warmup.tasks.columns import pick
    from rl_warmup.tasks.conversations import conversation, split_answer
    from rl_warmup.tasks.forms import CONVERSATIONS

    rows = []
    for number, record in records(lines, f"{name}, line ", "Give an object with a prompt."):
        where, key = f"{name}, line {number}", column
        if key == "prompt" and "prompt" not in record:
            key = next((name for name in CONVERSATIONS if name in record), column)
            if key == column:
                keys = ", ".join(map(repr, record))
                raise ValueError(
                    f"{where}: has no prompt among its keys ({keys:.200}). Name the prompt's with --prompt-column."
                )
        prompt = pick(record, key, where)
        if not isinstance(prompt, str | list) or not (prompt.strip() if isinstance(prompt, str) else prompt):
            raise ValueError(f"{where}: has no prompt. Give a text or a conversation as `{key}`.")
        if isinstance(prompt, list):
            prompt = conversation(prompt, key, where)
            is_trained = key.rpartition(".")[2] in CONVERSATIONS  # elsewhere an answer at the end is continued
            if is_trained and prompt[-1]["role"] == "assistant":
                prompt, _ = split_answer(prompt, key, where)
        rows.append({**record, "prompt": prompt})
    return rows


if __name__ == "__main__":
    sys.exit(run_command("generate", sys.argv[1:]))
