"""What changes during training and must survive a restart: who writes the warmups, and τ.

Knows: a few numbers per update (how well the policy writes proposals, how well the generator tells warmups apart, the effective
sample size). Must not know: how they were measured. Its state travels in the checkpoint's trainer_state.json, written last,
so that it cannot be torn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SMOOTHING = 0.9
MEASURED_EVERY = 4  # updates between two looks at what warmups are worth, as a look costs a forward
WINDOW = 12  # looks that are averaged
STILL_LEARNING = 0.1  # share of the target's surprise that goes away within a window without any reading
FADING = 0.9  # `read` of a window over that of the window before, below which what is read is being forgotten
TRIAL = 200  # updates that the policy has after the switch to become worth it, or longer while its warmups help more and more
TAU_RATE = 0.1
TAU_RANGE = (1e-2, 1e4)
KEPT = ("tau", "proposal_logp", "looks", "switched_at", "gave_up_at", "decided")

HELPS = 0.1  # of the target's surprise: what warmups have to take away by the end of the search, or it was in vain
NOTHING_HELPS = (
    "nothing that the starting model writes helps this target: after {updates} updates warmups take away {helped:.1%} of the "
    "target's surprise beyond another prompt's or none, and less than {least:.0%} does not pay"
)
SWITCH = "Update {step}: the samples are read ({read:.1%} of the target's surprise); from here on the policy writes the warmups."
PLAIN = "From here on the run is plain fine-tuning without warmups"
CHANGE = "start from a model that has a useful habit, give `stored_warmups`, or raise max_reading_updates where the habit is rare"


class ReadingMeasurement(NamedTuple):
    """log P(y|x) of some prompts in nats, summed: what their warmups are worth while the generator learns to read them."""

    bound: float = 0.0  # over the group of each prompt
    mean: float = 0.0  # of log P(y|x,c), over the same group
    other: float = 0.0  # the bound over the group of another prompt
    none: float = 0.0  # without a warmup

    @property
    def unread(self) -> float:
        """What the target costs a reader who reads nothing."""
        return max(self.other, self.none)

    @property
    def read(self) -> float:
        """The share of the target's surprise (minus its log-probability) that the content of a group takes away.

        That is beyond its own average member, another prompt's group, and no warmup. Each of these stands for one way to be
        fooled. Early on warmups differ in length and kind, which makes targets more or less likely whatever the prompt (`other`);
        a reader may lean on copies of the prompt, which help nobody (`mean`, as copies are all alike); and a reader that
        is misled by a wrong warmup need not be helped by a right one (`none`).
        """
        return _taken(self.bound, max(self.mean, self.unread))

    @property
    def helped(self) -> float:
        """The same share beyond another prompt's group and no warmup; also where all warmups of a group are as good."""
        return _taken(self.bound, self.unread)

    @classmethod
    def over(cls, looks: Sequence[Sequence[float]]) -> ReadingMeasurement:
        """The sums over several looks."""
        return cls(*map(sum, zip(*looks, strict=True)))


