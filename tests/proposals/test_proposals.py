"""Each proposal by hand, on words of one or several tokens."""

from __future__ import annotations

from collections import Counter

import pytest

from rl_warmup.batch import Warmup
from rl_warmup.method.proposals import PROPOSALS, ProposalContext, count_words, propose, target_words

THE, CAT, SAT, ON, MAT = (1,), (2, 3), (4,), (5,), (6, 7, 8)
ROW = {"target_ids": [1, 2, 3, 4, 5, 1, 6, 7, 8, 99], "word_lengths": [1, 2, 1, 1, 1, 3]}  # the cat sat on the mat </s>
COUNTS = Counter({THE: 50, CAT: 2, SAT: 7, ON: 20, MAT: 2})


def proposed(name: str, max_length: int = 99, **context) -> list[int]:
    warmup = propose(name, ROW, ProposalContext(max_length, **context))
    assert warmup.finish == "proposal"  # its separator is to be learned
    return warmup.ids


def test_words_are_cut_out_of_the_target_without_its_end():
    assert target_words(ROW) == [THE, CAT, SAT, ON, THE, MAT]


def test_reverse_moves_words_not_their_pieces():
    assert proposed("reverse") == [6, 7, 8, 1, 5, 4, 2, 3, 1]


@pytest.mark.parametrize(("words", "kept"), [(6, 3), (5, 3), (1, 1)])
def test_head_is_half_rounded_up(words, kept):
    row = {"target_ids": [*range(words), 99], "word_lengths": [1] * words}
    assert propose("head", row, ProposalContext(99)).ids == list(range(kept))


def test_sorted_orders_words_by_their_ids():
    assert proposed("sorted") == [1, 1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.4, [2, 3, 6, 7, 8]),  # two of six words: the rarest, in the target's order
        (0.5, [2, 3, 4, 6, 7, 8]),
        (0.01, [2, 3]),  # at least one; the first of equally rare ones
        (1.0, [1, 2, 3, 4, 5, 1, 6, 7, 8]),
    ],
)
def test_keywords_are_the_rarest_words(share, expected):
    assert proposed("keywords", count=COUNTS.copy, keyword_share=share) == expected


def test_filler_fills_the_warmup_whatever_the_target():
    assert proposed("filler", max_length=5, filler_ids=(42,)) == [42] * 5
    assert proposed("filler", max_length=5, filler_ids=(42, 43)) == [42, 43, 42, 43, 42]
    with pytest.raises(ValueError, match="cannot write the filler"):
        proposed("filler")


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize("limit", [1, 4, 99])
def test_the_warmup_limit_is_kept(name, limit):
    assert len(proposed(name, max_length=limit, filler_ids=(42,), count=COUNTS.copy)) <= limit


def test_every_proposal_but_the_control_consists_of_the_target():
    for name in set(PROPOSALS) - {"filler"}:
        assert not Counter(proposed(name, count=COUNTS.copy)) - Counter(ROW["target_ids"][:-1]), name


def test_the_corpus_counts_targets_not_occurrences():
    other = {"target_ids": [1, 4, 99], "word_lengths": [1, 1]}
    assert count_words([ROW, other]) == {THE: 2, SAT: 2, CAT: 1, ON: 1, MAT: 1}
    assert count_words([]) == {}


def test_a_proposal_does_not_change_the_row():
    before = {key: list(value) for key, value in ROW.items()}
    for name in PROPOSALS:
        propose(name, ROW, ProposalContext(99, (42,), COUNTS.copy))
    assert before == ROW
    assert isinstance(propose("head", ROW, ProposalContext(3)), Warmup)
