"""transformers' hyperparameter search: `model_init`, `hyperparameter_search`, one new trainer per trial.

Knows: transformers' search. Must not know: what a warmup is. transformers only replaces the model and some arguments of a
trainer. Ours has more state (number of warmups, sampling constraints, phase), so each training with a `model_init` makes a
new trainer from the original arguments and the current settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, set_seed

from rl_warmup.runtime.values import typed

SEARCH_STATE = ("hp_search_backend", "hp_space", "hp_name", "compute_objective", "objective", "before_trial")


class SearchTrainer(Trainer):
    """A Trainer that can be made again."""

    made_of: dict[str, Any]
    objective: float | None = None
    before_trial: dict[str, Any] = {}  # noqa: RUF012  # settings as they were before a trial of the search changed them

    def __new__(cls, *args: Any, **kwargs: Any) -> SearchTrainer:
        trainer = super().__new__(cls)
        trainer.made_of = dict(inspect.signature(cls.__init__).bind(trainer, *args, **kwargs).arguments)
        del trainer.made_of["self"]
        return trainer

    def __init__(self, model_init: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        if model_init is not None and kwargs.get("optimizers", (None, None)) != (None, None):
            raise ValueError("optimizers: belong to one model, but model_init makes several; leave them out.")
        super().__init__(**kwargs)
        self.model_init = model_init
        self.made_with = list(self.callback_handler.callbacks)

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, **kwargs: Any) -> Any:
        """Train; with a `model_init`, as a new trainer with a new model and the current settings."""
        model_init = self.model_init
        if model_init is None:
            return super().train(resume_from_checkpoint, trial=trial, **kwargs)
        folder, searching = self.args.output_dir, self.hp_search_backend is not None and trial is not None
        if searching:
            space = self.hp_space(trial)
            if not isinstance(space, Mapping):
                raise ValueError(
                    f"hp_space: returned {space!r:.80}. Return a dict of settings, such as {{'tau': 0.5}}."
                )
            self._settle(space)
        kept = {name: getattr(self, name) for name in SEARCH_STATE if hasattr(self, name)}
        trial_folder = self._get_output_dir(trial)
        set_seed(self.args.seed)
        model = self.call_model_init(trial)
        known = [*self.made_with, *(self.made_of.get("callbacks") or [])]
        added = [one for one in self.callback_handler.callbacks if not any(one is other for other in known)]
        made_of = {**self.made_of, "args": self.args, "model": model, "model_init": None}
        self.args.output_dir = trial_folder  # every trial writes its logs into its own folder
        self.__init__(**made_of)  # type: ignore[misc]
        for callback in added:
            if not type(callback).__module__.startswith("rl_warmup."):  # ours are made again, the user's are kept
                self.add_callback(callback)
        for name, value in kept.items():
            setattr(self, name, value)
        self.args.output_dir = folder  # transformers adds the trial's folder to it
        try:
            return super().train(resume_from_checkpoint, trial=trial, **kwargs)
        finally:
            self.model_init = model_init

    def _settle(self, space: Mapping[str, Any]) -> None:
        """Give the settings a trial's values; those that only an earlier trial changed are as before it."""
        for name, value in self.before_trial.items():
            setattr(self.args, name, value)
        if "output_dir" in space:
            raise ValueError("hp_space: output_dir is made for every trial below that of the trainer. Leave it out.")
        values, faults = typed(space, [type(self.args)])
        if faults:
            raise ValueError(f"hp_space: {faults[0]}")
        self.before_trial = {name: getattr(self.args, name) for name in space}
        for name, value in values.items():
            setattr(self.args, name, value)

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Callable[[dict[str, float]], float] | None = None, **kwargs: Any
    ) -> Any:
        """transformers' search; see there for `n_trials`, `direction`, `backend` and Optuna's arguments.

        Args:
            hp_space: trial -> settings, ours (`num_warmups`, `tau`, ...) and transformers'.
            compute_objective: metrics of an evaluation -> what to optimize; None takes `eval_loss`, as transformers' default,
                the sum of all metrics, has no meaning here.
        """
        for name, given in (("hp_space", hp_space), ("compute_objective", compute_objective)):
            if given is not None and not callable(given):
                raise ValueError(f"{name}: {given!r:.80} cannot be called. Give a function.")
        try:
            return super().hyperparameter_search(hp_space, compute_objective or validation_loss, **kwargs)
        finally:
            self._settle({})


def validation_loss(metrics: dict[str, float]) -> float:
    """Minus the bound on log P(y|x) per target token, nats; to be minimized.

    Raises ValueError: there are several sets of validation rows, or none.
    """
    if "eval_loss" not in metrics:
        raise ValueError(
            f"compute_objective: the evaluation has no eval_loss, but {', '.join(metrics)}. Give one set of validation rows, or "
            f"a function that returns the number to optimize."
        )
    return metrics["eval_loss"]


def first_model(model: Any, model_init: Callable[..., Any] | None, seed: int) -> Any:
    """The model of a new trainer. Raises ValueError: neither or both of `model` and `model_init` are given."""
    if (model is None) == (model_init is None):
        raise ValueError("WarmupTrainer needs either a model or a model_init, a function that makes one.")
    if model_init is None:
        return _checked(str(model) if isinstance(model, Path) else model, "model")
    if not callable(model_init):
        raise ValueError(f"model_init: {model_init!r:.80} cannot be called. Give a function that returns a model.")
    set_seed(seed)
    made = model_init(None) if inspect.signature(model_init).parameters else model_init()
    return _checked(made, "model_init")


def _checked(model: Any, name: str) -> Any:
    """Raises ValueError: neither a name nor a network of transformers (or peft) with an output head."""
    if isinstance(model, str):
        return model
    given = f"{name}: {'returned' if name == 'model_init' else 'is'} a {type(model).__name__}"
    remedy = (
        "Give a PreTrainedModel that writes text (AutoModelForSeq2SeqLM, AutoModelForCausalLM), a folder or a hub name."
    )
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise ValueError(f"{given}, no model of transformers. {remedy}")
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ValueError(f"{given}, which has no output head, so it cannot write. {remedy}")
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError(f"{given} whose weights are on the device meta, so they hold no numbers. Load it whole.")
    return model
