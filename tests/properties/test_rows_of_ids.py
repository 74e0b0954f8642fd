"""Layouts and what is read back from a network, for any ids, lengths and groups."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_warmup.batch import FINISHES, RowKind, Warmup
from rl_warmup.engine.plain import read_warmup
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout, LayoutTokens
from rl_warmup.models.layouts.splice import batch_of_groups, pad_right, splice

PAD, EOS, SEPARATOR, VOCAB = 0, 1, 4, 30
LAYOUTS = [
    Layout(LayoutTokens("<sep>", SEPARATOR, PAD, EOS, torch.zeros(VOCAB, dtype=torch.bool)), e) for e in (True, False)
]
ids = st.lists(st.integers(0, VOCAB - 1), max_size=6)  # pad, end and separator may be real tokens
warmups = st.builds(Warmup, ids, st.sampled_from(FINISHES))
prompts = st.fixed_dictionaries({"prompt_ids": ids.filter(len), "target_ids": ids.map(lambda target: [*target, EOS])})


@st.composite
def batches(draw):
    """A layout, prompts, and rows: groups of one size, then single rows."""
    asked = draw(st.lists(prompts, min_size=1, max_size=4))
    size = draw(st.integers(1, 3))
    rows = [(i, RowKind.GROUP, draw(warmups)) for i in range(len(asked)) for _ in range(size)]
    kinds = st.sampled_from([RowKind.EMPTY, RowKind.ANCHOR])
    rows += draw(st.lists(st.tuples(st.integers(0, len(asked) - 1), kinds, warmups), max_size=3))
    return draw(st.sampled_from(LAYOUTS)), asked, rows, size


@given(batches())
def test_rows_can_be_read_back_from_their_masks(made):
    layout, asked, rows, size = made
    batch = splice(layout, asked, rows, size)
    for place, (index, kind, warmup) in enumerate(rows):
        real, target = batch.seq_mask[place].bool(), batch.target_mask[place].bool()
        row = batch.seq_ids[place][real].tolist()
        assert row == [*warmup.ids, SEPARATOR, *asked[index]["target_ids"]]
        assert batch.seq_ids[place][target].tolist() == asked[index]["target_ids"]
        actions = batch.seq_ids[place][batch.warmup_mask[place].bool()].tolist()
        assert actions == warmup.ids + [SEPARATOR] * warmup.separator_is_action
        assert (batch.prompt_index[place], batch.row_kind[place]) == (index, kind)
    for place, prompt in enumerate(asked):
        assert batch.prompt_ids[place][batch.prompt_mask[place].bool()].tolist() == prompt["prompt_ids"]


@given(batches())
def test_masks_part_a_row(made):
    batch = splice(*made)
    parts = batch.warmup_mask + batch.target_mask
    forced = torch.tensor([int(not warmup.separator_is_action) for warmup in batch.warmups])
    assert parts.max() <= 1
    assert (parts <= batch.seq_mask).all()
    torch.testing.assert_close(
        parts.sum(1) + forced, batch.seq_mask.sum(1)
    )  # all that does not count is a forced separator
    assert (batch.seq_mask.diff(dim=1) <= 0).all()  # padded on the right


@given(batches(), st.integers(1, 5))
def test_a_longer_row_beside_it_changes_no_row(made, more):
    layout, asked, rows, size = made
    batch = splice(layout, asked, rows, size)
    wider = splice(layout, asked, [*rows, (0, RowKind.ANCHOR, Warmup([7] * (8 + more), "proposal"))], size)
    width = batch.seq_ids.size(1)
    for name, padding in (("seq_ids", PAD), ("seq_mask", 0), ("warmup_mask", 0), ("target_mask", 0)):
        before, after = getattr(batch, name), getattr(wider, name)[:-1]
        torch.testing.assert_close(after[:, :width], before)
        assert (after[:, width:] == padding).all()


@given(batches(), st.randoms(use_true_random=False))
def test_selected_rows_are_those_of_a_smaller_batch(made, numbers):
    layout, asked, rows, size = made
    chosen = numbers.sample(range(len(rows)), numbers.randint(1, len(rows)))
    one, other = splice(layout, asked, rows, size).select(chosen), splice(layout, asked, [rows[i] for i in chosen], 0)
    for name in ("seq_ids", "seq_mask", "warmup_mask", "target_mask", "prompt_index", "row_kind"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


@given(batches())
def test_distinct_rows_stand_for_all(made):
    batch = splice(*made)
    first, equal = batch.distinct()
    for row, other in enumerate(first[equal].tolist()):
        assert batch.prompt_index[row] == batch.prompt_index[other]
        assert batch.warmups[row].ids == batch.warmups[other].ids
        torch.testing.assert_close(batch.warmup_mask[row].sum(), batch.warmup_mask[other].sum())


@given(st.sampled_from(LAYOUTS), st.lists(prompts, min_size=1, max_size=4), st.data())
def test_groups_stand_prompt_by_prompt(layout, asked, data):
    size = data.draw(st.integers(0, 3))
    groups = [[data.draw(warmups) for _ in range(size)] for _ in asked]
    batch = batch_of_groups(layout, asked, groups, [(0, RowKind.EMPTY, Warmup([], "empty"))])
    assert (batch.group_size, len(batch.warmups)) == (size, len(asked) * size + 1)
    assert batch.prompt_index[:-1].tolist() == [i for i in range(len(asked)) for _ in range(size)]


@given(st.lists(ids.filter(len), min_size=1, max_size=4), st.sampled_from(LAYOUTS))
def test_prompts_of_generate_can_be_read_back(rows, layout):
    found, mask = layout.prompt_inputs(rows)
    assert [row[real.bool()].tolist() for row, real in zip(found, mask, strict=True)] == rows
    if not layout.encoder_decoder:
        assert mask[:, -1].all()  # every row ends with its prompt


@given(st.lists(ids, min_size=1, max_size=4), st.integers(0, VOCAB - 1))
def test_padding(rows, value):
    found, mask = pad_right(rows, value)
    assert found.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[real.bool()].tolist() for row, real in zip(found, mask, strict=True)] == rows
    assert (found[mask == 0] == value).all()


@given(st.lists(st.integers(0, 6), min_size=9, max_size=12), st.integers(1, 8))
def test_a_written_row_is_split_at_its_separator(row, limit):
    warmup = read_warmup(row, SamplingConstraints(SEPARATOR, torch.zeros(VOCAB, dtype=torch.bool), max_length=limit))
    written = row[: len(warmup.ids)]
    assert warmup.ids == written
    assert SEPARATOR not in written
    assert len(written) <= limit
    if warmup.finish == "separator":
        assert row[len(written)] == SEPARATOR
        assert warmup.separator_is_action
    else:
        assert (len(written), warmup.separator_is_action) == (limit, False)
