"""The rows of a run, encoded: all of them before the first update, or a stream's as they are needed.

Knows: a row encoder, what Trainer and accelerate do with a torch `IterableDataset`. Must not know: files, tasks, networks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainingArguments

from rl_warmup.method.proposals import COLUMNS, DRAFT, OTHER_REFERENCE, REFERENCE, Word, count_words, target_words
from rl_warmup.method.warmup_files import StoredWarmups
from rl_warmup.models.encoding import UNSPACED, RowEncoder
from rl_warmup.models.positions import Positions
from rl_warmup.runtime.checkpoints import plain

BLOCKS = 100
UNCUT = 4  # letters without spaces from which on they should be more than one word
LOOKED_AT = 1_000  # rows, spread over all, that tell how the tokenizer cuts
COUNTED = 10_000  # rows of a stream that stand for all of it where words are counted


def encode_rows(encoder: RowEncoder, rows: Any, name: str, args: TrainingArguments) -> list[dict[str, Any]]:
    """All rows of a data set at once; says what the token limits did."""
    encoded = encoder.encode_all(rows, name, show_progress=not args.disable_tqdm)
    if encoder.counts:
        print(f"{name}: {', '.join(f'{n} {what}' for what, n in encoder.counts.items())} by the token limits.")
    if said := encoder.writable.say(name):
        print(said)
    if name == "train":
        _refuse_words(encoded, args.proposals, encoder.tokenizer)
    return encoded


def encode_sets(encoder: RowEncoder, rows: Any, name: str, args: TrainingArguments) -> Any:
    """Rows to be scored: one set, or a dict of sets (a `DatasetDict`); None stays None, and encoded rows stay as they are.

    Raises:
        ValueError: for what is no set of rows, an empty set, or a faulty row.
    """
    if rows is None:
        return None
    if isinstance(rows, Mapping) and not all(isinstance(part, str) for part in rows.values()):
        return {part: encode_sets(encoder, found, f"{name} {part}", args) for part, found in rows.items()}
    found = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str | Mapping) else None
    if found is None or not all(isinstance(row, Mapping) for row in found):
        raise ValueError(
            f"{name}: {str(rows)[:60]!r} is no set of rows. Give a list or data set of rows with `prompt` and `target`, or a "
            f"dict of such sets."
        )
    if found and all("prompt_ids" in row and "target_ids" in row for row in found):
        return found
    counted = replace(encoder, counts=Counter())
    encoded = encode_rows(counted, found, name, args)
    encoder.counts.update(counted.counts)
    return encoded


def check_written(encoder: RowEncoder, rows: list[dict[str, Any]], positions: Positions | None) -> None:
    """Where training lets the model write targets: room for the longest in every training row, those to come included.

    Raises:
        ValueError: naming the row.
    """
    encoder.positions = positions
    if positions is None or not (positions.sequence or positions.prompt):
        return
    for row in rows:
        positions.check(len(row["prompt_ids"]), len(row["target_ids"]), f"train row (id {row['id']})")


def training_rows(encoder: RowEncoder, rows: Any, args: TrainingArguments, stored: StoredWarmups | None = None) -> Any:
    """What Trainer trains on: a list of encoded rows, or an `EncodedStream` where the data set has no length.

    Args:
        stored: a file's warmups, to lie beside every row.

    Raises:
        ValueError: a faulty row of a list; settings under which a stream cannot be read exactly; a file of warmups that does
            not fit the rows.
    """
    if isinstance(rows, Mapping | str):
        given = f"a dict of {', '.join(map(str, rows))}" if isinstance(rows, Mapping) else repr(rows)
        raise ValueError(
            f"train_dataset: takes one set of rows, and was given {given}. Give a list of rows or a data set."
        )
    streamed = isinstance(rows, IterableDataset) or not isinstance(rows, Sized | Iterator | None)
    if stored is not None and rows is not None:
        if streamed:
            _check_order(rows, stored.path)
        elif isinstance(rows, Iterator):
            rows = list(rows)  # they are gone through twice
        encoder.beside = stored.columns(rows, complete=streamed)
        if (said := stored.said()) and not args.process_index:
            print(said)
    if rows is None:
        return None
    if streamed:
        return EncodedStream(encoder, rows, args)
    encoded = encode_rows(encoder, rows, "train", args)
    batch = args.train_batch_size * args.world_size
    if encoded and args.dataloader_drop_last and len(encoded) < batch:
        raise ValueError(
            f"dataloader_drop_last: leaves nothing to train on, as {len(encoded)} training rows do not fill a batch of {batch}. "
            f"Leave it out, or lower per_device_train_batch_size."
        )
    return encoded


def first_rows(rows: Any) -> list[dict[str, Any]]:
    """The encoded training rows. Of a stream the first one, or as many as tell whether its proposals can work."""
    if not isinstance(rows, EncodedStream):
        return rows or []
    first = rows.first(LOOKED_AT if rows.proposals else 1)
    _refuse_words(first, rows.proposals, rows.encoder.tokenizer)
    return first


def count_targets(rows: Any, args: TrainingArguments) -> Counter[Word]:
    """In how many training targets each word occurs; of a stream, in how many of its `COUNTED` first rows, which is said."""
    if not isinstance(rows, EncodedStream):
        return count_words(rows or [])
    first = rows.first(COUNTED)
    if not args.process_index:
        print(f"train: word counts are those of the stream's first {len(first)} rows.")
    return count_words(first)


def rows_digest(rows: Any) -> dict[str, Any]:
    """What tells training rows from others: `count`, and `blocks`, a hash each of up to 100 pieces of equal length.

    Of a stream, `first` says that these are its first rows alone. All columns count, but not what is made of them here.
    """
    streamed = isinstance(rows, EncodedStream)
    known = [dict(row) for row in itertools.islice(rows.raw(0), BLOCKS)] if streamed else rows or []
    size = max(1, math.ceil(len(known) / BLOCKS))
    made = {"prompt_ids", "target_ids", "word_lengths", COLUMNS[REFERENCE], OTHER_REFERENCE}
    lines = (
        json.dumps({k: v for k, v in row.items() if k not in made}, default=plain, sort_keys=True) for row in known
    )
    blocks = []
    while block := list(itertools.islice(lines, size)):
        blocks.append(hashlib.sha256("\n".join(block).encode()).hexdigest()[:8])
    return {"first" if streamed else "count": len(known), "blocks": blocks}


class EncodedStream(IterableDataset):
    """Encoded rows for `max_steps` updates, pass after pass over a source, of which little more than a batch is held.

    Passes follow each other without a gap, so no batch is ragged and no process ends before another. Every process reads and
    encodes all rows, and accelerate deals whole batches out to them in turn: what an update trains on depends on its size
    alone, and a faulty row stops all processes with the same words.

    Args:
        source: gives the rows of one pass each time it is gone through, the same ones on every process. If it has
            `set_epoch`, the pass is announced by it, so that it may shuffle.
    """

    def __init__(self, encoder: RowEncoder, source: Any, args: TrainingArguments) -> None:
        _check(source, args)
        args.accelerator_config.dispatch_batches = False  # the main process would send tensors alone
        self.encoder, self.source, self.proposals = encoder, source, args.proposals
        self.rows_per_update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.length = args.max_steps * self.rows_per_update
        self.reference: list[tuple[Any, Any]] = []  # of the first rows: the starting model's warmups, and another row's
        self.thrown_away = 0  # rows at the beginning that a resumed run has trained on and only counts

    def __len__(self) -> int:
        """Rows of the whole run. With it Trainer knows a finished run from one that has to go on."""
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for place, row in enumerate(itertools.islice(self._passes(), self.length)):
            if place < len(self.reference):
                group, another = self.reference[place]
                row = {**row, COLUMNS[REFERENCE]: group, OTHER_REFERENCE: another}
            yield row

    def first(self, count: int) -> list[dict[str, Any]]:
        """The first rows of the first pass, encoded, their truncations not counted."""
        encoder = replace(self.encoder, counts=Counter())
        return list(itertools.islice(encoder.encode_each(self.raw(0), "train"), count))

    def raw(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The rows of one pass as the source gives them."""
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)
        return iter(self.source)

    def _passes(self) -> Iterator[dict[str, Any]]:
        drops = "drop" in (self.encoder.prompt_truncation, self.encoder.target_truncation)
        unread = 0 if drops else self.thrown_away  # nobody can tell without encoding which rows a policy drops
        for epoch in itertools.count():
            rows, number, used = self.raw(epoch), 0, 0
            for row in itertools.islice(rows, unread):
                yield row
                number += 1
            unread -= number
            for row in self.encoder.encode_each(rows, "train", number):
                yield row
                used += 1
            if not number + used:
                raise ValueError(
                    f"train: no row is left to use ({dict(self.encoder.counts) or 'the stream is empty'})."
                )


