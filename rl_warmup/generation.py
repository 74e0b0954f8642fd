"""Inference: the policy's warmup, then the target - or a target after a warmup of someone else's choosing.

Knows: a model, its layout and law, encoded rows. Must not know: training, rewards, metrics.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rl_warmup.layouts import Layout, make_layout
from rl_warmup.layouts.encoding import ADDED
from rl_warmup.layouts.law import WarmupLaw
from rl_warmup.layouts.loading import load_model
from rl_warmup.layouts.tokens import declare_tokens, read_layout
from rl_warmup.layouts.writing import write_targets
from rl_warmup.sharing import seeded, spread

FORCED = ("shuffled", "empty_warmup", "filler", "other_run")
CONTROLS = (*FORCED, "sampled", "rerank")


@dataclass
class Writer:
    """A model ready to write warmups and targets.

    Args:
        inference: `policy`, or `empty` for a model trained without warmups.
        shared: all processes predict the same rows together, each its share; all of them have to call.
        generate: further arguments of every call of `generate`.
    """

    model: Any
    tokenizer: Any
    layout: Layout
    law: WarmupLaw
    max_target_length: int
    inference: str = "policy"
    max_prompt_length: int | None = None
    shared: bool = False
    generate: dict[str, Any] = field(default_factory=dict)

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
        model, tokenizer = load_model(str(folder), **{"dtype": "auto", **kwargs})
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
        seed: int | None = None,
        **generate: Any,
    ) -> list[dict[str, Any]]:
        """Predictions for encoded rows (`layouts.encoding`): the text columns plus warmup, warmup_finish and prediction.

        Rows of similar length share a batch. Every batch draws under a seed of its own, so what is sampled depends on `seed`
        and `batch_size`, and not on how many processes share the work.

        Args:
            forced: warmups (ids) to use in place of the policy's own, one per row; see `control_warmups`.
            sample_warmup: draw warmups instead of taking their likeliest tokens; the target stays greedy.
            seed: of the drawn warmups; None takes one from torch's random state.
        """
        if forced is None and self.inference == "empty":
            forced = [[] for _ in rows]
        if sample_warmup and seed is None:
            seed = int(torch.randint(2**31, ()))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt_ids"]))

        def write(start: int) -> list[dict[str, Any]]:
            chosen = order[start : start + batch_size]
            with seeded("predict", seed, start) if sample_warmup else nullcontext():
                written = write_targets(
                    self.model, self.layout, self.law, [rows[i]["prompt_ids"] for i in chosen], self.max_target_length,
                    None if forced is None else [forced[i] for i in chosen], sample_warmup=sample_warmup,
                    **self.generate, **generate,
                )  # fmt: skip
            return [self._prediction(rows[i], *both) for i, both in zip(chosen, written, strict=True)]

        starts = range(0, len(rows), batch_size)
        batches = spread(write, starts, self.shared, "Predicting" if show_progress else "")
        out = [prediction for batch in batches for prediction in batch]
        return [prediction for _, prediction in sorted(zip(order, out, strict=True), key=lambda pair: pair[0])]

    def filler_ids(self) -> list[int]:
        """The meaningless warmup of the filler control: `...` up to the limit."""
        ids = self.tokenizer("...", add_special_tokens=False)["input_ids"]
        return (ids * self.law.max_length)[: self.law.max_length]

    def decode(self, ids: list[int]) -> str:
        """Ids as text for people."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _prediction(self, row: dict[str, Any], warmup: Any, target: list[int]) -> dict[str, Any]:
        text = {k: v for k, v in row.items() if k not in ADDED}
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
