"""One sentence for logits that are no numbers, wherever they are first looked at.

Knows: logits. Must not know: what they are for.
"""

from __future__ import annotations

from torch import Tensor


def are_numbers(logits: Tensor) -> Tensor:
    """Whether each row of (..., V) says something: its largest logit is finite, and not all are the same. () bool, on its device.

    -inf may forbid some tokens. Weights around 1e9 overflow in a norm, whose output is then 0, as are all logits.
    """
    return extremes_are_numbers(*logits.aminmax(dim=-1))


def extremes_are_numbers(low: Tensor, high: Tensor) -> Tensor:
    """`are_numbers` of logits whose smallest and largest are known."""
    return (high.isfinite() & (high > low)).all()


def refuse_no_numbers(fine: Tensor | bool, doing: str) -> None:
    """Raises FloatingPointError where `are_numbers` was false, saying what cannot be done."""
    if not fine:
        raise FloatingPointError(
            f"The model's logits are not finite, or all the same, so {doing}. Its training diverged (lower learning_rate, or "
            f"take an earlier checkpoint), its weights are damaged, or float16 overflows (use bf16 or float32)."
        )
