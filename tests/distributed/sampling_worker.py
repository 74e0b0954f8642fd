"""One of two processes that sample together; started by `test_synced_sampling.py`, writes JSON.

One rank's law knows nothing but the separator, so that its warmups end at once; the other's forbids it up to the limit.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from rl_warmup.engine import enable_scoring, read_prompts
from rl_warmup.engine.fast.decoding import decoding_for
from rl_warmup.engine.fast.sampling import sample, score_targets_from_cache
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import make_layout
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens

PROMPTS, TARGETS, N, LIMIT = [[6, 7, 8], [9]], [[7, 8, 1], [9, 1]], 3, 5


def draw_both(kind: str, constraints: SamplingConstraints) -> dict:
    """Synced and not, from the same seed: warmups, target log-probabilities and the number of decoding steps."""
    size = {"width": 16, "layers": 2, "heads": 2, "tokenizer": "words"}
    model, tokenizer = load_model(kind, lambda: ["a b c d e f g h"] * 3, size, 0)
    tokens = declare_tokens(model.eval(), tokenizer)
    enable_scoring(model)
    banned = torch.ones(model.config.vocab_size, dtype=torch.bool)
    banned[tokens.separator_id] = False
    if constraints.min_length:
        banned[6:] = False
    constraints = replace(constraints, separator_id=tokens.separator_id, banned=banned)
    layout = make_layout(model, tokens)
    out = {}
    for synced in (True, False):
        torch.manual_seed(3)
        with torch.no_grad():
            decoding = decoding_for(model, 20)(model, read_prompts(model, layout, PROMPTS), N, constraints.max_length)
        steps, following = [], decoding.next

        def counted(given, rows, step, steps=steps, following=following):
            steps.append(len(rows))
            return following(given, rows, step)

        decoding.next = counted
        warmups = sample(decoding, model._warmup_head, constraints, len(PROMPTS), N, synced=synced)
        ahead = score_targets_from_cache(
            decoding, model._warmup_head, constraints.separator_id, warmups, TARGETS, N, synced=synced
        )
        out["synced" if synced else "alone"] = {"warmups": warmups, "ahead": ahead, "steps": steps}
    return out


def main() -> None:
    """Laws by rank; the same laws swapped, so that either process is the one that waits."""
    torch.set_num_threads(1)
    rank, meeting_place = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=2)
    results = {}
    for kind in ("scratch-t5", "scratch-llama"):
        for slow in (0, 1):
            constraints = SamplingConstraints(
                0, torch.empty(0), min_length=LIMIT if rank == slow else 0, max_length=LIMIT
            )
            results[f"{kind} slow={slow}"] = draw_both(kind, constraints)
    json.dump(results, sys.stdout)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
