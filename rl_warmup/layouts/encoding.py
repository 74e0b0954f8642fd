"""Text -> token ids, once, before training: limits, truncation and their counts.

Knows: a tokenizer and the limits. Must not know: networks, warmups. Every fault is found before the first update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from tqdm.auto import tqdm

# What encoding and training add to a row of data, beside its own columns.
ADDED = (
    "prompt_ids", "target_ids", "word_lengths", "reference warmups", "reference warmups of another prompt", "stored warmups",
)  # fmt: skip
TOGETHER = 64  # rows whose texts go to the tokenizer in one call: a call for each text takes more than twice as long


@dataclass
class RowEncoder:
    """Turns rows with `prompt` and `target` (or TRL's `completion`) into rows that also hold ids.

    Added columns: `prompt_ids`, `target_ids` (ends with the end token) and `word_lengths` (tokens of each target word, so
    that proposals can move words, not pieces of them). `counts` tells what was truncated or dropped. `beside` gives further
    columns of a row by its number in the data set, dropped rows counted, and by how an error calls it.
    """

    tokenizer: Any
    separator_id: int
    max_prompt_length: int | None = None
    max_target_length: int | None = None
    prompt_truncation: str = "error"
    target_truncation: str = "error"
    encoder_decoder: bool = True
    counts: Counter = field(default_factory=Counter)
    beside: Callable[[int, str], dict[str, Any]] | None = None
    _ahead: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False)  # (part, text) -> tokens

    def encode_all(
        self, rows: Iterable[dict[str, Any]], name: str, show_progress: bool = False
    ) -> list[dict[str, Any]]:
        """All rows of a data set, those dropped by a truncation policy left out.

        Raises:
            ValueError: naming the first faulty row, what was found, and what to do.
        """
        shown = tqdm(rows, desc=f"Tokenizing {name}", disable=not show_progress, leave=False)
        encoded = list(self.encode_each(shown, name))
        if not encoded:
            raise ValueError(f"{name}: no row is left to use ({dict(self.counts) or 'the data set is empty'}).")
        return encoded

    def encode_each(self, rows: Iterable[dict[str, Any]], name: str, first: int = 0) -> Iterator[dict[str, Any]]:
        """The rows as they come, `TOGETHER` of them read ahead; the first is row number `first`. Raises as `encode_all`."""
        source, index = iter(rows), first
        while together := [dict(row) for row in islice(source, TOGETHER)]:
            ahead = self._read_ahead(together)
            for row in together:
                self._ahead = ahead
                where = f"{name} row {index} (id {row.get('id', index)})"
                ids = self.encode(row, where)
                self._ahead = {}  # the next row may be taken much later, and others be encoded meanwhile
                index += 1
                if ids is not None:
                    yield ids if self.beside is None else {**ids, **self.beside(index - 1, where)}

    def encode(self, row: dict[str, Any], where: str) -> dict[str, Any] | None:
        """One row with its ids, or None where a policy drops it."""
        target_column = "target" if "target" in row else "completion"
        for column in ("prompt", target_column):
            if column not in row:
                wanted = "a `prompt` column and a `target` (or `completion`) column"
                raise ValueError(f"{where}: needs {wanted}; it has {', '.join(map(repr, row)) or 'none'}.")
        target = _target_text(row[target_column])
        if not isinstance(target, str) or not target.strip():
            raise ValueError(
                f"{where}: the {target_column} is empty ({row[target_column]!r}). Remove the row or fill it."
            )
        whole_prompt = self._prompt_ids(row["prompt"])
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
        row.setdefault("id", where)
        words = _cut(word_lengths, len(limited) - 1)
        return {**row, "target": target, "prompt_ids": prompt_ids, "target_ids": limited, "word_lengths": words}

    @cached_property
    def _end(self) -> int:
        return self.tokenizer.eos_token_id  # asked of every row, and slow to answer

    @cached_property
    def _reserved(self) -> set[int]:
        """What the layout needs for itself."""
        return {self.separator_id, self._end, self.tokenizer.pad_token_id}

    def encode_prompts(self, prompts: list[str]) -> list[dict[str, Any]]:
        """Prompts without targets, for inference."""
        rows = []
        for index, prompt in enumerate(prompts):
            where = f"prompt {index}"
            ids = self._limit(self._prompt_ids(prompt), "prompt", where)
            if ids is not None:
                rows.append({"id": where, "prompt": prompt, "prompt_ids": ids})
        return rows

    def _read_ahead(self, rows: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
        """The tokens of these rows' plain texts, for `encode` to find; it judges every row by itself."""
        ahead: dict[tuple[str, str], Any] = {}
        if not self.tokenizer.is_fast:
            return ahead
        texts = [(row.get("prompt"), _target_text(row.get("target", row.get("completion")))) for row in rows]
        prompts, targets = ([text for text in part if isinstance(text, str)] for part in zip(*texts, strict=True))
        if prompts:
            ids = self.tokenizer(prompts)["input_ids"]
            ahead.update(zip((("prompt", text) for text in prompts), ids, strict=True))
        if targets:
            read = self.tokenizer(targets, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
            ahead.update(zip((("target", text) for text in targets), pairs, strict=True))
        return ahead

    def _prompt_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, list):  # TRL's conversational form
            ids = self.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        elif isinstance(prompt, str) and ("prompt", prompt) in self._ahead:
            ids = self._ahead["prompt", prompt]
        else:
            ids = self.tokenizer(prompt)["input_ids"]
        if not self.encoder_decoder and len(ids) > 1 and ids[-1] == self._end:
            ids = ids[:-1]  # a decoder-only prompt must not look finished
        return list(ids)

    def _target_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Ids without special tokens, and how many of them each whitespace-separated word has."""
        if not self.tokenizer.is_fast:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids, [1] * len(ids)
        if ("target", text) in self._ahead:
            ids, offsets = self._ahead["target", text]
        else:
            read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = read["input_ids"], read["offset_mapping"]
        lengths: list[int] = []
        begin = 0  # of the current word; a lone space (`▁`, `Ġ`) belongs to the word that follows it
        for start, _ in offsets:
            at_edge = text[start : start + 1].isspace() or text[max(start - 1, 0) : start].isspace()
            if not lengths or (at_edge and text[begin:start].strip()):
                lengths.append(1)
                begin = start
            else:
                lengths[-1] += 1
        return list(ids), lengths

    def _limit(self, ids: list[int], part: str, where: str) -> list[int] | None:
        """The ids within their limit; the last token (end of sequence) survives a cut on the right."""
        limit = getattr(self, f"max_{part}_length")
        policy = getattr(self, f"{part}_truncation")
        if limit is None or len(ids) <= limit:
            return ids
        if policy == "error":
            raise ValueError(
                f"{where}: the {part} has {len(ids)} tokens, the limit max_{part}_length is {limit}. Raise the limit, or set "
                f"{part}_truncation to cut or drop such rows."
            )
        self.counts[f"{part}s_{'dropped' if policy == 'drop' else 'truncated'}"] += 1
        if policy == "drop":
            return None
        if policy == "left":
            begins = ids[0] == self.tokenizer.bos_token_id
            return ids[: int(begins)] + ids[len(ids) - limit + int(begins) :]
        ends = ids[-1] == self._end
        return ids[: limit - 1] + ids[-1:] if ends else ids[:limit]


def _target_text(value: Any) -> Any:
    """The text of TRL's conversational completion, or the value itself."""
    if isinstance(value, list) and all(isinstance(message, dict) and "content" in message for message in value):
        return "".join(message["content"] for message in value)
    return value


def _cut(lengths: list[int], total: int) -> list[int]:
    """The word lengths of the first `total` tokens."""
    kept: list[int] = []
    for length in lengths:
        if total <= 0:
            break
        kept.append(min(length, total))
        total -= length
    return kept
