"""Encodes the rows of a run: all of them before the first update, or those of a stream when they are needed.

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
from rl_warmup.models.chat import AUTO, NONE
from rl_warmup.models.encoding import UNSPACED, RowEncoder, read_all
from rl_warmup.models.inference_settings import Inference
from rl_warmup.models.positions import Positions
from rl_warmup.runtime import compat
from rl_warmup.runtime.checkpoints import plain
from rl_warmup.runtime.settings import shown

BLOCKS = 100
LONG_WORD = 4  # so many letters of a script without spaces should be more than one word
# rows, spread over all, in which the tokenizer's words are checked; of a stream, the first rows from which settings are made
CHECKED = 1_000
BOUNDED = "list(itertools.islice(rows, 1000))"
COUNTED = 10_000  # first rows of a stream in which words are counted, instead of all


def encode_rows(encoder: RowEncoder, rows: Any, name: str, args: TrainingArguments) -> list[dict[str, Any]]:
    """Encode all rows of a data set; prints how many the token limits changed."""
    encoded = encoder.encode_all(rows, name, show_progress=not args.disable_tqdm)
    if encoder.counts:
        print(f"{name}: {', '.join(f'{n} {what}' for what, n in encoder.counts.items())} by the token limits.")
    if said := encoder.writable.say(name):
        print(said)
    # where the completion is a list of messages, the target comes from it
    texts = ((row.get("completion"), row["target"]) for row in encoded)
    if any(isinstance(completion, str) and completion != target for completion, target in texts):
        print(f"{name}: rows have a column `completion` beside `target`, which says something else. `target` is used.")
    if name == "train" and (words := _refuse_words(encoded, args.proposals, encoder.tokenizer)):
        print(words)
    return encoded


def encode_sets(encoder: RowEncoder, rows: Any, name: str, args: TrainingArguments) -> Any:
    """Encode rows for scoring: one set, or a dict of sets (a `DatasetDict`). None and encoded rows are returned unchanged.

    Raises ValueError: not a set of rows, an empty set, a faulty row, or rows that another trainer encoded otherwise.
    """
    if rows is None:
        return None
    if isinstance(rows, Mapping) and not all(isinstance(part, str) for part in rows.values()):
        if nested := [part for part, found in rows.items() if found is None or isinstance(found, Mapping)]:
            raise ValueError(
                f"{name}: {shown(nested[0])} is {shown(rows[nested[0]])}, no set of rows. Give a list of rows each."
            )
        return {part: encode_sets(encoder, found, f"{name} {part}", args) for part, found in rows.items()}
    several = isinstance(rows, Iterable) and not isinstance(rows, str | Mapping)
    found = read_all(rows, name, f"Give a list of rows: {BOUNDED}.") if several else None
    if found is None or not all(isinstance(row, Mapping) for row in found):
        raise ValueError(
            f"{name}: {str(rows)[:60]!r} is no set of rows. Give a list or data set of rows with `prompt` and `target`, or a "
            f"dict of such sets."
        )
    if found and all("prompt_ids" in row and "target_ids" in row for row in found):
        again = replace(encoder, counts=Counter()).encode(dict(found[0]), f"{name} row 0")
        if again is not None and again["target_ids"] != found[0]["target_ids"]:
            raise ValueError(
                f"{name}: the rows are encoded by another tokenizer or with other limits. Give them without `prompt_ids` and "
                f"`target_ids`."
            )
        return found
    counted = replace(encoder, counts=Counter())
    encoded = encode_rows(counted, found, name, args)
    encoder.counts.update(counted.counts)
    return encoded


def check_written(encoder: RowEncoder, rows: list[dict[str, Any]], positions: Positions | None) -> None:
    """If training lets the model write targets, check that the longest fits after every training row, also in a stream later.

    Raises ValueError: naming the row.
    """
    encoder.positions = positions
    if positions is None or not (positions.sequence or positions.prompt):
        return
    for row in rows:
        positions.check(len(row["prompt_ids"]), len(row["target_ids"]), f"train row (id {row['id']})")


def training_rows(encoder: RowEncoder, rows: Any, args: TrainingArguments, stored: StoredWarmups | None = None) -> Any:
    """Training rows for Trainer: a list of encoded rows, or an `EncodedStream` if the data set has no length.

    Args:
        stored: a file's warmups, to be added to every row.

    Raises:
        ValueError: a faulty row of a list; settings under which a stream cannot be read exactly; a file of warmups that does
            not fit the rows.
    """
    readable = rows is None or hasattr(rows, "__iter__") or (isinstance(rows, Sized) and hasattr(rows, "__getitem__"))
    if isinstance(rows, Mapping | str | bytes | type) or not readable:
        given = f"a dict of {', '.join(map(str, rows))}" if isinstance(rows, Mapping) else shown(rows)
        raise ValueError(
            f"train_dataset: takes one set of rows, and was given {given}. Give a list of rows or a data set."
        )
    streamed = isinstance(rows, IterableDataset) or not isinstance(rows, Sized | Iterator | None)
    if isinstance(rows, Iterator):  # they may be read twice
        rows = read_all(
            rows, "train_dataset", f"Give an IterableDataset, which is read as needed, or a list: {BOUNDED}."
        )
    if stored is not None and rows is not None:
        # a stream that may shuffle has no fixed numbers of rows; of other libraries' streams this is unknown
        if streamed and getattr(rows, "shuffle_buffer", None) != 1:
            raise ValueError(
                f"stored_warmups: {stored.path} names training rows by their number, but this stream may give its rows in "
                f"another order. Give the stream shuffle_buffer 1 (in task_kwargs), which keeps their order, or train on rows "
                f"in a list."
            )
        encoder.extra_columns = stored.columns(rows, complete=streamed)
        if (losses := stored.losses()) and not args.process_index:
            print(losses)
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
    """The encoded training rows; of a stream its first `CHECKED` rows."""
    if not isinstance(rows, EncodedStream):
        return rows or []
    first = rows.first(CHECKED, CHECKED if rows.proposals else 1)
    if words := _refuse_words(first, rows.proposals, rows.encoder.tokenizer):
        print(words)
    return first


def settle_chat(settings: Inference, rows: list[dict[str, Any]], args: Any, tokenizer: Any) -> Inference:
    """The settings once it is known whether the prompts of the training rows are conversations.

    A template from a file becomes the tokenizer's too, for other programs. Prints that a template is not used.

    Args:
        rows: encoded.
        args: `WarmupConfig`.

    Raises:
        ValueError: some prompts are conversations and some texts, or a system message for texts.
    """
    first = {isinstance(row["prompt"], list): row["id"] for row in reversed(rows)}
    if settings.chat_template not in (None, NONE):
        tokenizer.chat_template = settings.chat_template
    if settings.chat:  # for texts too
        return settings
    if len(first) == 2:
        raise ValueError(
            f"train: the prompt of row {first[True]} is a conversation, that of row {first[False]} a text. Give one kind, or "
            f"`chat_template: model`, which makes user messages of texts."
        )
    if (args.system or args.chat_template_kwargs) and True not in first and rows:
        raise ValueError(
            "system, chat_template_kwargs: have no effect, as the prompts are texts. Give `chat_template: model`, which makes "
            "user messages of them, or leave these settings out."
        )
    if rows and True not in first and tokenizer.chat_template and args.chat_template == AUTO and not args.process_index:
        print(
            "chat_template: the tokenizer has one, which is not used, as the prompts are texts and not conversations. "
            "`chat_template: model` uses it; `none` leaves this message out."
        )
    return replace(settings, chat=True in first)


def count_targets(rows: Any, args: TrainingArguments) -> Counter[Word]:
    """In how many training targets each word occurs; for a stream, in how many of its `COUNTED` first rows (prints that)."""
    if not isinstance(rows, EncodedStream):
        return count_words(rows or [])
    first = rows.first(COUNTED)
    if not args.process_index:
        print(f"train: word counts are those of the stream's first {len(first)} rows.")
    return count_words(first)


def rows_digest(rows: Any) -> dict[str, Any]:
    """Identifies the training rows: their `count`, and `blocks`, the hashes of up to 100 blocks of equal length.

    For a stream, `first` instead of `count`: only its first rows are hashed. Columns that encoding adds are ignored.
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


