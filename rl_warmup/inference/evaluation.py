"""A trained model on a split: predictions with own warmups and under controls, likelihoods, and everything as files.

Knows: tasks, metrics, a `WarmupGenerator`. Must not know: training, flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_warmup.inference.generation import CONTROLS, WarmupGenerator, control_warmups
from rl_warmup.inference.likelihood import rank_choices, rerank, target_likelihood
from rl_warmup.metrics import METRICS, compute, signatures
from rl_warmup.runtime.run_folder import read_jsonl, write_jsonl
from rl_warmup.runtime.sharing import is_main
from rl_warmup.tasks import Task, rows_hash
from rl_warmup.tasks.columns import CHOICES_STYLE

COSTLY = ("bertscore", "comet")


@dataclass
class Evaluation:
    """What to evaluate and how.

    Args:
        controls: names of `inference.generation.CONTROLS`, besides own warmups; a model trained without warmups has none.
        likelihood: also measure log P(y|x) (`likelihood.target_likelihood`).
        num_warmups: candidates of `rerank`.
        other_run: folder with the predictions.jsonl whose warmups `other_run` uses.
    """

    controls: Sequence[str] = ()
    likelihood: bool = False
    batch_size: int = 32
    num_warmups: int = 8
    other_run: str | None = None
    show_progress: bool = False

    def check(self) -> None:
        """Raises ValueError for what cannot be evaluated, before anything is computed."""
        for control in self.controls:
            if control not in CONTROLS:
                raise ValueError(f"controls: {control!r} is not a control. Allowed: {', '.join(CONTROLS)}.")
        if "other_run" in self.controls and self.other_run is None:
            raise ValueError("controls: other_run needs the run whose warmups to use (`--warmups-from RUN`).")

    def run(self, warmup_generator: WarmupGenerator, task: Task, split: str, folder: Path) -> dict[str, Any]:
        """Predict, score, and write predictions.jsonl and one predictions.<control>.jsonl each into `folder`.

        With a shared writer all processes call this; the main process alone scores and writes, after the last thing that they
        do together, so that nobody waits for a slow metric.

        Returns:
            `split`, `rows`, `rows_hash`, `signatures`, `ceiling` (where the tokenizer cannot write every target), `metrics`:
            {control: {metric: value}} with "" for own warmups, and `likelihood` where asked for. Empty on other processes than
            the main one.
        """
        encoder = warmup_generator.encoder()
        rows = encoder.encode_all(task.splits[split], split)
        said = encoder.writable.say(split)
        controls = self.applicable(warmup_generator.inference == "policy", len(rows))
        other = others_warmups(Path(str(self.other_run)), warmup_generator, rows) if "other_run" in controls else []
        own = warmup_generator.predict(rows, self.batch_size, show_progress=self.show_progress)
        predictions = {"": own}
        for control in controls:
            predictions[control] = self._predict(warmup_generator, rows, own, other, control)
        ranked = {
            control: self._ranked_accuracy(warmup_generator, rows, written) for control, written in predictions.items()
        }
        likelihood = {}
        if self.likelihood:
            size = max(1, self.batch_size // 4)
            measured = target_likelihood(warmup_generator, rows, batch_size=size, show_progress=self.show_progress)
            likelihood = {"likelihood": measured}
        if warmup_generator.shared and not is_main():
            return {}
        out = {"split": split, "rows": len(rows), "rows_hash": rows_hash(rows), "signatures": signatures(task.metrics)}
        out |= {"metric_specs": list(task.metrics), "inference": warmup_generator.inference}
        if encoder.counts:
            out["truncation"] = dict(encoder.counts)
        if said:
            out["ceiling"] = ceiling(task, rows, warmup_generator.tokenizer)
        scores = {name: {**self._score(task, predictions[name], name, folder), **ranked[name]} for name in predictions}
        return {**out, **likelihood, "metrics": scores}

    def applicable(self, writes_warmups: bool, rows: int) -> list[str]:
        """The controls that can be measured: none without warmups, and no shuffling of a single row's, which is said."""
        alone = rows < 2 and "shuffled" in self.controls
        if writes_warmups and alone and is_main():
            print("The control shuffled is not measured: it needs two rows or more, and there is one.")
        return [control for control in self.controls if not (alone and control == "shuffled")] if writes_warmups else []

    def _predict(
        self,
        warmup_generator: WarmupGenerator,
        rows: list[dict[str, Any]],
        own: list[dict[str, Any]],
        other: list[list[int]],
        control: str,
    ) -> list[dict[str, Any]]:
        if control == "sampled":
            return warmup_generator.predict(
                rows, self.batch_size, sample_warmup=True, show_progress=self.show_progress, seed=0
            )
        if control == "rerank":
            return rerank(warmup_generator, rows, self.num_warmups, self.batch_size)
        forced = other if control == "other_run" else control_warmups(control, own, warmup_generator.filler_ids())
        return warmup_generator.predict(rows, self.batch_size, forced, show_progress=self.show_progress)

    def _ranked_accuracy(
        self, warmup_generator: WarmupGenerator, rows: list[dict[str, Any]], predictions: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Multiple choice by likelihood, where likelihoods are asked for and all targets are picked from known choices.

        A foreign column that happens to be called `choices` is none of ours.
        """
        if not self.likelihood or not all(CHOICES_STYLE in row for row in rows):
            return {}
        ranked = rank_choices(warmup_generator, rows, [p["warmup_ids"] for p in predictions])
        return {"ranked_accuracy": sum(k == row["answer"] for k, row in zip(ranked, rows, strict=True)) / len(rows)}

    def _score(self, task: Task, predictions: list[dict[str, Any]], control: str, folder: Path) -> dict[str, float]:
        """Write one kind of predictions and score it."""
        name = f"predictions.{control}.jsonl" if control else "predictions.jsonl"
        kept = [{k: v for k, v in p.items() if k != "prediction_ids"} for p in predictions]
        write_jsonl(folder / name, kept)
        return score_predictions(task, predictions)


def score_predictions(task: Task, predictions: list[dict[str, Any]]) -> dict[str, float]:
    """The task's metrics over predictions."""
    written, targets = [p["prediction"] for p in predictions], [p["target"] for p in predictions]
    return compute(task.metrics, written, targets, predictions)


def others_warmups(folder: Path, warmup_generator: WarmupGenerator, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The warmups that another run wrote for these rows.

    Raises:
        ValueError: the folder holds predictions for other rows, or of a tokenizer whose tokens mean something else here.
    """
    other = read_jsonl(folder / "predictions.jsonl")
    if [row["prompt"] for row in other] != [row["prompt"] for row in rows]:
        raise ValueError(
            f"{folder}: predictions.jsonl holds {len(other)} rows that are not the same {len(rows)} as here. Predict the same "
            f"split of the same task with both."
        )
    known = len(warmup_generator.constraints.banned)
    for place, row in enumerate(other):
        ids = row["warmup_ids"]
        if any(i >= known for i in ids) or warmup_generator.decode(ids) != row["warmup"]:
            raise ValueError(
                f"{folder}: predictions.jsonl row {place} has a warmup of another tokenizer, whose tokens spell something else "
                f"here. Give a run whose model has the same tokenizer."
            )
    return [row["warmup_ids"] for row in other]


def ceiling(task: Task, rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, float]:
    """What a model would score that writes every target as well as the tokenizer can: metrics of decode(encode(target)).

    Metrics that cost much or are somebody else's are left out.
    """
    cheap = [spec for spec in task.metrics if isinstance(spec, str) and spec in METRICS and spec not in COSTLY]
    targets = [row["target"] for row in rows]
    ids = tokenizer(targets, add_special_tokens=False)["input_ids"]
    written = [tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
    return compute(cheap, written, targets, rows) if cheap else {}
