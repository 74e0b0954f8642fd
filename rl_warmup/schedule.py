"""What changes during training and must survive a restart: who writes the warmups, and τ.

Knows: a few numbers per update (how well the policy writes proposals, how well the generator tells warmups apart, the effective
sample size). Must not know: how they were measured. Its state travels in the checkpoint's trainer_state.json, written last,
so that it cannot be torn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SMOOTHING = 0.9
MEASURED_EVERY = 4  # updates between two looks at how well warmups are read, as a look costs a forward
TAU_RATE = 0.1
TAU_RANGE = (1e-2, 1e4)
KEPT = ("tau", "proposal_logp", "read", "helped", "switched_at", "gave_up_at", "decided")

HELPS = 0.1  # of the target's surprise: what warmups have to take away by the end of the search, or it was in vain
NOTHING_HELPS = (
    "nothing that the starting model writes helps this target: after {updates} updates warmups take away {helped:.1%} of the "
    "target's surprise beyond another prompt's or none, and less than {least:.0%} does not pay"
)
PLAIN = "From here on the run is plain fine-tuning without warmups"
CHANGE = "start from a model that has a useful habit, give `stored_warmups`, or raise max_reading_updates where the habit is rare"


class Worth(NamedTuple):
    """log P(y|x) of some prompts in nats, summed: what their warmups are worth while the generator learns to read them."""

    bound: float = 0.0  # over the group of each prompt
    mean: float = 0.0  # of log P(y|x,c), over the same group
    other: float = 0.0  # the bound over the group of another prompt
    none: float = 0.0  # without a warmup

    def shares(self) -> tuple[float, float]:
        """Two shares of the target's surprise (minus its log-probability) that a group takes away.

        `read`: beyond its own average member, another prompt's group, and none. Each of these stands for one way to be fooled.
        Early on warmups differ in length and kind, which makes targets more or less likely whatever the prompt (`other`);
        a reader may lean on copies of the prompt, which help nobody (`mean`, as copies are all alike); and a reader that
        is misled by a wrong warmup need not be helped by a right one (`none`).
        `helped`: beyond another prompt's group and none.
        """
        return 1 - self.bound / max(self.mean, self.other, self.none), 1 - self.bound / max(self.other, self.none)


class Schedule(TrainerCallback, ExportableState):
    """Decides when the policy's own warmups take over, and steers τ towards a target effective sample size.

    Three phases. *Cold start*: the group is given, by proposals or by samples of the starting model. *Own*: the policy writes.
    *Plain*: nothing worth reading was found, so the rest of the run is SFT.

    With given proposals the switch waits until the policy can write them: log P(c|x) per token, smoothed over updates, has to
    reach `readiness`. With samples of the starting model (`reading`) the policy can write them from the beginning; there the
    switch waits until the generator begins to read them: `read` (see `Worth.shares`), smoothed, has to reach `threshold` after
    the first bound in updates. By the second one warmups must help, whoever writes them by then: if they do and nearly all
    samples are useful, so that none stands out, the policy takes over now; if they do not, the run becomes plain fine-tuning.

    Args:
        has_proposals: False starts in the main phase.
        readiness: nats per token (negative).
        proposal_only: never switch.
        reading: the group holds samples of the starting model.
        threshold: of `read`, between 0 and 1; 0 neither waits nor gives up.
        updates: the switch may come after the first, and must have been worth it by the second.
        tau: the starting τ; it stays there when `target_ess` is None.
        target_ess: between 1 and the group size.
        reduce: sums a list of floats over all processes.
        gave_up: called when the search has failed, also on the way back to a checkpoint behind that.
        warn: called once then with {step, rule, sees, means, change, done}.
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
        self.read: float | None = None  # smoothed, see `Worth.shares`
        self.helped: float | None = None
        self.switched_at: int | None = None
        self.gave_up_at: int | None = None
        self.decided = False
        self.reset_sums()

    @property
    def in_cold_start(self) -> bool:
        """Whether the groups of the next update are proposals."""
        ended = self.switched_at is not None or self.gave_up_at is not None
        return self.has_proposals and (self.proposal_only or not ended)

    @property
    def searches(self) -> bool:
        """Whether it is still open if warmups help."""
        return self.reading and not self.decided and not self.proposal_only

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
        self.logprob = self.tokens = self.ess = self.groups = 0.0
        self.seen = Worth()

    def observe_proposals(self, logprob: float, tokens: float) -> None:
        """Report Σ log P(c|x) and the number of actions of a micro-batch's proposals."""
        self.logprob += logprob
        self.tokens += tokens

    def measures_reading(self, step: int) -> bool:
        """Whether `observe_reading` is wanted in the update after `step`."""
        return self.searches and step % MEASURED_EVERY == 0

    def observe_reading(self, reading: Worth) -> None:
        """Report a micro-batch's."""
        self.seen = Worth(*(a + b for a, b in zip(self.seen, reading, strict=True)))

    def observe_ess(self, ess: float, groups: float) -> None:
        """Report the summed effective sample size of a micro-batch's groups."""
        self.ess += ess
        self.groups += groups

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logprob, tokens, ess, groups, *seen = self.reduce(
            [self.logprob, self.tokens, self.ess, self.groups, *self.seen]
        )
        self.reset_sums()
        if self.searches:
            if seen[0]:
                told, helped = Worth(*seen).shares()
                self.read, self.helped = _smoothed(self.read, told), _smoothed(self.helped, helped)
            self._decide(args, state, control)
        elif self.in_cold_start and tokens:
            self.proposal_logp = _smoothed(self.proposal_logp, logprob / tokens)
            if self.proposal_logp >= self.readiness and not self.proposal_only:
                self.switched_at = state.global_step
        if self.target_ess is not None and groups:
            self.tau *= math.exp(TAU_RATE * (math.log(self.target_ess) - math.log(ess / groups)))
            self.tau = min(max(self.tau, TAU_RANGE[0]), TAU_RANGE[1])

    def _decide(self, args: Any, state: Any, control: Any) -> None:
        """Switch, or give up, where the bounds allow it; either way the model is evaluated as it is then."""
        if self.read is None or self.helped is None or state.global_step < self.updates[0]:
            return
        before = self.phase
        self.decided = state.global_step >= self.updates[1]
        if self.decided and self.threshold and self.helped < HELPS:
            self.gave_up_at = state.global_step
            self._give_up(state)
        elif self.in_cold_start and (self.decided or not self.threshold or self.read >= self.threshold):
            self.switched_at = state.global_step
        control.should_evaluate |= self.phase != before and args.eval_strategy != "no"

    def _give_up(self, state: Any) -> None:
        self.gave_up()
        sees = NOTHING_HELPS.format(updates=state.global_step, helped=self.helped, least=HELPS)
        if state.is_world_process_zero:
            tqdm.write(f"Warning at update {state.global_step}: {sees}. {PLAIN}. To change it: {CHANGE}.")
        means = "warmups cannot pay from this start"
        told = {"step": state.global_step, "rule": "nothing_to_read", "sees": sees, "means": means, "change": CHANGE}
        self.warn({**told, "done": PLAIN})

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
