"""A Trainer that remembers the policy it started from: its samples for the first updates, a KL to it, and the best model seen.

Knows: transformers' Trainer, the starting policy (`reference.py`), when the policy takes over (`schedule.py`). Must not know: how
a group is weighed, rewards. The order matters: the generator first learns to read warmups that keep their variety, and only
then may the policy move. Both trained at once, the policy drifts into drafts of the target before anybody reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers.trainer_utils import SaveStrategy

from rl_warmup.batch import Warmup
from rl_warmup.method.drawing import Drawing, weights_hash
from rl_warmup.method.proposals import COLUMNS, OTHER_REFERENCE, REFERENCE
from rl_warmup.method.reference import FILE, StartingPolicy, reference_warmups
from rl_warmup.method.rollout import Rollout
from rl_warmup.method.schedule import Schedule
from rl_warmup.method.training_data import EncodedStream, rows_digest
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.inference_settings import read_layout
from rl_warmup.models.layouts import Layout
from rl_warmup.plugins import code_hashes
from rl_warmup.runtime.resumable import ResumableTrainer
from rl_warmup.runtime.run_folder import RunFolder, clock


class ReferenceTrainer(ResumableTrainer):
    """Draws the starting model's samples before the first update, keeps it for the KL, and ends with the best model.

    `WarmupTrainer` sets what is declared here, and calls `keep_start` once its model is in place.
    """

    rollout: Rollout
    layout: Layout
    schedule: Schedule
    run_folder: RunFolder
    start: StartingPolicy | None = None
    began_with: str  # the hash of the starting model
    plugins: list[Any]  # names of what may be code: objective, proposals, rewards
    has_trained = False
    train_dataset: Any

    @property
    def constraints(self) -> SamplingConstraints:
        """Under which warmups are sampled and scored; the guard may change them."""
        return self.rollout.constraints

    def keep_start(self) -> None:
        """Remember which model the run starts from, and its policy where a KL to it is asked for."""
        if self.rollout.beta and self.rollout.objective != "sft":
            self.start = StartingPolicy(self.model)
        # what a new adapter begins with is drawn, and comes back with a checkpoint; its base does not
        adapted = hasattr(self.model, "peft_config") and (self.start is None or self.start.model is None)
        self.began_with = weights_hash(self.model, frozen_alone=adapted)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trainer's, after the starting model's samples are at hand; at the end says which model the run ends with."""
        if self.has_trained and self.checkpoint(resume_from_checkpoint) is None:  # anew, from the present weights
            self.rollout = replace(self.rollout, objective=self.args.objective)  # an earlier search may have given up
            self.keep_start()
        self.has_trained = True
        with self.own_folder(resume_from_checkpoint):
            return self._train_held(resume_from_checkpoint, **kwargs)

    def describe(self) -> dict[str, Any]:
        """With the training rows, the model that the run starts from, and the files of its plugins."""
        rows = rows_digest(self.train_dataset)
        tasks = [self.recipe.get("task")] if "first" in rows else []  # of whose rows not all are compared
        code = code_hashes([*self.plugins, *tasks])
        return {**super().describe(), "rows": rows, "start": self.began_with, "code": code}

    def _train_held(self, resume_from_checkpoint: str | bool | None, **kwargs: Any) -> Any:
        if REFERENCE in self.rollout.proposals and self.rollout.objective != "sft":
            began = clock()
            with self._on_its_device():
                self._bring_reference_warmups(self.checkpoint(resume_from_checkpoint) is not None)
            self.run_folder.spent_before = clock() - began
        if self.start is not None:
            self.start.prepare(self)
        output = super().train(resume_from_checkpoint, **kwargs)
        gave_up, best = self.schedule.gave_up_at, self.best_at()
        if gave_up is not None and best is not None and best < gave_up:
            self.rollout = replace(self.rollout, objective=self.args.objective)  # that model writes warmups
        if best is not None:  # under the law of its update, which the guard may have changed since
            declared = read_layout(str(self.state.best_model_checkpoint))
            self.rollout.constraints = replace(self.constraints, **declared["law"])
        self._say_which_model()
        return output

    def best_at(self) -> int | None:
        """The update whose model the run ends with, where it is not the last one's."""
        state = self.state
        loaded = self.args.load_best_model_at_end and state.best_model_checkpoint is not None
        return state.best_global_step if loaded and state.best_global_step != state.global_step else None

    def _best_by(self) -> str:
        """The metric that tells the best model: the one asked for, or the loss once that is gone with the warmups (`gain`)."""
        asked, gave_up = _plain_name(self.args.metric_for_best_model), self.schedule.gave_up_at
        logs = self.state.log_history if gave_up is not None else []
        plain = [log for log in logs if "eval_loss" in log and log["step"] >= gave_up]
        return "loss" if plain and f"eval_{asked}" not in plain[-1] else asked

    def _say_which_model(self) -> None:
        best = self.best_at()
        if best is None or not self.is_world_process_zero():
            return
        metric = self._best_by()
        last: dict[str, Any] = next((log for log in reversed(self.state.log_history) if f"eval_{metric}" in log), {})
        tqdm.write(
            f"The run ends with the model of update {best}: {metric} {self.state.best_metric:.4g} on the validation rows; "
            f"the last one has {last.get(f'eval_{metric}', float('nan')):.4g}."
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Trainer's; a new best model is saved whatever the save strategy, as the run may have to end with it."""
        args = self.args
        asked = args.metric_for_best_model, args.greater_is_better
        if asked[0] is not None and self._best_by() != _plain_name(asked[0]):
            args.metric_for_best_model, args.greater_is_better = self._best_by(), False
            if (self.state.best_global_step or 0) < (self.schedule.gave_up_at or 0):
                self.state.best_metric = None  # another metric's
        try:
            best = super()._determine_best_metric(metrics, trial)
        finally:
            args.metric_for_best_model, args.greater_is_better = asked
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return best

    # ------------------------------------------------------------------ samples of the start

    @contextmanager
    def _on_its_device(self) -> Iterator[None]:
        """The model on this process's device, in the precision that scores.

        Trainer leaves a model that DeepSpeed or FSDP will shard on the CPU until training begins, and so do we afterwards.
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

    def _bring_reference_warmups(self, resumed: bool) -> None:
        """Lay a group of the starting model's samples beside every row that the reading phase can come to."""
        args, rows = self.args, self.train_dataset
        drawing = Drawing(
            self.model, self.layout, self.constraints, self.rollout.num_warmups, args.seed, args.eval_batch_size
        )
        path = self.run_folder.folder / FILE  # of a trial in a search, its own
        shown = not args.disable_tqdm
        if isinstance(rows, EncodedStream):
            limit = rows.length if self._reads_to_the_end() else args.max_reading_updates * rows.rows_per_update
            prompts = [row["prompt_ids"] for row in islice(rows, limit)]
            groups = reference_warmups(drawing, prompts, path, shown, resumed)
            rows.reference = list(zip(groups, _other_groups(prompts, groups), strict=True))
            return
        places = self._places_read(args.max_reading_updates)
        prompts = [rows[place]["prompt_ids"] for place in places]
        groups = reference_warmups(drawing, prompts, path, shown, resumed)
        for place, group, another in zip(places, groups, _other_groups(prompts, groups), strict=True):
            rows[place] |= {COLUMNS[REFERENCE]: group, OTHER_REFERENCE: another}

    def _reads_to_the_end(self) -> bool:
        """Whether the samples are trained on after the reading phase as well."""
        return bool(self.rollout.anchor_weight) or self.args.proposal_only

    def _places_read(self, updates: int) -> list[int]:
        """The training rows that the first updates come to, on any process; all of them where the proposals stay as anchors."""
        rows = self.train_dataset
        everything = list(range(len(rows)))
        if self._reads_to_the_end() or not self.args.accelerator_config.use_seedable_sampler:
            return everything  # torch's own sampler draws its order when training begins, and nobody can tell it before
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
    """For every prompt the group of the next other one, to see whether a group's content is read at all.

    Rows of one prompt often follow each other (a target each), and a second group of the same prompt helps as much as the first.
    """
    found = [*groups[1:], *groups[:1]]
    for turn in reversed(range(2 * len(prompts))):  # the second time around, the row after the last one is settled
        place, after = turn % len(prompts), (turn + 1) % len(prompts)
        found[place] = found[after] if prompts[after] == prompts[place] else groups[after]
    return found


def _plain_name(metric: Any) -> str:
    return str(metric).removeprefix("eval_")


def end_with_the_best(args: Any, eval_rows: Any) -> None:
    """Settings under which a run that searches warmups never ends with a wreck: the best model on validation rows is kept.

    Of several sets of validation rows the first one decides.
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
    """Whether the separator starts with the end token's weights; an adapter alone could not carry them.

    Raises:
        ValueError: it is asked for all the same.
    """
    adapted = peft_config is not None or hasattr(model, "disable_adapter")
    if args.separator_init == "end_token" and adapted and not getattr(peft_config, "modules_to_save", None):
        raise ValueError(
            "separator_init: end_token changes weights of the base model, and only the adapter is saved, which would be another "
            "model when loaded again. Use keep or auto, or name embeddings and output head in the adapter's modules_to_save."
        )
    if args.separator_init != "auto":
        return args.separator_init == "end_token"
    trained_here = bool(model.name_or_path) and bool(read_layout(model.name_or_path))
    return REFERENCE in args.proposals and args.objective != "sft" and not adapted and not trained_here
