"""Tiny checkpoints, and launches that end: two processes on two cores, started as a user starts them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import MT5Config, MT5ForConditionalGeneration

from rl_warmup.models.tiny import TinySize, build_model, build_tokenizer

WORDS = [f"w{i}" for i in range(40)]
SIZE = TinySize(width=32, layers=2, heads=2, feed_forward=64, tokenizer="words")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Folders of a T5, a Llama, and an mT5 whose output head is its own."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind in ("t5", "llama"):
        tokenizer = build_tokenizer([" ".join(WORDS)], SIZE, encoder_decoder=kind == "t5")
        build_model(kind, tokenizer, SIZE, seed=1).save_pretrained(root / kind)
        tokenizer.save_pretrained(root / kind)
    tokenizer = build_tokenizer([" ".join(WORDS)], SIZE, encoder_decoder=True)
    torch.manual_seed(2)
    config = MT5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    weights = {name: value.clone() for name, value in MT5ForConditionalGeneration(config).state_dict().items()}
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
    kept = {k: v for k, v in weights.items() if "embed_tokens" not in k}
    config.save_pretrained(root / "mt5")
    save_file(kept, root / "mt5" / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(root / "mt5")
    return {kind: str(root / kind) for kind in ("t5", "llama", "mt5")}


def some_rows(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of 2 to 6 words with targets of 2 or 3."""
    draw = random.Random(seed)
    return [
        {
            "id": str(i),
            "prompt": " ".join(draw.choices(WORDS, k=draw.randint(2, 6))),
            "target": " ".join(draw.choices(WORDS, k=draw.randint(2, 3))),
        }
        for i in range(number)
    ]


def run_to_end(command: list[str], timeout: float, **environment: str) -> tuple[int, str]:
    """Exit code and output. On SIGTERM a launcher ends its processes; SIGKILL would leave them running."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
        pytest.fail(f"{' '.join(command)} did not end within {timeout:.0f} s:\n{output[-4000:]}")
    return process.returncode, output


def read_ranks(folder: Path) -> list[dict[str, Any]]:
    """What both processes told about a case."""
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
