"""Tiny runs: a few updates of a few rows, in a temporary folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.models.loading import load_model

SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


READS = {
    "proposals": ["reference"], "num_warmups": 2, "max_steps": 6, "min_reading_updates": 3, "max_reading_updates": 4,
    "reading_threshold": 0.0, "learning_rate": 1e-2,
}  # fmt: skip


def ledger_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Three amounts modulo 3 and their totals, newest first."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        amounts = [rng.randrange(3) for _ in range(3)]
        totals = [sum(amounts[: i + 1]) % 3 for i in range(3)]
        prompt = " ".join(f"{name}+{value}" for name, value in zip("abc", amounts, strict=True))
        target = " ".join(f"{name}={value}" for name, value in reversed(list(zip("abc", totals, strict=True))))
        rows.append({"prompt": prompt, "target": target})
    return rows


def tiny_model(kind: str, seed: int = 0) -> tuple[Any, Any]:
    """A model and tokenizer that know the words of `ledger_rows`."""
    return load_model(kind, lambda: [text for row in ledger_rows(200) for text in row.values()], SIZE, seed)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., WarmupTrainer]:
    """A trainer of a fresh tiny model; keyword arguments go to WarmupConfig, except the ones named here."""

    def make(kind: str = "scratch-t5", folder: str = "run", rows: Any = None, **settings: Any) -> WarmupTrainer:
        extra = {
            k: settings.pop(k)
            for k in list(settings)
            if k in ("reward_funcs", "peft_config", "compute_metrics", "eval_dataset")
        }
        model, tokenizer = tiny_model(kind)
        defaults = {
            "output_dir": str(tmp_path / folder), "max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True,
            "num_warmups": 3, "max_warmup_length": 4, "learning_rate": 1e-3, "save_strategy": "no", "logging_steps": 1,
            "disable_tqdm": True, "report_to": "none", "proposals": [],
        }  # fmt: skip
        return WarmupTrainer(
            model=model, processing_class=tokenizer, args=WarmupConfig(**{**defaults, **settings}),
            train_dataset=ledger_rows(32) if rows is None else rows, **extra,
        )  # fmt: skip

    return make


@pytest.fixture
def tiny() -> Callable[[], tuple[Any, Any]]:
    """Makes a tiny T5 and its tokenizer, always the same ones."""
    return lambda: tiny_model("scratch-t5")


@pytest.fixture
def rows() -> Callable[[int], list[dict[str, str]]]:
    """Makes rows of the ledger."""
    return ledger_rows


@pytest.fixture
def adapted(tmp_path, tiny):
    """A trainer of a saved base model: a new adapter (`lora`), or one put on beforehand (`adapter`)."""
    LORA = {"r": 2, "target_modules": ["q", "v"]}

    def make(adapter=None, dropout=None, folder="run", name="base", **settings):
        if not (tmp_path / "base").is_dir():
            model, tokenizer = tiny()
            if dropout is not None:
                model.config.dropout_rate = dropout
            model.save_pretrained(tmp_path / "base")
            tokenizer.save_pretrained(tmp_path / "base")
        given = {"peft_config": LoraConfig(**LORA, **settings.pop("lora", {}))}
        model, tokenizer = load_model(str(tmp_path / name))
        if adapter is not None:
            given, model = {}, get_peft_model(model, LoraConfig(**LORA, **adapter))
        defaults = {
            "output_dir": str(tmp_path / folder), "use_cpu": True, "per_device_train_batch_size": 8, "logging_steps": 1,
            "disable_tqdm": True, "save_strategy": "no", "report_to": "none", "max_warmup_length": 4, **READS,
        }  # fmt: skip
        config = WarmupConfig(**(defaults | settings))
        return WarmupTrainer(model, config, ledger_rows(32), processing_class=tokenizer, **given)

    return make
