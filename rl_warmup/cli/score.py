"""`rl-warmup score FILE --reward SPEC`: try rewards on a file of warmups, before they train anything."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rl_warmup.cli.main import OptionParser, count, figure, place, quick_imports

EPILOG = """FILE holds JSON lines with prompt, target and warmup (further keys are columns), or is a run's warmups.jsonl.
SPEC is a name, module:function, path/to/file.py:function, or a mapping as in a recipe:
  rl-warmup score runs/mine/warmups.jsonl --reward gain --reward '{name: length_penalty, kwargs: {target_length: 8}}'
Exit code 2 where a reward makes a mistake that would stop a run."""


def command(args: list[str]) -> None:
    """Print scores, spread, correlation with the target's log-probability, time per row, and mistakes."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OptionParser(prog="rl-warmup score", description=__doc__, epilog=EPILOG, formatter_class=formatter)
    parser.add_argument("file", type=place, metavar="FILE")
    parser.add_argument("--reward", action="append", required=True, metavar="SPEC", help="may be given several times")
    parser.add_argument("--model", type=place, metavar="RUN_OR_MODEL", help="for log-probabilities and predictions; default: the "
                        "run that contains FILE, else none; then rewards that need one fail")  # fmt: skip
    parser.add_argument("--show", type=figure, default=8, help="rows whose scores are printed; default 8")
    parser.add_argument("--limit", type=count, help="only the first rows of the file")
    parser.add_argument("--batch-size", type=count, default=32, help="rows per call; default 32")
    parser.add_argument("--output", type=place, metavar="FILE", help="write the scores of all rows as JSON lines")
    options = parser.parse_args(args)
    specs = [_spec(text) for text in options.reward]

    with quick_imports():
        from rl_warmup.inference.scorecard import RewardTrial, open_model, read_warmups
        from rl_warmup.runtime.ownership import refuse_file
        from rl_warmup.runtime.run_folder import write_jsonl

    if options.output:
        refuse_file(Path(options.output))
        if Path(options.output).exists() and Path(options.output).samefile(options.file):
            raise ValueError(f"--output: {options.output} is FILE itself. Give another file.")
    rows = read_warmups(options.file)[: options.limit]
    beside = Path(options.file).parent
    model = options.model or (str(beside) if (beside / "warmup_layout.json").is_file() else None)
    trial = RewardTrial(open_model(model, rows), rows, model is not None, options.batch_size)
    results = trial.run(specs)
    prompts = len(set(trial.prompts()))
    by = f"log-probabilities by {model}" if model else "no model: tokens are the file's words"
    print(f"{options.file}: {len(rows)} warmups of {prompts} prompts; {by}\n")
    if worked := [result for result in results if any(value is not None for value in result.values)]:
        print(_summary(worked, trial))
        print("\n" + _scores(worked, trial, rows[: options.show]))
    if options.output:
        scored = ({result.name: result.values[i] for result in results} for i in range(len(rows)))
        write_jsonl(Path(options.output), [{**row, "scores": s} for row, s in zip(rows, scored, strict=True)])
    if notes := [f"  - {result.name}: {note}." for result in results for note in result.notes]:
        print("\nworth knowing:\n" + "\n".join(notes))
    faults = [fault for result in results for fault in result.faults]
    if faults:
        raise ValueError(faults[0] if len(faults) == 1 else "\n  - ".join([f"{len(faults)} mistakes:", *faults]))
    print("\nNo mistakes found.")


def _spec(text: str) -> Any:
    from rl_warmup.runtime.recipe_file import flag_value

    return flag_value("reward", text) if text.lstrip().startswith("{") else text


def _summary(results: list[Any], trial: Any) -> str:
    from rl_warmup.experiments.report import text_table
    from rl_warmup.inference.scorecard import correlation, within

    lines = []
    for result in results:
        scored = [value for value in result.values if value is not None]
        numbers = (statistics.fmean(scored) if scored else None, min(scored, default=None), max(scored, default=None))
        spread = within(result.values, trial.prompts())
        together = correlation(result.values, trial.target_logprobs, trial.prompts())
        per_row = [1000 * seconds / len(result.values) for seconds in (result.seconds, result.asked_seconds)]
        figures = [*map(_figure, (*numbers, spread)), _figure(together, 2), *(f"{value:.3f}" for value in per_row)]
        lines.append([result.name, len(scored), *figures])
    header = ["reward", "scored", "mean", "min", "max", "spread", "corr", "ms/row", "ms/row for extras"]
    words = (
        "spread: within a prompt; corr: within a prompt, with log P(y|x,c); extras: arguments that the function names"
    )
    if trial.prediction_seconds:
        words += f" (predictions apart: {1000 * trial.prediction_seconds / len(trial.rows):.1f} ms a row)"
    return f"{text_table(header, lines)}\n{words}"


def _scores(results: list[Any], trial: Any, rows: list[dict[str, Any]]) -> str:
    from rl_warmup.experiments.report import text_table

    lines = []
    for i, row in enumerate(rows):
        text = json.dumps(row["warmup"], ensure_ascii=False)
        short = text if len(text) <= 40 else f'{text[:38]}…"'
        lines.append([short, _figure(trial.target_logprobs[i]), *(_figure(result.values[i]) for result in results)])
    return text_table(["warmup", "log P(y|x,c)", *(result.name for result in results)], lines)


def _figure(value: float | None, digits: int = 3) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
