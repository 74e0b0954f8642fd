"""Evaluates a trained model on a split: predictions with its warmups and under controls, likelihoods, metrics, files.

Knows: tasks, metrics, a `WarmupGenerator`. Must not know: training, flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_warmup.inference.asked import check_count, check_flags
from rl_warmup.inference.controls import CONTROLS, control_warmups, several_prompts
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.inference.likelihood import rank_choices, target_likelihood
from rl_warmup.metrics import METRICS, compute, signatures
from rl_warmup.plugins import nearest
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_jsonl
from rl_warmup.runtime.sharing import is_main
from rl_warmup.tasks import Task, rows_hash
from rl_warmup.tasks.columns import CHOICES_STYLE

COSTLY = ("bertscore", "comet")


@dataclass
class Evaluation:
    """The settings of an evaluation."""

    controls: Sequence[str] = ()  # of `controls.CONTROLS`, besides the model's warmups; ignored for a model without
    likelihood: bool = False  # also measure log P(y|x) (`likelihood.target_likelihood`)
    batch_size: int = 32
    num_warmups: int = 8  # candidates of `rerank`
    other_run: str | None = None  # folder with the predictions.jsonl whose warmups the control `other_run` uses
    show_progress: bool = False

    def check(self) -> None:
        """Raises ValueError for an unknown control, `other_run` without a run, or too many warmups."""
        check_count("num_warmups", self.num_warmups)
        check_flags(likelihood=self.likelihood)
        if not isinstance(self.controls, list | tuple) or not all(isinstance(one, str) for one in self.controls):
            raise ValueError(f"controls: {self.controls!r:.80}; give a list of names, of {', '.join(CONTROLS)}.")
        for control in self.controls:
            if control not in CONTROLS:
                known = f"{', '.join(CONTROLS)}, or all"
                raise ValueError(
                    f"controls: {control!r} is not a control.{nearest(control, CONTROLS)} Allowed: {known}."
                )
        if "other_run" in self.controls and self.other_run is None:
            raise ValueError("controls: other_run needs the run whose warmups to use (`--warmups-from RUN`).")
        if self.other_run is not None and "other_run" not in self.controls:
            raise ValueError("--warmups-from: only the control other_run reads it. Add other_run, or leave it out.")

    def run(self, warmup_generator: WarmupGenerator, task: Task, split: str, folder: Path) -> dict[str, Any]:
        """Predict, score, and write predictions.jsonl and one predictions.<control>.jsonl each into `folder`.

        With a shared generator all processes call this. The main process alone scores and writes, at the end, so that the
        others do not wait for a slow metric.

        Returns:
            `split`, `rows`, `rows_hash`, `signatures`, `ceiling` (if the tokenizer cannot write every target), `metrics`:
            {control: {metric: value}} with "" for the model's warmups, and `likelihood` if requested. Empty on all processes
            but the main one.
        """
        encoder = warmup_generator.encoder()
        rows = encoder.encode_all(task.splits[split], split)
        unwritable = encoder.writable.say(split)
        controls = self.applicable(warmup_generator.mode == "policy", rows)
        other = others_warmups(Path(str(self.other_run)), warmup_generator, rows) if "other_run" in controls else []
        own = warmup_generator.predict(rows, self.batch_size, show_progress=self.show_progress)
        predictions = {"": own}
        for control in controls:
            predictions[control] = self._predict(warmup_generator, rows, own, other, control)
        ranked = {name: self._ranked_accuracy(warmup_generator, rows, found) for name, found in predictions.items()}
        likelihood = {}
        if self.likelihood:
            size = max(1, self.batch_size // 4)
            measured = target_likelihood(warmup_generator, rows, batch_size=size, show_progress=self.show_progress)
            likelihood = {"likelihood": measured}
        if warmup_generator.shared and not is_main():
            return {}
        out: dict[str, Any] = {"split": split, "rows": len(rows), "rows_hash": rows_hash(rows)}
        out |= {"signatures": signatures(task.metrics), "metric_specs": list(task.metrics)}
        out["inference"] = warmup_generator.mode
        if encoder.counts:
            out["truncation"] = dict(encoder.counts)
        if unwritable:
            out["ceiling"] = ceiling(task, rows, warmup_generator.tokenizer)
        out |= {**likelihood, "metrics": {}}
        for name, found in predictions.items():
            write_jsonl(folder / f"predictions{'.' if name else ''}{name}.jsonl", found)
            out["metrics"][name] = {**score_predictions(task, found), **ranked[name]}
        return out

    def applicable(self, writes_warmups: bool, rows: Sequence[dict[str, Any]]) -> list[str]:
        """The controls that can be measured: none without warmups; not `shuffled` for a single prompt, with a message."""
        if not writes_warmups:
            return []
        alone = "shuffled" in self.controls and not several_prompts(rows)
        if alone and is_main():
            print(
                "The control shuffled is not measured: it needs rows of two prompts or more, and there is one prompt."
            )
        return [control for control in self.controls if not (alone and control == "shuffled")]

    def _predict(
        self,
        warmup_generator: WarmupGenerator,
        rows: list[dict[str, Any]],
        own: list[dict[str, Any]],
        other: list[list[int]],
        control: str,
    ) -> list[dict[str, Any]]:
        settings: dict[str, Any] = {"show_progress": self.show_progress}
        if control == "rerank":
            several: dict[str, Any] = {
                "num_warmups": self.num_warmups,
                "batch_size": self.batch_size,
                "logprobs": False,
            }
            best = warmup_generator.generate(rows, **several)
            return [{k: v for k, v in row.items() if k not in ("score", "candidates")} for row in best]
        if control == "sampled":
            settings |= {"sample_warmup": True, "seed": 0}
        elif control == "other_run":
            settings["forced"] = other
        else:
            settings["forced"] = control_warmups(control, own, warmup_generator.filler_ids())
        return warmup_generator.predict(rows, self.batch_size, **settings)

    def _ranked_accuracy(
        self, warmup_generator: WarmupGenerator, rows: list[dict[str, Any]], predictions: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Accuracy of multiple choice by likelihood, if likelihoods are requested and all rows have our choices."""
        if not self.likelihood or not all(CHOICES_STYLE in row for row in rows):
            return {}
        ranked = rank_choices(warmup_generator, rows, [p["warmup_ids"] for p in predictions])
        return {"ranked_accuracy": sum(k == row["answer"] for k, row in zip(ranked, rows, strict=True)) / len(rows)}


