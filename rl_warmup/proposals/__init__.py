"""Cheap warmups made from the target, for the cold start: a policy trained from scratch finds no useful warmup by itself.

Knows: the target's words as token ids, and how often each word occurs in the corpus. Must not know: networks, rewards.
A proposal is a function (words of the target, context) -> words of the warmup. `draft`, the model's own sample of the
target, needs a network and is written by `rollout`; `filler` is the control that carries nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rl_warmup.batch import Warmup

Word = tuple[int, ...]
DRAFT = "draft"


@dataclass
class ProposalContext:
    """What a proposal may look at besides the target."""

    max_length: int
    filler_ids: Word = ()
    word_counts: Counter[Word] = field(default_factory=Counter)
    keyword_share: float = 0.4


Proposal = Callable[[list[Word], ProposalContext], list[Word]]


def reverse(words: list[Word], context: ProposalContext) -> list[Word]:
    """The target's words, last first."""
    return words[::-1]


def head(words: list[Word], context: ProposalContext) -> list[Word]:
    """The first half of the target's words, rounded up."""
    return words[: (len(words) + 1) // 2]


def sorted_words(words: list[Word], context: ProposalContext) -> list[Word]:
    """The target's words in the order of their token ids."""
    return sorted(words)


def keywords(words: list[Word], context: ProposalContext) -> list[Word]:
    """The rarest words of the target against the corpus, in the target's order; at least one."""
    count = max(1, round(context.keyword_share * len(words)))
    rarest = sorted(range(len(words)), key=lambda i: (context.word_counts[words[i]], i))[:count]
    return [words[i] for i in sorted(rarest)]


def filler(words: list[Word], context: ProposalContext) -> list[Word]:
    """The same meaningless tokens for every prompt, up to the limit: extra depth alone, to compare with."""
    if not context.filler_ids:
        raise ValueError("The tokenizer cannot write the filler '...'; add that token to its vocabulary.")
    return [context.filler_ids] * context.max_length


PROPOSALS: dict[str, Proposal] = {
    "reverse": reverse,
    "head": head,
    "sorted": sorted_words,
    "keywords": keywords,
    "filler": filler,
}


def target_words(row: dict[str, Any]) -> list[Word]:
    """The target of an encoded row as words: tuples of token ids, without the end token."""
    words, start = [], 0
    for length in row["word_lengths"]:
        words.append(tuple(row["target_ids"][start : start + length]))
        start += length
    return words


def count_words(rows: Iterable[dict[str, Any]]) -> Counter[Word]:
    """How many targets each word occurs in."""
    return Counter(word for row in rows for word in set(target_words(row)))


def propose(name: str, row: dict[str, Any], context: ProposalContext) -> Warmup:
    """The named proposal for an encoded row, cut at the warmup limit."""
    words = PROPOSALS[name](target_words(row), context)
    return Warmup([i for word in words for i in word][: context.max_length], "proposal")
