"""The part of the trainer that predicts and evaluates with the current model.

Knows: transformers' evaluation loop, the model under its engine. Must not know: gradients, weights of warmups, recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from rl_warmup.batch import Warmup
from rl_warmup.inference.card import write_card
from rl_warmup.inference.evaluation import Evaluation
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.inference.likelihood import score_samples
from rl_warmup.inference.rehearsal import rehearse
from rl_warmup.method.diagnostics import Means, Sums, rollout_metrics, variety
from rl_warmup.method.reference_trainer import ReferenceTrainer
from rl_warmup.method.training_data import encode_sets, hash_of_rows
from rl_warmup.metrics import scores_of
from rl_warmup.models.encoding import ADDED, RowEncoder
from rl_warmup.models.inference_settings import Inference, read_layout
from rl_warmup.models.weight_files import changed_tensor
from rl_warmup.runtime import ownership
from rl_warmup.runtime.given import as_folder
from rl_warmup.runtime.launched import whole_weights
from rl_warmup.runtime.run_folder import clock, write_json
from rl_warmup.runtime.sharing import map_over_processes, seeded
from rl_warmup.runtime.trackers import send_figures
from rl_warmup.tasks import Task
from rl_warmup.tasks.rows import SPLITS

FEW = 8  # rows of each set on which validation is tried before training
CONTROLLED = ("shuffled", "empty_warmup")
TextMetrics = Callable[[list[dict[str, Any]]], dict[str, float]]


def as_metrics(given: Any) -> TextMetrics | None:
    """The function of `compute_metrics`. Raises ValueError: it is none."""
    if given is not None and not callable(given):
        raise ValueError(
            f"compute_metrics: {given!r:.80} is no function. Give one of a list of predictions that returns a dict."
        )
    return given


class ValidatingTrainer(ReferenceTrainer):
    """Predicts and evaluates with the model in training; `WarmupTrainer` adds the training."""

    text_metrics: TextMetrics | None
    eval_encoder: RowEncoder

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """The model in eval mode, ready for `generate`."""
        was_training = self.model.training
        self.model.eval()
        try:
            # sample in the precision of scoring; every weight is whole, so ranks may stop at different lengths
            with whole_weights(self.model_wrapped), self.accelerator.autocast():
                yield self.accelerator.unwrap_model(self.model)
        finally:
            self.model.train(was_training)

    @contextmanager
    def own_folder(self, asked: str | bool | None) -> Iterator[None]:
        """As for every run, after validation was tried on a few rows.

        Raises ValueError: also where `compute_metrics` fails, or validation does not give `metric_for_best_model`.
        """
        if not self.owns:
            self._try_validation()
        with super().own_folder(asked):
            named = {**self.described["settings"], "model_name_or_path": self._model_name()}
            self.run_folder.settings = None if "task" in self.recipe else named
            self.run_folder.training_rows = hash_of_rows(self.described["rows"])
            yield

    def _try_validation(self) -> None:
        asked, own = self.args.metric_for_best_model, self.text_metrics is not None and "task" not in self.recipe
        if self.args.eval_strategy == "no" or not self.eval_dataset or not (asked or own):
            return  # of a recipe, `rehearsal` tries the metrics
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        found: dict[str, float] = {}
        with self._on_its_device():
            for name, rows in sets.items():
                loader = DataLoader(rows[:FEW], FEW, collate_fn=list)
                prefix = f"eval_{name}" if name else "eval"
                found |= self.evaluation_loop(loader, "Evaluation", metric_key_prefix=prefix).metrics or {}
        if asked and f"eval_{asked.removeprefix('eval_')}" not in found:
            names = ", ".join(sorted(name.removeprefix("eval_") for name in found))
            raise ValueError(f"metric_for_best_model: validation gives no {asked!r}. Give one of {names}.")

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Extends Trainer's: the bound on log P(y|x), the gain and the text metrics of the rows.

        Args:
            eval_dataset: rows as for training, or encoded ones: a list, a `datasets.Dataset`, any iterable of rows; or a dict
                (a `DatasetDict`) of such sets, each measured under `eval_NAME_...`. None is the trainer's own.

        Raises:
            ValueError: no rows, or a faulty one, with its name and number.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = encode_sets(self.eval_encoder, eval_dataset, metric_key_prefix, self.args)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Extends Trainer's: `metrics` as `evaluate`; `predictions` are the rows in order, with warmup and prediction.

        Args:
            test_dataset: rows as for `evaluate`; one set.
        """
        rows = encode_sets(self.eval_encoder, test_dataset, metric_key_prefix, self.args)
        if rows is None or isinstance(rows, dict):
            given = "none" if rows is None else f"a dict of {', '.join(rows)}"
            raise ValueError(f"predict: takes one set of rows, but {given} was given. Call it for each set.")
        return super().predict(rows, ignore_keys, metric_key_prefix)

    def evaluate_controls(
        self, rows: Any = None, metrics: Sequence[Any] = ("exact_match",), controls: Sequence[str] = CONTROLLED,
        split: str = "test", likelihood: bool = False, num_warmups: int = 8, name: str = "own data",
        folder: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Predict rows with the model's warmups and under controls, score them, and write predictions*.jsonl and metrics.json.

        What a recipe's run does after training; `rl-warmup report` reads the folder then. All processes call it.

        Args:
            rows: as for `evaluate`; one set. None is the trainer's eval_dataset.
            metrics: names of `rl_warmup.metrics`, or `{name, kwargs}`.
            controls, likelihood, num_warmups: of `inference.evaluation.Evaluation`.
            split, name: of the data, in metrics.json.
            folder: None is the trainer's output_dir; another one must not belong to a run, but may lie in output_dir.

        Returns:
            What metrics.json holds; empty on all processes but the main one.

        Raises:
            ValueError: a faulty argument or row, or the folder holds what would be lost, or output_dir has weights other than
                the model's (call `save_model` first).
        """
        found = encode_sets(self.eval_encoder, self.eval_dataset if rows is None else rows, split, self.args)
        if not found or isinstance(found, dict):
            raise ValueError("evaluate_controls: takes one set of rows. Give it.")
        if split not in SPLITS:
            raise ValueError(f"split: {split!r:.80} is none of {', '.join(SPLITS)}. Give the one that the rows are of.")
        home = Path(str(self.args.output_dir))
        place = home if folder is None else as_folder(folder, "folder")
        if place.resolve() != home.resolve():
            ownership.refuse_output(place, home, asked="folder")
        plain = [{k: v for k, v in row.items() if k not in ADDED} for row in found]
        task = Task(name, {**{one: [] for one in SPLITS}, split: plain}, metrics)  # type: ignore[arg-type]  # or refuses them
        evaluation = Evaluation(controls, likelihood, self.args.per_device_eval_batch_size, num_warmups)
        evaluation.check()
        rehearse(task, split, self.eval_encoder, self.warmup_generator(), controls)
        with ExitStack() as held:
            if self.is_world_process_zero() and not self.owns:
                held.enter_context(ownership.writing(place, "evaluate_controls"))
            with self.shared_generator() as w, torch.autocast(w.model.device.type, enabled=False):
                if changed := changed_tensor(w.model, home):
                    raise ValueError(
                        f"evaluate_controls: the weights in {home} are not the model's ({changed} differs). Save the model "
                        f"first: `trainer.save_model()`."
                    )
                if self.is_world_process_zero():  # results of other weights or controls must not stay
                    ownership.clear_results(place)
                scored = evaluation.run(w, task, split, place)
            if not scored:
                return {}
            result = {"task": name, "model": self._model_name(), **self.about(home), **scored}
            write_json(place / ownership.RESULT, result)
            if read_layout(place):
                write_card(place)
            send_figures(self, split, result["metrics"])
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Extends Trainer's: the folder of a run gets its model card too."""
        super().save_model(output_dir, _internal_call)
        place = Path(output_dir or str(self.args.output_dir))
        if not _internal_call and self.is_world_process_zero() and ownership.is_run(place):
            write_card(place)

    def create_model_card(
        self, language: Any = None, license: str | None = None, tags: Any = None, model_name: str | None = None,
        finetuned_from: str | None = None, tasks: Any = None, dataset_tags: Any = None, dataset: Any = None,
        dataset_args: Any = None,
    ) -> None:  # fmt: skip
        """Replaces Trainer's, whose draft would take the place of README.md: `card.write_card` of output_dir.

        Raises ValueError: as `write_card`; or for tasks, dataset and dataset_args, which the files of the run tell.
        """
        if tasks or dataset or dataset_args:
            raise ValueError(
                "create_model_card: tasks, dataset and dataset_args come from the run's files. Leave them out."
            )
        given = {"language": language, "license": license, "tags": tags or None, "model_name": model_name}
        if self.is_world_process_zero():
            write_card(self.args.output_dir, **given, base_model=finetuned_from, datasets=dataset_tags)

    def _model_name(self) -> str:
        """Where the model was loaded from; its class where nobody knows."""
        return str(getattr(self.model, "name_or_path", "") or type(self.model).__name__)

    def about(self, folder: Path) -> dict[str, Any]:
        """What metrics.json says about the training: objective, seed, updates, seconds, and the weights in `folder`."""
        return {
            "objective": self.args.objective, "seed": self.args.seed, "updates": self.state.global_step,
            "train_seconds": round(self.run_folder.train_seconds, 3), "switched_at": self.schedule.switched_at,
            "gave_up_at": self.schedule.gave_up_at,
            **({} if self.diverged_at is None else {"diverged_at": self.diverged_at}),
            "model_of_update": self.best_at() or self.state.global_step,
            "weights": ownership.fingerprint(folder),
        }  # fmt: skip

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The rows, encoded; `evaluation_loop` shares them among the processes."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
            if rows not in sets:
                raise ValueError(
                    f"evaluate: {rows!r} is no set of the trainer ({', '.join(sets) or 'it has no dict'})."
                )
            rows = sets[rows]
        if rows is None:
            raise ValueError("evaluate: no rows were given, and the trainer has no eval_dataset. Give one of them.")
        encoded = encode_sets(self.eval_encoder, rows, "validation", self.args)
        return DataLoader(encoded, self.args.eval_batch_size, collate_fn=list)

    get_test_dataloader = get_eval_dataloader

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:  # fmt: skip
        """Replaces Trainer's, which counts some rows twice to fill up the last batches.

        Each row counts once and has its own random stream, so the results do not depend on the number of processes or the
        batch, and evaluating more often changes no training run.
        """
        began = clock()
        rows = list(dataloader.dataset)
        if self.model_wrapped is self.model:  # before training some engines have not moved the model to its device
            self.model.to(self.args.device)
        predicted = None
        with seeded("evaluate", self.args.seed):
            with self.shared_generator() as warmup_generator:
                means = self._measure(warmup_generator, rows)
                if self.text_metrics is not None or description == "Prediction":
                    predicted = warmup_generator.predict(rows, self.args.per_device_eval_batch_size)
            if self.text_metrics is not None:
                means |= scores_of("compute_metrics", partial(self.text_metrics, predicted or []))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.run_folder.pause(clock() - began)
        kept: Any = predicted  # rows with texts; transformers has arrays here
        return EvalLoopOutput(predictions=kept, label_ids=None, metrics=metrics, num_samples=len(rows))

    def _measure(self, warmup_generator: WarmupGenerator, rows: list[dict[str, Any]]) -> dict[str, float]:
        """The n-sample bound on log P(y|x), its negative per target token as loss, the gain, and statistics of warmups."""
        size = self.args.num_eval_warmups if warmup_generator.mode == "policy" else 0
        step = self.args.per_device_eval_batch_size

        def sums(start: int) -> tuple[Sums, list[Warmup]]:
            places = range(start, min(start + step, len(rows)))
            part = [rows[place] for place in places]
            batch, scores = score_samples(warmup_generator, part, places, size, self.args.seed)
            groups = batch.num_prompts * batch.group_size
            target, warmup = scores.target_logprob[:groups], scores.warmup_logprob[:groups]
            weights = self.rollout.weigh(batch, target, warmup, 1.0, cold_start=True)
            found = rollout_metrics(batch, scores, weights, target, {})
            kept = {name: pair for name, pair in found.items() if not name.startswith("reward")}
            return kept, batch.warmups[:groups]

        means, drawn = Means(), []
        progress = "" if self.args.disable_tqdm else "Evaluating"
        for found, warmups in map_over_processes(sums, range(0, len(rows), step), progress=progress):
            means.add(found)
            drawn += warmups
        if drawn:
            means.add(variety(rows, drawn, size))
        bound = means.sums["target_bound" if size else "target_logprob"][0]
        means.add({"loss": (-bound, sum(len(row["target_ids"]) for row in rows))})
        return means.flush()

    def inference(self) -> Inference:
        """The inference settings of the current model, with its current sampling constraints (the guard may change them)."""
        mode = "empty" if self.rollout.objective == "sft" else "policy"
        return replace(self.settings, constraints=self.constraints, mode=mode)

    def warmup_generator(self) -> WarmupGenerator:
        """The current model, ready for inference."""
        model = self.accelerator.unwrap_model(self.model)
        return WarmupGenerator(model, self.processing_class, self.layout, self.inference())

    @contextmanager
    def shared_generator(self) -> Iterator[WarmupGenerator]:
        """The current model, shared by all processes: each predicts a part. All must enter, and do the same inside."""
        with torch.no_grad(), self._writing() as model:
            yield replace(self.warmup_generator(), model=model, shared=True)

    def predict_rows(self, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        """Predictions for rows, with the policy's likeliest warmup; all processes call it, and get all predictions."""
        with self.shared_generator() as warmup_generator:
            return warmup_generator.predict(rows, batch_size=self.args.per_device_eval_batch_size, **settings)
