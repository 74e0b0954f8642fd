"""Decides when the policy writes the warmups, and steers τ. Both change during training and must survive a restart.

Knows: a few numbers per update (how likely the policy writes the proposals, how much warmups help the generator, the effective
sample size). Must not know: how they were measured. Its state is saved in the checkpoint's trainer_state.json, which is written
last, so it is never incomplete.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SMOOTHING = 0.9  # of the exponential mean, which starts at the first value
MEASURED_EVERY = 4  # updates between two measurements of reading, as each costs a forward
WINDOW = 12  # measurements that are averaged
# share of the target's surprise that disappears within a window without any reading: wait above this
STILL_LEARNING = 0.1
FADING = 0.9  # `read` of a window divided by that of the window before: wait below this, as reading is being forgotten
TRIAL = 300  # updates after the switch until warmups have to help; more as long as they are read more than a window ago
TAU_RATE = 0.1
TAU_RANGE = (1e-2, 1e4)
SAVED = {  # attribute -> its name in a checkpoint
    "tau": "tau", "proposal_logp": "proposal_logp", "measurements": "looks", "switched_at": "switched_at",
    "gave_up_at": "gave_up_at", "decided": "decided",
}  # fmt: skip

HELPS = 0.1  # share of the target's surprise that warmups have to take away in the end; otherwise the run gives up
NOTHING_HELPS = (
    "nothing that the starting model writes helps this target: after {updates} updates warmups take away {helped:.1%} of the "
    "target's surprise, compared with another prompt's warmups or none; below {least:.0%} warmups do not pay"
)
READS = "the generator reads the samples ({read:.1%} of the target's surprise)"
HELPED = "the samples take away {helped:.1%} of the target's surprise, though none of a group is better than the others"
UNSETTLED = (
    "the samples take away {helped:.1%} of the target's surprise, and max_reading_updates is over, though that falls or targets "
    "still become likelier whatever the warmup"
)
UNASKED = "reading_threshold is 0 ({read:.1%} of the target's surprise is read)"
PLAIN = "From here on the run is plain fine-tuning without warmups"
CHANGE = "start from a model that has a useful habit, give `stored_warmups`, or raise max_reading_updates where the habit is rare"


class ReadingMeasurement(NamedTuple):
    """Log-probabilities of the targets of some prompts in nats, summed: how much the generator reads the warmups."""

    bound: float = 0.0  # log mean_i P(y|x,c_i) over the group of each prompt
    mean: float = 0.0  # mean of log P(y|x,c) over the same group
    other: float = 0.0  # the bound over the group of another prompt
    none: float = 0.0  # log P(y|x) without a warmup

    @property
    def unread(self) -> float:
        """Log-probability without the content of warmups: after another prompt's warmups or none, whichever is higher."""
        return max(self.other, self.none)

    @property
    def read(self) -> float:
        """The share of the target's surprise (minus its log-probability) that the content of a group takes away.

        The group is compared with its own mean, another prompt's group, and no warmup, as each excludes an error. Early in
        training the length and kind of warmups make targets more or less likely whatever the prompt (`other`). A generator
        may rely on copies of the prompt, which help nothing (`mean`, as all copies are alike). A generator that wrong
        warmups mislead may still gain nothing from right ones (`none`).
        """
        return _relative_drop(self.bound, max(self.mean, self.unread))

    @property
    def helped(self) -> float:
        """The same share, but not compared with the group's own mean: above 0 even if all warmups of a group are equally good."""
        return _relative_drop(self.bound, self.unread)

    @classmethod
    def sum_of(cls, measurements: Sequence[Sequence[float]]) -> ReadingMeasurement:
        """The sums of several measurements."""
        return cls(*map(sum, zip(*measurements, strict=True)))


