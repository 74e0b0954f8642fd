"""A Trainer that owns its folder, writes atomic checkpoints and resumes from them exactly.

Knows: transformers' Trainer and its checkpoints, processes. Must not know: warmups. `checkpoints.py` defines a checkpoint
folder, `ownership.py` who may write to a folder, `interruptions.py` what ends a run early.
"""

from __future__ import annotations

import json
import pickle
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
from rl_warmup.runtime.given import as_folder, check_given
from rl_warmup.runtime.interruptions import Interruption, Watchdog
from rl_warmup.runtime.trackers import SameRun, reports_to_trackio


class Diverged(FloatingPointError):
    """The model is beyond repair. All processes raise it at the same place.

    Args:
        update: that diverged; None is the last one that was done.
    """

    def __init__(self, said: str, update: int | None = None) -> None:
        super().__init__(said)
        self.update = update


class ResumableTrainer(Trainer):
    """Trainer with atomic checkpoints that refuses changed settings on resume and ends on a signal or when it hangs."""

    control: Any
    wrote: Path | None = None  # the folder of a run that this trainer began; kept when a search makes a new trainer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        compat.check_trainer(Trainer)
        compat.check_reporters(kwargs["args"].report_to or ())
        check_given(**kwargs)
        super().__init__(*args, **kwargs)
        self.saving_in: Path | None = None
        self.saved_at = -1  # update of the last checkpoint
        self.asked_to_save = False
        self.changed_makers: str | None = None
        self.resumed_from: Path | None = None
        self.folder = Path(self.args.output_dir)
        self.owns = False
        self.was_free = ownership.is_free(self.folder)
        self.recipe: dict[str, Any] = {}  # settings of the run that are not among the arguments
        self.described: dict[str, Any] = {}  # the result of `describe`, which checkpoints keep
        self.watchdog = Watchdog(self.folder / "heartbeats", self.args.hang_timeout)
        self.interruption = Interruption(self._maximum)
        if reports_to_trackio(self):
            self.add_callback(SameRun())
        self.add_callback(self.watchdog)
        self.add_callback(self.interruption)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Extends Trainer's: `auto` (or True) is the newest complete checkpoint.

        Raises:
            ValueError: the checkpoint is incomplete, or does not fit these processes.
            OSError: the disk is full or the folder gone; the message names the last good checkpoint.
        """
        checkpoint = self.resumed_from = self.checkpoint(resume_from_checkpoint)
        self.saved_at = -1
        with self.own_folder(resume_from_checkpoint):
            if self.is_world_process_zero():
                checkpoints.clear_unfinished(self.folder)
            try:
                with checkpoints.disk_faults(self.folder):
                    return super().train(None if checkpoint is None else str(checkpoint), **kwargs)
            except pickle.UnpicklingError as error:
                if checkpoint is None:
                    raise
                raise ValueError(
                    f"resume_from_checkpoint: a file of {checkpoint} is damaged, or holds code, which is never run. Resume from "
                    f"another checkpoint."
                ) from error
            finally:
                self.watchdog.close()
                self.interruption.close()

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Extends Trainer's, which it calls before training. Raises ValueError: the hub cannot be reached, or refuses."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"push_to_hub: the hub cannot be used ({type(error).__name__}: {said}). Check the connection, hub_token and "
                f"hub_model_id, or leave push_to_hub out."
            ) from error

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Extends Trainer's: uploads the run's folder with its README.md. Raises ValueError: the hub did not take it."""
        try:
            return super().push_to_hub(*args, **kwargs)
        except ValueError:
            raise
        except Exception as error:  # of huggingface_hub, or the connection
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"push_to_hub: the hub did not take {self.folder} ({type(error).__name__}: {said}). The run is there; upload it "
                f"later by `hf upload {self.args.hub_model_id or 'OWNER/NAME'} {self.folder}`."
            ) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Extends Trainer's: refuses to replace the model of another run.

        Raises ValueError: the folder is, or lies in, a run that this trainer has not written.
        """
        place = as_folder(self.args.output_dir if output_dir is None else output_dir, "save_model")
        run = ownership.run_of(place)
        if run is not None and not self.owns and (self.wrote is None or run != self.wrote.resolve()):
            raise ValueError(f"save_model: {place} belongs to another run, {run}. Give a folder of its own.")
        super().save_model(output_dir, _internal_call)

    def checkpoint(self, asked: str | bool | None) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` names; None for a new run."""
        if asked in (True, "auto", "true"):
            return checkpoints.newest(self.folder)
        return Path(str(asked)) if asked else None

    @contextmanager
    def own_folder(self, asked: str | bool | None) -> Iterator[None]:
        """Lock the folder of the run until the end; removes an earlier run's files, unless it is resumed.

        `train` enters it; enter it earlier to write more files. All processes enter.

        Args:
            asked: as `train`'s resume_from_checkpoint.

        Raises:
            ValueError: the folder belongs to another run or holds other files, or the checkpoint is of another run.
        """
        if self.owns:
            yield
            return
        checkpoint, self.changed_makers = self.checkpoint(asked), None
        searched = asked in (True, "auto", "true")
        if searched and self.is_world_process_zero() and (said := checkpoints.passed_over(self.folder, checkpoint)):
            tqdm.write(said)
        if checkpoint is not None:
            checkpoints.refuse_damaged(checkpoint)
            self.changed_makers = checkpoints.refuse_other_makers(checkpoint, self._makers())
        with ExitStack() as held:
            self.described = self.describe()
            self._run_on_main(lambda: self._take_folder(checkpoint, searched, held))
            self.owns, self.wrote = True, self.folder
            held.callback(setattr, self, "owns", False)
            yield

    def _take_folder(self, checkpoint: Path | None, resumes: bool, held: ExitStack) -> None:
        folder = self.folder
        in_place = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
        changes: dict[str, list[Any]] = {}
        if checkpoint is not None:
            if later := checkpoints.later_than(checkpoint, folder):
                raise ValueError(
                    f"resume_from_checkpoint: {folder} holds later checkpoints ({', '.join(path.name for path in later)}). The "
                    f"next `auto` would take one of them, but its log is cut off now. Remove them, or give another output_dir."
                )
            changes = checkpoints.refuse_changes(checkpoint, self.described)
        for is_locked in (False, True):  # check before anything is written, and again under the lock
            if not in_place:
                replaces = self.args.overwrite or self.wrote == folder
                ownership.refuse_folder(folder, replaces, resumes, self._sources(), self.was_free)
                if resumes and not replaces and (kept := checkpoints.whole_checkpoints(folder, resumable=False)):
                    raise ValueError(
                        f"resume_from_checkpoint: nothing can be resumed from the checkpoints of {folder} ({kept[-1].name} is "
                        f"the last), and a new run would remove them. Give another output_dir, or `--overwrite true`."
                    )
            if not is_locked:
                held.enter_context(ownership.writing(folder, "output_dir"))
        if in_place:
            ownership.clear_results(folder)
        else:  # samples that a killed run has drawn are used, if they are this run's
            ownership.clear(folder, kept=("reference_warmups.jsonl",) if resumes and not self.args.overwrite else ())
        if self.changed_makers:
            tqdm.write(self.changed_makers)
        if checkpoint is None and self.args.ignore_data_skip:
            tqdm.write("Without effect: ignore_data_skip (no run is resumed).")
        if checkpoint is not None and "first" in self.described["rows"]:
            tqdm.write(f"The first {self.described['rows']['first']} rows of the stream equal those of {checkpoint}.")
        if checkpoint is not None and changes:
            changed = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changes.items())
            tqdm.write(f"Resumes {checkpoint} with other settings: {changed}")
            with (folder / "resumes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": checkpoints.require(checkpoint)["step"], "changes": changes}) + "\n")

    def _sources(self) -> dict[str, Path]:
        """Setting -> a path that this run reads."""
        named = {
            "model": getattr(self.model, "name_or_path", ""),
            "stored_warmups": getattr(self.args, "stored_warmups", ""),
        }
        return {name: Path(str(path)) for name, path in named.items() if path}

    def describe(self) -> dict[str, Any]:
        """What a resume compares: the settings by name (tokens masked) and the rows; subclasses add more."""
        adapters = getattr(self.model, "peft_config", None) or {}
        names = (
            "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora", "bias",
        )  # fmt: skip
        found = {name: getattr(adapter, name, None) for adapter in adapters.values() for name in names}
        settings = {**self.args.to_dict(), **self.recipe, "adapter": found}
        return {"settings": parse_json(json.dumps(settings, default=checkpoints.plain, sort_keys=True)), "rows": {}}

    def _run_on_main(self, work: Callable[[], None]) -> None:
        """Do the work on the main process; all processes raise its error."""
        fault = None
        if self.is_world_process_zero():
            try:
                with checkpoints.disk_faults(self.folder):
                    work()
            except (ValueError, OSError) as error:
                fault = error
        message = broadcast_object_list([fault if fault is None else str(fault)])[0]
        if message is not None:
            raise fault or ValueError(message)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Extends Trainer's: reports to the watchdog."""
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.watchdog.reached(f"update {self.state.global_step + 1}, rows read")
        return batches

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        self.check_weights()
        self.watchdog.rest()  # the others wait while one process writes or evaluates
        self.asked_to_save = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self.asked_to_save and self.saved_at != self.state.global_step:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Extends Trainer's, after which `save_strategy: best` forgets that a signal or a callback asked for a checkpoint."""
        self.asked_to_save = self.control.should_save
        return super()._determine_best_metric(metrics, trial)

    def check_weights(self) -> None:
        """Raises Diverged if an update left weights that are not finite."""
        trained = (weight.detach() for weight in self.model.parameters() if weight.requires_grad)
        here = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained)
        # a sum is finite where all its terms are, and costs a fifth of a check of each
        sums = [weight.sum(dtype=torch.float32).to(self.args.device) for weight in here]
        finite = torch.stack(sums).isfinite().all()
        if self._maximum(int(not finite)):
            raise Diverged(
                f"The weights are not finite any more after update {self.state.global_step}. Earlier checkpoints are intact. "
                f"Lower learning_rate or max_grad_norm, or use bf16 or float32."
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Works around Trainer's extra update when it resumes at max_steps."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saving_in) if self.saving_in else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends Trainer's: writes under `unfinished/` first; see `checkpoints.py`."""
        run = Path(super()._get_output_dir(trial))
        name = f"{checkpoints.PREFIX}{self.state.global_step}"
        main_process = self.is_world_process_zero()
        with checkpoints.disk_faults(run):
            if self._maximum(main_process and not run.is_dir()):
                raise FileNotFoundError(f"No such file or directory: {run}")
            self.saving_in = run / checkpoints.UNFINISHED
            model_alone = self.args.save_only_model
            self.args.save_only_model = model_alone and not self.interruption.agreed  # a signal's is to be resumed
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "collect"):  # Trainer saves only the callbacks of the main process
                    callback.collect(lambda own: gather_object([own]))
            try:
                super()._save_checkpoint(model, trial)
                if self.state.best_global_step == self.state.global_step and self.state.best_model_checkpoint:
                    self.state.best_model_checkpoint = str(run / name)  # its final place
                    if main_process:
                        self.state.save_to_json(str(self.saving_in / name / TRAINER_STATE_NAME))
                self.accelerator.wait_for_everyone()
                if main_process:
                    whole, resumable = self.saving_in / name, not self.args.save_only_model
                    checkpoints.seal(whole, self.state.global_step, self._makers(), resumable, self.described)
                    checkpoints.publish(whole, run)
                    checkpoints.rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)
                self.accelerator.wait_for_everyone()
                self.saved_at = self.state.global_step
            finally:
                self.saving_in, self.args.save_only_model = None, model_alone
                if main_process:
                    checkpoints.clear_unfinished(run)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Extends Trainer's: a tied weight is not missing."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Extends Trainer's: looks for the best checkpoint beside the resumed one, as the folder may have moved."""
        with checkpoints.readable(self.resumed_from, TRAINER_STATE_NAME):
            found = super()._init_training_state(*args, **kwargs)
        state, best, message = self.state, None, None
        if self.resumed_from is not None and state.best_global_step:
            elsewhere = state.best_model_checkpoint
            best = checkpoints.beside(self.resumed_from, state.best_global_step)
            if best is None and elsewhere is not None and checkpoints.of_this_run(Path(elsewhere), self.described):
                best = Path(elsewhere)  # this run began as a copy of that one
            if best is not None and elsewhere is None:
                message = f"{best} is the best checkpoint so far."
            if best is None:
                gone = elsewhere or f"{checkpoints.PREFIX}{state.best_global_step}"
                message = f"The best checkpoint so far, {gone}, is gone: only later ones are compared."
                # else no later one might win
                state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        if best is not None:
            state.best_model_checkpoint = str(best)
        if message is not None and self.is_world_process_zero():
            tqdm.write(message)
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with checkpoints.readable(resume_from_checkpoint, "the model"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with checkpoints.readable(self.state.best_model_checkpoint, "the model", "load_best_model_at_end"):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.readable(checkpoint, "optimizer or scheduler"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.readable(checkpoint, "the random state (rng_state*.pth)"):
            super()._load_rng_state(checkpoint)
        if checkpoint and self.changed_makers:
            # otherwise the random streams of the run's beginning would repeat
            set_seed(self.args.seed + 7919 * self.state.global_step, device_specific=True)

    def _makers(self) -> checkpoints.Makers:
        sharding = "fsdp" if self.is_fsdp_enabled else "none"
        if self.is_deepspeed_enabled:
            sharding = f"zero-{self.accelerator.state.deepspeed_plugin.zero_stage}"
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        return checkpoints.Makers(self.accelerator.num_processes, sharding, rows)

    def _maximum(self, value: int) -> int:
        """The maximum of a value over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        values = torch.tensor([value], device=self.args.device)
        return int(self.accelerator.gather(values).max())

    def _sum_over_processes(self, values: list[float]) -> list[float]:
        """The sums of values over all processes."""
        if self.accelerator.num_processes == 1 or not values:
            return values
        summands = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(summands, "sum").tolist()
