"""Part of `accelerator.sh`: train one arm with one seed on files you carry, predict the test rows, keep everything as files.

    python -m benchmarks.device_arms --task debian_sum --arm warmup --seed 1 --model models/smollm2-135m-instruct --out arm.csv

`WarmupTrainer` is used directly, as the machine may have no trl. A run stops after `--minutes` of training, so that it ends
within one part; how many updates it made is in its row. Knows: tasks, arms, the trainer. Must not know: what is made of the
numbers.
"""

from __future__ import annotations

import argparse
import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.accelerator_rows import DeviceRow, read_rows, write_rows
from benchmarks.gym_habits import FILED

LENGTHS = {"prompt_truncation": "right", "target_truncation": "drop"}
KEYWORDS = {"proposals": ["keywords"], "readiness": -3.0, "anchor_weight": 0.1, **LENGTHS}
SHARED = {
    "num_warmups": 4, "empty_share": 0.2, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 64,
    "lr_scheduler_type": "linear", "warmup_steps": 20, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 25,
    "report_to": "none", "log_warmups": 3, "disable_tqdm": True,
}  # fmt: skip
GYM = {
    "max_prompt_length": 128, "max_target_length": 16, "max_warmup_length": 48, "proposals": ["reference"],
    "separator_init": "end_token", "max_reading_updates": 180, "empty_share": 0.1, "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 125, **LENGTHS,
}  # fmt: skip
# Task -> arguments of the task `file`, settings of the trainer. Learning rates and lengths are our choice, untuned.
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "debian_sum": (
        {
            "files": "debian_sum/debian-sum", "prompt_column": "document", "target_column": "summary",
            "prompt_template": "Describe in one line: {text}\n", "metrics": ("rougeL", "rouge1"),
        },
        {"max_prompt_length": 256, "max_target_length": 32, "max_warmup_length": 16, **KEYWORDS},
    ),
    "logic_rg": (
        {
            "files": "logic_rg/logic-rg", "prompt_column": "context", "choices_column": "choices", "answer_column": "answer",
            "prompt_template": "{text}\n{question}\n{options}\nAnswer:", "metrics": ("accuracy", "macro_f1"),
        },
        {"max_prompt_length": 384, "max_target_length": 8, "max_warmup_length": 32, **LENGTHS, "prompt_truncation": "left"},
    ),
    "ddtp_en_de": (
        {"files": "ddtp/ddtp-en-de", "prompt_column": "en", "target_column": "de", "metrics": ("chrf++", "bleu")},
        {"max_prompt_length": 128, "max_target_length": 128, "max_warmup_length": 16, **KEYWORDS},
    ),
    "ddtp_en_fr": (
        {"files": "ddtp/ddtp-en-fr", "prompt_column": "en", "target_column": "fr", "metrics": ("chrf++", "bleu")},
        {"max_prompt_length": 128, "max_target_length": 128, "max_warmup_length": 16, **KEYWORDS},
    ),
    **{f"gym_{kind}": ({"files": f"gym/{kind}", "metrics": ("exact_match",)}, GYM) for kind in FILED},
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft"},
    "sft_equal_compute": {"objective": "sft"},  # as many updates as take as long as the warmup arm: --like
    "filler": {"proposals": ["filler"], "proposal_only": True},
    "proposal": {"proposal_only": True},
    "warmup": {},
    "warmup_sampled": {"proposals": []},  # its own samples from the first update on
    "reading": {},  # the starting model's samples first; of the gym tasks
    "marginal_kl": {"proposals": [], "beta": 0.1},  # its own samples from the first update on, held near the start
}
TINY = {
    "max_steps": 2, "per_device_train_batch_size": 2, "max_target_length": 24, "max_warmup_length": 4,
    "min_reading_updates": 4, "max_reading_updates": 4,
}  # fmt: skip


