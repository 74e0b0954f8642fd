"""The reward of the method: log P(y|x,c), the target's likelihood after a warmup.

Knows: log-probabilities of the rows, how to score the rows with another network. Must not know: objectives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rl_warmup.batch import WarmupBatch
from rl_warmup.engine import enable_scoring, score
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout
from rl_warmup.models.pretrained import load_weights
from rl_warmup.runtime.sharing import whole_on_every_process

DTYPES = ("float32", "bfloat16")


class TargetLogProb:
    """log P(y|x,c) in nats, summed over the target's tokens.

    By default *tied*: policy and generator are one network, so the number is already computed. With
    `model_name_or_path` a second, frozen generator scores the rows; every process holds it whole. Weights come from
    safetensors only, and no code of a checkpoint is run.

    Args:
        model_name_or_path: a folder or a name on the hub; of the policy's architecture and with its vocabulary.
        dtype: of the frozen weights. Head and sum are always float32; rounding in bfloat16 adds to the variance within a group.
    """

    def __init__(self, model_name_or_path: str | None = None, dtype: str = "float32") -> None:
        if model_name_or_path is not None and (not isinstance(model_name_or_path, str) or not model_name_or_path):
            raise ValueError(f"model_name_or_path is {model_name_or_path!r}; give a folder or a name, or leave it out.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
        self.model_name_or_path, self.dtype = model_name_or_path, dtype
        self.tied = model_name_or_path is None  # the policy itself is the generator
        self.model: Any = None

    def prepare(
        self, tokenizer: Any, layout: Layout, constraints: SamplingConstraints, device: torch.device | str
    ) -> None:
        """Load the frozen generator. Raises ValueError if it does not fit the policy."""
        if self.model_name_or_path is None:
            return
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        path = self.model_name_or_path
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except Exception as error:
            raise ValueError(f"No model configuration can be read from {path!r} ({error}). Check the name.") from error
        own, other = ("encoder-decoder", "decoder-only")[:: 1 if layout.encoder_decoder else -1]
        if bool(config.is_encoder_decoder) != layout.encoder_decoder:
            raise ValueError(
                f"The generator {path!r} is {other}, the policy is {own}. Give a generator of the policy's kind."
            )
        auto = AutoModelForSeq2SeqLM if layout.encoder_decoder else AutoModelForCausalLM
        try:
            with whole_on_every_process():
                model = load_weights(auto, path, config=config, dtype=getattr(torch, self.dtype), use_safetensors=True)
        except Exception as error:
            raise ValueError(f"The weights of {path!r} cannot be loaded as safetensors ({error}).") from error
        rows: Any = model.get_input_embeddings().num_embeddings
        _check_vocabulary(path, rows, tokenizer, len(constraints.banned))
        self.model = model.requires_grad_(False).eval().to(device)
        enable_scoring(self.model)

    def __call__(self, target_logps: list[float], batch: WarmupBatch) -> list[float]:
        if self.tied:
            return target_logps
        if self.model is None:
            raise RuntimeError("The frozen generator is not loaded yet: call prepare() first, as RewardSet.load does.")
        return self.logprob(batch).tolist()

    @torch.no_grad()
    def logprob(self, batch: WarmupBatch) -> torch.Tensor:
        """(N,) float32 log P(y|x,c) of all rows of a batch under the frozen generator, nats."""
        # without actions score() does not compute P(c|x), and ignores the sampling constraints
        targets = replace(batch, warmup_mask=torch.zeros_like(batch.warmup_mask)).to(self.model.device)
        vocab_size = self.model.get_output_embeddings().out_features
        constraints = SamplingConstraints(separator_id=0, banned=torch.zeros(vocab_size, dtype=torch.bool))
        with torch.autocast(device_type=self.model.device.type, enabled=False):
            return score(self.model, targets, constraints).target_logprob


def target_logprob_per_token(target_logps: list[float], target_ids: list[list[int]]) -> list[float]:
    """log P(y|x,c) / |y| in nats per target token, with the end token."""
    return [logprob / len(ids) for logprob, ids in zip(target_logps, target_ids, strict=True)]


def gain(target_logps: list[float], baseline_target_logps: list[float]) -> list[float]:
    """log P(y|x,c) - log P(y|x,∅) in nats. Costs one more forward with empty warmups."""
    return [logprob - baseline for logprob, baseline in zip(target_logps, baseline_target_logps, strict=True)]


def _check_vocabulary(path: str, rows: int, tokenizer: Any, policy_rows: int) -> None:
    """Raises ValueError unless both networks use the same token ids.

    With a tokenizer beside the weights, tokens are compared; the sizes of embeddings may then differ, as one family pads them
    differently (Qwen2.5). Without one, the sizes must be equal.
    """
    if rows < len(tokenizer):
        raise ValueError(
            f"The generator {path!r} has {rows} embedding rows, the policy's tokenizer has {len(tokenizer)} tokens. "
            f"Give a generator with the policy's vocabulary, separator included."
        )
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if not get_tokenizer_config(path):
        if rows != policy_rows:
            raise ValueError(
                f"The generator {path!r} has {rows} embedding rows, the policy {policy_rows}, and no tokenizer to compare their "
                f"vocabularies. Save its tokenizer there, or give another generator."
            )
        return
    own = tokenizer.get_vocab()
    for token, index in AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab().items():
        if own.get(token) != index:
            raise ValueError(
                f"The generator {path!r} has another vocabulary: its token {token!r} is {index}, the policy's is "
                f"{own.get(token, 'missing')}. Give a generator with the policy's tokenizer."
            )