@dataclass(eq=False)
class Schedule(TrainerCallback, ExportableState):
    """Decides when the policy's own warmups take over, and steers τ towards a target effective sample size.

    Three phases. *Cold start*: the group holds proposals, made from the target or sampled from the starting model. *Own
    warmups*: the policy writes. *Plain*: warmups did not help, so the rest of the run is SFT.

    With proposals made from the target, the switch comes when the policy can write them: when log P(c|x) per token, smoothed
    over updates, reaches `readiness`. Samples of the starting model (`reading`) the policy can write from the beginning. There
    the switch comes, after `updates[0]` at the earliest, when the generator reads them (`read` over a window reaches
    `threshold` and does not fall) and has learned what it can learn without reading: before that, the gradient of the targets
    moves the policy more than the KL can prevent. At `updates[1]` it is enough that warmups help at all (`helped`), as a habit
    of nearly all samples does not make any of them better than the group's mean. If they do not help then, or `TRIAL` updates
    after the switch, and do not improve either, the run becomes plain fine-tuning.
    """

    has_proposals: bool = False  # False starts with the policy's own warmups
    readiness: float = -0.1  # nats per token (negative)
    proposal_only: bool = False  # never switch
    tau: float = 1.0  # the starting τ; it is constant if `target_ess` is None
    target_ess: float | None = None  # between 1 and the group size
    reduce: Callable[[list[float]], list[float]] = lambda values: values  # sums a list of floats over all processes
    reading: bool = False  # the group holds samples of the starting model
    threshold: float = 0.05  # of `read`, 0 to 1; with 0 the schedule neither waits for reading nor gives up
    updates: tuple[int, int] = (100, 600)  # the switch may come after the first, and comes after the second or never
    gave_up: Callable[[], None] = lambda: None  # called when the run gives up on warmups, and on a resume after that
    # called then, with {step, rule, sees, means, change, done}
    warn: Callable[[dict[str, Any]], None] = lambda warning: None

    def __post_init__(self) -> None:
        self.proposal_logp: float | None = None  # smoothed log P(c|x) per token of the proposals
        self.measurements: list[Any] = []  # of the last two windows
        self.switched_at: int | None = None
        self.gave_up_at: int | None = None
        self.decided = False
        self.initial = {saved_name: getattr(self, name) for name, saved_name in SAVED.items()}
        self.reset_sums()

    @property
    def in_cold_start(self) -> bool:
        """Whether the groups of the next update are proposals."""
        ended = self.switched_at is not None or self.gave_up_at is not None
        return self.has_proposals and (self.proposal_only or not ended)

    @property
    def is_undecided(self) -> bool:
        """Whether it is still unknown if warmups help."""
        return self.reading and not self.decided and not self.proposal_only

    @property
    def measurement(self) -> ReadingMeasurement | None:
        """Sums over the last window."""
        return ReadingMeasurement.sum_of(self.measurements[-WINDOW:]) if self.measurements else None

    @property
    def earliest(self) -> int:
        """The update after which the policy may take over, at the earliest: where it waits, two windows are measured before."""
        least, most = self.updates
        return min(max(least, (2 * WINDOW - 1) * MEASURED_EVERY + 1), most) if self.threshold else least

    @property
    def unsettled(self) -> bool:
        """Whether the switch should wait: since the window before, targets became much likelier without reading, or `read` fell
        (early in training the generator relies on the length or kind of a warmup)."""
        if len(self.measurements) < 2 * WINDOW:
            return True
        before, now = map(ReadingMeasurement.sum_of, (self.measurements[:WINDOW], self.measurements[WINDOW:]))
        return _relative_drop(now.unread, before.unread) > STILL_LEARNING or now.read < FADING * before.read

    @property
    def improves(self) -> bool:
        """Whether warmups help more than in the window before, or are told apart better, which comes first."""
        before, now = map(ReadingMeasurement.sum_of, (self.measurements[:-WINDOW], self.measurements[-WINDOW:]))
        return now.helped > before.helped or now.read > before.read

    @property
    def phase(self) -> str:
        """The phase's name in the log."""
        if self.gave_up_at is not None:
            return "plain"
        if not self.in_cold_start:
            return "own warmups"
        return "reading" if self.reading else "cold start"

    def reset_sums(self) -> None:
        """Discard the sums of the current update."""
        self.logprob = self.tokens = self.ess = self.groups = 0.0
        self.measured = ReadingMeasurement()

    def observe_proposals(self, logprob: float, tokens: float) -> None:
        """Add Σ log P(c|x) and the number of actions of a micro-batch's proposals."""
        self.logprob += logprob
        self.tokens += tokens

    def measures_reading(self, step: int) -> bool:
        """Whether the update after `step` has to call `observe_reading`."""
        return self.is_undecided and step % MEASURED_EVERY == 0

    def observe_reading(self, measurement: ReadingMeasurement) -> None:
        """Add the measurement of a micro-batch."""
        self.measured = ReadingMeasurement.sum_of([self.measured, measurement])

    def observe_ess(self, ess: float, groups: float) -> None:
        """Add the summed effective sample size of a micro-batch's groups."""
        self.ess += ess
        self.groups += groups

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sums = [self.logprob, self.tokens, self.ess, self.groups, *self.measured]
        logprob, tokens, ess, groups, *measured = self.reduce(sums)
        self.reset_sums()
        if self.is_undecided:
            if measured[0]:
                self.measurements = [*self.measurements, measured][-2 * WINDOW :]
            self._decide(args, state, control)
        elif self.in_cold_start and tokens:
            now, before = logprob / tokens, self.proposal_logp
            self.proposal_logp = now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now
            if self.proposal_logp >= self.readiness and not self.proposal_only:
                self.switched_at = state.global_step
        if self.target_ess is not None and groups:
            self.tau *= math.exp(TAU_RATE * (math.log(self.target_ess) - math.log(ess / groups)))
            self.tau = min(max(self.tau, TAU_RANGE[0]), TAU_RANGE[1])

    def _decide(self, args: Any, state: Any, control: Any) -> None:
        """Switch or give up if it is time for that; either way the model is evaluated at this update."""
        now, step = self.measurement, state.global_step
        if now is None or step < self.updates[0]:
            return
        before = self.phase
        if self.switched_at is None:
            waits = bool(self.threshold) and (now.read < self.threshold or self.unsettled)
            if not waits or (step >= self.updates[1] and now.helped >= HELPS):
                self.switched_at, lines = step, getattr(args, "lines", None)
                if state.is_world_process_zero and (not args.disable_tqdm if lines is None else lines):
                    late = UNSETTLED if now.read >= self.threshold else HELPED
                    why = UNASKED if not self.threshold else late if waits else READS
                    told = why.format(read=now.read, helped=now.helped)
                    tqdm.write(f"Update {step}: {told}; now the policy writes warmups.")
            elif step >= self.updates[1]:
                self._give_up(state, now)
        elif not self.threshold:
            self.decided = True
        elif step >= self.switched_at + TRIAL:
            self.decided = now.helped >= HELPS
            if not self.decided and not self.improves:
                self._give_up(state, now)
        control.should_evaluate |= self.phase != before and args.eval_strategy != "no"

    def _give_up(self, state: Any, now: ReadingMeasurement) -> None:
        self.gave_up_at, self.decided = state.global_step, True
        self.gave_up()
        sees = NOTHING_HELPS.format(updates=state.global_step, helped=now.helped, least=HELPS)
        self._say(state, "nothing_to_read", sees, "warmups cannot pay from this start", CHANGE, PLAIN)

    def _say_that_it_never_switches(self, state: Any, why: str, change: str) -> None:
        sees = f"the run ends before the model writes warmups of its own: {why}"
        self._say(
            state,
            "never_switched",
            sees,
            "its warmups imitate what it read, and were not yet trained to help the target",
            change,
        )

    def _say(self, state: Any, rule: str, sees: str, means: str, change: str, done: str | None = None) -> None:
        if state.is_world_process_zero:
            then = done or f"It means: {means}"
            tqdm.write(f"Warning at update {state.global_step}: {sees}. {then}. To change it: {change}.")
        warning = {"rule": rule, "sees": sees, "means": means, "change": change, "done": done}
        self.warn({"step": state.global_step, **warning})

    def forget_after(self, update: int) -> None:
        """Forget the switch or the end of the search where they came after this update, to which the run went back."""
        for name in ("switched_at", "gave_up_at"):
            if (getattr(self, name) or 0) > update:
                setattr(self, name, None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get("Schedule") if state.global_step else None
        if saved or not state.global_step:  # a second training with one trainer starts anew
            values = saved["attributes"] if saved else self.initial
            for name, saved_name in SAVED.items():
                setattr(self, name, values[saved_name])
            self.reset_sums()
        if self.gave_up_at is not None:
            self.gave_up()
        if self._is_too_short(state) and not state.global_step:
            why = f"it has {state.max_steps} updates, and the first {self.earliest} read samples of the starting model"
            lower = ", or lower min_reading_updates" if self.updates[0] == self.earliest else ""
            change = f"train for more updates{lower}"
            self._say_that_it_never_switches(state, why, change)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ended_early = state.global_step < state.max_steps
        if not self.in_cold_start or self.proposal_only or ended_early or self._is_too_short(state):
            return
        now = self.measurement
        if not self.reading:
            logp = f"{self.proposal_logp:.2f}" if self.proposal_logp is not None else "unknown"
            why = f"log P(c|x) per token of the proposals is {logp}, and readiness {self.readiness}"
            change = "train for more updates, or lower readiness"
        elif now is None or now.read < self.threshold:
            why = f"`read` is {now.read if now else 0:.3f}, and reading_threshold {self.threshold}"
            change = f"train for more updates if `read` rises, else {CHANGE}"
        else:
            why, change = "`read` falls, or targets still become likelier whatever the warmup", "train for more updates"
        self._say_that_it_never_switches(state, why, change)

    def _is_too_short(self, state: Any) -> bool:
        """Whether it is known from the beginning that the policy never takes over."""
        return self.reading and self.in_cold_start and not self.proposal_only and state.max_steps <= self.earliest

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        return {"args": {}, "attributes": {saved_name: getattr(self, name) for name, saved_name in SAVED.items()}}


def _relative_drop(now: float, before: float) -> float:
    """By which share a surprise (minus log-probabilities, nats) is lower now; 0 if there was none before."""
    return 1 - now / before if before else 0.0
