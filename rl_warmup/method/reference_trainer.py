"""A Trainer that samples the starting policy for the first updates, keeps it for the KL, and ends with the best model.

Knows: transformers' Trainer, the starting policy (`reference.py`), when the policy takes over (`schedule.py`). Must not know:
how a group is weighted, rewards. The order matters: first the generator learns to read varied warmups, then the policy may
change. If both learn at once, the policy's warmups become drafts of the target before the generator reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy, SchedulerType

from rl_warmup.batch import Warmup
from rl_warmup.method.divergence import DivergenceTrainer
from rl_warmup.method.drawing import Drawing, weights_hash
from rl_warmup.method.proposals import COLUMNS, OTHER_REFERENCE, REFERENCE
from rl_warmup.method.reference import FILE, StartingPolicy, has_new_adapter, reference_warmups
from rl_warmup.method.schedule import Schedule
from rl_warmup.method.training_data import EncodedStream, rows_digest
from rl_warmup.models.inference_settings import Inference, read_layout
from rl_warmup.models.layouts import Layout
from rl_warmup.models.tokens import THINKING_ENDS
from rl_warmup.plugins import code_hashes
from rl_warmup.runtime import checkpoints
from rl_warmup.runtime.documents import file_hash, read_json
from rl_warmup.runtime.run_folder import RunFolder, clock

MANY_CUT = 0.5  # share of the samples


class ReferenceTrainer(DivergenceTrainer):
    """Samples the starting policy before the first update, keeps it for the KL, and ends with the best model.

    `WarmupTrainer` sets the attributes declared here, and calls `keep_start` when it has its model.
    """

    layout: Layout
    settings: Inference  # from the options
    schedule: Schedule
    run_folder: RunFolder
    start: StartingPolicy | None = None
    end_of_samples: int | None = None  # the token, where it is not the separator
    began_with: str  # the hash of the starting model
    plugins: list[Any]  # names of objective, proposals and rewards, which may be plugins
    has_trained = False
    train_dataset: Any

    def keep_start(self) -> None:
        """Keep a hash of the starting model and, for the KL, its policy."""
        self.end_of_samples = self._end_of_samples()
        if self._holds_the_policy():
            self.start = StartingPolicy(self.model, self.end_of_samples)
        # a new adapter changes no output and is restored from a checkpoint, so only its base has to be the same
        adapted = hasattr(self.model, "peft_config")
        if self.start is not None:
            adapted = self.start.model is None
        elif adapted and REFERENCE in self.rollout.proposals:
            adapted = has_new_adapter(self.model)
        self.began_with = weights_hash(self.model, frozen_alone=adapted)

    def _samples_the_start(self) -> bool:
        return REFERENCE in self.rollout.proposals and self.args.objective != "sft"

    def _holds_the_policy(self) -> bool:
        """Whether the KL to the start will count: the policy writes, and `beta` is not 0."""
        return bool(self.rollout.beta) and self.rollout.objective != "sft" and not self.args.proposal_only

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trainer's `train`, after the starting policy was sampled; prints which model the run ends with."""
        if resume_from_checkpoint is None and kwargs.get("trial") is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint  # Trainer itself does not read it
        if self.has_trained:
            self._begin_again(self.checkpoint(resume_from_checkpoint))
        self.has_trained, self.diverged_at, self.went_back_to, self._checked_at = True, None, None, None
        with self.own_folder(resume_from_checkpoint):
            return self._train_with_reference(resume_from_checkpoint, **kwargs)

    def _begin_again(self, checkpoint: Path | None) -> None:
        """Undo what an earlier `train` of this trainer has left. A new run starts from the current weights.

        Raises ValueError: the KL of a resumed run needs the starting model, which was let go when the earlier run gave up.
        """
        # the earlier run may have given up, its guard may have changed the constraints under which samples are drawn
        self.rollout = replace(self.rollout, objective=self.args.objective, constraints=self.settings.constraints)
        if isinstance(self.train_dataset, EncodedStream):
            self.train_dataset.rows_to_skip = 0
        if checkpoint is None:
            self.keep_start()
        elif self._holds_the_policy() and self.start is None:
            saved = read_json(checkpoint / TRAINER_STATE_NAME).get("stateful_callbacks", {}).get("Schedule", {})
            if saved.get("attributes", {}).get("gave_up_at") is None:
                raise ValueError(
                    f"resume_from_checkpoint: this trainer's last run gave up on warmups and let the starting model go. Make a "
                    f"new trainer to resume from {checkpoint}, which is from before that."
                )

    def describe(self) -> dict[str, Any]:
        """Adds the training rows, the starting model, the files of plugins, and what validation decides."""
        rows, stream = rows_digest(self.train_dataset), self.train_dataset
        named = [*self.plugins]
        counts = self._validation_counts()
        scored = counts and not _plain_name(self.args.metric_for_best_model).endswith("loss")
        named += self.recipe.get("metrics") or [] if scored else []
        if "first" in rows:  # not all rows are compared, so their code and warmups are
            named.append(self.recipe.get("task"))
        described = {**super().describe(), "rows": rows, "start": self.began_with, "code": code_hashes(named)}
        if "first" in rows and self.args.stored_warmups:
            described["code"][self.args.stored_warmups] = file_hash(self.args.stored_warmups)
        if isinstance(stream, EncodedStream) and self._samples_the_start():
            # for all these rows the starting model was sampled at once, those of similar length together
            described["fixed"] = ["max_steps"] if self._rows_sampled(stream) == stream.length else []
        elif self._only_tries():
            described["fixed"] = ["max_steps"]
        if counts:
            sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"validation": self.eval_dataset}
            described["eval_rows"] = {name: rows_digest(rows) for name, rows in sets.items()}
            described["fixed"] = [
                *described.get("fixed", []),
                *checkpoints.EVALUATION,
                *(["metrics"] if scored else []),
            ]
        return described

    def _validation_counts(self) -> bool:
        """Whether validation changes the training, or selects the model that it ends with."""
        stops = any(isinstance(callback, EarlyStoppingCallback) for callback in self.callback_handler.callbacks)
        follows = self.args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
        return self.args.load_best_model_at_end or stops or follows

    def _train_with_reference(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> Any:
        if self._samples_the_start():
            began = clock()
            with self._on_its_device():
                self._add_reference_warmups(self.checkpoint(resume_from_checkpoint))
            self.run_folder.spent_before = clock() - began
        if self.start is not None:
            self.start.prepare(self)
        output = super().train(resume_from_checkpoint, **kwargs)
        if self.went_back_to is not None:
            self.schedule.forget_after(self.state.global_step)
        kept = self.went_back_to if self.best_at() is None else self.state.best_model_checkpoint
        if kept is not None:  # as it was at its update: since then constraints may have changed, or the run given up
            declared = read_layout(str(kept))
            objective = "sft" if declared["inference"] == "empty" else self.args.objective
            self.rollout = replace(
                self.rollout, objective=objective, constraints=replace(self.constraints, **declared["law"])
            )
        self._say_which_model()
        return output

    def best_at(self) -> int | None:
        """The update whose model the run ends with, if it is not the last one."""
        state = self.state
        loaded = self.args.load_best_model_at_end and state.best_model_checkpoint is not None
        return state.best_global_step if loaded and state.best_global_step != state.global_step else None

    def _best_by(self) -> str:
        """The metric that selects the best model: the requested one, or the loss if that ended with the warmups (`gain`)."""
        asked, gave_up = _plain_name(self.args.metric_for_best_model), self.schedule.gave_up_at
        logs = self.state.log_history if gave_up is not None else []
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        # the longest: of sets called dev and dev_hard, dev_hard_gain is the second's
        of_set = max((f"{name}_" for name in sets if asked.startswith(f"{name}_")), key=len, default="")
        loss = f"{of_set}loss"
        plain = [log for log in logs if f"eval_{loss}" in log and log["step"] >= gave_up]
        return loss if plain and f"eval_{asked}" not in plain[-1] else asked

    def _say_which_model(self) -> None:
        best = self.best_at()
        if not self.is_world_process_zero():
            return
        if best is None:
            if self.went_back_to is not None:
                tqdm.write(f"The run ends with {self.went_back_to}, as on_divergence is stop_before.")
            return
        metric = self._best_by()
        last: dict[str, Any] = next((log for log in reversed(self.state.log_history) if f"eval_{metric}" in log), {})
        tqdm.write(
            f"The run ends with the model of update {best}: {metric} {self.state.best_metric:.4g} on the validation rows; "
            f"the last one has {last.get(f'eval_{metric}', float('nan')):.4g}."
        )

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Extends Trainer's: a learning rate that follows a metric of warmups (`gain`) stays as it is once a run gave up."""
        try:
            return super()._evaluate(*args, **kwargs)
        except KeyError:
            if self.schedule.gave_up_at is None:
                raise
            logs = [log for log in self.state.log_history if log["step"] == self.state.global_step]
            return {name: value for log in logs for name, value in log.items() if name.startswith("eval_")}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Trainer's, but always saves a new best model, as the run may have to end with it."""
        args = self.args
        asked = args.metric_for_best_model, args.greater_is_better
        if asked[0] is not None and self._best_by() != _plain_name(asked[0]):
            args.metric_for_best_model, args.greater_is_better = self._best_by(), False
            if (self.state.best_global_step or 0) < (self.schedule.gave_up_at or 0):
                self.state.best_metric = None  # of another metric
        try:
            best = super()._determine_best_metric(metrics, trial)
        finally:
            args.metric_for_best_model, args.greater_is_better = asked
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return best

    # ------------------------------------------------------------------ samples of the starting policy

    @contextmanager
    def _on_its_device(self) -> Iterator[None]:
        """The model on this process's device, with the autocast precision of training.

        Trainer keeps a model that DeepSpeed or FSDP will shard on the CPU until training begins, so it is moved back.
        """
        home, device = self.model.device, self.args.device
        if home != device:
            self.model.to(device)
        try:
            with self.accelerator.autocast():
                yield
        finally:
            if home != device:
                self.model.to(home)

    def _add_reference_warmups(self, checkpoint: Path | None) -> None:
        """Add a group of the starting policy's samples to every row that the reading phase may use.

        Args:
            checkpoint: that the run goes on from.
        """
        args, rows = self.args, self.train_dataset
        law = self.constraints if self.end_of_samples is None else self.constraints.ended_by(self.end_of_samples)
        drawing = Drawing(
            self.model, self.layout, law, self.rollout.num_warmups, args.seed, args.eval_batch_size,
            self.began_with,
        )  # fmt: skip
        path = self.run_folder.folder / FILE  # every trial of a search has another

        def draw(prompts: list[list[int]]) -> Iterator[tuple[list[Warmup], list[Warmup]]]:
            earlier = None if checkpoint is None else checkpoint.parent / FILE
            groups = reference_warmups(drawing, prompts, path, not args.disable_tqdm, earlier)
            if checkpoint is None:
                self._warn_of_cut_samples(groups)
            return zip(groups, _other_groups(prompts, groups), strict=True)

        if isinstance(rows, EncodedStream):
            counted = Counter(rows.encoder.counts)
            prompts = [row["prompt_ids"] for row in islice(rows, self._rows_sampled(rows))]
            rows.encoder.counts.clear()  # training reads these rows again
            rows.encoder.counts.update(counted)
            rows.reference = list(draw(prompts))
            return
        places = self._places_read(args.max_steps if self._only_tries() else args.max_reading_updates)
        drawn = draw([rows[place]["prompt_ids"] for place in places])
        for place, (group, other) in zip(places, drawn, strict=True):
            rows[place] |= {COLUMNS[REFERENCE]: group, OTHER_REFERENCE: other}

    def _warn_of_cut_samples(self, groups: list[list[Warmup]]) -> None:
        """Where most samples have no end: a model that never learned the separator does not write it."""
        cut = [warmup.finish == "length" for group in groups for warmup in group]
        share = sum(cut) / max(1, len(cut))
        if share <= MANY_CUT or not self.is_world_process_zero():
            return
        sees = f"{share:.0%} of the starting model's samples run into max_warmup_length ({self.args.max_warmup_length} tokens)"
        means = "most of them have no end: this model does not write the separator, or writes long texts"
        change = "name a token as `separator` that the model writes by itself, raise max_warmup_length"
        tqdm.write(f"Warning: {sees}. It means: {means}. To change it: {change}.")

    def _reads_to_the_end(self) -> bool:
        """Whether training uses the samples after the reading phase too."""
        return bool(self.rollout.anchor_weight) or self.args.proposal_only

    def _end_of_samples(self) -> int | None:
        """The token that ends the start's samples, where that is not the separator: an adapter cannot begin with a copied one,
        so the start ends its samples as it ends any text, and the policy learns to write the separator there."""
        asked = self._samples_the_start() and self.args.separator_init == "auto"
        unknown = asked and not _knows_separator(self.args, self.model) and has_new_adapter(self.model)
        return self.layout.tokens.eos_id if unknown else None

    def _only_tries(self) -> bool:
        """Whether the run ends before the policy can write: then only its own rows get samples, and it may not be prolonged."""
        ends_early = 0 < self.args.max_steps <= self.args.min_reading_updates
        return self._samples_the_start() and ends_early and not self._reads_to_the_end()

    def _rows_sampled(self, stream: EncodedStream) -> int:
        """How many first rows of the run get samples."""
        reading = self.args.max_reading_updates * stream.rows_per_update
        return stream.length if self._reads_to_the_end() else min(reading, stream.length)

    def _places_read(self, updates: int) -> list[int]:
        """Indices of the training rows that the first updates use, on any process; all if the proposals stay as anchors."""
        rows = self.train_dataset
        everything = list(range(len(rows)))
        if self._reads_to_the_end():
            return everything
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self.train_dataset = everything
            try:
                loader = self.get_train_dataloader()
            finally:
                self.train_dataset = rows
            batches = updates * self.args.gradient_accumulation_steps
            if batches >= len(loader):
                return everything
            own = [place for batch in islice(iter(loader.batch_sampler), batches) for place in batch]
        return sorted(set(gather_object(own)))


def _other_groups(prompts: list[list[int]], groups: list[list[Warmup]]) -> list[list[Warmup]]:
    """For every prompt the group of the next different prompt, to measure whether the generator reads a group's content.

    Consecutive rows often share a prompt (with one target each), and a second group of the same prompt helps as much as the
    first. Where all prompts are the same there is no such group: empty lists, and no warmup stands for another one.
    """
    if all(prompt == prompts[0] for prompt in prompts):
        return [[] for _ in prompts]
    found = [*groups[1:], *groups[:1]]
    for turn in reversed(range(2 * len(prompts))):  # in the second round the row after the last one is known
        place, after = turn % len(prompts), (turn + 1) % len(prompts)
        found[place] = found[after] if prompts[after] == prompts[place] else groups[after]
    return found


def _plain_name(metric: Any) -> str:
    return str(metric).removeprefix("eval_")


def end_with_the_best(args: Any, eval_rows: Any) -> None:
    """Set options so that a run with samples of the starting model ends with the best model on the validation rows.

    If there are several validation sets, the first one counts.
    """
    if args.load_best_model_at_end or args.eval_strategy == "no":
        return
    args.load_best_model_at_end = True
    if args.metric_for_best_model is None:
        args.metric_for_best_model = f"{next(iter(eval_rows))}_loss" if isinstance(eval_rows, dict) else "loss"
    if args.greater_is_better is None:
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")
    if args.save_strategy == SaveStrategy.NO:
        args.save_strategy = SaveStrategy.BEST
        args.save_total_limit = args.save_total_limit or 1


def starts_separator_as_end(args: Any, model: Any, peft_config: Any) -> bool:
    """Whether the separator starts with the end token's weights. An adapter alone cannot store them.

    Raises ValueError: the options ask for it with an adapter.
    """
    adapted = peft_config is not None or hasattr(model, "disable_adapter")
    if args.separator_init == "end_token" and adapted and not getattr(peft_config, "modules_to_save", None):
        raise ValueError(
            "separator_init: end_token changes weights of the base model, and only the adapter is saved, which would be another "
            "model when loaded again. Use keep or auto, or name embeddings and output head in the adapter's modules_to_save."
        )
    if args.separator_init != "auto":
        return args.separator_init == "end_token"
    return REFERENCE in args.proposals and args.objective != "sft" and not adapted and not _knows_separator(args, model)


def _knows_separator(args: Any, model: Any) -> bool:
    """Whether the starting model has learned what the separator is."""
    return args.separator in THINKING_ENDS or (bool(model.name_or_path) and bool(read_layout(model.name_or_path)))
