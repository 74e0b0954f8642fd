"""Draws warmups from any model for every row of a split into a file of texts (`rl-warmup sample`).

Knows: a model, its warmup_layout.json, the settings of a recipe, rows of a task. Must not know: training, flags.
FILE.drawing.json describes the drawing, so that an interrupted one continues and two are never mixed.
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
from rl_warmup.method.warmup_files import read_lines, record
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.models.inference_settings import Inference, cut_of, read_layout
from rl_warmup.models.layouts import make_layout
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import THINKING_ENDS, declare_tokens, end_by_separator
from rl_warmup.options import WarmupOptions
from rl_warmup.runtime.documents import parse_json, read_json, whole_records
from rl_warmup.runtime.ownership import file_lock
from rl_warmup.runtime.sharing import is_main, map_over_processes
from rl_warmup.tasks import rows_hash

CONSTRAINTS = {
    "temperature": "temperature", "top_p": "top_p", "min_length": "min_warmup_length", "max_length": "max_warmup_length",
}  # fmt: skip
OF_UNTRAINED = ("separator", "separator_init", "chat_template", "chat_template_kwargs", "system")  # a run keeps its own


@dataclass
class Sampler:
    """A model ready to draw warmups, and the encoder of its prompts."""

    drawing: Drawing
    tokenizer: Any
    encoder: RowEncoder

    @classmethod
    def open(
        cls, name: str, options: WarmupOptions, asked: Collection[str], seed: int, batch_size: int, device: torch.device,
        **kwargs: Any,
    ) -> Sampler:  # fmt: skip
        """Load a trained model, or any model that training could start from.

        A trained model keeps the settings of its warmup_layout.json, except those in `asked`. Any other model is sampled as in
        training with `proposals: [reference]`: its separator takes the end token's weights, so that samples end where the
        model would end.

        Args:
            options: of a recipe, or the defaults.
            asked: names of options that override warmup_layout.json.
            kwargs: passed to `load_model`.

        Raises:
            ValueError: no such model, one without warmups to draw, or a trained one asked for what it keeps as it was trained.
        """
        if name.startswith("scratch-"):
            raise ValueError(f"{name} has random weights, so sampling makes no sense. Give a trained model or a run.")
        declared = read_layout(name)
        if declared.get("inference") == "empty":
            raise ValueError(
                f"{name} was trained without warmups, so it has none to sample. Give a model that writes warmups, or the one "
                f"that this training started from."
            )
        if declared and (kept := [one for one in OF_UNTRAINED if one in asked]):
            raise ValueError(
                f"--{kept[0]}: {name} is sampled as it was trained; its warmup_layout.json says how. Leave it out."
            )
        model, tokenizer = load_model(name, **kwargs)
        tokens = declare_tokens(model, tokenizer, declared.get("separator", options.separator))
        known = options.separator_init == "auto" and options.separator in THINKING_ENDS
        if not declared and options.separator_init != "keep" and not known:
            end_by_separator(model, tokens)
        model.to(device).eval()
        if declared:  # the file that the recipe names as its chat_template may be gone
            given = {"max_prompt_length": options.max_prompt_length, "prompt_truncation": cut_of(options)}
            limits: dict[str, Any] = {one: value for one, value in given.items() if one in asked}
            changed = {ours: getattr(options, theirs) for ours, theirs in CONSTRAINTS.items() if theirs in asked}
            settings = Inference.read(name, tokens)
            settings = replace(settings, constraints=replace(settings.constraints, **changed), **limits)
        else:
            settings = Inference.of(options, tokens)
        constraints = replace(settings.constraints, banned=tokens.banned.to(device))
        encoder = settings.encoder(model, tokenizer, writes_targets=False)
        drawing = Drawing(model, make_layout(model, tokens), constraints, options.num_warmups, seed, batch_size)
        return cls(drawing, tokenizer, encoder)

    def text(self, warmup: Warmup) -> str:
        """A warmup as text, with the space before its first token."""
        return self.tokenizer.decode(warmup.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def fill(
        self, path: Path, rows: Sequence[dict[str, Any]], split: str, overwrite: bool = False, show_progress: bool = False,
        **about: Any,
    ) -> tuple[list[dict[str, Any]], int]:  # fmt: skip
        """Draw a group for every row into a file, or the missing groups; all processes call.

        The file grows by whole batches and is sorted by row at the end. Samples depend on the seed and the batch size, but not
        on the number of processes or on interruptions.

        Args:
            rows: of a task: `id`, `prompt` and `target`, in the order of the split.
            split: its name; rows that training would refuse are refused here, before the first sample.
            overwrite: whether a file of another drawing may be replaced.
            about: further entries of FILE.drawing.json.

        Returns:
            The records of the file, in the order of the rows, and how many existed before.

        Raises:
            ValueError: a row cannot be used, or the file exists and is not of this drawing; on every process.
        """
        prompts = [row["prompt_ids"] for row in self.encoder.encode_all(rows, split, show_progress and is_main())]
        about = {**about, "split": split}
        header = {**self.drawing.header(prompts), "rows_hash": rows_hash(rows)}
        with ExitStack() as held:
            # one item, so only the main process does it
            done = map_over_processes(lambda known: _begin(path, known, about, overwrite, held), [header])[0]
            if isinstance(done, str):
                raise ValueError(done)

            def keep(new: Groups) -> None:
                if is_main():
                    fresh = {
                        place: [(self.text(warmup), warmup) for warmup in group]
                        for place, group in new.items()
                        if place not in done
                    }
                    append(path, [record(place, rows[place], texts) for place, texts in fresh.items()])

            draw_missing(self.drawing, prompts, done, keep, "Sampling warmups" if show_progress else "")
            return map_over_processes(_sorted_records, [path])[0], len(done)


def check_warmups(path: Path) -> None:
    """Raise the ValueError of a training that would read this file, long before it does."""
    read_lines(path)


def is_group(found: Any) -> bool:
    """Whether it is a list of warmups as this command writes them."""
    return isinstance(found, list) and all(isinstance(w, dict) and {"warmup", "finish"} <= w.keys() for w in found)


def _begin(
    path: Path, header: dict[str, Any], about: dict[str, Any], overwrite: bool, held: ExitStack
) -> set[int] | str:
    """The rows that the file already has; or a sentence about why the drawing cannot continue.

    Args:
        held: holds the lock of the file until all of it is written.
    """

    def refuse() -> None:
        raise BlockingIOError

    try:
        held.enter_context(file_lock(path, refuse))  # creates an empty file
    except BlockingIOError:
        return f"--output: another `rl-warmup sample` draws into {path}. Wait for it to end, or give another file."
    about_file = path.with_name(f"{path.name}.drawing.json")
    if path.stat().st_size and not about_file.is_file():
        return f"--output: {path} exists, but without {about_file.name}, so it is no drawing. Give another file."
    if path.stat().st_size and not overwrite:
        known = read_json(about_file, "Give another file, or --overwrite.")
        changes = [(name, known.get(name), value) for name, value in header.items() if known.get(name) != value]
        if changes:
            changed = "; ".join(f"{name} is {old!r}, now {new!r}" for name, old, new in changes)
            return (
                f"--output: {path} is another drawing ({changed}). Repeat its command to continue it, give another file, or "
                f"--overwrite."
            )
        found = whole_records(path)
        for number, one in enumerate(found, 1):
            if not (isinstance(one, dict) and type(one.get("row")) is int and is_group(one.get("warmups"))):
                return f"--output: {path}, line {number} is none of this command. Remove the line, or give --overwrite."
        return {one["row"] for one in found}
    path.write_text("", encoding="utf-8")
    about_file.write_text(json.dumps({**about, **header}, indent=2, default=str) + "\n", encoding="utf-8")
    return set()


def _sorted_records(path: Path) -> list[dict[str, Any]]:
    """The records of a finished file by row; sorts the file too, in one step."""
    with path.open("rb") as file:
        lines = list(file)
    records = [parse_json(line) for line in lines]
    order = sorted(range(len(lines)), key=lambda place: records[place]["row"])
    if order != list(range(len(lines))):
        sorted_file = path.with_name(f"{path.name}.sorted")
        sorted_file.write_bytes(b"".join(lines[place] for place in order))
        os.replace(sorted_file, path)
    return [records[place] for place in order]