def score_predictions(task: Task, predictions: list[dict[str, Any]]) -> dict[str, float]:
    """The task's metrics over predictions."""
    written, targets = [p["prediction"] for p in predictions], [p["target"] for p in predictions]
    return compute(task.metrics, written, targets, predictions)


def others_warmups(folder: Path, warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The warmups that another run wrote for these rows.

    Raises ValueError: the folder holds predictions for other rows, or by another tokenizer.
    """
    if not (folder / "predictions.jsonl").is_file():
        raise ValueError(
            f"{folder} holds no predictions.jsonl, so no warmups of another run. Give a run that has ended."
        )
    other = read_jsonl(folder / "predictions.jsonl")
    if [row["prompt"] for row in other] != [row["prompt"] for row in rows]:
        raise ValueError(
            f"{folder}: predictions.jsonl holds {len(other)} rows that differ from the {len(rows)} here. Predict the same split "
            f"of the same task with both."
        )
    known = len(warmup_generator.constraints.banned)
    for place, row in enumerate(other):
        ids = row["warmup_ids"]
        if any(i >= known for i in ids) or warmup_generator.decode(ids) != row["warmup"]:
            raise ValueError(
                f"{folder}: predictions.jsonl row {place} has a warmup of another tokenizer. Give a run whose model has the same "
                f"tokenizer."
            )
    return [row["warmup_ids"] for row in other]


def ceiling(task: Task, rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, float]:
    """The metrics of decode(encode(target)): the best score that the tokenizer allows. Without costly and plugin metrics."""
    cheap = [spec for spec in task.metrics if isinstance(spec, str) and spec in METRICS and spec not in COSTLY]
    targets = [row["target"] for row in rows]
    ids = tokenizer(targets, add_special_tokens=False)["input_ids"]
    written = [tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
    return compute(cheap, written, targets, rows) if cheap else {}
