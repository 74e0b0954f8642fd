"""Rows as the networks see them, written out."""

from __future__ import annotations

from rl_warmup.batch import RowKind, Warmup
from rl_warmup.models.layouts.splice import pad_right, splice

SEP, PAD = "<extra_id_0>", "<pad>"


def read(lab, ids):
    return " ".join(lab.tokenizer.convert_ids_to_tokens(ids.tolist()))


def example(lab):
    rows = [lab.row("a b", "c"), lab.row("d", "e f")]
    plan = [
        (0, RowKind.GROUP, Warmup(lab.ids("g"), "separator")),
        (1, RowKind.GROUP, Warmup(lab.ids("g h"), "length")),
        (0, RowKind.EMPTY, Warmup([], "empty")),
        (1, RowKind.ANCHOR, Warmup(lab.ids("h"), "proposal")),
    ]
    return splice(lab.layout, rows, plan, group_size=1)


def test_rows_are_what_follows_the_prompt(lab):
    batch = example(lab)
    assert [read(lab, row) for row in batch.seq_ids] == [
        f"g {SEP} c </s> {PAD} {PAD}", f"g h {SEP} e f </s>", f"{SEP} c </s> {PAD} {PAD} {PAD}", f"h {SEP} e f </s> {PAD}",
    ]  # fmt: skip
    assert batch.warmup_mask.tolist() == [
        [1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0],
    ]  # fmt: skip
    assert batch.target_mask.tolist() == [
        [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0],
    ]  # fmt: skip
    assert batch.seq_mask.sum(1).tolist() == [4, 6, 3, 5]
    assert [read(lab, row) for row in batch.prompt_ids] == ["a b", f"d {PAD}"]
    assert batch.prompt_mask.tolist() == [[1, 1], [1, 0]]
    assert batch.prompt_index.tolist() == [0, 1, 0, 1]
    assert batch.row_kind.tolist() == [0, 0, 1, 2]
    assert (batch.num_prompts, batch.group_size) == (2, 1)


def test_generate_reads_decoder_only_prompts_padded_on_the_left(llama):
    ids, mask = llama.layout.prompt_inputs([llama.ids("a b"), llama.ids("d")])
    assert [read(llama, row) for row in ids] == ["a b", f"{PAD} d"]  # every row ends with its prompt
    assert mask.tolist() == [[1, 1], [0, 1]]


def test_a_pad_token_inside_a_row_counts():
    """Where pad is also the end token (Llama 3), lengths come from the mask alone."""
    ids, mask = pad_right([[5, 0], [5]], 0)
    assert ids.tolist() == [[5, 0], [5, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_a_batch_moves_whole(lab):
    batch = example(lab)
    moved = batch.to("meta")
    assert {moved.seq_ids.device.type, moved.prompt_index.device.type, moved.row_kind.device.type} == {"meta"}
    assert moved.warmups is batch.warmups
