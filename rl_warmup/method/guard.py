"""The collapse guard: reads the training log and warns in plain words when warmups become useless.

Knows: the metrics of one log line (`diagnostics`), the sampling constraints. Must not know: how either is computed.
A condition has to be true in `PATIENCE` logs in a row before the guard warns; it warns again only after the condition cleared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

PATIENCE = 3
NEGLIGIBLE = 0.02  # share of the target's log-probability; a run that ignored its warmups had 0.003 to 0.013
TEMPERATURE_STEP = 1.2
MAX_TEMPERATURE = 3.0
Logs = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A condition, what it means, what to change; `action` names what the guard may change by itself."""

    name: str
    condition: Callable[[Logs, int, int], bool]  # (logs, group size, minimum length)
    sees: str  # a format string over the logs
    means: str
    change: str
    action: str | None = None


def _share_of_target(logs: Logs, key: str) -> float:
    """A metric in nats divided by the absolute log-probability of the target."""
    return logs[key] / max(1e-6, abs(logs["target_logprob"]))


def _gain_is_negligible(logs: Logs) -> bool:
    return "gain" in logs and abs(_share_of_target(logs, "gain")) < NEGLIGIBLE


RULES = (
    Rule(
        "ignored",
        lambda logs, n, low: (
            _gain_is_negligible(logs) and n > 1 and _share_of_target(logs, "target_logprob_std") < NEGLIGIBLE
        ),
        "the gain over no warmup is {gain:.3g} nats of {target_logprob:.3g}, and all warmups of a group are equally good",
        "the model does not read its warmup",
        "start with proposals, lower empty_share, or set uniform_target_share to 0",
    ),
    Rule(
        "harmful",
        lambda logs, n, low: "gain" in logs and _share_of_target(logs, "gain") < -0.1,
        "the target is {gain:.3g} nats less likely with a warmup than without",
        "sampled warmups mislead the generator: the policy was not ready, or samples too wildly",
        "raise readiness towards 0, raise anchor_weight, or lower temperature",
    ),
    Rule(
        "short",
        lambda logs, n, low: logs["completions/median_length"] <= max(1, low),
        "half of the warmups have {completions/median_length:.0f} tokens or fewer",
        "warmups collapse towards nothing",
        "raise min_warmup_length",
        "min_length",
    ),
    Rule(
        "endless",
        lambda logs, n, low: logs["completions/clipped_ratio"] > 0.9 and logs["completions/mean_length"] > 1,
        "{completions/clipped_ratio:.0%} of the warmups run into max_warmup_length",
        "the policy does not end its warmups, so the separator is learned from proposals alone or not at all",
        "raise max_warmup_length, or start with proposals that are shorter than it",
    ),
    Rule(
        "same_everywhere",
        lambda logs, n, low: n > 1 and logs["completions/distinct_across_prompts"] * n < 0.3,
        "only {completions/distinct_across_prompts:.0%} of a batch's warmups differ, over all its prompts",
        "the same warmup is written for every prompt, so it says nothing about the prompt",
        "raise temperature",
        "temperature",
    ),
    Rule(
        "one_hot",
        lambda logs, n, low: n > 2 and logs["ess"] < 1.05,
        "the effective sample size of a group is {ess:.2f}",
        "one warmup takes all the weight, so the others teach nothing",
        "set target_ess (a third of num_warmups), or raise tau",
    ),
    Rule(
        "flat",
        lambda logs, n, low: n > 1 and logs["ess"] > 0.995 * n and _gain_is_negligible(logs),
        "the effective sample size is {ess:.2f}: all weights are equal, and the gain is {gain:.3g} nats",
        "the reward does not tell warmups apart",
        "lower tau, raise temperature, or start with proposals",
        "temperature",
    ),
    Rule(
        "copies_the_prompt",
        lambda logs, n, low: logs["completions/prompt_overlap"] > 0.95 and _gain_is_negligible(logs),
        "{completions/prompt_overlap:.0%} of the warmups' tokens occur in the prompt, and the gain is {gain:.3g} nats",
        "the warmup repeats what the model has read already",
        "add the reward prompt_overlap with a negative weight",
    ),
)


@dataclass(eq=False)
class Guard(TrainerCallback, ExportableState):
    """Watches the log while the policy writes its own warmups.

    Args:
        mode: `warn` only warns; `act` also raises the temperature or the minimum length if that is the remedy; `stop` saves a
            checkpoint and ends the run at the first warning.
    """

    mode: str
    group_size: int  # warmups per prompt
    min_length: int  # of warmups, in tokens
    temperature: float  # of the sampling constraints
    max_length: int  # of warmups, in tokens
    apply: Callable[..., None]  # called with `temperature` and `min_length` whenever the guard changes them
    record: Callable[[dict[str, Any]], None]  # called with {step, rule, sees, means, change, done} for every warning

    def __post_init__(self) -> None:
        self.streaks: dict[str, int] = {}
        self.initial = {"min_length": self.min_length, "temperature": self.temperature, "streaks": {}}

    def on_log(self, args: Any, state: Any, control: Any, logs: Logs | None = None, **kwargs: Any) -> None:
        if not logs or "completions/median_length" not in logs or logs.get("phase") in ("cold start", "reading"):
            return
        for rule in RULES:
            is_true = rule.condition(logs, self.group_size, self.min_length)
            self.streaks[rule.name] = self.streaks.get(rule.name, 0) + 1 if is_true else 0
            if self.streaks[rule.name] == PATIENCE:
                self._warn(rule, logs, args, state, control)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get("Guard") if state.global_step else None
        if saved or not state.global_step:  # a second training with one trainer starts anew
            for name, value in (saved["attributes"] if saved else self.initial).items():
                setattr(self, name, dict(value) if isinstance(value, dict) else value)
            self.apply(temperature=self.temperature, min_length=self.min_length)
        if self.mode == "stop" and any(streak >= PATIENCE for streak in self.streaks.values()):
            control.should_training_stop = True  # it ended this run before

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        kept = {"min_length": self.min_length, "temperature": self.temperature, "streaks": self.streaks}
        return {"args": {}, "attributes": kept}

    def _warn(self, rule: Rule, logs: Logs, args: Any, state: Any, control: Any) -> None:
        done = self._act(rule, control)
        warning = {
            "step": state.global_step, "rule": rule.name, "sees": rule.sees.format_map(logs), "means": rule.means,
            "change": rule.change, "done": done,
        }  # fmt: skip
        self.record(warning)
        if state.is_world_process_zero:
            did = f" {done}." if done else f" To change it: {rule.change}."
            tqdm.write(f"Warning at update {state.global_step}: {warning['sees']}. It means: {rule.means}.{did}")

    def _act(self, rule: Rule, control: Any) -> str | None:
        """Do what the mode allows; returns a sentence about it, or None."""
        if self.mode == "stop":
            control.should_save = control.should_training_stop = True
            return "The run stops here, as guard: stop asks"
        if self.mode != "act" or rule.action is None:
            return None
        if rule.action == "min_length" and self.min_length < self.max_length - 1:
            self.min_length += 1
            done = f"min_warmup_length is now {self.min_length}"
        elif rule.action == "temperature" and self.temperature * TEMPERATURE_STEP <= MAX_TEMPERATURE:
            self.temperature *= TEMPERATURE_STEP
            done = f"temperature is now {self.temperature:.2f}"
        else:
            return None
        self.streaks[rule.name] = 0  # warn again if that was not enough
        self.apply(temperature=self.temperature, min_length=self.min_length)
        return done
