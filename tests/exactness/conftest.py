"""A space of six warmups: every one can be scored, every group of them enumerated, every expectation written out.

The constraints allow the words a and b, one or two of them: {a, b} ended by the separator, {aa, ab, ba, bb} by the limit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_warmup.batch import Scores, Warmup
from rl_warmup.method.objectives import RULES, ObjectiveSettings
from rl_warmup.models.constraints import SamplingConstraints


@dataclass
class Space:
    """One prompt, one target, every warmup, and what the network says about them."""

    lab: Any
    constraints: SamplingConstraints
    row: dict[str, Any]
    warmups: list[Warmup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.warmups = self.lab.all_warmups(self.constraints)

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.lab.model.parameters())

    @cached_property
    def scores(self) -> Scores:
        """Of every warmup, in one forward, with gradient."""
        return self.lab.score(self.row, self.warmups, self.constraints)

    @cached_property
    def prior(self) -> Tensor:
        """P(c|x) of every warmup, float64."""
        return self.scores.warmup_logprob.detach().double().exp()

    @cached_property
    def rewards(self) -> Tensor:
        """l = log P(y|x,c) of every warmup, float64."""
        return self.scores.target_logprob.detach().double()

    def gradient(self, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """∇ formula(log P(c|x), log P(y|x,c)) on every parameter of the network, by autograd, as one long vector."""
        value = formula(self.scores.warmup_logprob.double(), self.scores.target_logprob.double())
        return flat(torch.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True), self.parameters)

    def estimate(self, coefficients: tuple[Tensor, Tensor]) -> Tensor:
        """Σ_c A_c ∇log P(c|x) + B_c ∇log P(y|x,c)."""
        a, b = coefficients
        return self.gradient(lambda warmup, target: (a * warmup + b * target).sum())

    def expectation(self, rule: str, n: int, **settings: float) -> tuple[Tensor, Tensor]:
        """E over groups of n samples: how much of ∇log P(c|x) and of ∇log P(y|x,c) a rule takes of every warmup."""
        groups, probability = count_vectors(self.prior, n)
        prior = self.scores.warmup_logprob.detach().double()
        a, b = RULES[rule](self.rewards[groups], prior[groups], ObjectiveSettings(**settings))
        totals = []
        for weights in (a, b):
            total = torch.zeros_like(self.prior)
            totals.append(total.index_add(0, groups.flatten(), (weights * probability[:, None]).flatten()))
        return totals[0], totals[1]


def count_vectors(prior: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """All groups of n warmups up to their order, (M, n), and the probability of drawing each, (M,)."""
    groups = list(combinations_with_replacement(range(len(prior)), n))
    orders = [math.factorial(n) / math.prod(map(math.factorial, Counter(group).values())) for group in groups]
    index = torch.tensor(groups)
    return index, torch.tensor(orders).double() * prior[index].prod(1)


def flat(gradients: tuple[Tensor | None, ...], parameters: list[Tensor]) -> Tensor:
    """Gradients as one float64 vector, zeros where there is none."""
    pieces = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([piece.flatten() for piece in pieces]).double()


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """Relative error of a vector: |given - exact| / |exact|."""
    return lambda given, exact: ((given - exact).norm() / exact.norm()).item()


@pytest.fixture(scope="session")
def flatten() -> Callable[..., Tensor]:
    return flat


@pytest.fixture(scope="session")
def spaces(t5: Any, llama: Any) -> dict[str, Space]:
    settings = {"min_length": 1, "max_length": 2, "temperature": 1.3}
    return {
        name: Space(lab, lab.constraints("a b", **settings), lab.row("c d", "e f"))
        for name, lab in {"t5": t5, "llama": llama}.items()
    }


@pytest.fixture(params=["t5", "llama"])
def space(request: pytest.FixtureRequest, spaces: dict[str, Space]) -> Space:
    """Both layouts, one after the other."""
    return spaces[request.param]
