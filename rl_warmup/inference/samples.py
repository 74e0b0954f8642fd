"""Warmups drawn from any model for every row of a split, as a file of texts (`rl-warmup sample`).

Knows: a model, what its folder declares, the settings of a recipe, rows of a task. Must not know: training, flags.
Beside the file lies FILE.drawing.json: what was drawn, so that a drawing goes on where it stopped and never mixes with another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rl_warmup.batch import Warmup
from rl_warmup.method.drawing import Drawing, Groups, append, draw_missing
from rl_warmup.method.warmup_files import record
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.models.inference_settings import Inference, read_layout
from rl_warmup.models.layouts import make_layout
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens, end_by_separator
from rl_warmup.options import WarmupOptions
from rl_warmup.runtime.documents import parse_json, read_json, whole_records
from rl_warmup.runtime.ownership import file_lock
from rl_warmup.runtime.sharing import is_main, map_over_processes
from rl_warmup.tasks import rows_hash

CONSTRAINTS = {
    "temperature": "temperature", "top_p": "top_p", "min_length": "min_warmup_length", "max_length": "max_warmup_length",
}  # fmt: skip


@dataclass
class Sampler:
    """A model ready to draw, and how its prompts are encoded."""

    drawing: Drawing
    tokenizer: Any
    encoder: RowEncoder

    @classmethod
    def open(
        cls, name: str, options: WarmupOptions, asked: Collection[str], seed: int, batch_size: int, device: torch.device,
        **kwargs: Any,
    ) -> Sampler:  # fmt: skip
        """A folder that training wrote, or any model that training could start from.

        A trained one keeps what its warmup_layout.json declares, except for settings in `asked`. Any other is sampled as
        training with `proposals: [reference]` would: its separator takes the end token's weights, so that samples end where
        the model would end.

        Args:
            options: of a recipe, or the defaults.
            asked: names of options that go before what the folder declares.
            kwargs: passed to `load_model`.

        Raises:
            ValueError: no such model, or one that has nothing to draw from.
        """
        if name.startswith("scratch-"):
            raise ValueError(
                f"{name} has random weights, so there is nothing to sample. Give a trained model or a run."
            )
        declared = read_layout(name)
        if declared.get("inference") == "empty":
            raise ValueError(
                f"{name} was trained to answer without a warmup, so it has none to sample. Give a model that writes warmups, or "
                f"the one that this training started from."
            )
        model, tokenizer = load_model(name, **kwargs)
        tokens = declare_tokens(model, tokenizer, declared.get("separator", options.separator))
        if not declared and options.separator_init != "keep":
            end_by_separator(model, tokens)
        model.to(device).eval()
        settings = Inference.of(options, tokens)
        if declared:
            settings = _unless_asked(Inference.read(name, tokens), settings, asked)
        constraints = replace(settings.constraints, banned=tokens.banned.to(device))
        encoder = settings.encoder(model, tokenizer, writes_targets=False)
        drawing = Drawing(model, make_layout(model, tokens), constraints, options.num_warmups, seed, batch_size)
        return cls(drawing, tokenizer, encoder)

    def text(self, warmup: Warmup) -> str:
        """A warmup as its tokens spell it, the space before the first one included."""
        return self.tokenizer.decode(warmup.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def fill(
        self, path: Path, rows: Sequence[dict[str, Any]], split: str, overwrite: bool = False, show_progress: bool = False,
        **about: Any,
    ) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
        """Draw a group for every row into a file, or what is missing in it; all processes call.

        The file grows by whole batches and is put into the order of the rows at the end. What is drawn depends on the seed and
        the batch size, and neither on the number of processes nor on interruptions.

        Args:
            rows: of a task: `id`, `prompt` and `target`, in the order of the split.
            split: its name; rows on which training would refuse to train are refused here, before the first sample.
            overwrite: whether a file of another drawing may be replaced.
            about: what FILE.drawing.json says besides.

        Returns:
            The records of the file, in the order of the rows, and how many of them were there before.

        Raises:
            ValueError: a row cannot be used, or the file is another drawing's, or nobody's; on every process.
        """
        prompts = [row["prompt_ids"] for row in self.encoder.encode_all(rows, split, show_progress and is_main())]
        about = {**about, "split": split}
        header = {**self.drawing.header(prompts), "rows_hash": rows_hash(rows)}
        with ExitStack() as held:
            # one item of work, so the main process alone
            done = map_over_processes(lambda known: _begin(path, known, about, overwrite, held), [header])[0]
            if isinstance(done, str):
                raise ValueError(done)

            def keep(new: Groups) -> None:
                if is_main():
                    fresh = {place: group for place, group in new.items() if place not in done}
                    append(path, [record(place, rows[place], self._texts(group)) for place, group in fresh.items()])

            title = "Sampling warmups" if show_progress else ""
            draw_missing(self.drawing, prompts, done, keep, title)
            return map_over_processes(_in_order, [path])[0], len(done)

    def _texts(self, group: list[Warmup]) -> list[tuple[str, Warmup]]:
        return [(self.text(warmup), warmup) for warmup in group]


def _unless_asked(declared: Inference, options: Inference, asked: Collection[str]) -> Inference:
    """What a folder declares, with the settings that a flag asked for in their place."""
    constraints = {ours: getattr(options.constraints, ours) for ours, theirs in CONSTRAINTS.items() if theirs in asked}
    limits = {name: getattr(options, name) for name in ("max_prompt_length", "prompt_truncation") if name in asked}
    return replace(declared, constraints=replace(declared.constraints, **constraints), **limits)


def _begin(
    path: Path, header: dict[str, Any], about: dict[str, Any], overwrite: bool, held: ExitStack
) -> set[int] | str:
    """The rows that the file has already; or, as a sentence, why it cannot be gone on with.

    Args:
        held: keeps the file for this drawing alone, until all of it is written.
    """

    def refuse() -> None:
        raise BlockingIOError

    try:
        held.enter_context(file_lock(path, refuse))  # which makes an empty file
    except BlockingIOError:
        return f"--output: another `rl-warmup sample` draws into {path}. Wait for it to end, or give another file."
    beside = path.with_name(f"{path.name}.drawing.json")
    if path.stat().st_size and not beside.is_file():
        return f"--output: {path} exists, and no {beside.name} beside it says that it is a drawing. Give another file."
    if path.stat().st_size and not overwrite:
        known = read_json(beside, "Give another file, or --overwrite.")
        now = {name: value for name, value in header.items() if known.get(name) != value}
        changed = [f"{name} is {known.get(name)!r}, now {value!r}" for name, value in now.items()]
        if changed:
            return (
                f"--output: {path} is another drawing ({'; '.join(changed)}). Repeat its command to go on with it, give another "
                f"file, or --overwrite."
            )
        return {found["row"] for found in whole_records(path)}
    path.write_text("", encoding="utf-8")
    beside.write_text(json.dumps({**about, **header}, indent=2, default=str) + "\n", encoding="utf-8")
    return set()


def _in_order(path: Path) -> list[dict[str, Any]]:
    """Sort a finished file by row, in one step."""
    with path.open("rb") as file:
        lines = list(file)
    records = [parse_json(line) for line in lines]
    order = sorted(range(len(lines)), key=lambda place: records[place]["row"])
    if order != list(range(len(lines))):
        sorted_file = path.with_name(f"{path.name}.sorted")
        sorted_file.write_bytes(b"".join(lines[place] for place in order))
        os.replace(sorted_file, path)
    return [records[place] for place in order]
