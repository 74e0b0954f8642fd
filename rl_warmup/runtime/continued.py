"""A Trainer whose run goes on as the whole run would have: what its callbacks had counted, that one had ended it.

Knows: transformers' Trainer and its callbacks. Must not know: what ours do. They restore themselves (`Guard`, `Schedule`), as
they have more to do than to take over attributes.
"""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler, ExportableState


class ContinuedTrainer(Trainer):
    """A Trainer that restores the callbacks of its user, and does nothing twice or beyond the end when a run goes on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.continued = Continued(self.callback_handler)
        self.add_callback(self.continued)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Extends Trainer's, which does an update before it asks whether a callback ended the run when training began."""
        began, step = self.continued.began_at, self.state.global_step
        if not began or began != step or not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)
        elif self.is_world_process_zero():
            tqdm.write(
                f"Nothing more is trained: a callback had ended the run after update {step} (early stopping, or a guard)."
            )

    def _evaluate(self, *args: Any, skip_scheduler: bool = False, **kwargs: Any) -> dict[str, float]:
        """Extends Trainer's: `eval_on_start`, where alone no scheduler is asked, evaluates the start of a run, not a resume."""
        if skip_scheduler and self.state.global_step:
            return {}
        return super()._evaluate(*args, skip_scheduler=skip_scheduler, **kwargs)


class Continued(TrainerCallback):
    """Gives the user's callbacks back what the checkpoint saved of them.

    Trainer's own restoring (`restore_callback_states_from_checkpoint`) makes the callbacks anew, ours included, and undoes
    settings that the user changed.
    """

    def __init__(self, handler: CallbackHandler) -> None:
        self.handler = handler
        self.began_at = 0  # the update after which the current training began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began_at = state.global_step
        saved = (state.stateful_callbacks or {}) if state.global_step else {}
        users = [
            one for one in self.handler.callbacks
            if isinstance(one, ExportableState) and not type(one).__module__.startswith("rl_warmup.")
        ]  # fmt: skip
        for name in {type(one).__name__ for one in users} & saved.keys():
            same = [one for one in users if type(one).__name__ == name]
            found = saved[name] if isinstance(saved[name], list) else [saved[name]]
            for one, state_of_it in zip(same, found[-len(same) :], strict=False):  # Trainer appends at every save
                for attribute, value in state_of_it.get("attributes", {}).items():
                    setattr(one, attribute, value)
        for one in users if state.global_step else ():
            if (
                isinstance(one, EarlyStoppingCallback)
                and one.early_stopping_patience_counter >= one.early_stopping_patience
            ):
                control.should_training_stop = True
