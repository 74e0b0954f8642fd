"""Training steps written with stock transformers calls: SFT (the reference of every ratio), the naive warmup loop, and
the schedule of LaTRO.

Knows: `model(...)` and `model.generate`. Must not know: rl_warmup. Every maker returns a function that does one whole
optimizer step on the workload's batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from benchmarks.shapes import MAX_WARMUP
from benchmarks.workloads import PAD_ID, SEPARATOR_ID, Workload

Step = Callable[[], Any]
KL_WEIGHT = 0.05  # of LaTRO; its value costs nothing


def adamw(model: Any) -> torch.optim.Optimizer:
    """The optimizer of every variant. Its rate is 0: it costs the same, and every repeat meets the same weights."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)


def update(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Clip, step and forget the gradients."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def pad(rows: list[list[int]], device: Any, left: bool = False, value: int = PAD_ID) -> tuple[Tensor, Tensor]:
    """Lists of ids -> (rows, longest) ids and mask."""
    width = max(map(len, rows))
    gaps = [[value] * (width - len(row)) for row in rows]
    ids = [gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [[0] * len(gap) + [1] * len(row) if left else [1] * len(row) + [0] * len(gap)
            for row, gap in zip(rows, gaps, strict=True)]  # fmt: skip
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def sft(workload: Workload, model: Any, optimizer: torch.optim.Optimizer) -> Step:
    """Supervised fine-tuning the plain way: padded rows, labels, the model's own loss; no warmup."""

    def step() -> None:
        if model.config.is_encoder_decoder:
            ids, mask = pad(workload.prompts, workload.device)
            labels, _ = pad(workload.targets, workload.device, value=-100)
        else:
            pairs = list(zip(workload.prompts, workload.targets, strict=True))
            ids, mask = pad([x + y for x, y in pairs], workload.device)
            labels, _ = pad([[-100] * len(x) + y for x, y in pairs], workload.device, value=-100)
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        update(model, optimizer)

    return step


def naive(workload: Workload, model: Any, optimizer: torch.optim.Optimizer, n: int) -> Step:
    """The warmup loop one writes first: `generate`, x repeated n times, padded rows, log_softmax at every position."""

    def step() -> None:
        warmups = sample(workload, model, n)
        of_warmup, of_target = logprobs(workload, model, warmups)
        weight = of_target.detach().view(-1, n).softmax(1).flatten()
        loss = -((weight - 1 / n) * of_warmup + weight * of_target).sum() / sum(map(len, workload.targets))
        loss.backward()
        update(model, optimizer)

    return step


def latro(workload: Workload, model: Any, reference: Any, optimizer: torch.optim.Optimizer, n: int) -> Step:
    """LaTRO's schedule (arXiv 2411.04282), re-created from its description; it is not LaTRO's code.

    What is assumed: per prompt `generate` samples n rationales c; the policy, then a frozen reference model, score the
    padded rows `x c y` without gradient, for log P(c|x) and the KL term of the reward; a third pass without gradient over
    the same rows gives the reward log P(y|x,c); advantages are rewards minus the group's mean. Two passes with gradient
    follow: over rows `x c` for the policy-gradient term, over rows `x c y` for the likelihood of y. Prompts are repeated
    and every pass forms log_softmax at every position. One optimizer step per batch of prompts.
    """

    def step() -> None:
        warmups = sample(workload, model, n)
        with torch.no_grad():
            policy, _ = logprobs(workload, model, warmups)
            prior, _ = logprobs(workload, reference, warmups)
            _, likelihood = logprobs(workload, model, warmups)
        reward = (likelihood - KL_WEIGHT * (policy - prior)).view(-1, n)
        advantage = (reward - reward.mean(1, keepdim=True)).flatten()
        of_warmup, _ = logprobs(workload, model, warmups, with_target=False)
        (-(advantage * of_warmup).mean()).backward()
        _, of_target = logprobs(workload, model, warmups)
        (-of_target.mean()).backward()
        update(model, optimizer)

    return step


@torch.no_grad()
def sample(workload: Workload, model: Any, n: int) -> list[list[int]]:
    """B * n warmups by `generate`, prompt by prompt, each with its separator where it was written."""
    encoder_decoder = model.config.is_encoder_decoder
    ids, mask = pad(workload.prompts, workload.device, left=not encoder_decoder)
    config = GenerationConfig(
        do_sample=True, top_k=0, num_return_sequences=n, max_new_tokens=MAX_WARMUP, min_new_tokens=1,
        eos_token_id=SEPARATOR_ID, pad_token_id=PAD_ID, decoder_start_token_id=model.config.decoder_start_token_id
        if encoder_decoder else None,
    )  # fmt: skip
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    written = out[:, 1 if encoder_decoder else ids.size(1) :].tolist()
    return [row[: row.index(SEPARATOR_ID) + 1] if SEPARATOR_ID in row else row for row in written]


def logprobs(
    workload: Workload, model: Any, warmups: list[list[int]], with_target: bool = True
) -> tuple[Tensor, Tensor]:
    """(R,) log P(c|x) and (R,) log P(y|x,c) of R = B * n padded rows, from log_softmax at every position."""
    n = len(warmups) // len(workload.prompts)
    prompts = [x for x in workload.prompts for _ in range(n)]
    targets = [y if with_target else [] for y in workload.targets for _ in range(n)]
    return row_logprobs(model, prompts, warmups, targets, workload.device)


def row_logprobs(
    model: Any, prompts: list[list[int]], warmups: list[list[int]], targets: list[list[int]], device: Any
) -> tuple[Tensor, Tensor]:
    """The same for R prompts, warmups (with their separator where they wrote it) and targets."""
    forced = [[] if c and c[-1] == SEPARATOR_ID else [SEPARATOR_ID] for c in warmups]
    tails = [c + sep + y for c, sep, y in zip(warmups, forced, targets, strict=True)]
    seq2seq = model.config.is_encoder_decoder
    heads: list[list[int]] = [[] for _ in prompts] if seq2seq else prompts
    ids, mask = pad([x + tail for x, tail in zip(heads, tails, strict=True)], device)
    kinds = [[0] * len(x) + [1] * len(c) + [0] * len(sep) + [2] * len(y)
             for x, c, sep, y in zip(heads, warmups, forced, targets, strict=True)]  # fmt: skip
    kind, _ = pad(kinds, device, value=0)
    if seq2seq:
        prompt_ids, prompt_mask = pad(prompts, device)
        start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
        shifted = torch.cat([start, ids[:, :-1]], 1)
        logits = model(input_ids=prompt_ids, attention_mask=prompt_mask, decoder_input_ids=shifted).logits
    else:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        ids, kind = ids[:, 1:], kind[:, 1:]
    logps = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return (logps * (kind == 1)).sum(1), (logps * (kind == 2)).sum(1)
