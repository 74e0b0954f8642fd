"""What changes during training and must survive a restart: the phase of the cold start, and τ.

Knows: two numbers per update (how well the policy writes proposals, the effective sample size). Must not know: how they
were measured. Its state travels in the checkpoint's trainer_state.json, written last, so that it cannot be torn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SMOOTHING = 0.9
TAU_RATE = 0.1
TAU_RANGE = (1e-2, 1e4)


class Schedule(TrainerCallback, ExportableState):
    """Decides when the policy's own warmups replace proposals, and steers τ towards a target effective sample size.

    The switch waits for a condition, not for a step: log P(c|x) per token of the proposals, smoothed over updates, has to
    reach `readiness`. Switching earlier was measured to destroy the result with every objective.

    Args:
        has_proposals: False starts in the main phase.
        readiness: nats per token (negative).
        proposal_only: never switch.
        tau: the starting τ; it stays there when `target_ess` is None.
        target_ess: between 1 and the group size.
        reduce: sums a list of floats over all processes.
    """

    def __init__(
        self,
        has_proposals: bool = False,
        readiness: float = -0.1,
        proposal_only: bool = False,
        tau: float = 1.0,
        target_ess: float | None = None,
        reduce: Callable[[list[float]], list[float]] = lambda values: values,
    ) -> None:
        self.has_proposals, self.readiness, self.proposal_only = has_proposals, readiness, proposal_only
        self.target_ess, self.reduce = target_ess, reduce
        self.tau = tau
        self.proposal_logp: float | None = None  # smoothed log P(c|x) per token of the proposals
        self.switched_at: int | None = None
        self.reset_sums()

    @property
    def in_cold_start(self) -> bool:
        """Whether the groups of the next update are proposals."""
        return self.has_proposals and (self.proposal_only or self.switched_at is None)

    def reset_sums(self) -> None:
        """Forget what the current update has reported so far."""
        self.logprob = self.tokens = self.ess = self.groups = 0.0

    def observe_proposals(self, logprob: float, tokens: float) -> None:
        """Report Σ log P(c|x) and the number of actions of a micro-batch's proposals."""
        self.logprob += logprob
        self.tokens += tokens

    def observe_ess(self, ess: float, groups: float) -> None:
        """Report the summed effective sample size of a micro-batch's groups."""
        self.ess += ess
        self.groups += groups

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logprob, tokens, ess, groups = self.reduce([self.logprob, self.tokens, self.ess, self.groups])
        self.reset_sums()
        if self.in_cold_start and tokens:
            now = logprob / tokens
            before = now if self.proposal_logp is None else self.proposal_logp
            self.proposal_logp = SMOOTHING * before + (1 - SMOOTHING) * now
            if self.proposal_logp >= self.readiness and not self.proposal_only:
                self.switched_at = state.global_step
        if self.target_ess is not None and groups:
            self.tau *= math.exp(TAU_RATE * (math.log(self.target_ess) - math.log(ess / groups)))
            self.tau = min(max(self.tau, TAU_RANGE[0]), TAU_RANGE[1])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = (state.stateful_callbacks or {}).get("Schedule")
        if state.global_step and saved:
            for name, value in saved["attributes"].items():
                setattr(self, name, value)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "args": {},
            "attributes": {"tau": self.tau, "proposal_logp": self.proposal_logp, "switched_at": self.switched_at},
        }
