"""Text -> token ids, once, before training: limits, truncation and their counts.

Knows: a tokenizer and the limits. Must not know: networks, warmups. All errors are found before the first update.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

from rl_warmup.models.chat import Chat
from rl_warmup.models.positions import Positions
from rl_warmup.runtime.terminal import progress

# Columns that encoding and training add to a row of data.
ADDED = (
    "prompt_ids", "target_ids", "word_lengths", "reference warmups", "reference warmups of another prompt", "stored warmups",
)  # fmt: skip
# Letters and signs of scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff0f\uff1a-\uff1f\uff5f-\uff9f\U00020000-\U0003ffff]"
)
OTHER_FORMS = "`rl_warmup.tasks.load_task` reads rows of other forms (docs/data.md)."
HALF = re.compile("[\ud800-\udfff]")  # a surrogate without its other half
ROWS_PER_CALL = 64  # of the tokenizer: a call for each text takes more than twice as long
MOST_READ = 1_000_000  # items of an iterable that does not say how many it has


def read_all(items: Iterable[Any], name: str, remedy: str) -> list[Any]:
    """All items, where they are needed at once. Raises ValueError for an iterable without a length that seems to have no end."""
    if isinstance(items, Sized):
        return list(items)
    found = list(islice(items, MOST_READ + 1))
    if len(found) > MOST_READ:
        raise ValueError(
            f"{name}: a {type(items).__name__} without a length gave over {MOST_READ:,} items, and all of them are read at once. "
            f"{remedy}"
        )
    return found


@dataclass
class Writable:
    """How many targets of a data set change when they are encoded and decoded, except for whitespace."""

    rows: int = 0
    changed: int = 0
    unknown: int = 0  # rows whose whole target or prompt is unknown to the tokenizer
    example: str = ""
    unread: str = ""  # an example of an unknown prompt

    def say(self, name: str) -> str | None:
        """Sentences about prompts that a model cannot read and targets that it cannot write; None if there are none."""
        said = [f"{name}: the tokenizer knows nothing of some prompts, such as {self.unread}."] if self.unread else []
        if self.changed:
            said.append(
                f"{name}: {self.changed} of {self.rows} targets ({self.changed / self.rows:.1%}) cannot be written by the "
                f"tokenizer and a perfect model would match {1 - self.changed / self.rows:.1%} of them: {self.example}."
            )
        return " ".join(said) or None


@dataclass
class RowEncoder:
    """Turns rows with `prompt` and `target` (or TRL's `completion`) into rows that also hold ids.

    Added columns: `id` (the row's number in its data set) if a row has none, `prompt_ids`, `target_ids` (ends with the end
    token) and `word_lengths` (tokens of each target word, so that proposals move whole words; in scripts without spaces a token
    is a word). `counts` counts truncated and dropped rows, `writable` the targets of the last data set that the tokenizer
    cannot write. `extra_columns` returns more columns for a row, from its number in the data set (dropped rows count) and its
    label in errors.
    """

    tokenizer: Any
    separator_id: int
    max_prompt_length: int | None = None
    max_target_length: int | None = None
    prompt_truncation: str = "error"
    target_truncation: str = "error"
    encoder_decoder: bool = True
    positions: Positions | None = None
    chat: Chat = field(default_factory=Chat)
    counts: Counter = field(default_factory=Counter)
    writable: Writable = field(default_factory=Writable, init=False)
    extra_columns: Callable[[int, str], dict[str, Any]] | None = None
    _tokenized: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # (part, text) -> tokens

    def encode_all(
        self, rows: Iterable[dict[str, Any]], name: str, show_progress: bool = False, first: int = 0
    ) -> list[dict[str, Any]]:
        """All rows of a data set without those that a truncation policy drops; the first is row number `first`.

        Raises ValueError: names the first faulty row, its fault, and what to do.
        """
        shown = progress(rows, f"Tokenizing {name}", show_progress)
        self.writable = Writable()
        encoded = list(self.encode_each(shown, name, first))
        if encoded and self.writable.unknown == self.writable.rows:
            raise ValueError(
                f"{name}: all of the text is unknown to the tokenizer. Give the tokenizer of this text's language."
            )
        if not encoded:
            raise ValueError(f"{name}: no row is left to use ({dict(self.counts) or 'the data set is empty'}).")
        return encoded

    def encode_each(self, rows: Iterable[dict[str, Any]], name: str, first: int = 0) -> Iterator[dict[str, Any]]:
        """The rows one by one, tokenized `ROWS_PER_CALL` at a time; the first is row number `first`. Raises as `encode_all`."""
        source, index = iter(rows), first
        while together := [_row(row, name, number) for number, row in enumerate(islice(source, ROWS_PER_CALL), index)]:
            _refuse_halves(together, name, index)
            ahead = self._read_ahead(together)
            for row in together:
                self._tokenized = ahead
                where = f"{name} row {index} (id {row.get('id', index)})"
                ids = self.encode(row, where)
                if ids is not None:
                    self._check_tokens(ids, where, refuse=name == "train")
                    if ids.get("id") is None:
                        ids["id"] = str(index)
                self._tokenized = {}  # the next row may be requested much later, after others were encoded
                index += 1
                if ids is not None:
                    yield ids if self.extra_columns is None else {**ids, **self.extra_columns(index - 1, where)}

    def encode(self, row: dict[str, Any], where: str) -> dict[str, Any] | None:
        """One row with its ids, or None if a policy drops it."""
        target_column = "target" if "target" in row else "completion"
        for column in ("prompt", target_column):
            if column not in row:
                wanted = "a `prompt` column and a `target` (or `completion`) column"
                raise ValueError(
                    f"{where}: needs {wanted}; it has {', '.join(map(repr, row)) or 'none'}. {OTHER_FORMS}"
                )
        target = _target_text(row[target_column])
        _refuse_other(row["prompt"], "prompt", where, messages=True)
        _refuse_other(target, target_column, where)
        if target is None or not target.strip():
            raise ValueError(
                f"{where}: the {target_column} is empty ({row[target_column]!r}). Remove the row or fill it."
            )
        whole_prompt = self._prompt_ids(row["prompt"], where) if row["prompt"] != [] else []
        if not whole_prompt:
            raise ValueError(
                f"{where}: the prompt is empty ({row['prompt']!r}), so nothing precedes the warmup. Fill it."
            )
        prompt_ids = self._limit(whole_prompt, "prompt", where)
        target_ids, word_lengths = self._target_ids(target)
        limited = self._limit([*target_ids, self._end], "target", where)
        if prompt_ids is None or limited is None:
            return None
        reserved = self._reserved.intersection(limited[:-1])
        if reserved:
            found = ", ".join(repr(token) for token in self.tokenizer.convert_ids_to_tokens(sorted(reserved)))
            raise ValueError(
                f"{where}: the target holds {found}, which the layout needs for itself. Remove it from the text."
            )
        if self.positions is not None:
            self.positions.check(len(prompt_ids), len(limited), where)
        total, starts = len(limited) - 1, accumulate(word_lengths, initial=0)
        words = [
            min(length, total - start) for length, start in zip(word_lengths, starts, strict=False) if start < total
        ]
        return {**row, "target": target, "prompt_ids": prompt_ids, "target_ids": limited, "word_lengths": words}

    def _check_tokens(self, row: dict[str, Any], where: str, refuse: bool) -> None:
        """Count whether the tokenizer knows the texts of a row and can write its target."""
        tally, target = self.writable, row["target"]
        tally.rows += 1
        unknown = next((part for part in ("prompt", "target") if self._is_unknown(row[f"{part}_ids"])), None)
        if unknown is not None:
            tally.unknown += 1
            if unknown == "prompt":
                tally.unread = tally.unread or f"{where}, {str(row[unknown])[:60]!r}"
            if refuse:
                raise ValueError(
                    f"{where}: the tokenizer knows nothing of the {unknown} ({str(row[unknown])[:60]!r}): all of it becomes "
                    f"{self.tokenizer.unk_token}. Remove the row, or give a tokenizer that was made for such text."
                )
        whole = self._target_ids(target)[0]
        back = self.tokenizer.decode(whole, skip_special_tokens=True)
        if back.split() != target.split():
            tally.changed += 1
            tally.example = tally.example or f"{where}, {target[:60]!r}, comes back as {back[:60]!r}"

    def _is_unknown(self, ids: list[int]) -> bool:
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and unknown in ids and all(i == unknown or i in self._special for i in ids)

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer  # slow in all that is asked here
        self._special, self._begin, self._end = (
            set(tokenizer.all_special_ids),
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        )
        self._reserved = {self.separator_id, self._end, tokenizer.pad_token_id}  # which a target may not hold

    def encode_prompts(self, prompts: Sequence[Any], places: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Prompts without targets, for inference; `places` are their numbers, by default from 0.

        Raises ValueError: naming the prompt that is empty, no text and no conversation, or too long.
        """
        rows = []
        for index, prompt in zip(range(len(prompts)) if places is None else places, prompts, strict=True):
            where = f"prompt {index}"
            _refuse_other(prompt, "prompt", where, messages=True)
            _refuse_half(prompt, "prompt", where)
            whole = [] if prompt == [] else self._prompt_ids(prompt, where)
            if not whole:
                raise ValueError(f"{where}: is empty ({prompt!r}). Give a text.")
            if self._is_unknown(whole):
                self.writable.unread = self.writable.unread or f"{where}, {str(prompt)[:60]!r}"
            ids = self._limit(whole, "prompt", where)
            if ids is not None:
                if self.positions is not None:
                    self.positions.check(len(ids), 1, where)
                rows.append({"id": str(index), "prompt": prompt, "prompt_ids": ids})
        return rows

    def _read_ahead(self, rows: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
        """Tokenize the texts of these rows in two calls, for `encode`."""
        ahead: dict[tuple[str, str], Any] = {}
        if not self.tokenizer.is_fast:
            return ahead
        texts = [(row.get("prompt"), _target_text(row.get("target", row.get("completion")))) for row in rows]
        prompts, targets = ([text for text in part if isinstance(text, str)] for part in zip(*texts, strict=True))
        if prompts and not self.chat.texts:
            ids = self.tokenizer(prompts)["input_ids"]
            ahead.update(zip((("prompt", text) for text in prompts), ids, strict=True))
        if targets:
            read = self.tokenizer(targets, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
            ahead.update(zip((("target", text) for text in targets), pairs, strict=True))
        return ahead

    def _prompt_ids(self, prompt: Any, where: str) -> list[int]:
        if prompt is None:
            return []
        if prompt and (isinstance(prompt, list) or self.chat.texts):
            ids = self.chat.ids(self.tokenizer, prompt, where)
        elif isinstance(prompt, str) and ("prompt", prompt) in self._tokenized:
            ids = self._tokenized["prompt", prompt]
        else:
            ids = self.tokenizer(prompt)["input_ids"]
        begin = self._begin
        while begin is not None and ids[0:1] == [begin] and begin in ids[1:]:
            again = ids.index(begin, 1)
            if self.tokenizer.decode(ids[1:again]).strip():
                break
            ids = ids[again:]  # the text began with the token that the tokenizer puts before it
        if not self.encoder_decoder and len(ids) > 1 and ids[-1] == self._end:
            ids = ids[:-1]  # a decoder-only prompt must not look finished
        return list(ids)

    def _target_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Ids without special tokens, and how many of them each whitespace-separated word has."""
        if not self.tokenizer.is_fast:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids, [1] * len(ids)
        if ("target", text) in self._tokenized:
            ids, offsets = self._tokenized["target", text]
        else:
            read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = read["input_ids"], read["offset_mapping"]
        lengths: list[int] = []
        begin = until = 0  # of the current word; a lone space (`▁`, `Ġ`) belongs to the word that follows it
        for start, end in offsets:
            at_edge = text[start : start + 1].isspace() or text[max(start - 1, 0) : start].isspace()
            # some tokens are a part of a character
            at_edge = at_edge or (start >= until and _between_unspaced(text, start))
            until = max(until, end)
            if not lengths or (at_edge and text[begin:start].strip()):
                lengths.append(1)
                begin = start
            else:
                lengths[-1] += 1
        return list(ids), lengths

    def _limit(self, ids: list[int], part: str, where: str) -> list[int] | None:
        """The ids cut to their limit, or None to drop the row; a cut on the right keeps the end token."""
        limit = getattr(self, f"max_{part}_length")
        policy = getattr(self, f"{part}_truncation")
        if limit is None or len(ids) <= limit:
            return ids
        if policy == "error":
            raise ValueError(
                f"{where}: the {part} has {len(ids)} tokens, the limit max_{part}_length is {limit}. Shorten it, or train with a "
                f"higher limit, or with {part}_truncation to cut or drop such rows."
            )
        self.counts[f"{part}s_{'dropped' if policy == 'drop' else 'truncated'}"] += 1
        if policy == "drop":
            return None
        if policy == "left":
            begins = int(ids[0] == self._begin)
            return ids[:begins] + ids[len(ids) - limit + begins :]
        return ids[: limit - 1] + ids[-1:] if ids[-1] == self._end else ids[:limit]


def _row(given: Any, name: str, number: int) -> dict[str, Any]:
    """Raises ValueError: it is no row."""
    if isinstance(given, Mapping):
        if odd := [column for column in given if not isinstance(column, str)]:
            raise ValueError(
                f"{name} row {number}: the name of its column {odd[0]!r:.80} is no text. Give it as a text."
            )
        return dict(given)
    remedy = "Give a dict with `prompt` and `target`; of a pandas DataFrame, frame.to_dict('records')."
    raise ValueError(f"{name} row {number}: is a {type(given).__name__} ({given!r:.80}), no row. {remedy}")


def _refuse_halves(rows: list[dict[str, Any]], name: str, first: int) -> None:
    """Raises ValueError for a text with half a character (a lone surrogate), which no tokenizer accepts; names its row."""
    for number, row in enumerate(rows, first):
        for column in ("prompt", "target", "completion"):
            _refuse_half(row.get(column), column, f"{name} row {number} (id {row.get('id', number)})")


def _refuse_half(value: Any, column: str, where: str) -> None:
    for text in [m.get("content") for m in value if isinstance(m, dict)] if isinstance(value, list) else [value]:
        if isinstance(text, str) and (half := HALF.search(text)):
            raise ValueError(
                f"{where}: the {column} holds half a character ({half[0]!r}). Repair the text, or remove the row."
            )


def _between_unspaced(text: str, place: int) -> bool:
    """Whether a word may begin here because this or the previous character is of a script without spaces."""
    if unicodedata.category(text[place : place + 1] or " ").startswith("M"):
        return False  # a mark belongs to the letter before it
    return any(UNSPACED.match(text, i) for i in (place, place - 1) if 0 <= i < len(text))


def _refuse_other(value: Any, column: str, where: str, messages: bool = False) -> None:
    """Raises ValueError for a column that holds neither text nor None nor, where `messages` are allowed, a list of them."""
    if value is None or isinstance(value, str):
        return
    if isinstance(value, list) and all(isinstance(message, Mapping) for message in value):
        if not messages:
            raise ValueError(
                f"{where}: the {column} has {len(value)} messages, or one without a text, but a single answer is read. Put the "
                f"others into the prompt. {OTHER_FORMS}"
            )
        for number, message in enumerate(value):
            says = isinstance(message.get("content"), str) or bool(message.get("tool_calls"))
            if not isinstance(message.get("role"), str) or not says:
                raise ValueError(
                    f"{where}: message {number} of the {column} is {str(dict(message))[:60]}, but needs `role` and `content` as "
                    f"texts. {OTHER_FORMS}"
                )
        return
    wanted = "a text, or a list of messages" if messages else "a text"
    hint = (
        f'"{value}"' if isinstance(value, int | float) and not isinstance(value, bool) and value == value else "a text"
    )
    raise ValueError(
        f"{where}: the {column} is a {type(value).__name__} ({str(value)[:60]}), but has to be {wanted}. Write {hint}, or remove "
        f"the row."
    )


def _target_text(value: Any) -> Any:
    """The text of TRL's conversational completion, or the value itself."""
    if value == []:
        return ""
    alone = value[0] if isinstance(value, list) and len(value) == 1 else None
    return alone["content"] if isinstance(alone, Mapping) and isinstance(alone.get("content"), str) else value