def hash_of_rows(digest: dict[str, Any]) -> dict[str, Any]:
    """What environment.json says about the training rows of a `rows_digest`: how many, and one hash of them."""
    sha256, streamed = hashlib.sha256("".join(digest["blocks"]).encode()).hexdigest(), "first" in digest
    return {"rows": digest["first" if streamed else "count"], "streamed": streamed, "sha256": sha256}


class EncodedStream(IterableDataset, TrainerCallback):
    """Encoded rows for `max_steps` updates, from as many epochs of a source as needed; little more than a batch is in memory.

    An epoch may end within a batch, so all batches are full and all processes end together. Every process reads and encodes
    all rows, and accelerate gives whole batches to the processes in turn: the rows of an update depend on its size alone, and
    a faulty row stops all processes with the same error.

    Args:
        source: an iterable that gives the rows of one epoch, the same ones on every process. If it has `set_epoch`, that is
            called before every epoch, so that it can shuffle.
    """

    def __init__(self, encoder: RowEncoder, source: Any, args: TrainingArguments) -> None:
        _check_stream(source, args)
        args.accelerator_config.dispatch_batches = False  # the main process could send tensors only
        self.encoder, self.source, self.proposals = encoder, source, args.proposals
        self.rows_per_update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.length = args.max_steps * self.rows_per_update
        # for the first rows: the starting model's warmups, and those of another row
        self.reference: list[tuple[Any, Any]] = []
        self.rows_to_skip = 0  # first rows, on which a resumed run has trained already

    def __len__(self) -> int:
        """Rows of the whole run. From it Trainer knows whether a run is finished."""
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for place, row in enumerate(itertools.islice(self._epochs(), self.length)):
            if place < len(self.reference):
                group, other = self.reference[place]
                row = {**row, COLUMNS[REFERENCE]: group, OTHER_REFERENCE: other}
            yield row

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer skips rows after a restart, so that they need not be encoded."""
        self.rows_to_skip = 0 if args.ignore_data_skip else state.global_step * self.rows_per_update

    def first(self, count: int, sound: int | None = None) -> list[dict[str, Any]]:
        """The first rows of the first epoch, encoded; `encoder.counts` does not change.

        Args:
            sound: a faulty row after so many ends them, as training names it in its turn; by default each is named now.
        """
        encoder, found = replace(self.encoder, counts=Counter()), list[dict[str, Any]]()
        try:
            for row in itertools.islice(encoder.encode_each(self.raw(0), "train"), count):
                found.append(row)
        except ValueError:
            if sound is None or len(found) < sound:
                raise
        return found

    def raw(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The rows of one epoch as the source gives them."""
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)
        return iter(self.source)

    def _epochs(self) -> Iterator[dict[str, Any]]:
        drops = "drop" in (self.encoder.prompt_truncation, self.encoder.target_truncation)
        unread = 0 if drops else self.rows_to_skip  # rows that truncation drops are known only after encoding
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


