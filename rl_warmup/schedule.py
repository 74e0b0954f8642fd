"""What changes during training and must survive a restart: who writes the warmups, and τ.

Knows: a few numbers per update (how well the policy writes proposals, how well the generator tells warmups apart, the effective
sample size). Must not know: how they were measured. Its state travels in the checkpoint's trainer_state.json, written last,
so that it cannot be torn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SMOOTHING = 0.9
TAU_RATE = 0.1
TAU_RANGE = (1e-2, 1e4)
KEPT = ("tau", "proposal_logp", "read", "switched_at", "gave_up_at")

NOTHING_HELPS = (
    "nothing that the starting model writes helps this target: after {updates} updates of reading its samples, the generator "
    "tells them apart by no more than {read:.3f} (read; {threshold} was asked for). From here on the run is plain fine-tuning "
    "without warmups. A starting model with a useful habit, or stored warmups (docs/method.md), may change that; a higher "
    "max_reading_updates gives the reader more time"
)


class Schedule(TrainerCallback, ExportableState):
    """Decides when the policy's own warmups take over, and steers τ towards a target effective sample size.

    Three phases. *Cold start*: the group is given, by proposals or by samples of the starting model. *Own*: the policy writes.
    *Plain*: nothing worth reading was found, so the rest of the run is SFT.

    With given proposals the switch waits until the policy can write them: log P(c|x) per token, smoothed over updates, has to
    reach `readiness`. With samples of the starting model (`reading`) the policy can write them from the beginning; there the
    switch waits until the generator reads them: `read`, smoothed, has to reach `threshold` between the two bounds in updates.

    Args:
        has_proposals: False starts in the main phase.
        readiness: nats per token (negative).
        proposal_only: never switch.
        reading: the group holds samples of the starting model.
        threshold: of `read`, between 0 and 1.
        updates: the switch may come after the first, and reading has failed after the second.
        tau: the starting τ; it stays there when `target_ess` is None.
        target_ess: between 1 and the group size.
        reduce: sums a list of floats over all processes.
        gave_up: called once when reading has failed.
        warn: called with {step, rule, sees, means, change, done} when reading has failed.
    """

    def __init__(
        self,
        has_proposals: bool = False,
        readiness: float = -0.1,
        proposal_only: bool = False,
        tau: float = 1.0,
        target_ess: float | None = None,
        reduce: Callable[[list[float]], list[float]] = lambda values: values,
        reading: bool = False,
        threshold: float = 0.05,
        updates: tuple[int, int] = (100, 600),
        gave_up: Callable[[], None] = lambda: None,
        warn: Callable[[dict[str, Any]], None] = lambda warning: None,
    ) -> None:
        self.has_proposals, self.readiness, self.proposal_only = has_proposals, readiness, proposal_only
        self.reading, self.threshold, self.updates = reading, threshold, updates
        self.gave_up, self.warn = gave_up, warn
        self.target_ess, self.reduce = target_ess, reduce
        self.tau = tau
        self.proposal_logp: float | None = None  # smoothed log P(c|x) per token of the proposals
        self.read: float | None = None  # smoothed: how well the generator tells the warmups of a group apart
        self.switched_at: int | None = None
        self.gave_up_at: int | None = None
        self.reset_sums()

    @property
    def in_cold_start(self) -> bool:
        """Whether the groups of the next update are proposals."""
        ended = self.switched_at is not None or self.gave_up_at is not None
        return self.has_proposals and (self.proposal_only or not ended)

    @property
    def phase(self) -> str:
        """What the log calls it."""
        if self.gave_up_at is not None:
            return "plain"
        if not self.in_cold_start:
            return "own warmups"
        return "reading" if self.reading else "cold start"

    def reset_sums(self) -> None:
        """Forget what the current update has reported so far."""
        self.logprob = self.tokens = self.ess = self.groups = self.apart = self.judged = 0.0

    def observe_proposals(self, logprob: float, tokens: float) -> None:
        """Report Σ log P(c|x) and the number of actions of a micro-batch's proposals."""
        self.logprob += logprob
        self.tokens += tokens

    def observe_reading(self, apart: float, groups: float) -> None:
        """Report the summed `diagnostics.told_apart` of a micro-batch's groups."""
        self.apart += apart
        self.judged += groups

    def observe_ess(self, ess: float, groups: float) -> None:
        """Report the summed effective sample size of a micro-batch's groups."""
        self.ess += ess
        self.groups += groups

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sums = [self.logprob, self.tokens, self.ess, self.groups, self.apart, self.judged]
        logprob, tokens, ess, groups, apart, judged = self.reduce(sums)
        self.reset_sums()
        if self.in_cold_start and self.reading and judged:
            self.read = _smoothed(self.read, apart / judged)
            self._end_reading(state, control)
        elif self.in_cold_start and tokens:
            self.proposal_logp = _smoothed(self.proposal_logp, logprob / tokens)
            if self.proposal_logp >= self.readiness and not self.proposal_only:
                self.switched_at = state.global_step
        if self.target_ess is not None and groups:
            self.tau *= math.exp(TAU_RATE * (math.log(self.target_ess) - math.log(ess / groups)))
            self.tau = min(max(self.tau, TAU_RANGE[0]), TAU_RANGE[1])

    def _end_reading(self, state: Any, control: Any) -> None:
        """Switch, or give up, where the bounds allow it; the model is evaluated as it is then."""
        assert self.read is not None
        if self.proposal_only or state.global_step < self.updates[0]:
            return
        if self.read >= self.threshold:
            self.switched_at = state.global_step
        elif state.global_step >= self.updates[1]:
            self.gave_up_at = state.global_step
            self.gave_up()
            said = NOTHING_HELPS.format(updates=state.global_step, read=self.read, threshold=self.threshold)
            if state.is_world_process_zero:
                tqdm.write(f"Warning at update {state.global_step}: {said}.")
            sees, _, change = said.partition(". ")
            self.warn(
                {
                    "step": state.global_step, "rule": "nothing_to_read", "sees": sees, "means": "warmups cannot pay here",
                    "change": change, "done": "plain fine-tuning from here on",
                }
            )  # fmt: skip

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get("Schedule")
        if state.global_step and saved:
            for name, value in saved["attributes"].items():
                setattr(self, name, value)
        if self.gave_up_at is not None:
            self.gave_up()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in KEPT}}


def _smoothed(before: float | None, now: float) -> float:
    """The exponential mean, begun at its first value."""
    return now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now
