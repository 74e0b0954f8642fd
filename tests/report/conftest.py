"""Run folders written by hand, so that every number of a report can be checked on paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TARGETS = ["one two", "three four", "five six", "seven eight"]
Write = Callable[..., Path]


def jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def predictions(right: int, warmup: str, texts: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Four rows, of which the first `right` are answered rightly."""
    return [
        {
            "id": f"test-{i}", "prompt": f"question {i} {' '.join(texts)}".strip(), "target": target, "warmup": warmup,
            "warmup_ids": [1], "warmup_finish": "separator", "prediction": target if i < right else "no idea",
        }
        for i, target in enumerate(TARGETS)
    ]  # fmt: skip


def write_run(
    folder: Path,
    objective: str = "marginal",
    seed: int = 1,
    right: int = 3,
    shuffled: int | None = 1,
    seconds: float = 20.0,
    rows_hash: str = "a" * 64,
    texts: tuple[str, ...] = (),
    recipe: dict[str, Any] | None = None,
    tokens: bool = False,
) -> Path:
    """A finished run that answered `right` of four rows, and `shuffled` of them with foreign warmups."""
    folder.mkdir(parents=True)
    metrics = {"": {"exact_match": right / 4}} | (
        {"shuffled": {"exact_match": shuffled / 4}} if shuffled is not None else {}
    )
    result = {
        "task": "toy", "model": "scratch-t5", "objective": objective, "seed": seed, "updates": 100, "train_seconds": seconds,
        "switched_at": None, "truncation": {}, "split": "test", "rows": 4, "rows_hash": rows_hash, "signatures": {},
        "metrics": metrics,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(result), encoding="utf-8")
    settings = {"task": "toy", "objective": objective, "max_steps": 100, "seed": seed, "output_dir": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings | (recipe or {})), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11", "device": "abacus", "versions": {"torch": "2"}})
    )
    jsonl(folder / "predictions.jsonl", predictions(right, "" if objective == "sft" else "hm", texts))
    if shuffled is not None:
        jsonl(folder / "predictions.shuffled.jsonl", predictions(shuffled, "foreign", texts))
    steps = [50, 100]
    key = "eval_target_logprob" if objective == "sft" else "eval_target_bound"
    jsonl(
        folder / "metrics.jsonl",
        [record for s in steps for record in (
            {"step": s, "loss": 200.0 / s, "ess": 1.5}, {"step": s, "eval_exact_match": right * s / 400, key: -s / 10},
        )],
    )  # fmt: skip
    counted = [{"train_tokens": s * 10, "train_flops": s * 1e9} if tokens else {} for s in steps]
    jsonl(
        folder / "timing.jsonl",
        [{"step": s, "train_seconds": seconds * s / 100, **c} for s, c in zip(steps, counted, strict=True)],
    )
    group = {"warmup": "hm", "finish": "length", "warmup_logprob": -2.5, "target_logprob": -1.25, "posterior": 0.75}
    groups = (
        [] if objective == "sft" else [{"step": 50, "id": "train-0", "prompt": "p", "target": "t", "warmups": [group]}]
    )
    jsonl(folder / "warmups.jsonl", groups)
    return folder


@pytest.fixture
def run_folder() -> Write:
    """Writes a run folder."""
    return write_run


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with an SFT run (1 of 4 right) and a warmup run (3 of 4, 1 of 4 with shuffled warmups), one seed each."""
    write_run(tmp_path / "runs" / "sft-1", "sft", right=1, shuffled=None, seconds=10.0)
    write_run(tmp_path / "runs" / "warmup-1")
    return tmp_path / "runs"


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Three seeds of each: SFT answers 0, 1, 2 of four rows, warmup 3, 4, 4."""
    for seed, (plain, warm) in enumerate([(0, 3), (1, 4), (2, 4)], start=1):
        write_run(tmp_path / "runs" / f"sft-{seed}", "sft", seed, plain, None, 10.0)
        write_run(tmp_path / "runs" / f"warmup-{seed}", "marginal", seed, warm, 1)
    return tmp_path / "runs"