def _refuse_words(rows: list[dict[str, Any]], proposals: list[Any], tokenizer: Any) -> str | None:
    """Proposals move words. If the tokenizer makes one token of a clause without spaces, they copy too much of the target.

    Returns a sentence if some rows are like that.

    Raises ValueError: most rows are.
    """
    moving = [name for name in proposals if name not in (REFERENCE, "stored", DRAFT, "filler")]
    checked = rows[:: max(1, len(rows) // CHECKED)] if moving else []
    whole = [row for row in checked if _has_long_words(row, tokenizer)]
    if len(whole) > len(checked) / 2:
        raise ValueError(
            f"proposals: {moving[0]} moves the target's words, but the tokenizer makes single tokens of whole clauses without "
            f"spaces in {len(whole)} of {len(checked)} training rows (id {whole[0]['id']}, {whole[0]['target'][:40]!r}), so a "
            f"proposal would be most of the target itself. Use a tokenizer of pieces (scratch: {{tokenizer: subwords}}), or "
            f"other proposals."
        )
    if not whole:
        return None
    return (
        f"train: in {len(whole)} of {len(checked)} rows (id {whole[0]['id']}) the tokenizer makes single tokens of whole clauses "
        f"without spaces, so {moving[0]} proposes most of the target itself there."
    )


def _has_long_words(row: dict[str, Any], tokenizer: Any) -> bool:
    """Whether half of the target's letters of scripts without spaces are in long words: `LONG_WORD` letters, a quarter of all
    such letters, or more."""
    total = len(UNSPACED.findall(row["target"]))
    if total < LONG_WORD:
        return False
    letters = [len(UNSPACED.findall(tokenizer.decode(list(word)))) for word in target_words(row)]
    return 2 * sum(count for count in letters if count >= max(LONG_WORD, total / 4)) >= total


def callbacks_for(rows: Any) -> list[TrainerCallback]:
    """Callbacks that these training rows need."""
    return [rows] if isinstance(rows, EncodedStream) else []


def _check_stream(source: Any, args: TrainingArguments) -> None:
    if args.max_steps <= 0:
        raise ValueError(
            "max_steps: a stream has no length, so it cannot be trained on for a number of epochs. Give the number of updates."
        )
    if args.dataloader_num_workers:
        raise ValueError(
            f"dataloader_num_workers: is {args.dataloader_num_workers}, but a stream is read by the training process itself, "
            f"in one order. Set it to 0."
        )
    if compat.is_split_over_processes(source):
        raise ValueError(
            "train_dataset: this stream was split over processes (split_dataset_by_node) and would be split again here, so most "
            "rows would never be used. Give every process the whole stream."
        )