def run_arm(options: argparse.Namespace) -> list[DeviceRow]:
    """Train, predict, score what can be scored here: a row for the model's own warmups, then one for each control."""
    import torch

    from benchmarks.device_steps import device_name
    from rl_warmup import WarmupConfig, WarmupTrainer
    from rl_warmup.inference.evaluation import Evaluation
    from rl_warmup.models.loading import load_model
    from rl_warmup.tasks import load_task

    given, settings = TASKS[options.task]
    kwargs = {key: value for key, value in given.items() if key not in ("files", "metrics")}
    paths = {split: f"{options.data}/{given['files']}.{split}.jsonl.gz" for split in ("train", "validation", "test")}
    metrics = given["metrics"] if scorable(given["metrics"]) else ("exact_match",)
    task = load_task("file", **paths, **kwargs, metrics=metrics, test_size=options.rows)
    cuda = torch.cuda.is_available()
    changes = {**settings, **ARMS[options.arm], "max_steps": _updates(options), "seed": options.seed}
    changes |= TINY if options.tiny else {}
    config = WarmupConfig(
        **{**SHARED, "learning_rate": options.learning_rate, **changes},
        output_dir=str(options.runs / f"{options.task}-{options.arm}-{options.seed}"), bf16=cuda, use_cpu=not cuda,
    )  # fmt: skip
    scratch = {"width": 16, "layers": 1, "heads": 2, "vocab_size": 400} if options.tiny else None
    texts = [text for row in task.splits["train"][:2000] for text in (row["prompt"], row["target"])]
    model, tokenizer = load_model(options.model, lambda: texts, scratch, options.seed)
    trainer = WarmupTrainer(
        model=model, args=config, train_dataset=task.splits["train"], processing_class=tokenizer,
        callbacks=[_stop_after(60 * options.minutes)],
    )  # fmt: skip
    trainer.train()
    evaluation = Evaluation(["shuffled", "empty_warmup"], batch_size=config.per_device_eval_batch_size)
    scored = evaluation.run(trainer.warmup_generator(), task, "test", Path(str(config.output_dir)))
    about = (options.part, device_name(), Path(options.model).name, options.task)
    rows = [
        DeviceRow(
            *about, f"{options.arm}, {control}" if control else options.arm, n=config.num_warmups, seed=options.seed,
            metric=metrics[0], value=values[metrics[0]],
        )
        for control, values in scored["metrics"].items()
    ]  # fmt: skip
    rows[0].updates, rows[0].seconds = trainer.state.global_step, round(trainer.run_folder.train_seconds, 3)
    notes = [] if metrics == given["metrics"] else [f"{given['metrics'][0]} needs its library"]
    rows[0].note = ", ".join([*notes, *_found(trainer.schedule, Path(str(config.output_dir)))])
    return rows


def _found(schedule: Any, folder: Path) -> list[str]:
    """At which updates the search ended, and how many of the warmups for the test rows are worked out to the letter."""
    from rl_warmup.runtime.documents import read_jsonl

    steps = {"switch at": schedule.switched_at, "gave up at": schedule.gave_up_at}
    told = [f"{what} {step or 'none'}" for what, step in steps.items()] if schedule.reading else []
    rows = [row for row in read_jsonl(folder / "predictions.jsonl") if "worked" in row and row["warmup"]]
    if rows and not schedule.proposal_only:
        right = sum(row["warmup"] == row["worked"] for row in rows) / len(rows)
        told.append(f"{right:.2f} of the warmups worked out")
    return told


def _updates(options: argparse.Namespace) -> int:
    """As many as asked for, or as take SFT as long as the warmup arm took.

    Raises:
        ValueError: `sft_equal_compute` without the two files.
    """
    if options.arm != "sft_equal_compute":
        return options.updates
    if not options.like or not all(path.is_file() for path in options.like):
        raise ValueError("sft_equal_compute needs --like SFT.csv WARMUP.csv of finished runs; run those parts first.")
    sft, warmup = (read_rows(path)[0] for path in options.like)
    if not (sft.seconds and sft.updates and warmup.seconds):
        raise ValueError(f"{options.like[0]} or {options.like[1]} says no seconds or updates.")
    return max(int(sft.updates), math.ceil(sft.updates * warmup.seconds / sft.seconds))


def scorable(metrics: tuple[str, ...]) -> bool:
    """Whether the libraries of these metrics are here; predictions are kept and can be scored elsewhere."""
    library = {"rouge": "rouge_score", "chrf": "sacrebleu", "bleu": "sacrebleu"}
    needed = {module for name in metrics for start, module in library.items() if name.startswith(start)}
    return all(find_spec(module) is not None for module in needed)


def _stop_after(seconds: float) -> Any:
    from transformers import TrainerCallback

    class StopAfter(TrainerCallback):
        """Ends training once its time is spent."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= time.perf_counter() - self.began > seconds

    return StopAfter()


def main(argv: list[str] | None = None) -> None:
    """Run one arm and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--arm", required=True, choices=list(ARMS))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--model", required=True, help="a folder with a model")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with debian_sum/, ... (%(default)s)")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, at most (%(default)s)")
    parser.add_argument("--rows", type=int, default=500, help="test rows (%(default)s)")
    parser.add_argument(
        "--like", type=Path, nargs=2, metavar=("SFT", "WARMUP"), help="their CSVs, for sft_equal_compute"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/accelerator"), help="run folders (%(default)s)")
    parser.add_argument("--part", default="arm", help="name in the table")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--tiny", action="store_true", help="two updates, to see that all of this runs")
    write_rows((options := parser.parse_args(argv)).out, run_arm(options))


if __name__ == "__main__":
    main()
