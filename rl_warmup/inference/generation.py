"""Inference: a model writes a warmup, or reads a given one, and then writes the target.

Knows: a model, its layout and sampling constraints, encoded rows. Must not know: training, rewards, metrics.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rl_warmup.engine import generate_targets
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.encoding import ADDED, RowEncoder
from rl_warmup.models.inference_settings import Inference, read_layout
from rl_warmup.models.layouts import Layout, make_layout
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens
from rl_warmup.runtime.sharing import is_main, map_over_processes, uniforms

FORCED = ("shuffled", "empty_warmup", "filler")  # controls by `control_warmups`
CONTROLS = (*FORCED, "other_run", "sampled", "rerank")
WRITTEN = ("warmup", "warmup_ids", "warmup_finish", "prediction", "prediction_ids")  # columns of a prediction


@dataclass
class WarmupGenerator:
    """A model ready to write warmups and targets."""

    model: Any
    tokenizer: Any
    layout: Layout
    settings: Inference  # templates, limits and sampling constraints of the model
    shared: bool = False  # whether the processes share the rows; all of them have to call

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device | None = None, **kwargs: Any) -> WarmupGenerator:
        """Load a folder that training wrote: weights, tokenizer and warmup_layout.json.

        Raises ValueError: no such model, or warmup_layout.json is missing or damaged.
        """
        declared = read_layout(folder)
        if not declared:
            raise ValueError(
                f"{folder} holds no warmup_layout.json, so its separator is unknown. Give the output_dir of a training, or a "
                f"checkpoint in it."
            )
        model, tokenizer = load_model(str(folder), **{"dtype": "auto", **kwargs})
        tokens = declare_tokens(model, tokenizer, declared["separator"])
        settings = Inference.read(folder, tokens)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        return cls(model, tokenizer, make_layout(model, tokens), settings)

    @property
    def constraints(self) -> SamplingConstraints:
        """The sampling constraints of warmups."""
        return self.settings.constraints

    @property
    def inference(self) -> str:
        """`policy`, or `empty` for a model trained without warmups."""
        return self.settings.mode

    def encoder(self) -> RowEncoder:
        """Encodes rows and prompts for this model, as training would."""
        return self.settings.encoder(self.model, self.tokenizer)

    def predict(
        self, rows: Sequence[dict[str, Any]], batch_size: int = 32, forced: Sequence[list[int]] | None = None,
        sample_warmup: bool = False, show_progress: bool = False, seed: int | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Predictions for rows: the text columns plus those of `WRITTEN`.

        Rows of similar length share a batch. Each row has its own random stream, so samples depend on `seed` and the row's
        place, but not on the batch or the number of processes.

        Args:
            rows: with `prompt` (and, besides other columns, `target`), or already encoded (`models.encoding`).
            forced: warmups (ids) instead of the policy's, one per row; see `control_warmups`.
            sample_warmup: sample warmups instead of taking their likeliest tokens; the target stays greedy.
            seed: of the sampled warmups; None takes one from torch's random state.

        Raises:
            ValueError: a row that cannot be encoded, or a forced warmup that leaves too few positions.
        """
        rows = self.encoded(rows)
        if forced is None and self.inference == "empty":
            forced = [[] for _ in rows]
        self.check_room(rows, forced)
        if sample_warmup and seed is None:
            seed = int(torch.randint(2**31, ()))
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt_ids"]))

        def write(start: int) -> list[dict[str, Any]]:
            chosen = order[start : start + batch_size]
            draws = uniforms("predict", seed, chosen, 1, self.constraints.max_length) if sample_warmup else None
            written = generate_targets(
                self.model, self.layout, self.constraints, [rows[i]["prompt_ids"] for i in chosen],
                self.settings.max_target_length, None if forced is None else [forced[i] for i in chosen], draws=draws,
            )  # fmt: skip
            return [self._prediction(rows[i], *both) for i, both in zip(chosen, written, strict=True)]

        starts = range(0, len(rows), batch_size)
        batches = map_over_processes(write, starts, self.shared, "Predicting" if show_progress else "")
        out = [prediction for batch in batches for prediction in batch]
        return [prediction for _, prediction in sorted(zip(order, out, strict=True), key=lambda pair: pair[0])]

    def encoded(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with their ids. Encoded rows stay as they are; a prompt without a target is filled into the template."""
        if all("prompt_ids" in row for row in rows):
            return list(rows)
        encoder = self.encoder()
        if all("target" in row or "completion" in row for row in rows):
            return encoder.encode_all(rows, "rows")
        prompts = [self.settings.prompt(row["prompt"]) for row in rows]
        found = encoder.encode_prompts(prompts)
        if (unread := encoder.writable.say("prompts")) and is_main():
            print(unread, file=sys.stderr)
        return [{**ids, **row} for row, ids in zip(rows, found, strict=True)]

    def check_room(self, rows: Sequence[dict[str, Any]], forced: Sequence[list[int]] | None) -> None:
        """Check that forced warmups, which may be longer than the model's, fit its positions.

        Raises ValueError: naming the row that needs more positions than there are.
        """
        longest = max(map(len, forced or ()), default=0)
        positions = self.encoder().positions
        if positions is None or longest <= positions.warmup:
            return
        needed = replace(positions, warmup=longest)
        for place, row in enumerate(rows):
            target = len(row.get("target_ids", [0]))
            needed.check(len(row["prompt_ids"]), target, f"row {place} with its forced warmup")

    def filler_ids(self) -> list[int]:
        """The warmup of the control `filler`: `...` up to the length limit."""
        ids = self.tokenizer("...", add_special_tokens=False)["input_ids"]
        return (ids * self.constraints.max_length)[: self.constraints.max_length]

    def decode(self, ids: list[int]) -> str:
        """Ids as text, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _prediction(self, row: dict[str, Any], warmup: Any, target: list[int]) -> dict[str, Any]:
        text = {k: v for k, v in row.items() if k not in ADDED}
        written = (self.decode(warmup.ids), warmup.ids, warmup.finish, self.decode(target), target)
        return {**text, **dict(zip(WRITTEN, written, strict=True))}


def control_warmups(control: str, own: Sequence[dict[str, Any]], filler: Sequence[int] = ()) -> list[list[int]]:
    """The warmups that a control forces, one per row.

    - `shuffled`: another row's warmup (no row keeps its own): is the warmup used at all?
    - `empty_warmup`: none: is the model better without?
    - `filler`: the given meaningless ids: does only the extra depth help?

    Args:
        own: predictions with the policy's warmups, in the order of the rows.

    Raises:
        ValueError: unknown control, or `shuffled` with fewer than two rows.
    """
    if control == "empty_warmup":
        return [[] for _ in own]
    if control == "filler":
        return [list(filler) for _ in own]
    if control != "shuffled":
        raise ValueError(f"Unknown control {control!r}. Allowed: {', '.join(FORCED)}.")
    if len(own) < 2:
        raise ValueError("Shuffling warmups across prompts needs at least two rows.")
    order = list(range(len(own)))
    random.Random(0).shuffle(order)
    source = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: no row keeps its own
    return [own[source[i]]["warmup_ids"] for i in range(len(own))]
