"""`rl-warmup generate MODEL "a prompt" ...`: write warmups and targets for prompts from arguments, a file or stdin.

Also `accelerate launch -m rl_warmup.cli.generate MODEL --file PROMPTS`: the processes share the prompts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rl_warmup.cli.main import OptionParser, count, quick_imports, run_command


def command(args: list[str]) -> None:
    """One warmup and one target per prompt, as text or as JSON lines."""
    parser = OptionParser(prog="rl-warmup generate", description=__doc__)
    parser.add_argument("model", help="folder that training wrote")
    parser.add_argument("prompts", nargs="*", help="prompts; default: one per line from --file or standard input")
    parser.add_argument("--file", help="text file with one prompt per line")
    parser.add_argument("--warmup", help="use this warmup instead of the model's own ('' is none)")
    parser.add_argument("--sample", action="store_true", help="sample the warmup instead of the likeliest tokens")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--batch-size", type=count, default=32)
    parser.add_argument("--json", action="store_true", help="JSON lines: prompt, warmup, warmup_finish, prediction")
    options = parser.parse_args(args)
    prompts = options.prompts or _lines(options.file)
    if not prompts:
        raise ValueError("No prompt was given. Write it after the model, use --file, or pipe one per line.")

    with quick_imports():
        from rl_warmup.inference.generation import WarmupGenerator
        from rl_warmup.runtime.sharing import initialize_distributed, is_main

    warmup_generator = WarmupGenerator.load(options.model, initialize_distributed())
    warmup_generator.shared = True
    if warmup_generator.settings.prompt_template is None and is_main():
        note = "this model's training prompts had several columns; prompts are used without a template."
        print(f"rl-warmup generate: {note}", file=sys.stderr)
    rows = warmup_generator.encoded([{"prompt": prompt} for prompt in prompts])
    forced = None
    if options.warmup is not None:
        forced = [warmup_generator.tokenizer(options.warmup, add_special_tokens=False)["input_ids"]] * len(rows)
    out = warmup_generator.predict(rows, options.batch_size, forced, sample_warmup=options.sample, seed=options.seed)
    for written in out if is_main() else ():
        if options.json:
            keys = ("prompt", "warmup", "warmup_finish", "prediction")
            print(json.dumps({key: written[key] for key in keys}, ensure_ascii=False))
        else:
            print("\n".join(f"{key:<11} {written[key]}" for key in ("prompt", "warmup", "prediction")) + "\n")


def _lines(path: str | None) -> list[str]:
    if path is None and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError("Several processes cannot share the standard input. Give the prompts with --file.")
    if path is not None and not Path(path).is_file():
        raise ValueError(f"--file: {path} does not exist.")
    piped = "" if path is not None or sys.stdin.isatty() else sys.stdin.read()
    text = piped if path is None else Path(path).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    sys.exit(run_command("generate", sys.argv[1:]))
