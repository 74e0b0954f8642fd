"""Simple warmups made from the target, for the cold start: a policy trained from scratch finds no useful warmup by itself.

Knows: the target's words as token ids, and how often each word occurs in the corpus. Must not know: networks, rewards.
A proposal is a function (words of the target, context) -> words of the warmup. `draft`, the model's own sample of the
target, needs a network, so `rollout` makes it; `filler` is a control without information.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rl_warmup.batch import Warmup
from rl_warmup.plugins import build_plugin, contained, find_plugin

Word = tuple[int, ...]
DRAFT = "draft"
REFERENCE, STORED = DRAWN = ("reference", "stored")
# of encoded rows; data may have a column `reference`
COLUMNS = {REFERENCE: "reference warmups", STORED: "stored warmups"}
OTHER_REFERENCE = "reference warmups of another prompt"  # a column too


@dataclass
class ProposalContext:
    """What a proposal may use besides the target.

    max_length: tokens of a warmup; longer ones are cut. count: computes `word_counts`. decode: turns a word's ids into text.
    """

    max_length: int
    filler_ids: Word = ()
    count: Callable[[], Counter[Word]] = Counter
    keyword_share: float = 0.4
    decode: Callable[[Word], str] = str

    @cached_property
    def word_counts(self) -> Counter[Word]:
        """In how many training targets a word occurs; for a stream, in how many of its first rows (`training_data.COUNTED`).
        Counted at the first use, as a large data set takes time."""
        return self.count()


Proposal = Callable[[list[Word], ProposalContext], list[Word]]
PROPOSALS: dict[str, Proposal] = {}


def proposal(name: str) -> Callable[[Proposal], Proposal]:
    """Make a function the proposal of that name. `options` reads these names from this file's text."""

    def register(function: Proposal) -> Proposal:
        PROPOSALS[name] = function
        return function

    return register


@proposal("reverse")
def reverse(words: list[Word], context: ProposalContext) -> list[Word]:
    """The target's words, last first."""
    return words[::-1]


@proposal("head")
def head(words: list[Word], context: ProposalContext) -> list[Word]:
    """The first half of the target's words, rounded up."""
    return words[: (len(words) + 1) // 2]


@proposal("sorted")
def sorted_words(words: list[Word], context: ProposalContext) -> list[Word]:
    """The target's words in the order of their token ids."""
    return sorted(words)


@proposal("keywords")
def keywords(words: list[Word], context: ProposalContext) -> list[Word]:
    """The words of the target that are rarest in the corpus, in the target's order; at least one."""
    count = max(1, round(context.keyword_share * len(words)))
    rarest = sorted(range(len(words)), key=lambda i: (context.word_counts[words[i]], i))[:count]
    return [words[i] for i in sorted(rarest)]


@proposal("filler")
def filler(words: list[Word], context: ProposalContext) -> list[Word]:
    """The same meaningless tokens for every prompt, up to the limit: extra depth alone, to compare with."""
    if not context.filler_ids:
        raise ValueError("The tokenizer cannot write the filler '...'; add that token to its vocabulary.")
    return [context.filler_ids] * context.max_length


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


def propose(proposal: str | Proposal, row: dict[str, Any], context: ProposalContext) -> Warmup:
    """The proposal, by its name or already loaded, for an encoded row, cut at the warmup limit."""
    make = load_proposal(proposal) if isinstance(proposal, str) else proposal
    words = make(target_words(row), context)
    return Warmup([i for word in words for i in word][: context.max_length], "proposal")


def load_proposal(name: str) -> Proposal:
    """The proposal of that name: one of PROPOSALS, or a plugin, whose words are checked at every call.

    Raises ValueError: there is none; a plugin fails or returns something else than words.
    """
    found, short = find_plugin("proposal", name, PROPOSALS)
    if name in PROPOSALS:
        return found
    function = build_plugin("proposal", name, found)

    def checked(words: list[Word], context: ProposalContext) -> list[Word]:
        try:
            with contained():
                chosen = function(list(words), context)
        except Exception as error:
            raise ValueError(f"Proposal {short!r} failed with {type(error).__name__}: {error}") from error
        fine = isinstance(chosen, (list, tuple)) and all(
            isinstance(word, (list, tuple)) and all(type(i) is int for i in word) for word in chosen
        )
        if not fine:
            raise ValueError(
                f"Proposal {short!r} returned {chosen!r:.80}; return a list of words, each a tuple of token ids."
            )
        return list(chosen)

    return checked
