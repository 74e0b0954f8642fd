"""`Rollout.plan`: which rows an update trains on, in every phase."""

from __future__ import annotations

import pytest
import torch

from rl_warmup.batch import EMPTY_WARMUP, RowKind, Warmup
from rl_warmup.method.proposals import ProposalContext
from rl_warmup.method.rollout import Rollout

GROUP, ANCHOR = RowKind.GROUP, RowKind.ANCHOR


def make_rollout(
    lab, objective="marginal", num_warmups=3, proposals=(), constraints=None, max_length=4, **settings
) -> Rollout:
    constraints = constraints or lab.constraints(max_length=max_length)
    context = ProposalContext(max_length, filler_ids=tuple(lab.ids("h")))
    return Rollout(lab.layout, constraints, objective, num_warmups, list(proposals), context, 5, **settings)


def rows_of(lab):
    return [lab.row("a b c", "d e f"), lab.row("b", "g h"), lab.row("c c", "a")]


def test_sft_has_one_empty_warmup_each_in_every_phase(lab):
    rollout = make_rollout(lab, "sft", proposals=["head"], empty_share=0.5, anchor_weight=1.0)
    for cold_start in (True, False):
        assert rollout.choose_rows(lab.model, rows_of(lab), cold_start) == [[(RowKind.EMPTY, EMPTY_WARMUP)]] * 3


def test_the_cold_start_is_the_proposals(lab):
    rollout = make_rollout(lab, proposals=["reverse", "head", "filler"], anchor_weight=0.5)
    plans = rollout.choose_rows(lab.model, rows_of(lab), cold_start=True)
    assert plans[0] == [(GROUP, Warmup(lab.ids(words), "proposal")) for words in ("f e d", "d e", "h h h h")]
    assert plans[2] == [(GROUP, Warmup(lab.ids(words), "proposal")) for words in ("a", "a", "h h h h")]
    assert rollout.batch(rows_of(lab), plans).group_size == 3


def test_afterwards_the_group_is_the_policys_own(lab):
    rollout = make_rollout(lab, proposals=["head"])
    for plan in rollout.choose_rows(lab.model, rows_of(lab), cold_start=False):
        assert [kind for kind, _ in plan] == [GROUP] * 3
        assert all(warmup.finish in ("separator", "length") for _, warmup in plan)


def test_anchors_stay_beside_the_policys_own(lab):
    rollout = make_rollout(lab, proposals=["reverse", "head"], anchor_weight=0.5)
    rows = rows_of(lab)
    plans = rollout.choose_rows(lab.model, rows, cold_start=False)
    assert plans[0][3:] == [(ANCHOR, Warmup(lab.ids(words), "proposal")) for words in ("f e d", "d e")]
    batch = rollout.batch(rows, plans)
    assert batch.group_size == 3
    assert batch.row_kind.tolist() == [0] * 9 + [2] * 6
    assert batch.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 3)])
@pytest.mark.parametrize("cold_start", [True, False])
def test_a_share_of_the_prompts_also_gets_an_empty_warmup(lab, share, expected, cold_start):
    rollout = make_rollout(lab, proposals=["head"], empty_share=share)
    plans = rollout.choose_rows(lab.model, rows_of(lab), cold_start)
    assert sum((RowKind.EMPTY, EMPTY_WARMUP) in plan for plan in plans) == expected


def test_the_share_is_a_share(lab):
    rollout = make_rollout(lab, proposals=["head"], empty_share=0.25)
    plans = rollout.choose_rows(lab.model, [lab.row("a", "b")] * 2000, cold_start=True)
    empty = sum(len(plan) == 2 for plan in plans)
    assert abs(empty - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5


def test_a_draft_is_the_models_own_sample_of_the_target(lab):
    """Written after an empty warmup, cut at the warmup limit, without tokens a warmup may not hold."""
    rollout = make_rollout(lab, proposals=["draft", "head"], constraints=lab.constraints("a b c d e f g", max_length=4))
    rows = rows_of(lab) * 20
    plans = rollout.choose_rows(lab.model, rows, cold_start=True)
    drafts = [plan[0][1] for plan in plans]
    assert {len(plan) for plan in plans} == {2}
    assert {draft.finish for draft in drafts} == {"proposal"}
    assert all(len(draft.ids) <= 4 for draft in drafts)
    assert set().union(*(draft.ids for draft in drafts)) <= set(lab.ids("a b c d e f g"))
    assert len({tuple(draft.ids) for draft in drafts[::3]}) > 1  # sampled: the same prompt gets different drafts


def test_a_model_that_knows_the_target_drafts_it(new_lab):
    lab = new_lab("scratch-t5")
    row = lab.row("a b", "c d")
    rollout = make_rollout(lab, proposals=["draft"])
    optimizer = torch.optim.Adam(lab.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (-lab.score(row, [EMPTY_WARMUP], rollout.constraints).target_logprob.sum()).backward()
        optimizer.step()
    ((_, draft),) = rollout.choose_rows(lab.model, [row], cold_start=True)[0]
    assert draft.ids == lab.ids("c d")


def test_proposals_hold_no_token_that_a_warmup_may_not_hold(lab):
    """A word the vocabulary lacks could be imitated but never sampled."""
    row = lab.row("a", "b c d")
    row["target_ids"][1] = lab.tokenizer.unk_token_id
    plans = make_rollout(lab, proposals=["reverse"]).choose_rows(lab.model, [row], cold_start=True)
    assert plans[0][0][1] == Warmup(lab.ids("d b"), "proposal")


def test_the_same_random_state_gives_the_same_plan(lab):
    rollout = make_rollout(lab, proposals=["draft"], empty_share=0.5, anchor_weight=0.1)
    plans = []
    for _ in range(2):
        torch.manual_seed(11)
        plans.append([rollout.choose_rows(lab.model, rows_of(lab), cold) for cold in (True, False)])
    assert plans[0] == plans[1]
