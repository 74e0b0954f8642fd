"""What happens when a loss, weights or a model's answers are no numbers any more: the rows are kept, the run ends or goes back.

Knows: transformers' Trainer, checkpoints, how a batch is scored. Must not know: how a group is weighted, rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from rl_warmup.batch import Scores, WarmupBatch
from rl_warmup.engine import score
from rl_warmup.method.rollout import Rollout
from rl_warmup.method.update import Update
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.encoding import ADDED
from rl_warmup.runtime import checkpoints
from rl_warmup.runtime.launched import whole_weights
from rl_warmup.runtime.resumable import Diverged, ResumableTrainer
from rl_warmup.runtime.run_folder import append_jsonl

FILE = "diverged.jsonl"
REMEDY = "Lower learning_rate or max_grad_norm, use bf16 or float32, or look at the rewards."
EXPLODED = 1000.0  # nats per target token; guessing among the words of a vocabulary takes 8 to 13


class DivergenceTrainer(ResumableTrainer):
    """Ends a run that diverged, or goes back to its last sound checkpoint (`on_divergence`); keeps the rows of that update."""

    rollout: Rollout
    update: Update
    diverged_at: int | None = None  # the update that diverged, where the run went back
    went_back_to: Path | None = None  # the checkpoint whose weights it then took
    _checked_at: int | None = None  # the update after which the model's answers were looked at
    _scored: WarmupBatch | None = None  # the last micro-batch that had a finite loss

    @property
    def constraints(self) -> SamplingConstraints:
        """The sampling constraints; the guard may change them."""
        return self.rollout.constraints

    def is_number(self, policy_loss: float, target_loss: float) -> bool:
        """Whether the loss of a micro-batch is finite; if not, the run diverges after this update, on all processes."""
        if math.isfinite(policy_loss + target_loss):
            return True
        self.update.fault = (
            f"The loss is not a number any more at update {self.state.global_step + 1} (policy {policy_loss}, target "
            f"{target_loss}). Checkpoints saved before it are intact. {REMEDY}"
        )
        return False

    def diverges(self) -> bool:
        """Whether this update has no numbers any more, on some process. All processes call it."""
        return bool(self._maximum(int(self.update.fault is not None)))

    def as_numbers(self, scores: Scores) -> Scores:
        """The scores without gradient. Where they are not finite, zeros, as no reward or rule is to judge them, and the run
        diverges after this update."""
        scores = scores.detach()
        if (scores.target_logprob + scores.warmup_logprob).isfinite().all():
            return scores
        self.update.fault = (
            f"The log-probabilities are not numbers any more at update {self.state.global_step + 1}. Checkpoints saved before it "
            f"are intact. {REMEDY}"
        )
        names = ("target_logprob", "warmup_logprob", "token_logps")
        return replace(scores, **{name: torch.zeros_like(getattr(scores, name)) for name in names})

    def check_weights(self) -> None:
        """Extends: the loss of the update, and after the last update what the model gives the rows that it has just seen."""
        if self.diverges():
            raise Diverged(self.update.fault or "The loss of another process is not a number any more.")
        super().check_weights()
        if self.update.shown is not None:
            self._scored = self.update.shown[0]
        if self.state.global_step < self.state.max_steps or self._checked_at == self.state.global_step:
            return
        self._checked_at = self.state.global_step  # Trainer comes here twice where an epoch ends
        if not self._is_sound():
            raise Diverged(
                f"After the last update, {self.state.global_step}, the model diverged: it gives the targets of its own rows less "
                f"than exp(-{EXPLODED:g}) per token, no number, or all tokens the same. Earlier checkpoints are intact. {REMEDY}"
            )

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Makes of one process's FloatingPointError a Diverged of all. Nothing inside may wait for another process."""
        fault = None
        try:
            yield
        except FloatingPointError as error:
            fault = error
        if self._maximum(int(fault is not None)):
            said = "Another process met numbers that are not finite." if fault is None else str(fault)
            raise Diverged(said, self.state.global_step + 1) from fault

    @torch.no_grad()
    def _is_sound(self) -> bool:
        """Whether the model gives the targets of the last scored rows possible log-probabilities, on all processes."""
        if self._scored is None:
            return True
        try:
            # whole, so that no engine keeps weights of other processes after this forward, which has no backward
            with whole_weights(self.model_wrapped), self.accelerator.autocast():
                got = score(self.accelerator.unwrap_model(self.model), self._scored, self.constraints)
            mask = self._scored.target_mask.bool()
            logps = got.token_logps[mask]
            guesses = logps.unique().numel() == 1 < self._scored.seq_ids[mask].unique().numel()  # all tokens alike
            sound = not guesses and -logps.mean().item() < EXPLODED
        except FloatingPointError:
            sound = False
        return not self._maximum(int(not sound))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends Trainer's: a run that diverged ends, with the error or with its last sound checkpoint."""
        try:
            super()._run_epoch(*args, **kwargs)
        except FloatingPointError as error:
            together = isinstance(error, Diverged) or self.accelerator.num_processes == 1
            ended = isinstance(error, Diverged) or (self.update.shown is not None and not self.update.batches)
            update = getattr(error, "update", None) or self.state.global_step + (not ended)
            said = f"{error} The rows of update {update}: {self._save_rows(update, together)}."
            if self.args.on_divergence != "stop_before" or not together:
                raise type(error)(said) from error
            self._go_back(update, said, error)

    def _save_rows(self, update: int, together: bool) -> Path:
        """Write the rows of the update, of all processes where they are `together`; returns the file."""
        rows = [
            {"update": update, **{key: value for key, value in row.items() if key not in ADDED}, "prompt_ids": row["prompt_ids"],
             "target_ids": row["target_ids"]}
            for row in self.update.rows
        ]  # fmt: skip
        path = self.folder / FILE
        if together and self.accelerator.num_processes > 1:
            rows = gather_object(rows)
        if self.is_world_process_zero() or not together:
            append_jsonl(path, rows)
        return path

    def _go_back(self, update: int, said: str, error: FloatingPointError) -> None:
        """End the run with the weights of the newest checkpoint that scores the last rows; raises `error` if there is none."""
        best = self.state.best_model_checkpoint
        self.model.zero_grad()
        resumed = [] if self.resumed_from is None else [self.resumed_from]  # it may lie in another folder
        for place in [*reversed(checkpoints.whole_checkpoints(self.folder, resumable=False)), *resumed]:
            self.state.best_model_checkpoint = str(place)
            self._load_best_model()
            self.state.best_model_checkpoint = best
            if self._is_sound():
                break
        else:
            raise type(error)(f"{said} on_divergence: stop_before found no checkpoint to go back to.") from error
        state = self.state
        state.global_step = checkpoints.step_of(place)
        if (state.best_global_step or 0) > state.global_step:  # it was passed over
            state.best_model_checkpoint = state.best_global_step = state.best_metric = None
        self.diverged_at, self.went_back_to, self.control.should_training_stop = update, place, True
        if self.is_world_process_zero():
            tqdm.write(f"{said} Training ends there.")
