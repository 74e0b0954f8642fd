"""Inference: the policy's warmup, then the target - or a target after a warmup of someone else's choosing.

Knows: a model, its layout and law, encoded rows. Must not know: training, rewards, metrics.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from rl_warmup.layouts import Layout, make_layout
from rl_warmup.layouts.law import WarmupLaw
from rl_warmup.layouts.loading import load_model
from rl_warmup.layouts.tokens import declare_tokens, read_layout
from rl_warmup.layouts.writing import write_targets

FORCED = ("shuffled", "empty_warmup", "filler", "other_run")
CONTROLS = (*FORCED, "sampled", "rerank")


@dataclass
class Writer:
    """A model ready to write warmups and targets. `inference` is `policy`, or `empty` for a model trained without warmups."""

    model: Any
    tokenizer: Any
    layout: Layout
    law: WarmupLaw
    max_target_length: int
    inference: str = "policy"
    max_prompt_length: int | None = None

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None, **kwargs: Any) -> Writer:
        """A checkpoint folder as training left it: weights, tokenizer and warmup_layout.json.

        Raises:
            ValueError: no such model, or the folder declares no layout.
        """
        declared = read_layout(folder)
        if not declared:
            raise ValueError(
                f"{folder} holds no warmup_layout.json, so where its warmups end is unknown. Give the folder that training "
                f"wrote (its output_dir, or a checkpoint in it)."
            )
        model, tokenizer = load_model(str(folder), **kwargs)
        tokens = declare_tokens(model, tokenizer, declared["separator"])
        law = WarmupLaw(tokens.separator_id, tokens.banned, **declared["law"])
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        return cls(
            model, tokenizer, make_layout(model, tokens), law, declared["max_target_length"], declared["inference"]
        )

    def predict(
        self,
        rows: Sequence[dict[str, Any]],
        batch_size: int = 32,
        forced: Sequence[list[int]] | None = None,
        sample_warmup: bool = False,
        show_progress: bool = False,
        **generate: Any,
    ) -> list[dict[str, Any]]:
        """Predictions for encoded rows (`layouts.encoding`): the text columns plus warmup, warmup_finish and prediction.

        Args:
            forced: warmups (ids) to use in place of the policy's own, one per row; see `control_warmups`.
            sample_warmup: draw warmups instead of taking their likeliest tokens; the target stays greedy.
        """
        if forced is None and self.inference == "empty":
            forced = [[] for _ in rows]
        out: list[dict[str, Any]] = []
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt_ids"]))  # similar lengths share a batch
        starts = tqdm(range(0, len(rows), batch_size), desc="Predicting", disable=not show_progress, leave=False)
        for start in starts:
            chosen = order[start : start + batch_size]
            written = write_targets(
                self.model, self.layout, self.law, [rows[i]["prompt_ids"] for i in chosen], self.max_target_length,
                None if forced is None else [forced[i] for i in chosen], sample_warmup=sample_warmup, **generate,
            )  # fmt: skip
            out += [self._prediction(rows[i], *both) for i, both in zip(chosen, written, strict=True)]
        return [prediction for _, prediction in sorted(zip(order, out, strict=True), key=lambda pair: pair[0])]

    def filler_ids(self) -> list[int]:
        """The meaningless warmup of the filler control: `...` up to the limit."""
        ids = self.tokenizer("...", add_special_tokens=False)["input_ids"]
        return (ids * self.law.max_length)[: self.law.max_length]

    def decode(self, ids: list[int]) -> str:
        """Ids as text for people."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _prediction(self, row: dict[str, Any], warmup: Any, target: list[int]) -> dict[str, Any]:
        text = {k: v for k, v in row.items() if k not in ("prompt_ids", "target_ids", "word_lengths")}
        return {
            **text,
            "warmup": self.decode(warmup.ids),
            "warmup_ids": warmup.ids,
            "warmup_finish": warmup.finish,
            "prediction": self.decode(target),
            "prediction_ids": target,
        }


def control_warmups(
    control: str,
    own: Sequence[dict[str, Any]],
    filler: Sequence[int] = (),
    other: Sequence[dict[str, Any]] = (),
    seed: int = 0,
) -> list[list[int]]:
    """The warmups a control forces, one per row.

    - `shuffled`: another row's own warmup (no row keeps its own): is the warmup used at all?
    - `empty_warmup`: none: is the model better without?
    - `filler`: the given meaningless ids: is it only the extra depth?
    - `other_run`: the warmups another run wrote for the same rows: do warmups carry over?

    Args:
        own: predictions with the policy's own warmups, in the order of the rows.
        filler: ids of the filler.
        other: predictions of the other run.

    Raises:
        ValueError: unknown control, shuffling fewer than two rows, or other rows in the other run.
    """
    if control == "empty_warmup":
        return [[] for _ in own]
    if control == "filler":
        return [list(filler) for _ in own]
    if control == "other_run":
        if [row["prompt"] for row in other] != [row["prompt"] for row in own]:
            raise ValueError(
                f"The other run has predictions for {len(other)} rows, not for the same {len(own)} as this one. Predict the "
                f"same split of the same task with both."
            )
        return [row["warmup_ids"] for row in other]
    if control != "shuffled":
        raise ValueError(f"Unknown control {control!r}. Allowed: {', '.join(FORCED)}.")
    if len(own) < 2:
        raise ValueError("Shuffling warmups across prompts needs at least two rows.")
    order = list(range(len(own)))
    random.Random(seed).shuffle(order)
    giver = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: nobody gives to itself
    return [own[giver[i]]["warmup_ids"] for i in range(len(own))]
