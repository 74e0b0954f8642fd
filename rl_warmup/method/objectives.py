"""Every objective is a pair of weights per warmup: the gradient of a group is Σ_i [a_i ∇log P(c_i|x) + b_i ∇log P(y|x,c_i)].

Knows: the rewards of a group and log P(c|x), both without gradient. Must not know: models, text, the optimizer.
A rule takes (B, G) tensors and returns (a, b), both (B, G). R_i is the score of warmup i in nats: log P(y|x,c_i) plus
whatever reward plugins add. Everything stays in log space, as a target of 80 tokens has probability e^-150.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_warmup.plugins import build_plugin, contained, find_plugin

GRPO_EPS = 1e-4  # as in TRL's GRPOTrainer


@dataclass(frozen=True)
class ObjectiveSettings:
    """Numbers that some rules use. tau > 0; uniform_target_share and tsallis_q in [0, 1]."""

    tau: float = 1.0
    uniform_target_share: float = 0.0
    tsallis_q: float = 0.5


Weights = tuple[Tensor, Tensor]
Rule = Callable[[Tensor, Tensor, ObjectiveSettings], Weights]
RULES: dict[str, Rule] = {}  # `sft` has no group, hence no rule: its single empty warmup has a = 0, b = 1
NEEDS_TWO: set[str] = set()
READS: dict[str, tuple[str, ...]] = {}


def objective(needs_two: bool = False, reads: tuple[str, ...] = ()) -> Callable[[Rule], Rule]:
    """Make a rule an objective of its name. `options` reads these names from this file's text.

    Args:
        needs_two: it compares the warmups of a group, so that a single one has no gradient.
        reads: which of `ObjectiveSettings`.
    """

    def register(rule: Rule) -> Rule:
        RULES[rule.__name__], READS[rule.__name__] = rule, reads
        if needs_two:
            NEEDS_TWO.add(rule.__name__)
        return rule

    return register


def posterior(rewards: Tensor, tau: float = 1.0) -> Tensor:
    """p_i = softmax_i(R_i / τ) over the group. (B, G) -> (B, G)."""
    return (rewards / tau).softmax(1)


def effective_sample_size(p: Tensor) -> Tensor:
    """1 / Σ p_i², between 1 (one warmup has all the weight) and G (all equal). (B, G) -> (B,); 0 without groups."""
    return 1 / p.square().sum(1) if p.size(1) else p.new_zeros(p.size(0))


def log_mean_exp(rewards: Tensor) -> Tensor:
    """logsumexp_i(R_i) - log G: the n-sample bound on log P(y|x) when R is log P(y|x,c). (B, G) -> (B,)."""
    return rewards.logsumexp(1) - math.log(rewards.size(1))


def resample(a: Tensor, b: Tensor, k: int, uniforms: Tensor) -> Tensor:
    """Draw k warmups of every group; returns factors for their weights under which the expected gradient is the whole group's.

    Warmup i is drawn with probability q_i = (|a_i| + |b_i|) / Σ_j (|a_j| + |b_j|), k times by systematic resampling (points
    (u + 0..k-1)/k on the cumulated probabilities), which repeats warmups less often than independent draws. If it is drawn N_i
    times, its factor is m_i = N_i / (k q_i), whose expectation is 1: Σ_i m_i (a_i ∇log P(c_i|x) + b_i ∇log P(y|x,c_i)) is
    unbiased given the group, for every objective. With a = b = p, the posterior, these are draws from the posterior. Products
    m_i (|a_i| + |b_i|) are bounded, as they equal N_i/k Σ_j (|a_j| + |b_j|).

    Args:
        a, b: (B, G) weights of an objective.
        uniforms: (B,) in [0, 1), one per prompt.

    Returns:
        (B, G) factors m, 0 for warmups that were not drawn.
    """
    size = (a.abs() + b.abs()).double().clamp(min=1e-30)
    shares = size / size.sum(1, keepdim=True)
    ends = shares.cumsum(1)
    points = (uniforms.double()[:, None] + torch.arange(k, device=a.device)) / k
    drawn = torch.searchsorted(ends, points * ends[:, -1:], right=True).clamp(max=a.size(1) - 1)
    times = torch.zeros_like(shares).scatter_add_(1, drawn, torch.ones_like(points))
    return (times / (k * shares)).to(a.dtype)


def _log_mean_exp_of_others(rewards: Tensor) -> Tensor:
    n = rewards.size(1)
    own = torch.eye(n, dtype=torch.bool, device=rewards.device)
    others = rewards[:, None, :].expand(-1, n, -1).masked_fill(own, -math.inf)  # (B, G, G): row i without member i
    return others.logsumexp(2) - math.log(n - 1)


@objective(reads=("tau", "uniform_target_share"))
def marginal(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """Ascends log P(y|x) with the self-normalised posterior: a = p - 1/n, b = λ/n + (1-λ) p.

    Source: reweighted wake-sleep (Bornschein & Bengio 2015) with the constant control variate 1/n, whose expectation
    is 0 because Σ_c ∇P(c|x) = 0; the marginal likelihood of arXiv 2502.12304. Biased for finite n, exact as n grows.
    Degenerate: n = 1 gives a = 0, so the policy gets no gradient.
    """
    n = rewards.size(1)
    p = posterior(rewards, settings.tau)
    share = settings.uniform_target_share
    return p - 1 / n, share / n + (1 - share) * p


@objective(needs_two=True)
def marginal_loo(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """Ascends E[log mean_i e^{R_i}] exactly: a = L - L_without_i, b = p at τ = 1.

    Source: IWAE (arXiv 1509.00519) with VIMCO's leave-one-out baseline (arXiv 1602.06725); JEPO with n samples.
    Unbiased for the n-sample bound. Degenerate: needs n >= 2.
    """
    return log_mean_exp(rewards)[:, None] - _log_mean_exp_of_others(rewards), posterior(rewards)


@objective()
def joint(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """Ascends log Σ_i P(c_i|x) e^{R_i} over the samples as if they were the whole space: a = b = softmax(R + log P(c|x)).

    Source: another interpretation of arXiv 2502.12304's loss, for comparison. It counts the prior twice and does not approach
    ∇log P(y|x).
    """
    q = (rewards + warmup_logprobs).softmax(1)
    return q, q


@objective(needs_two=True)
def expected_logprob(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """Ascends E_c[R]: a = (R_i - mean of the others)/n, b = 1/n.

    Source: LaTRO (arXiv 2411.04282), JEPO with one sample. Unbiased: the others are independent of c_i. Needs n >= 2.
    """
    n = rewards.size(1)
    mean_of_others = (rewards.sum(1, keepdim=True) - rewards) / (n - 1)
    return (rewards - mean_of_others) / n, torch.full_like(rewards, 1 / n)


@objective(needs_two=True)
def expected_prob(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """Ascends E_c[e^R]: a = (e^{R_i} - mean of the others)/n, b = e^{R_i}/n.

    Source: VeriFree (arXiv 2505.21493). Unbiased, but its weights approach 0 for long targets, while those of empty warmups
    and anchors stay near 1 and would dominate: set `empty_share` and `anchor_weight` to 0. Needs n >= 2.
    """
    return tsallis(rewards, warmup_logprobs, ObjectiveSettings(tsallis_q=0.0))


@objective(needs_two=True, reads=("tsallis_q",))
def tsallis(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """From expected_prob (q = 0) to the marginal (q = 1): both weights of expected_prob times P̂^{-q}, P̂ = mean_i e^{R_i}.

    Source: GARL (arXiv 2604.25907). Approaches ∇ P(y|x)^{1-q}/(1-q) as n grows. Needs n >= 2.
    """
    n = rewards.size(1)
    scale = settings.tsallis_q * log_mean_exp(rewards)[:, None]
    own = (rewards - scale).exp()
    return (own - (_log_mean_exp_of_others(rewards) - scale).exp()) / n, own / n


@objective(needs_two=True)
def grpo(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """The group-standardised score as advantage: a = (R_i - mean)/(std + eps)/n, b = 1/n.

    Source: GRPO (arXiv 2402.03300) with this reward; std with n-1 as in TRL. Degenerate: equal rewards give a = 0;
    needs n >= 2.
    """
    n = rewards.size(1)
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + GRPO_EPS) / n, torch.full_like(rewards, 1 / n)


def load_objective(name: str) -> Rule:
    """The rule of that name: one of RULES, or a plugin, whose weights are checked at every call.

    Raises ValueError: there is none; a plugin fails or returns something else than two finite (B, G) tensors.
    """
    found, short = find_plugin("objective", name, RULES)
    if name in RULES:
        return found
    rule = build_plugin("objective", name, found)

    def checked(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
        try:
            with contained():
                weights = rule(rewards, warmup_logprobs, settings)
        except Exception as error:
            raise ValueError(f"Objective {short!r} failed with {type(error).__name__}: {error}") from error
        wanted = f"return two finite tensors (a, b) of the shape {tuple(rewards.shape)}: prompts by warmups"
        if not isinstance(weights, (tuple, list)) or len(weights) != 2:
            raise ValueError(f"Objective {short!r} returned {type(weights).__name__}; {wanted}.")
        for letter, tensor in zip("ab", weights, strict=True):
            if not isinstance(tensor, Tensor) or tensor.shape != rewards.shape:
                found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(f"Objective {short!r} returned {found} for {letter}; {wanted}.")
            if not tensor.isfinite().all():
                raise ValueError(f"Objective {short!r} returned a weight {letter} that is no finite number; {wanted}.")
        a, b = (tensor.detach().to(rewards.dtype) for tensor in weights)
        return a, b

    return checked
