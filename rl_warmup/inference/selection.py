"""Choosing one of several predictions of a prompt: by mixture likelihood, by expected utility, or by vote.

Knows: texts, a matrix of log-probabilities. Must not know: models. Ties go to the candidate that was written first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from rl_warmup.method.objectives import log_mean_exp
from rl_warmup.metrics import compute
from rl_warmup.metrics.choices import pick

Utility = Callable[[str, str], float]  # (a candidate, another one in the reference's place) -> higher is better
UTILITIES = {"chrf": "chrf++", "rouge": "rougeL"}
SELECTIONS = ("marginal", "mbr", "vote")


def utility_of(given: str | Utility) -> Utility:
    """The function of a name in `UTILITIES`, or a function unchanged.

    Raises:
        ValueError: no such name.
        ImportError: the metric's library is missing.
    """
    if not isinstance(given, str):
        return given
    if given not in UTILITIES:
        raise ValueError(f"utility: {given!r} is none of {', '.join(UTILITIES)}, and no function of two texts.")
    metric = UTILITIES[given]
    return lambda text, other: compute([metric], [text], [other])[metric]


def mixture(logprobs: Tensor) -> list[float]:
    """(candidates, warmups) log P(y|x,c) in nats -> log mean_c P(y|x,c) of every candidate, an estimate of log P(y|x)."""
    return log_mean_exp(logprobs).tolist()


def expected_utility(texts: Sequence[str], utility: Utility) -> list[float]:
    """The mean utility of each text against all of them, itself too: minimum Bayes risk (Kumar and Byrne 2004)."""
    counts = Counter(texts)
    of = {text: sum(n * utility(text, other) for other, n in counts.items()) / len(texts) for text in counts}
    return [of[text] for text in texts]


def votes(texts: Sequence[str], choices: Sequence[str] | None = None) -> list[float]:
    """The share of texts that say the same; with `choices`, that pick the same one (a text that picks none has no votes)."""
    said: list[Any] = [pick(text, choices) if choices else " ".join(text.split()) for text in texts]
    counts = Counter(vote for vote in said if vote is not None)
    return [counts[vote] / len(texts) for vote in said]
