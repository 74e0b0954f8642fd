"""Work that is dealt out, seen from one process; two real ones are in `distributed/test_streams.py`."""

from __future__ import annotations

import pytest
import torch

from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.models.inference_settings import Inference
from rl_warmup.runtime import sharing


def test_results_come_in_the_order_of_the_items():
    assert sharing.map_over_processes(lambda n: n * n, range(5)) == [0, 1, 4, 9, 16]
    assert sharing.map_over_processes(str, []) == []


def test_two_processes_deal_out_in_turn_and_put_together_in_order(monkeypatch):
    """Both ranks played one after the other: what each computes, and what each gets."""
    kept, computed = {}, {0: [], 1: []}
    for turn in ("compute", "gather"):
        for rank in (0, 1):
            monkeypatch.setattr(sharing, "_rank_and_count", lambda rank=rank: (rank, 2))

            def gather(parts, own, rank=rank, turn=turn):
                kept[rank] = own
                if turn == "gather":
                    parts[:] = [kept[0], kept[1]]
                else:
                    parts[:] = [own, []]

            def work(n, rank=rank, turn=turn):
                if turn == "compute":
                    computed[rank].append(n)
                return -n

            monkeypatch.setattr(sharing.dist, "all_gather_object", gather)
            results = sharing.map_over_processes(work, [10, 11, 12, 13, 14])
            if turn == "gather":
                assert results == [-10, -11, -12, -13, -14]
            assert sharing.is_main() == (rank == 0)
            assert sharing.map_over_processes(lambda n: n, [1, 2, 3], shared=False) == [1, 2, 3]
    assert computed == {0: [10, 12, 14], 1: [11, 13]}


def test_draws_depend_on_the_seed_alone_and_disturb_nothing():
    with sharing.seeded("x", 1, 2):
        first = torch.rand(3)
    torch.manual_seed(5)
    with sharing.seeded("x", 1, 2):
        assert torch.equal(torch.rand(3), first)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    with sharing.seeded("x", 12):
        assert not torch.equal(torch.rand(3), first)


def test_a_batch_draws_the_same_whatever_was_predicted_before_it(t5):
    """The rows of a batch alone get the warmups they get among others: this is what lets processes share."""
    warmup_generator = WarmupGenerator(
        t5.model, t5.tokenizer, t5.layout, Inference(t5.constraints(max_length=4), "", max_target_length=3)
    )
    rows = [t5.row("a b", "c"), t5.row("a c", "c"), t5.row("a b c d", "e"), t5.row("b c d e", "e")]
    together = warmup_generator.predict(rows, 2, sample_warmup=True, seed=7)
    assert warmup_generator.predict(rows[:2], 2, sample_warmup=True, seed=7) == together[:2]
    assert warmup_generator.predict(rows, 3, sample_warmup=True, seed=7) == together
    assert warmup_generator.predict(rows, 2, sample_warmup=True, seed=8) != together
    torch.manual_seed(0)
    one, other = (warmup_generator.predict(rows, 2, sample_warmup=True) for _ in range(2))
    assert one != other  # without a seed torch's random state goes on
    torch.manual_seed(0)
    assert warmup_generator.predict(rows, 2, sample_warmup=True) == one


def test_processes_that_are_alone_are_told(monkeypatch):
    class Alone:
        def __init__(self, cpu):
            self.device = torch.device("cpu")

    monkeypatch.setattr("accelerate.PartialState", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="started 2 processes, but they are not connected"):
        sharing.initialize_distributed()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert sharing.initialize_distributed().type in ("cpu", "cuda")
