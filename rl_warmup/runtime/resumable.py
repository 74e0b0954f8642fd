"""A Trainer whose folder is its own, whose checkpoints are whole or not there, and which goes on from them exactly.

Knows: transformers' Trainer and its checkpoints, processes. Must not know: warmups. What a checkpoint is as a folder is
said in `checkpoints.py`; whose a folder is in `ownership.py`; what ends a run early in `interruptions.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from rl_warmup.runtime import checkpoints, compat, ownership
from rl_warmup.runtime.documents import parse_json
from rl_warmup.runtime.interruptions import Interruption, Watchdog


class ResumableTrainer(Trainer):
    """Trainer with atomic checkpoints, refusals in place of silent changes, and an end when it is told or when it hangs."""

    wrote: Path | None = None  # the folder of a run that this trainer began; kept when a search makes it anew

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        compat.check_trainer(Trainer)
        super().__init__(*args, **kwargs)
        self.saving_in: Path | None = None
        self.changed_makers: str | None = None
        self.goes_on_from: Path | None = None
        self.folder = run = Path(self.args.output_dir)
        self.owns = False
        self.was_free = ownership.is_free(self.folder)
        self.recipe: dict[str, Any] = {}  # settings of the run that are not among the arguments
        self.described: dict[str, Any] = {}  # of the run, as checkpoints keep it
        self.watchdog = Watchdog(run / "heartbeats", self.args.hang_timeout)
        self.interruption = Interruption(self._most_of_processes)
        self.add_callback(self.watchdog)
        self.add_callback(self.interruption)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trainer's, with `auto` (and True) for the newest complete checkpoint.

        Raises:
            ValueError: the checkpoint is incomplete, or other processes wrote it than can go on from it.
            OSError: the disk is full or the folder gone; the sentence names the last good checkpoint.
        """
        checkpoint = self.goes_on_from = self.checkpoint(resume_from_checkpoint)
        with self.own_folder(resume_from_checkpoint):
            if self.is_world_process_zero():
                checkpoints.clear_unfinished(self.folder)
            try:
                with checkpoints.disk_faults(self.folder):
                    return super().train(None if checkpoint is None else str(checkpoint), **kwargs)
            finally:
                self.watchdog.close()
                self.interruption.close()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's, but not over the model of another run, whose results would then stand beside weights they are not of.

        Raises:
            ValueError: the folder is a run's that this trainer has not written, or lies in one.
        """
        place = Path(output_dir or self.args.output_dir)
        run = ownership.run_of(place)
        if run is not None and not self.owns and (self.wrote is None or run != self.wrote.resolve()):
            raise ValueError(f"save_model: {place} belongs to another run, {run}. Give a folder of its own.")
        super().save_model(output_dir, _internal_call)

    def checkpoint(self, asked: str | bool | None) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` means; None for a run that starts anew."""
        if asked in (True, "auto"):
            return checkpoints.newest(self.folder)
        return Path(str(asked)) if asked else None

    @contextmanager
    def own_folder(self, asked: str | bool | None) -> Iterator[None]:
        """Hold the folder of the run, alone, until the end; what an earlier run left in it is gone, or goes on.

        Entered by `train`; enter it before to write beside what `train` writes. All processes enter.

        Args:
            asked: as `train`'s resume_from_checkpoint.

        Raises:
            ValueError: the folder is another run's or somebody else's, or the checkpoint is of another run.
        """
        if self.owns:
            yield
            return
        checkpoint, self.changed_makers = self.checkpoint(asked), None
        if checkpoint is not None:
            self.changed_makers = checkpoints.refuse_other_makers(checkpoint, self._makers())
        with ExitStack() as held:
            self.described = self.describe()
            self._on_main(lambda: self._take_folder(checkpoint, asked in (True, "auto"), held))
            self.owns, self.wrote = True, self.folder
            held.callback(setattr, self, "owns", False)
            yield

    def _take_folder(self, checkpoint: Path | None, resumes: bool, held: ExitStack) -> None:
        folder = self.folder
        goes_on = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
        changes: dict[str, list[Any]] = {}
        if checkpoint is not None:
            if later := checkpoints.later_than(checkpoint, folder):
                raise ValueError(
                    f"resume_from_checkpoint: {folder} holds later checkpoints ({', '.join(path.name for path in later)}), and "
                    f"the next `auto` would take one of them, whose log is cut off now. Remove them, or go on in another "
                    f"output_dir."
                )
            changes = checkpoints.refuse_changes(checkpoint, self.described)
        for looks in range(2):  # before anything is written, and when nobody else can write any more
            if not goes_on:
                model = Path(str(getattr(self.model, "name_or_path", "") or "nowhere, as it has no name"))
                replaces = self.args.overwrite or self.wrote == folder
                ownership.refuse_folder(folder, replaces, resumes, {"model": model}, self.was_free)
            if not looks:
                held.enter_context(ownership.writing(folder, "output_dir"))
        if goes_on:
            ownership.clear_results(folder)
        else:
            ownership.clear(folder)
        if self.changed_makers:
            tqdm.write(self.changed_makers)
        if checkpoint is None and self.args.ignore_data_skip:
            tqdm.write("Without effect: ignore_data_skip (no run goes on).")
        if checkpoint is not None and "first" in self.described["rows"]:
            tqdm.write(
                f"Of the training rows, a stream, the first {self.described['rows']['first']} are those of {checkpoint}."
            )
        if checkpoint is not None and changes:
            said = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changes.items())
            tqdm.write(f"Goes on from {checkpoint} with other settings: {said}")
            with (folder / "resumes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": checkpoints.require(checkpoint)["step"], "changes": changes}) + "\n")

    def describe(self) -> dict[str, Any]:
        """What must be the same when the run goes on: its settings by name (tokens masked), and whatever else is added."""
        adapters = getattr(self.model, "peft_config", None) or {}
        names = (
            "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora", "bias",
        )  # fmt: skip
        found = {name: getattr(adapter, name, None) for adapter in adapters.values() for name in names}
        settings = {**self.args.to_dict(), **self.recipe, "adapter": found}
        return {"settings": parse_json(json.dumps(settings, default=checkpoints.plain, sort_keys=True)), "rows": {}}

    def _on_main(self, work: Callable[[], None]) -> None:
        """Do something on the main process; what it refuses, all refuse."""
        fault = None
        if self.is_world_process_zero():
            try:
                with checkpoints.disk_faults(self.folder):
                    work()
            except (ValueError, OSError) as error:
                fault = error
        said = broadcast_object_list([fault if fault is None else str(fault)])[0]
        if fault is not None or said is not None:
            raise fault or ValueError(said)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Trainer's; the watchdog hears of it."""
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.watchdog.reached(f"update {self.state.global_step + 1}, rows read")
        return batches

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._check_weights()
        self.watchdog.rest()  # one process may write and evaluate for long while the others wait
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _check_weights(self) -> None:
        """Raises FloatingPointError after an update that ruined the weights, before they are saved or sampled from."""
        trained = (weight.detach() for weight in self.model.parameters() if weight.requires_grad)
        here = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained)
        # a sum is finite where all its terms are, and costs a fifth of looking at each
        sums = [weight.sum(dtype=torch.float32).to(self.args.device) for weight in here]
        finite = torch.stack(sums).isfinite().all()
        if self._most_of_processes(int(not finite)):
            raise FloatingPointError(
                f"The weights are not finite any more after update {self.state.global_step}. Checkpoints saved before it are "
                f"intact. Lower learning_rate or max_grad_norm, or use bf16 or float32."
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's, which would do one update too many after the last checkpoint of a run."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saving_in) if self.saving_in else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's, written aside; see `checkpoints.py`."""
        run = Path(super()._get_output_dir(trial))
        name = f"{checkpoints.PREFIX}{self.state.global_step}"
        main_process = self.is_world_process_zero()
        with checkpoints.disk_faults(run):
            if self._most_of_processes(main_process and not run.is_dir()):
                raise FileNotFoundError(f"No such file or directory: {run}")
            self.saving_in = run / checkpoints.UNFINISHED
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "collect"):  # Trainer saves what callbacks of the main process know
                    callback.collect(lambda own: gather_object([own]))
            try:
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step == self.state.global_step and self.state.best_model_checkpoint:
                    self.state.best_model_checkpoint = str(run / name)  # where it will be
                    if main_process:
                        self.state.save_to_json(str(self.saving_in / name / TRAINER_STATE_NAME))
                self.accelerator.wait_for_everyone()
                if main_process:
                    whole = self.saving_in / name
                    checkpoints.seal(
                        whole, self.state.global_step, self._makers(), not self.args.save_only_model, self.described
                    )
                    checkpoints.publish(whole, run)
                    checkpoints.rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)
                self.accelerator.wait_for_everyone()
            finally:
                self.saving_in = None
                if main_process:
                    checkpoints.clear_unfinished(run)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer's, which calls a tied weight missing where its twin was loaded."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trainer's, which looks for the best checkpoint where it was once: a folder may have moved, and another run be there."""
        found = super()._init_training_state(*args, **kwargs)
        state, best, said = self.state, None, None
        if self.goes_on_from is not None and state.best_global_step:
            best = checkpoints.beside(self.goes_on_from, state.best_global_step)
            if best is not None and state.best_model_checkpoint is None:
                said = f"{best} is the best checkpoint so far."
            if best is None and state.best_model_checkpoint is None:
                gone = f"{checkpoints.PREFIX}{state.best_global_step}"
                said = f"The best checkpoint so far, {gone}, is not there any more: the best of those to come counts."
                state.best_metric = state.best_global_step = None  # it would keep them out
        if best is not None:
            state.best_model_checkpoint = str(best)
        if said is not None and self.is_world_process_zero():
            tqdm.write(said)
        return found

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint and self.changed_makers:
            # without this the streams of the run's beginning would be drawn a second time
            set_seed(self.args.seed + 7919 * self.state.global_step, device_specific=True)

    def _makers(self) -> checkpoints.Makers:
        sharding = "fsdp" if self.is_fsdp_enabled else "none"
        if self.is_deepspeed_enabled:
            sharding = f"zero-{self.accelerator.state.deepspeed_plugin.zero_stage}"
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        return checkpoints.Makers(self.accelerator.num_processes, sharding, rows)

    def _most_of_processes(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.accelerator.num_processes == 1:
            return value
        values = torch.tensor([value], device=self.args.device)
        return int(self.accelerator.gather(values).max())
