"""One sentence for logits that are no numbers, wherever they are first looked at.

Knows: logits. Must not know: what they are for.
"""

from __future__ import annotations

from torch import Tensor


def are_numbers(logits: Tensor) -> Tensor:
    """Whether the largest logit of every row of (..., V) is finite: () bool, not yet waited for. -inf may forbid single tokens."""
    return logits.amax(-1).isfinite().all()


def refuse_no_numbers(fine: Tensor | bool, doing: str) -> None:
    """Raises FloatingPointError where `are_numbers` was false, saying what cannot be done."""
    if not fine:
        raise FloatingPointError(
            f"The model's logits are not finite, so {doing}. Its training diverged (lower learning_rate, or take an earlier "
            f"checkpoint), its weights are damaged, or float16 overflows (use bf16 or float32)."
        )
