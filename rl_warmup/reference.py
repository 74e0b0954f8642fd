"""The starting policy: its samples, drawn once before the first update, and the KL that holds the policy near it afterwards.

Knows: a model, the sampling constraints, encoded rows, the file the samples lie in. Must not know: phases, rewards, recipes.
As the start does not change, neither do its samples: one drawing serves every update, every epoch, every process and every
restart, and no second model is in memory while the generator learns to read. The KL needs one (or the adapter switched off).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rl_warmup import _trl
from rl_warmup.batch import Warmup, WarmupBatch
from rl_warmup.layouts import Layout
from rl_warmup.layouts.law import WarmupLaw
from rl_warmup.layouts.scoring import score
from rl_warmup.layouts.writing import write_warmups
from rl_warmup.sharing import is_main, seeded, spread

FILE = "reference_warmups.jsonl"
BATCHES_AT_ONCE = 16  # that are drawn, by all processes together, between two writes to the file
LOOKED_AT = 1024  # numbers of every tensor that tell one model from another


@dataclass
class Drawing:
    """What is drawn: `num_warmups` samples of a model for every prompt, under these constraints and this seed."""

    model: Any
    layout: Layout
    law: WarmupLaw
    num_warmups: int
    seed: int
    batch_size: int

    def header(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """What tells one drawing from another: samples are reused only where all of it is the same."""
        names = ("temperature", "top_p", "min_length", "max_length", "separator_id")
        return {
            "prompts": len(prompts),
            "prompts_hash": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16],
            "model_hash": weights_hash(self.model),
            "num_warmups": self.num_warmups,
            "seed": self.seed,
            "batch_size": self.batch_size,
            **{name: getattr(self.law, name) for name in names},
        }

    def draw(self, prompts: Sequence[list[int]], batch: Sequence[int]) -> list[list[Warmup]]:
        """The groups of these prompts (their places), under a random state that depends on the batch alone."""
        with seeded("reference", self.seed, batch[0]):
            ids = [prompts[place] for place in batch]
            drawn = write_warmups(self.model, self.layout, self.law, ids, self.num_warmups)
        return [drawn[i : i + self.num_warmups] for i in range(0, len(drawn), self.num_warmups)]


def reference_warmups(
    drawing: Drawing, prompts: Sequence[list[int]], path: Path, show_progress: bool = False, resumed: bool = False
) -> list[list[Warmup]]:
    """A group of the starting model's samples for every prompt, from the file or drawn into it.

    All processes call; each draws its share and all get everything. The file grows by whole batches, so a drawing that was
    interrupted goes on where it stopped, with the same samples. A file of another drawing is replaced.

    Args:
        drawing: `model` in any mode, whole on every process; it is sampled in eval mode.
        prompts: token ids; prompts of similar length are drawn together.
        resumed: the updates so far were made with the file's samples, so another drawing must not take their place.

    Returns:
        One list of `num_warmups` warmups per prompt, in the order of `prompts`.

    Raises:
        ValueError: `resumed`, and the file is of another drawing.
    """
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    batches = [order[i : i + drawing.batch_size] for i in range(0, len(order), drawing.batch_size)]
    header = drawing.header(prompts)
    groups = _read(path, header)
    if resumed and path.is_file() and not groups:
        raise ValueError(
            f"{path} holds samples of another starting model, seed, batch size or set of prompts than this run would draw, and "
            f"the updates so far were made with them. Give the run the model and settings it was started with, or start anew in "
            f"another output_dir."
        )
    missing = [batch for batch in batches if any(place not in groups for place in batch)]
    if not missing:
        return [groups[place] for place in range(len(prompts))]
    was_training = drawing.model.training
    drawing.model.eval()
    if is_main() and not groups:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    bar = tqdm(
        total=len(prompts), initial=len(groups), desc="Sampling the starting model", unit="prompt",
        disable=not show_progress or not is_main(), leave=False,
    )  # fmt: skip
    with bar:
        for start in range(0, len(missing), BATCHES_AT_ONCE):
            part = missing[start : start + BATCHES_AT_ONCE]
            drawn = spread(lambda batch: drawing.draw(prompts, batch), part)
            new = {
                place: [
                    warmup._replace(logprob=None) for warmup in group
                ]  # it was the start's, not the current policy's
                for batch, members in zip(part, drawn, strict=True)
                for place, group in zip(batch, members, strict=True)
            }
            groups |= new
            if is_main():
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(_line(place, group) for place, group in new.items())
            bar.update(len(new))
    drawing.model.train(was_training)
    return [groups[place] for place in range(len(prompts))]


def weights_hash(model: Any) -> str:
    """A short hash of some numbers of every tensor: the same on every device, in no time also for large models."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // LOOKED_AT)]
        found.update(name.encode() + str(tuple(tensor.shape)).encode() + some.float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _line(place: int, group: list[Warmup]) -> str:
    cut = [i for i, warmup in enumerate(group) if warmup.finish == "length"]
    record = {"row": place, "ids": [warmup.ids for warmup in group], "cut": cut}
    return json.dumps(record, separators=(",", ":")) + "\n"


def _read(path: Path, header: dict[str, Any]) -> dict[int, list[Warmup]]:
    """The groups in a file of this very drawing, by place; nothing where it is another's. A torn last line is cut off."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    lines = _records(whole)
    if next(lines, None) != header:
        return {}
    if whole != text and is_main():
        path.write_text(whole, encoding="utf-8")
    groups = {}
    for record in lines:
        ends = ["length" if i in record["cut"] else "separator" for i in range(len(record["ids"]))]
        groups[record["row"]] = [Warmup(ids, end) for ids, end in zip(record["ids"], ends, strict=True)]
    return groups


def _records(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class StartingPolicy:
    """The policy as it was before training, for the KL: a frozen copy, or the trained model with its adapter switched off.

    Args:
        model: the starting model, scoring enabled, on its device. Without an adapter it is copied.
    """

    def __init__(self, model: Any) -> None:
        self.has_adapter = hasattr(model, "disable_adapter")
        self.model = None if self.has_adapter else copy.deepcopy(model).eval().requires_grad_(False)

    def prepare(self, trainer: Any) -> None:
        """Bring the copy under the engine that trains: sharded under ZeRO-3 and FSDP, whole on every process otherwise."""
        if self.model is None:
            return
        if trainer.is_deepspeed_enabled:
            self.model = _trl.prepare_deepspeed(self.model, trainer.accelerator)
        elif trainer.is_fsdp_enabled:
            self.model = _trl.prepare_fsdp(self.model, trainer.accelerator)

    @torch.no_grad()
    def warmup_logps(self, trained: Any, batch: WarmupBatch, law: WarmupLaw) -> Tensor:
        """log P(c_t | x, c_<t) of the starting policy for the actions of every row, in nats: (N, T), 0 elsewhere.

        Args:
            trained: the model that trains, as the engine wraps it; its adapter is switched off meanwhile.
        """
        alone = warmups_alone(batch)
        if self.model is not None:
            logps = score(self.model, alone, law).token_logps
        else:
            inside = trained
            while not hasattr(inside, "disable_adapter"):
                inside = inside.module
            with inside.disable_adapter():
                logps = score(trained, alone, law).token_logps
        return torch.nn.functional.pad(logps, (0, batch.seq_ids.size(1) - logps.size(1))) * batch.warmup_mask


def warmups_alone(batch: WarmupBatch) -> WarmupBatch:
    """The same rows without their targets; what the trained network made of the prompts is left behind."""
    ends = torch.tensor([len(warmup.ids) + 1 for warmup in batch.warmups], device=batch.seq_ids.device)
    width = int(ends.max())
    before = torch.arange(width, device=ends.device) < ends[:, None]
    cut = {name: getattr(batch, name)[:, :width] for name in ("seq_ids", "warmup_mask", "target_mask")}
    cut["target_mask"] = torch.zeros_like(cut["target_mask"])
    return replace(batch, **cut, seq_mask=batch.seq_mask[:, :width] * before, reading=None)
