"""A proposal q(c|x,y) that is learned beside the policy, as a user meets it: what is logged, and what q comes to write."""

from __future__ import annotations

import math

import pytest
import torch

from .conftest import ledger_rows
from .test_training import KINDS, weights


@pytest.mark.parametrize("kind", KINDS)
def test_an_amortised_proposal_is_trained_beside_the_policy(make_trainer, kind):
    """What is logged is what the last update's rows say; evaluation is the policy's own, and knows nothing of q."""
    settings = {"max_steps": 3, "num_warmups": 4, "empty_share": 0.0, "eval_dataset": ledger_rows(8, seed=3)}
    trainer = make_trainer(kind, amortised_warmups=1, eval_strategy="steps", eval_steps=3, **settings)
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(before[name], after) for name, after in weights(trainer).items())
    batch, scores, given = trainer.last
    assert (batch.group_size, len(batch.prompt_ids), len(batch.warmups)) == (4, 16, 64)
    policy, q = scores.warmup_logprob.view(2, 8, 4).double()
    reward = scores.target_logprob[:32].view(8, 4).double()
    posterior = (reward + policy - (0.75 * policy.exp() + 0.25 * q.exp()).log()).softmax(1)
    torch.testing.assert_close(given.posterior.double(), posterior, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(given.policy[32:].view(8, 4), given.posterior)  # what q learns
    log, evaluated = trainer.state.log_history[-3], trainer.state.log_history[-2]
    assert log["amortised/logprob"] == pytest.approx(q.mean().item(), rel=1e-5)
    assert log["amortised/share"] == pytest.approx(posterior[:, 3].mean().item(), rel=1e-4)
    assert log["target_logprob"] == pytest.approx(reward[:, :3].mean().item(), rel=1e-5)
    bound = (reward + policy - (0.75 * policy.exp() + 0.25 * q.exp()).log()).logsumexp(1) - math.log(4)
    assert log["target_bound"] == pytest.approx(bound.mean().item(), rel=1e-5)
    assert log["ess"] == pytest.approx((1 / posterior.square().sum(1)).mean().item(), rel=1e-4)
    assert "eval_target_bound" in evaluated
    assert not [name for name in evaluated if "amortised" in name]


@pytest.mark.parametrize("kind", KINDS)
def test_an_amortised_proposal_learns_what_the_reward_prefers(make_trainer, kind):
    """A reward for one word that differs from row to row and stands in the target alone: q writes it, the policy cannot."""
    rows = [{"prompt": "a+0 b+0 c+0", "target": f"c={i % 3} b=0 a=0"} for i in range(24)]

    def names_it(completions, target, **kwargs):
        return [4.0 * (wanted.split()[0] in text.split()) for text, wanted in zip(completions, target, strict=True)]

    trainer = make_trainer(
        kind, rows=rows, reward_funcs=["target_logprob", names_it], num_warmups=4, amortised_warmups=2, max_steps=150,
        max_warmup_length=1, learning_rate=1e-2, logging_steps=50, empty_share=0.0,
    )  # fmt: skip
    trainer.train()
    batch, scores, _ = trainer.last
    policy, q = scores.warmup_logprob.view(2, -1).exp()
    named = torch.tensor([w.ids == [batch.prompts[i // 4]["target_ids"][0]] for i, w in enumerate(batch.warmups[:32])])
    assert named.view(8, 4)[:, 2:].float().mean() > 0.6
    assert named.view(8, 4)[:, :2].float().mean() < 0.6
    assert q[named].mean() > 1.5 * policy[named].mean()