class Schedule(TrainerCallback, ExportableState):
    """Decides when the policy's own warmups take over, and steers τ towards a target effective sample size.

    Three phases. *Cold start*: the group is given, by proposals or by samples of the starting model. *Own*: the policy writes.
    *Plain*: nothing worth reading was found, so the rest of the run is SFT.

    With given proposals the switch waits until the policy can write them: log P(c|x) per token, smoothed over updates, has to
    reach `readiness`. With samples of the starting model (`reading`) the policy can write them from the beginning; there the
    switch waits, at least for the first bound in updates, until the generator begins to read them (`read` over a window reaches
    `threshold` and does not fall) and what can be learned without reading has been learned: before that, the target's term
    moves the policy more than a KL can hold. At the second bound it is enough that warmups help at all, as a habit that nearly
    all samples show does not stand out. If they do not help then, or do not help some updates after the switch and do not improve
    either, the run becomes plain fine-tuning.

    Args:
        has_proposals: False starts in the main phase.
        readiness: nats per token (negative).
        proposal_only: never switch.
        reading: the group holds samples of the starting model.
        threshold: of `read`, between 0 and 1; 0 neither waits nor gives up.
        updates: the switch may come after the first, and comes after the second or never.
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
        self.looks: list[Any] = []  # what warmups were worth, over the last two windows
        self.switched_at: int | None = None
        self.gave_up_at: int | None = None
        self.decided = False
        self.unused = {name: getattr(self, name) for name in KEPT}
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
    def worth(self) -> ReadingMeasurement | None:
        """What warmups were worth over the last window."""
        return ReadingMeasurement.over(self.looks[-WINDOW:]) if self.looks else None

    @property
    def unsettled(self) -> bool:
        """Whether the switch can wait for what happened since the window before: targets became much likelier without being read,
        or what was read is being forgotten (early on a reader leans on how long or of what kind a warmup is)."""
        if len(self.looks) < 2 * WINDOW:
            return True
        before, now = ReadingMeasurement.over(self.looks[:WINDOW]), ReadingMeasurement.over(self.looks[WINDOW:])
        return _taken(now.unread, before.unread) > STILL_LEARNING or now.read < FADING * before.read

    @property
    def improves(self) -> bool:
        """Whether warmups help more than in the window before."""
        return (
            ReadingMeasurement.over(self.looks[-WINDOW:]).helped > ReadingMeasurement.over(self.looks[:-WINDOW]).helped
        )

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
        self.seen = ReadingMeasurement()

    def observe_proposals(self, logprob: float, tokens: float) -> None:
        """Report Σ log P(c|x) and the number of actions of a micro-batch's proposals."""
        self.logprob += logprob
        self.tokens += tokens

    def measures_reading(self, step: int) -> bool:
        """Whether `observe_reading` is wanted in the update after `step`."""
        return self.searches and step % MEASURED_EVERY == 0

    def observe_reading(self, reading: ReadingMeasurement) -> None:
        """Report a micro-batch's."""
        self.seen = ReadingMeasurement(*(a + b for a, b in zip(self.seen, reading, strict=True)))

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
                self.looks = [*self.looks, seen][-2 * WINDOW :]
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
        worth, step = self.worth, state.global_step
        if worth is None or step < self.updates[0]:
            return
        before = self.phase
        if self.switched_at is None:
            waits = bool(self.threshold) and (worth.read < self.threshold or self.unsettled)
            if not waits or (step >= self.updates[1] and worth.helped >= HELPS):
                self.switched_at = step
                if state.is_world_process_zero and not args.disable_tqdm:
                    tqdm.write(SWITCH.format(step=step, read=worth.read))
            elif step >= self.updates[1]:
                self._give_up(state, worth)
        elif not self.threshold:
            self.decided = True
        elif step >= self.switched_at + TRIAL:
            self.decided = worth.helped >= HELPS
            if not self.decided and not self.improves:
                self._give_up(state, worth)
        control.should_evaluate |= self.phase != before and args.eval_strategy != "no"

    def _give_up(self, state: Any, worth: ReadingMeasurement) -> None:
        self.gave_up_at, self.decided = state.global_step, True
        self.gave_up()
        sees = NOTHING_HELPS.format(updates=state.global_step, helped=worth.helped, least=HELPS)
        if state.is_world_process_zero:
            tqdm.write(f"Warning at update {state.global_step}: {sees}. {PLAIN}. To change it: {CHANGE}.")
        means = "warmups cannot pay from this start"
        told = {"step": state.global_step, "rule": "nothing_to_read", "sees": sees, "means": means, "change": CHANGE}
        self.warn({**told, "done": PLAIN})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get("Schedule") if state.global_step else None
        if saved or not state.global_step:  # a second training of one trainer begins anew
            for name, value in (saved["attributes"] if saved else self.unused).items():
                setattr(self, name, value)
            self.reset_sums()
        if self.gave_up_at is not None:
            self.gave_up()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in KEPT}}


def _taken(now: float, before: float) -> float:
    """The share of a surprise (minus log-probabilities, nats) that has gone; of none at all, a target known by heart, nothing."""
    return 1 - now / before if before else 0.0


def _smoothed(before: float | None, now: float) -> float:
    """The exponential mean, begun at its first value."""
    return now if before is None else SMOOTHING * before + (1 - SMOOTHING) * now
