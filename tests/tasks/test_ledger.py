import time
from itertools import pairwise

import pytest

from rl_warmup.tasks import ledger, rows_hash


def test_rows_by_hand():
    rows = ledger._rows([3 + 1 * 9 + 4 * 81, 0, 8 * 81], "test", ledger._names(3), 9)
    assert [(row["prompt"], row["target"]) for row in rows] == [
        ("a+3 b+1 c+4", "c=8 b=4 a=3"),
        ("a+0 b+0 c+0", "c=0 b=0 a=0"),
        ("a+0 b+0 c+8", "c=8 b=0 a=0"),
    ]
    assert ledger._rows([3 + 1 * 7 + 4 * 49], "test", ledger._names(3), 7)[0]["target"] == "c=1 b=4 a=3"


def test_every_target_is_the_running_total_newest_first():
    for row in ledger.load(length=5, modulus=11, train_size=200).splits["train"]:
        amounts = [int(word.split("+")[1]) for word in row["prompt"].split()]
        names = [word.split("+")[0] for word in row["prompt"].split()]
        totals = [f"{name}={sum(amounts[: i + 1]) % 11}" for i, name in enumerate(names)]
        assert row["target"].split() == totals[::-1]


def test_the_reversed_target_is_the_easy_order():
    row = ledger.load(train_size=1).splits["train"][0]
    amounts = dict(word.split("+") for word in row["prompt"].split())
    easy = [word.split("=") for word in reversed(row["target"].split())]
    assert int(easy[0][1]) == int(amounts["a"])
    for (_, before), (name, total) in pairwise(easy):
        assert int(total) == (int(before) + int(amounts[name])) % 7


def test_names_go_on_after_z():
    assert ledger._names(28)[24:] == ["y", "z", "aa", "ab"]
    assert len(set(ledger._names(800))) == 800


@pytest.mark.parametrize(("length", "sizes"), [(10, (2000, 100, 100)), (3, (300, 20, 23))])
def test_prompts_are_distinct_everywhere(length, sizes):
    task = ledger.load(length=length, train_size=sizes[0], validation_size=sizes[1], test_size=sizes[2])
    assert tuple(len(task.splits[split]) for split in ("train", "validation", "test")) == sizes
    prompts = [row["prompt"] for rows in task.splits.values() for row in rows]
    assert len(set(prompts)) == len(prompts) == sum(sizes)  # 3 amounts modulo 7: all 343 of them


@pytest.mark.parametrize("length", [6, 10])  # all prompts shuffled; distinct ones drawn
def test_seed_decides_and_test_rows_do_not_depend_on_train_size(length):
    one, same, more, other = (
        ledger.load(length=length, train_size=size, seed=seed) for size, seed in ((50, 0), (50, 0), (500, 0), (50, 1))
    )
    assert one == same
    assert rows_hash(one.splits["test"]) == rows_hash(more.splits["test"])
    assert rows_hash(one.splits["validation"]) == rows_hash(more.splits["validation"])
    assert one.splits["train"] == more.splits["train"][:50]
    assert rows_hash(one.splits["test"]) != rows_hash(other.splits["test"])


def test_faults():
    with pytest.raises(ValueError, match=r"344 rows.*7\*\*3 = 343 distinct prompts.*raise length"):
        ledger.load(length=3, train_size=300, validation_size=20, test_size=24)
    with pytest.raises(ValueError, match="modulus=1"):
        ledger.load(modulus=1)
    with pytest.raises(ValueError, match="must not be negative"):
        ledger.load(test_size=-1)


def test_long_ledgers_and_the_default_size_are_quick():
    start = time.perf_counter()
    assert len(ledger.load().splits["train"]) == 20_000
    assert ledger.load(length=60, train_size=100).splits["train"]
    assert time.perf_counter() - start < 5  # 0.1 s on an idle core
