"""The posterior weights of a group of which some warmups were drawn by an amortised proposal q(c|x,y), which sees the target.

Knows: the rewards of a group, log P(c|x) and log q(c|x,y) of all its warmups, without gradient. Must not know: models, who drew
what, or that both are one network. Source: reweighted wake-sleep (Bornschein & Bengio 2015, arXiv 1406.2751) with the density
of the whole mixture under every draw (the balance heuristic of Veach & Guibas 1995).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl_warmup.batch import RowKind, WarmupBatch
from rl_warmup.objectives.weights import Knobs


def log_ratios(batch: WarmupBatch, warmup_logprobs: Tensor) -> Tensor:
    """log P(c|x) - log m(c) of every group row, in nats: (B, G); 0 where no warmup was drawn by q.

    m = ((G - k) P + k q) / G is the density from which the group as a whole was drawn, k of G warmups by q. A warmup counts
    under m whoever drew it, so the ratio never exceeds log(G / (G - k)): q cannot blow a weight up by overlooking a warmup.

    Args:
        warmup_logprobs: (N,) of all rows of the batch; without draws by q the first B*G are enough.
    """
    size, drawn = batch.group_size, batch.amortised
    policy = warmup_logprobs.detach()[: batch.num_prompts * size].view(batch.num_prompts, size)
    if not drawn:
        return torch.zeros_like(policy)
    proposal = warmup_logprobs.detach()[batch.row_kind == RowKind.AMORTISED].view_as(policy)
    own = policy + math.log((size - drawn) / size)
    return policy - torch.logaddexp(own, proposal + math.log(drawn / size))


def marginal_under_mixture(rewards: Tensor, ratios: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor, Tensor]:
    """`weights.marginal` for draws from m: the posterior w = softmax(R/τ + log P - log m), a = w - v, b = λ v + (1-λ) w.

    v = softmax(log P - log m) is the same group without its rewards, the prior over it. The control variate 1/n of the
    on-policy rule rests on Σ_c P(c) ∇log P(c) = 0; of draws from m that is the mean of (P/m) ∇log P, so every warmup's share
    of it is its ratio, and a draw of q's that the policy would hardly make is not pushed down for having been drawn. Divided
    by the ratios' sum it is off by as much as w is (1/n), and rewards that are all alike give a = 0 exactly. Where q equals P
    all ratios are 0 and this is `weights.marginal`.

    Args:
        rewards: (B, G) R.
        ratios: (B, G) of `log_ratios`.

    Returns:
        w, a, b, all (B, G).
    """
    w, v = (rewards / knobs.tau + ratios).softmax(1), ratios.softmax(1)
    share = knobs.uniform_target_share
    return w, w - v, share * v + (1 - share) * w
