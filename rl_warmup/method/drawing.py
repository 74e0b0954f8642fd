"""Samples warmups of one model for many prompts, once, into a file to which whole batches are appended.

Knows: a model, the sampling constraints, encoded prompts, processes. Must not know: the format of the file (`reference.py`
stores ids for one run, `samples.py` texts), recipes, phases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_warmup.batch import Warmup
from rl_warmup.engine import sample_warmups
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout
from rl_warmup.runtime.sharing import is_main, map_over_processes, seeded
from rl_warmup.runtime.terminal import progress

BATCHES_PER_WRITE = 16  # drawn by all processes together between two writes to the file
HASHED_NUMBERS = 1024  # of every tensor, to identify a model

Groups = dict[int, list[Warmup]]  # by the index of the prompt


@dataclass
class Drawing:
    """The settings: `num_warmups` samples of a model for every prompt, under these constraints and this seed."""

    model: Any
    layout: Layout
    constraints: SamplingConstraints
    num_warmups: int
    seed: int
    batch_size: int
    model_hash: str | None = None  # of the model as it began; by default of all its weights

    def header(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """Identifies the samples: they are reused only if all of it is equal."""
        names = ("temperature", "top_p", "min_length", "max_length", "separator_id")
        return {
            "prompts": len(prompts),
            "prompts_hash": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16],
            "model_hash": self.model_hash or weights_hash(self.model),
            "num_warmups": self.num_warmups,
            "seed": self.seed,
            "batch_size": self.batch_size,
            **{name: getattr(self.constraints, name) for name in names},
        }

    def draw(self, prompts: Sequence[list[int]], batch: Sequence[int]) -> list[list[Warmup]]:
        """The groups of the prompts with these indices, from a random state that depends on the batch alone."""
        with seeded("reference", self.seed, batch[0]):
            ids = [prompts[place] for place in batch]
            drawn = sample_warmups(self.model, self.layout, self.constraints, ids, self.num_warmups)
        return [drawn[i : i + self.num_warmups] for i in range(0, len(drawn), self.num_warmups)]


def draw_missing(
    drawing: Drawing, prompts: Sequence[list[int]], done: Collection[int], keep: Callable[[Groups], None], title: str = "",
) -> None:  # fmt: skip
    """Draw the missing groups, batch by batch, prompts of similar length together.

    All processes have to call it; each draws its share and all get all groups. An incomplete batch is drawn again as a whole,
    so interrupted sampling ends with the same samples as uninterrupted sampling.

    Args:
        drawing: `model` in any mode, whole on every process; it is sampled in eval mode.
        prompts: token ids.
        done: indices of prompts whose groups exist; the same on every process.
        keep: called on every process with the groups of some whole batches, always in the same order.
        title: of the progress, which the main process shows; none by default.
    """
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    batches = [order[i : i + drawing.batch_size] for i in range(0, len(order), drawing.batch_size)]
    missing = [batch for batch in batches if any(place not in done for place in batch)]
    was_training = drawing.model.training
    drawing.model.eval()
    for start in progress(range(0, len(missing), BATCHES_PER_WRITE), title, bool(title) and is_main()):
        part = missing[start : start + BATCHES_PER_WRITE]
        drawn = map_over_processes(lambda batch: drawing.draw(prompts, batch), part)
        keep({
            place: group
            for batch, members in zip(part, drawn, strict=True)
            for place, group in zip(batch, members, strict=True)
        })  # fmt: skip
    drawing.model.train(was_training)


def weights_hash(model: Any, frozen_alone: bool = False) -> str:
    """A short hash of some numbers of every tensor: the same on every device, and fast for large models.

    Args:
        frozen_alone: leave out parameters that are trained.
    """
    found = hashlib.sha256()
    trained = {name for name, weight in model.named_parameters() if frozen_alone and weight.requires_grad}
    for name, tensor in sorted(model.state_dict().items()):
        if name in trained:
            continue
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // HASHED_NUMBERS)]
        found.update(name.encode() + str(tuple(tensor.shape)).encode() + some.float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def append(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a file in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))
