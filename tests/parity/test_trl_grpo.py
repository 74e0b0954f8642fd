"""TRL's GRPOTrainer as an oracle: the same completions get the same advantages and the same log-probabilities."""

from __future__ import annotations

import pytest
import torch

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.engine import enable_scoring, score
from rl_warmup.method.objectives import RULES, ObjectiveSettings
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts.splice import splice


@pytest.fixture
def grpo(new_lab, tmp_path):
    """A GRPOTrainer over a tiny Llama, whose reward is the number of distinct tokens."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def distinct(completion_ids, **kwargs):
        return [float(len(set(ids))) for ids in completion_ids]

    lab = new_lab("scratch-llama")
    args = GRPOConfig(
        output_dir=str(tmp_path), num_generations=4, per_device_train_batch_size=8, max_completion_length=5, beta=0.0,
        temperature=0.7, top_k=0, use_cpu=True, report_to="none", disable_tqdm=True, bf16=False,
    )  # fmt: skip
    rows = [{"prompt": "a b c"}, {"prompt": "d e"}]
    trainer = GRPOTrainer(
        model=lab.model,
        reward_funcs=distinct,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=lab.tokenizer,
    )
    return lab, trainer, [row for row in rows for _ in range(4)]


def test_grpo_weights_are_trls_advantages(grpo):
    _, trainer, rows = grpo
    out = trainer._generate_and_score_completions(rows)
    lengths = out["completion_mask"].sum(1).tolist()
    ids = [row[:length] for row, length in zip(out["completion_ids"].tolist(), lengths, strict=True)]
    rewards = torch.tensor([float(len(set(row))) for row in ids]).view(2, 4)
    policy, target = RULES["grpo"](rewards, torch.zeros(2, 4), ObjectiveSettings())
    torch.testing.assert_close(policy.flatten() * 4, out["advantages"], atol=1e-5, rtol=1e-5)
    assert target.sum(1).tolist() == [1.0, 1.0]


def test_log_probabilities_are_trls(grpo):
    lab, trainer, rows = grpo
    out = trainer._generate_and_score_completions(rows)
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
    width = out["completion_ids"].size(1)
    theirs, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)
    enable_scoring(trainer.model)
    prompts, planned = [], []
    for i in range(len(ids)):
        prompt = out["prompt_ids"][i][out["prompt_mask"][i].bool()].tolist()
        completion = out["completion_ids"][i][out["completion_mask"][i].bool()].tolist()
        prompts.append({"prompt_ids": prompt, "target_ids": [lab.tokens.eos_id]})
        planned.append((i, RowKind.GROUP, Warmup(completion, "length")))
    constraints = SamplingConstraints(lab.tokens.separator_id, torch.zeros_like(lab.tokens.banned), temperature=0.7)
    with torch.no_grad():
        ours = score(trainer.model, splice(lab.layout, prompts, planned, 1), constraints)
    torch.testing.assert_close(ours.warmup_logprob, (theirs * out["completion_mask"]).sum(1), atol=1e-4, rtol=1e-4)
