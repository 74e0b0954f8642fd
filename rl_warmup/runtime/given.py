"""What a trainer is given beside its settings: weights to train, callbacks, optimizers, a folder that can be written.

Knows: transformers' Trainer and torch's optimizers, which fail with them in words of their own, some after the first updates.
Must not know: what a warmup is.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import EarlyStoppingCallback, TrainerCallback

from rl_warmup.runtime.faults import REMEDIES
from rl_warmup.runtime.settings import shown

PAIR = "Give a pair of torch's, (optimizer, scheduler), in which None has one made from the settings, or leave it out."


def check_given(
    model: Any,
    args: Any,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    callbacks: Any = None,
    optimizers: Any = (None, None),
    **_: Any,
) -> None:
    """Refuse what a Trainer with these arguments could not train with, and make its folder.

    Raises ValueError: naming the argument.
    """
    if train_dataset is not None and not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "model: all of its weights are frozen, so nothing would be trained. Call model.requires_grad_(True) or set it of "
            "some weights, load an adapter with PeftModel.from_pretrained(..., is_trainable=True), or give a peft_config."
        )
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ValueError(
            f"eval_strategy: is {args.eval_strategy.value}, and there is no eval_dataset. Give one, or leave it out."
        )
    _check_callbacks(callbacks, args)
    _check_optimizers(optimizers, model)
    _check_folder(args)


def as_folder(given: Any, name: str) -> Path:
    """A folder that is written. Raises ValueError: no path."""
    if not isinstance(given, str | Path) or not str(given).strip():
        raise ValueError(f"{name}: {shown(given)} is no path. Give one of a folder.")
    return Path(given)


def _check_callbacks(given: Any, args: Any) -> None:
    remedy = "Give a list of transformers' TrainerCallback, such as [EarlyStoppingCallback(3)], or leave it out."
    if not isinstance(given, list | None):
        raise ValueError(f"callbacks: {shown(given)} is no list. {remedy}")
    for one in given or ():
        if not issubclass(one if isinstance(one, type) else type(one), TrainerCallback):
            raise ValueError(f"callbacks: {shown(one)} is no callback. {remedy}")
        try:
            inspect.signature(one).bind() if isinstance(one, type) else None  # Trainer makes an object of a class
        except TypeError as error:
            raise ValueError(
                f"callbacks: {shown(one)} is a class with arguments ({error}). Give an object of it."
            ) from None
        stops = one is EarlyStoppingCallback or isinstance(one, EarlyStoppingCallback)
        if stops and (args.eval_strategy == "no" or args.metric_for_best_model is None):
            raise ValueError(
                "callbacks: EarlyStoppingCallback compares evaluations. Set eval_strategy, and metric_for_best_model, such as "
                "loss."
            )


def _check_optimizers(given: Any, model: Any) -> None:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"optimizers: {shown(given)} is no pair. {PAIR}")
    optimizer, scheduler = given
    for one, kind in ((optimizer, Optimizer), (scheduler, LRScheduler)):
        if one is not None and not isinstance(one, kind):
            raise ValueError(f"optimizers: {shown(one)} is no {kind.__name__}. {PAIR}")
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError(
            f"optimizers: the scheduler belongs to another optimizer, and would change nothing here. {PAIR}"
        )
    if optimizer is None:
        return
    own = {id(weight) for weight in model.parameters() if weight.requires_grad}
    if not any(id(weight) in own for group in optimizer.param_groups for weight in group["params"]):
        raise ValueError(
            "optimizers: the optimizer holds no weight of this model that is trained, so nothing would change. Give the model as "
            "an object, and make the optimizer of its parameters."
        )


def _check_folder(args: Any) -> None:
    """Make the folder of the run, which Trainer would do without a word of ours where it cannot."""
    if not args.should_save:
        return
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        remedy = REMEDIES.get(getattr(error, "errno", None) or 0, "give another path")
        raise ValueError(f"output_dir: {args.output_dir} cannot be made a folder: {why} ({remedy}).") from error
