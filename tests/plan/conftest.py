"""A real `WarmupTrainer` whose warmups, prompts and targets all have one length, so that every sum is exact."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[2]))  # `benchmarks` is no installed package

from benchmarks.shapes import Shape as BenchShape
from benchmarks.workloads import make_tokenizer
from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.experiments.plan.shapes import Shape
from rl_warmup.experiments.plan.work import Lengths, Work

LENGTHS = Lengths(24, 8, 16)
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}


def build(shape: Shape) -> Any:
    """The transformers model of a shape, with random weights."""
    torch.manual_seed(0)
    if shape.kind == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=shape.vocab, d_model=shape.width, d_kv=shape.head_width, d_ff=shape.feed_forward,
                num_layers=shape.encoder_layers, num_decoder_layers=shape.layers, num_heads=shape.heads,
                feed_forward_proj="gated-gelu" if shape.gated else "relu", dropout_rate=0.0, decoder_start_token_id=0, **IDS,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_width, tie_word_embeddings=True, max_position_embeddings=2048, **IDS,
        )
    )  # fmt: skip


def step_of(work: Work, folder: Path) -> Callable[[], None]:
    """One update of a real trainer that does exactly this work: rollout, scoring, backward, optimizer."""
    shape, lengths = work.shape, work.mean
    x, c, y = (int(size) for size in (lengths.prompt, lengths.warmup, lengths.target))
    model = build(shape)
    bench = BenchShape("", shape.kind, 1, 1, 1, shape.vocab, shape.width, 1, 1, 1, 1)
    word = torch.randint(5, shape.vocab, (work.prompts, x + y), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"prompt": " ".join(f"w{i}" for i in ids[: x - 1]), "target": " ".join(f"w{i}" for i in ids[x : x + y - 1])}
        for ids in word
    ]
    settings = {"objective": "marginal" if work.warmups else "sft", "num_warmups": work.warmups or 1}
    config = WarmupConfig(
        output_dir=str(folder), min_warmup_length=c, max_warmup_length=c, empty_share=work.empty_share,
        separator="<extra_id_0>", per_device_train_batch_size=work.prompts, optim="adamw_torch_fused", use_cpu=True,
        report_to="none", disable_tqdm=True, log_warmups=0, guard="off", bf16=work.precision == "autocast",
        backward_samples=work.trained if work.trained < work.warmups else None,
        gradient_checkpointing=work.checkpointing, disable_dropout=work.reading_can_be_shared, **settings,
    )  # fmt: skip
    trainer = WarmupTrainer(
        model=model, args=config, train_dataset=rows, processing_class=make_tokenizer(bench),
        optimizers=(torch.optim.AdamW(model.parameters(), lr=0.0, fused=True), None),
    )  # fmt: skip
    if work.checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.current_gradient_accumulation_steps = 1  # set by `train`, which is not called here
    batch = list(trainer.train_dataset)

    def step() -> None:
        parts, tokens = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=work.precision == "autocast"
        ):  # `train` wraps the forward in it
            trainer.training_step(trainer.model, parts[0], tokens)
        trainer.optimizer.step()
        trainer.model.zero_grad(set_to_none=True)

    return step


def work_of(shape: Shape, prompts: int, n: int, k: int | None = None, lengths: Lengths = LENGTHS, **more: Any) -> Work:
    """An update on equally long rows."""
    settings: dict[str, Any] = {
        "shape": shape, "prompts": prompts, "micro_batches": 1, "warmups": n, "trained": n if k is None else k,
        "empty_share": 0.0, "anchors": 0, "mean": lengths, "longest": lengths, "lengths_from": "the test",
        "precision": "float32", "checkpointing": False, "reading_can_be_shared": True, "optimizer_bytes": 8.0, **more,
    }  # fmt: skip
    return Work(**settings)


@pytest.fixture(autouse=True)
def _fused_attention(default_products):
    """A plan counts fused attention, which short rows do not take where oneDNN multiplies."""


@pytest.fixture(scope="session")
def works() -> Callable[..., Work]:
    return work_of


@pytest.fixture
def step(tmp_path: Path) -> Callable[[Work], Callable[[], None]]:
    """Makes a step that does a given work."""
    return lambda work: step_of(work, tmp_path)