def _refuse_words(rows: list[dict[str, Any]], proposals: list[Any], tokenizer: Any) -> None:
    """Proposals move words; where the tokenizer makes one token of a clause without spaces, they keep too much of the target.

    Raises:
        ValueError: for such rows, if they are most.
    """
    moving = [name for name in proposals if name not in (REFERENCE, "stored", DRAFT, "filler")]
    looked_at = rows[:: max(1, len(rows) // LOOKED_AT)] if moving else []
    whole = [row for row in looked_at if _in_lumps(row, tokenizer)]
    if len(whole) > len(looked_at) / 2:
        raise ValueError(
            f"proposals: {moving[0]} moves the target's words, but the tokenizer makes single tokens of whole clauses without "
            f"spaces in {len(whole)} of {len(looked_at)} training rows (id {whole[0]['id']}, {whole[0]['target'][:40]!r}), so a "
            f"proposal would be most of the target itself. Use a tokenizer of pieces (scratch: {{tokenizer: subwords}}), or "
            f"other proposals."
        )


def _in_lumps(row: dict[str, Any], tokenizer: Any) -> bool:
    """Whether half of the target's letters without spaces stand in lumps: words of `UNCUT` of them, a quarter of all, or more."""
    total = len(UNSPACED.findall(row["target"]))
    if total < UNCUT:
        return False
    letters = [len(UNSPACED.findall(tokenizer.decode(list(word)))) for word in target_words(row)]
    return 2 * sum(count for count in letters if count >= max(UNCUT, total / 4)) >= total


def callbacks_for(rows: Any) -> list[TrainerCallback]:
    """What has to watch the trainer for the sake of its rows."""
    return [_Resume(rows)] if isinstance(rows, EncodedStream) else []


class _Resume(TrainerCallback):
    """Tells a stream how many of its rows Trainer will pass over, so that they need not be encoded."""

    def __init__(self, stream: EncodedStream) -> None:
        self.stream = stream

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stream.thrown_away = 0 if args.ignore_data_skip else state.global_step * self.stream.rows_per_update


def _check(source: Any, args: TrainingArguments) -> None:
    if args.max_steps <= 0:
        raise ValueError(
            "max_steps: a stream has no length, so it cannot be trained on for a number of epochs. Give the number of updates."
        )
    if args.dataloader_num_workers:
        raise ValueError(
            f"dataloader_num_workers: is {args.dataloader_num_workers}, but a stream is read by the training process itself, "
            f"in one order. Set it to 0."
        )
    if getattr(source, "_distributed", None) is not None:
        raise ValueError(
            "train_dataset: this stream was split over processes (split_dataset_by_node), and is dealt out once more here, so "
            "that most rows would never be used. Give every process the whole stream."
        )


def _check_order(source: Any, path: Any) -> None:
    """A stream's rows have no numbers once it has shuffled them, and nobody can tell whether a foreign one does."""
    if getattr(source, "shuffle_buffer", None) != 1:
        raise ValueError(
            f"stored_warmups: {path} names training rows by their place, but these are a stream whose rows may come in another "
            f"order. Give the stream shuffle_buffer 1 (in task_kwargs), which keeps their order, or train on rows in a list."
        )
