"""`rl-warmup generate MODEL "a prompt" ...`: write warmups and targets for prompts given as arguments, a file or stdin.

Also `accelerate launch -m rl_warmup.cli.generate MODEL --file PROMPTS`: every process writes for a share of the prompts.
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
    parser.add_argument("prompts", nargs="*", help="prompts; none reads one per line from --file or standard input")
    parser.add_argument("--file", help="text file with one prompt per line")
    parser.add_argument("--warmup", help="use this warmup instead of the model's own ('' is none)")
    parser.add_argument(
        "--sample", action="store_true", help="sample the warmup instead of taking the likeliest tokens"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--batch-size", type=count, default=32)
    parser.add_argument("--json", action="store_true", help="JSON lines: prompt, warmup, warmup_finish, prediction")
    options = parser.parse_args(args)
    prompts = options.prompts or _lines(options.file)
    if not prompts:
        raise ValueError("No prompt was given. Write it behind the model, use --file, or pipe one per line.")

    with quick_imports():
        from rl_warmup.inference.generation import WarmupGenerator
        from rl_warmup.runtime.sharing import initialize_distributed, is_main

    warmup_generator = WarmupGenerator.load(options.model, initialize_distributed())
    warmup_generator.shared = True
    if warmup_generator.settings.prompt_template is None and is_main():
        print("rl-warmup generate: this model's prompts were made of several columns; prompts are taken as they are given.",
              file=sys.stderr)  # fmt: skip
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
            print(
                f"prompt      {written['prompt']}\nwarmup      {written['warmup']}\nprediction  {written['prediction']}\n"
            )


def _lines(path: str | None) -> list[str]:
    if path is None and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ValueError("Several processes cannot share the standard input. Give the prompts with --file.")
    if path is not None and not Path(path).is_file():
        raise ValueError(f"--file: {path} does not exist.")
    text = (
        Path(path).read_text(encoding="utf-8") if path is not None else ("" if sys.stdin.isatty() else sys.stdin.read())
    )
    return [line for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    sys.exit(run_command("generate", sys.argv[1:]))
