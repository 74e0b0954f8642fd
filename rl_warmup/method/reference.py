"""The starting policy: its samples, drawn once before the first update, and its log-probabilities for the KL afterwards.

Knows: `drawing.py`, the run's own file of token ids. Must not know: phases, rewards, recipes.
The starting policy does not change, so its samples do not either: they are drawn once for all updates, epochs, processes and
restarts, without a second model. The KL needs a second model, or an adapter that can be switched off.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_warmup.batch import Warmup, WarmupBatch
from rl_warmup.engine import score
from rl_warmup.method.drawing import Drawing, Groups, append, draw_missing
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.runtime import compat
from rl_warmup.runtime.documents import whole_records
from rl_warmup.runtime.sharing import is_main, map_over_processes

FILE = "reference_warmups.jsonl"


def reference_warmups(
    drawing: Drawing, prompts: Sequence[list[int]], path: Path, show_progress: bool = False, earlier: Path | None = None
) -> list[list[Warmup]]:
    """A group of the starting model's samples for every prompt, from the file or drawn into it.

    All processes have to call it, and all get all groups. A file with other settings or another model is replaced.

    Args:
        drawing: `model` in any mode, whole on every process; it is sampled in eval mode.
        prompts: token ids; prompts of similar length are drawn together.
        earlier: of a run that goes on, the file whose samples its updates used: `path`, or one in the folder that it comes from,
            which is copied. They must not be replaced.

    Returns:
        One list of `num_warmups` warmups per prompt, in the order of `prompts`.

    Raises:
        ValueError: the run goes on, and the file has other settings or another model.
    """
    header = drawing.header(prompts)
    groups: Groups

    def known(header: dict[str, Any]) -> tuple[Groups, dict[str, Any] | None]:
        if earlier is not None and not path.exists() and _read(earlier, header, True)[0]:
            shutil.copyfile(earlier, path)
        return _read(path, header, earlier is not None)

    groups, found = map_over_processes(known, [header])[0]  # only one process reads: it also repairs an incomplete file
    if groups and found:
        drawing = replace(drawing, batch_size=found["batch_size"])  # of the drawing, which a resume may have changed
    if earlier is not None and found is not None and not groups:
        raise ValueError(
            f"{path} holds samples of another starting model, seed or set of prompts than this run would draw, and "
            f"earlier updates used them. Give the run the model and settings it was started with, or start anew in another "
            f"output_dir."
        )
    if is_main() and not groups:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def keep(new: Groups) -> None:
        # the sampler's log-probabilities are the starting policy's, not the current policy's
        groups.update({place: [warmup._replace(logprob=None) for warmup in group] for place, group in new.items()})
        if is_main():
            lines = []
            for place in new:
                cut = [i for i, warmup in enumerate(groups[place]) if warmup.finish == "length"]
                record = {"row": place, "ids": [warmup.ids for warmup in groups[place]], "cut": cut}
                lines.append(json.dumps(record, separators=(",", ":")) + "\n")
            append(path, lines)

    draw_missing(drawing, prompts, groups.keys(), keep, "Sampling the starting model" if show_progress else "")
    return [groups[place] for place in range(len(prompts))]


def _read(path: Path, header: dict[str, Any], any_batch: bool) -> tuple[Groups, dict[str, Any] | None]:
    """The groups of a file with this header, by place, and the file's header; no groups if it differs, None without a file.

    Args:
        any_batch: the header may have another batch size.
    """
    if not path.is_file():
        return {}, None
    records = whole_records(path)
    own = records[0] if records else {}
    known = own | {"batch_size": header["batch_size"]} if any_batch else own
    if known != header:
        return {}, own
    groups = {
        record["row"]: [
            Warmup(ids, "length" if i in record["cut"] else "separator") for i, ids in enumerate(record["ids"])
        ]
        for record in records[1:]
    }
    return groups, own


class StartingPolicy:
    """The policy as it was before training, for the KL: a frozen copy, or the trained model with its new adapter switched off.

    Args:
        model: the starting model, scoring enabled, on its device. Without an adapter it is copied.
        end_id: the token with which it ends a warmup, where that is not the separator.
    """

    def __init__(self, model: Any, end_id: int | None = None) -> None:
        self.end_id = end_id
        self.model = None if has_new_adapter(model) else copy.deepcopy(model).eval().requires_grad_(False)

    def prepare(self, trainer: Any) -> None:
        """Shard the copy under ZeRO-3 and FSDP; otherwise move it to this process's device."""
        if self.model is None:
            return
        if trainer.is_deepspeed_enabled:
            self.model = compat.prepare_deepspeed(self.model, trainer.accelerator)
        elif trainer.is_fsdp_enabled:
            self.model = compat.prepare_fsdp(self.model, trainer.accelerator)
        else:  # with bf16_full_eval Trainer moves its model only when training begins
            self.model.to(trainer.args.device)

    @torch.no_grad()
    def warmup_logps(self, trained: Any, batch: WarmupBatch, constraints: SamplingConstraints) -> Tensor:
        """log P(c_t | x, c_<t) of the starting policy for the actions of every row, in nats: (N, T), 0 elsewhere.

        Args:
            trained: the model that trains, as the engine wraps it; its adapter is switched off meanwhile.
        """
        alone = warmups_alone(batch)
        if self.end_id is not None:  # a warmup's last action is the start's end
            ends = alone.warmup_mask.bool() & (alone.seq_ids == constraints.separator_id)
            alone = replace(alone, seq_ids=alone.seq_ids.masked_fill(ends, self.end_id))
            constraints = constraints.ended_by(self.end_id)
        if self.model is not None:
            logps = score(self.model, alone, constraints).token_logps
        else:
            inside = trained
            while not hasattr(inside, "disable_adapter"):
                inside = inside.module
            was_training = trained.training
            trained.eval()  # dropout would give a different starting policy at every call
            with inside.disable_adapter():
                logps = score(trained, alone, constraints).token_logps
            trained.train(was_training)
        return torch.nn.functional.pad(logps, (0, batch.seq_ids.size(1) - logps.size(1))) * batch.warmup_mask


@torch.no_grad()
def has_new_adapter(model: Any) -> bool:
    """Whether the model has an adapter that does not change its outputs yet."""
    if not hasattr(model, "disable_adapter"):
        return False
    ids = torch.tensor([[3, 5, 4, 6]], device=next(model.parameters()).device)
    ids = ids % model.get_input_embeddings().num_embeddings
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}
    was_training = model.training
    model.eval()
    now = model(**given).logits.float()
    with model.disable_adapter():
        without = model(**given).logits.float()
    model.train(was_training)
    return torch.allclose(now, without, rtol=0, atol=1e-3 * now.abs().max().item())


def warmups_alone(batch: WarmupBatch) -> WarmupBatch:
    """The same rows without their targets and without the trained network's prefix cache."""
    ends = torch.tensor([len(warmup.ids) + 1 for warmup in batch.warmups], device=batch.seq_ids.device)
    width = int(ends.max())
    before = torch.arange(width, device=ends.device) < ends[:, None]
    cut = {name: getattr(batch, name)[:, :width] for name in ("seq_ids", "warmup_mask", "target_mask")}
    cut["target_mask"] = torch.zeros_like(cut["target_mask"])
    return replace(batch, **cut, seq_mask=batch.seq_mask[:, :width] * before, prefix_cache=None)
