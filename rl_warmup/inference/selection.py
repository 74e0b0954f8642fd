"""Choosing one of several predictions of a prompt: by mixture likelihood, by expected utility, or by vote.

Knows: texts, a matrix of log-probabilities. Must not know: models. Ties go to the candidate that was written first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor

from rl_warmup.method.objectives import log_mean_exp
from rl_warmup.metrics import compute
from rl_warmup.metrics.choices import pick

Utility = Callable[[str, str], float]  # (a candidate, another one in the reference's place) -> higher is better
UTILITIES = {"chrf": "chrf++", "rouge": "rougeL"}
SELECTIONS = ("marginal", "mbr", "vote")


def utility_of(given: str | Utility) -> Utility:
    """The function of a name in `UTILITIES`, or an own function that has to give numbers.

    Raises:
        ValueError: no such name, and no function.
        ImportError: the metric's library is missing.
    """
    if callable(given):
        return partial(_judged, given)
    if not isinstance(given, str) or given not in UTILITIES:
        raise ValueError(f"utility: {given!r:.80} is none of {', '.join(UTILITIES)}, and no function of two texts.")
    metric = UTILITIES[given]
    return lambda text, other: compute([metric], [text], [other])[metric]


def _judged(utility: Utility, text: str, other: str) -> float:
    """What an own function says of two texts. Raises ValueError: it fails, or says no number."""
    try:
        found = utility(text, other)
    except Exception as error:
        raise ValueError(f"utility: {utility!r:.80} failed for two texts ({type(error).__name__}: {error}).") from error
    if not isinstance(found, Real) or found != found:
        raise ValueError(f"utility: {utility!r:.80} returned {found!r:.80} for two texts. Return a number.")
    return float(found)


def mixture(logprobs: Tensor) -> list[float]:
    """(candidates, warmups) log P(y|x,c) in nats -> log mean_c P(y|x,c) of every candidate, an estimate of log P(y|x)."""
    return log_mean_exp(logprobs).tolist()


def expected_utility(texts: Sequence[str], utility: Utility) -> list[float]:
    """The mean utility of each text against all of them, itself too: minimum Bayes risk (Kumar and Byrne 2004)."""
    counts = Counter(texts)
    of = {text: sum(n * utility(text, other) for other, n in counts.items()) / len(texts) for text in counts}
    return [of[text] for text in texts]


def votes(texts: Sequence[str], choices: Sequence[str] | None = None) -> list[float]:
    """The share of texts that say the same; with `choices`, that pick the same one (a text that picks none has no votes).

    If no text picks one, as where a column happens to have this name, the texts themselves are counted.
    """
    if choices is not None and not (isinstance(choices, list | tuple) and all(isinstance(one, str) for one in choices)):
        raise ValueError(
            f"choices: {choices!r:.80} of a row is no list of texts. Give the choices, or another name to the column."
        )
    said: list[Any] = [pick(text, choices) for text in texts] if choices else []
    if all(vote is None for vote in said):
        said = [" ".join(text.split()) for text in texts]
    counts = Counter(vote for vote in said if vote is not None)
    return [counts[vote] / len(texts) for vote in said]
