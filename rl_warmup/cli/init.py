"""`rl-warmup init FILE`: reads a file of your rows and writes a short recipe for it, to change and to train."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_warmup.cli.main import OptionParser, place

T5, CHAT = "google-t5/t5-small", "HuggingFaceTB/SmolLM2-135M-Instruct"
SCRATCH = "\nscratch: {width: 64, layers: 2, heads: 4, tokenizer: words}  # random weights, to try things out"
EPILOG = """Rows are recognised by their columns: prompt and target, TRL's prompt and completion, messages, ShareGPT,
alpaca; others are named by --prompt-column and --target-column. docs/data.md has every form."""
SHORT = 5  # words of a target that can be asked for exactly
TEMPLATED = "chat_template: auto  # the model's own\n"
CONTENTS = "chat_template: none  # the messages alone, as a tokenizer made here has no template\n"
LIMITS = {"prompt": 512, "target": 128}  # tokens, the defaults of max_prompt_length and max_target_length

TEMPLATE = """\
# Written by `rl-warmup init {file_word}`.
#   train it:                   rl-warmup train --config {output_word}
#   plain fine-tuning beside:   rl-warmup train --config {output_word} --objective sft --output_dir {sft_word}{best}
#   what it would cost:         rl-warmup plan {output_word}
# Whether warmups can pay on these rows is a question to ask first: docs/will-warmups-pay.md.
model_name_or_path: {model}  # any T5-like or decoder-only model: a name on the hub or a folder{scratch}
task: file
task_kwargs:
  path: {path}  # {rows} rows, {form}
{columns}  validation_fraction: {share}  # of the prompts; the same prompt is never in two splits
  test_fraction: {share}
metrics: [{metric}]  # {why}; others: docs/metrics.md

num_warmups: 4  # sampled per prompt
max_warmup_length: 32  # tokens
{proposals}{limits}
output_dir: {run_text}
max_steps: 1000
per_device_train_batch_size: 8
per_device_eval_batch_size: 32
learning_rate: {rate}
warmup_steps: 0.05  # of the learning rate, a share of all updates
eval_strategy: steps
eval_steps: 250
metric_for_best_model: {metric}
logging_steps: 10
save_strategy: "no"
"""
BEST = " \\\n#                                 --load_best_model_at_end --save_strategy best   # as a search does by itself"
READING = """\
proposals: [reference]  # read samples of the starting model first, then write (docs/method.md)
"""
WRITING = """\
proposals: []  # its own warmups from the first update: a random start writes nothing to read
"""


def command(args: list[str]) -> None:
    """Write the recipe; refuses a file that is there, and rows that training would refuse."""
    parser = OptionParser(prog="rl-warmup init", description=__doc__, epilog=EPILOG)
    parser.add_argument("file", type=place, metavar="FILE", help="rows: .jsonl, .json, .csv, .tsv, .txt, .parquet")
    parser.add_argument("--output", type=place, metavar="RECIPE", help="the recipe; default: FILE's name with .yaml")
    parser.add_argument("--model", help=f"model_name_or_path; default {T5}, for conversations {CHAT}")
    for column in ("prompt", "target"):
        parser.add_argument(f"--{column}-column", metavar="NAME", help=f"column of the {column}, dotted paths allowed")
    options = parser.parse_args(args)
    file = Path(options.file)
    output = Path(options.output or f"{file.name.split('.')[0]}.yaml")
    if output.exists() or output.is_symlink():
        raise ValueError(f"{output} exists already; remove it, or give another path as --output.")
    columns = {key: getattr(options, key) for key in ("prompt_column", "target_column") if getattr(options, key)}
    try:
        text = recipe_text(file, output, columns, options.model)
    except ValueError as error:  # names arguments of the task; here they are flags
        said = re.sub(r"\b(prompt|target)_column\b", r"--\1-column", str(error))
        raise ValueError(said) from error.__cause__
    with output.open("x", encoding="utf-8") as stream:
        stream.write(text)
    used = options.model or "the model in it is a guess; offline: --model scratch-t5 or scratch-llama"
    print(f"{output} is written ({used}). Look through it, then: rl-warmup train --config {shlex.quote(str(output))}")


def recipe_text(file: Path, output: Path, columns: dict[str, str], model: str | None = None) -> str:
    """A recipe for the rows of this file. Raises as `rl_warmup.tasks.files.load`, whose arguments `columns` are."""
    from rl_warmup.tasks import load_task

    task = load_task("file", train=str(file), **columns)
    rows: list[dict[str, Any]] = list(task.splits["train"])
    distinct = len({str(row["prompt"]) for row in rows})
    if distinct < 6:
        raise ValueError(f"{file}: {distinct} distinct prompts; give at least 6, as each split needs 2.")
    share = 0.1 if distinct >= 20 else 0.25  # two prompts at least: the control `shuffled` exchanges warmups
    load_task("file", path=str(file), validation_fraction=share, test_fraction=share, **columns)
    chat = isinstance(rows[0]["prompt"], list)
    if other := next((number for number, row in enumerate(rows) if isinstance(row["prompt"], list) is not chat), None):
        kinds = ("conversations", "texts") if chat else ("texts", "conversations")
        raise ValueError(
            f"{file}: prompts are {kinds[0]} up to row {other}, and {kinds[1]} there. Give one kind alone."
        )
    model = model or (CHAT if chat else T5)
    scratch = model.startswith("scratch-")
    words = [_words(row["target"]) for row in rows]
    short = statistics.median(words) <= SHORT
    run = Path("runs", output.stem)
    form = "; ".join(task.notes).removeprefix("rows are read as ") or " and ".join(columns.values())
    return TEMPLATE.format(
        file_word=shlex.quote(str(file)), output_word=shlex.quote(str(output)), sft_word=shlex.quote(f"{run}-sft"),
        run_text=_quoted(str(run)), model=_quoted(model), path=_quoted(str(file)),
        rows=len(rows), form=form, share=share, columns="".join(f"  {key}: {_quoted(name)}\n" for key, name in columns.items()),
        metric="exact_match" if short else "chrf++", scratch=SCRATCH if scratch else "",
        rate="1.0e-3" if scratch else "1.0e-4  # of all weights; with use_peft more",
        why="short targets" if short else "long targets; needs rl_warmup[metrics]",
        proposals=WRITING if scratch else READING, best="" if scratch else BEST,
        limits=_limits(rows) + (CONTENTS if chat and scratch else TEMPLATED if chat else ""),
    )  # fmt: skip


def _limits(rows: list[dict[str, Any]]) -> str:
    """Lines for prompts or targets that may be longer than the default allows: two tokens a word, which is much."""
    lines = ""
    for key, limit in LIMITS.items():
        longest = max(_words(row[key]) for row in rows)
        if 2 * longest > limit:
            tokens = -(-2 * longest // 64) * 64
            lines += f"max_{key}_length: {tokens}  # tokens; the longest {key} has {longest} words\n"
    return lines


def _words(value: Any) -> int:
    """Words of a prompt or target; a letter from Thai on (Chinese, Japanese, ...) counts as one, as most have no spaces."""
    return len("".join(f" {sign} " if sign >= "\u0e00" else sign for sign in _text(value)).split())


def _text(value: Any) -> str:
    """A prompt or target as text; of a conversation, its messages."""
    return value if isinstance(value, str) else " ".join(str(message.get("content", "")) for message in value)


def _quoted(text: str) -> str:
    """A text as YAML."""
    import yaml

    dumped: Callable[..., str] = yaml.safe_dump
    return dumped(text, default_style=None, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
