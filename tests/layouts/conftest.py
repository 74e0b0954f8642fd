"""Tiny networks of every family by name, and naive twins: one row at a time, through a stock model that was never patched."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    T5Gemma2Config,
    T5GemmaConfig,
    UMT5Config,
)

from rl_warmup.batch import WarmupBatch
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout, LayoutTokens, make_layout

VOCAB, SEPARATOR = 20, 4
ids = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 1}
encoder_decoder = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0, **ids,
}  # fmt: skip
decoder_only = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "bos_token_id": 3, "max_position_embeddings": 64, **ids,
}  # fmt: skip
gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
grouped = {"num_attention_heads": 4, "num_key_value_heads": 2}  # which of two heads a query reads can be told apart
gemma = decoder_only | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
local_and_global = gemma | {"layer_types": ["sliding_attention", "full_attention"]}
eyes = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 4,
    "patch_size": 2,
}
CONFIGS = {
    "t5": T5Config(**encoder_decoder),
    "t5-v1.1": T5Config(**encoder_decoder, **gated),
    "mt5": MT5Config(**encoder_decoder, **gated),
    "umt5": UMT5Config(**encoder_decoder, **gated),
    "bart": BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, decoder_start_token_id=1, **ids,
    ),
    "t5gemma": T5GemmaConfig(
        encoder=gemma | {"num_hidden_layers": 1}, decoder=gemma, decoder_start_token_id=3, vocab_size=VOCAB,
    ),
    "t5gemma2": T5Gemma2Config(  # its encoder can see; only text is read
        encoder={"text_config": local_and_global, "vision_config": eyes, "boi_token_index": 18, "eoi_token_index": 19,
                 "mm_tokens_per_image": 4},
        decoder=local_and_global, image_token_index=17, decoder_start_token_id=3,
    ),
    "llama": LlamaConfig(**decoder_only),
    "llama-grouped": LlamaConfig(**decoder_only | grouped),
    "llama-tied": LlamaConfig(**decoder_only, tie_word_embeddings=True),
    "mistral": MistralConfig(**decoder_only | grouped, sliding_window=None),
    "qwen2": Qwen2Config(**decoder_only, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**decoder_only | grouped, head_dim=8),  # heads wider than hidden_size / heads
    "gemma2": Gemma2Config(**decoder_only, head_dim=8, final_logit_softcapping=1.5, sliding_window=4),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **ids),
    "granite": GraniteConfig(**decoder_only, logits_scaling=3.0, embedding_multiplier=2.0),
    "cohere": CohereConfig(**decoder_only, logit_scale=0.25),
}  # fmt: skip


def build_model(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Random weights, larger than usual so that contexts and caps matter; dropout off. `changes` go into the config."""
    config = type(CONFIGS[name])(**{**CONFIGS[name].to_diff_dict(), **changes}) if changes else CONFIGS[name]
    torch.manual_seed(1)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.to(dtype).eval()


def layout_for(model: Any) -> Layout:
    """Of a network of `build`: the first four ids are special, the fifth is the separator."""
    banned = torch.zeros(VOCAB, dtype=torch.bool)
    banned[:4] = True
    return make_layout(model, LayoutTokens("<sep>", SEPARATOR, 0, 1, banned))


def constraints_with(**settings: Any) -> SamplingConstraints:
    """For networks of `build`; `allowed` names the only tokens a warmup may hold."""
    allowed = settings.pop("allowed", range(4, VOCAB))
    banned = torch.ones(VOCAB, dtype=torch.bool)
    banned[[*allowed, SEPARATOR]] = False
    return SamplingConstraints(SEPARATOR, banned, **settings)


def stock_logps(model: Any, batch: WarmupBatch, row: int) -> Tensor:
    """(T,) log P of every token of one row, unpadded, from the stock logits."""
    length = int(batch.seq_mask[row].sum())
    ids, index = batch.seq_ids[row, :length], batch.prompt_index[row]
    prompt = batch.prompt_ids[index][batch.prompt_mask[index].bool()]
    if model.config.is_encoder_decoder:
        start = torch.tensor([model.config.decoder_start_token_id])
        logits = model(input_ids=prompt[None], decoder_input_ids=torch.cat([start, ids[:-1]])[None]).logits[0]
    else:
        logits = model(input_ids=torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]


@pytest.fixture(scope="session")
def stock() -> Callable[..., Tensor]:
    return torch.no_grad()(stock_logps)


@pytest.fixture(scope="session")
def stock_with_gradient() -> Callable[..., Tensor]:
    return stock_logps


@pytest.fixture(scope="session")
def configs() -> dict[str, Any]:
    """Not to be changed."""
    return CONFIGS


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    return build_model


@pytest.fixture(scope="session")
def layout_of() -> Callable[..., Layout]:
    return layout_for


@pytest.fixture(scope="session")
def constraints_of() -> Callable[..., SamplingConstraints]:
    return constraints_with


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Warnings of the package in this test so far; warnings that appear once per process are enabled again."""
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
    return lambda: [r.getMessage() for r in caplog.records if r.getMessage().startswith("rl_warmup:")]


@pytest.fixture
def copied_trainer() -> Callable[..., Any]:
    """Makes a trainer of a copy of a lab's network and gives it with the loss of one update of these rows."""
    from rl_warmup import WarmupConfig, WarmupTrainer

    def make(lab: Any, rows: list[dict[str, Any]], folder: Any, **settings: Any) -> tuple[Any, Tensor]:
        args = WarmupConfig(
            output_dir=str(folder), num_warmups=3, proposals=[], max_warmup_length=4, empty_share=0.0, use_cpu=True,
            disable_tqdm=True, report_to="none", per_device_train_batch_size=len(rows), **settings,
        )  # fmt: skip
        model = copy.deepcopy(lab.model)
        texts = [{"prompt": row["prompt"], "target": row["target"]} for row in rows]
        trainer = WarmupTrainer(model=model, args=args, train_dataset=texts, processing_class=lab.tokenizer)
        trainer.model.eval()
        parts, tokens = trainer.get_batch_samples(iter([rows]), 1, args.device)
        return trainer, trainer.compute_loss(
            trainer.model, trainer._prepare_inputs(parts[0]), num_items_in_batch=tokens
        )

    return make
