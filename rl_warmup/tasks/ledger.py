"""Knows the synthetic ledger task: running totals, newest first; must not know who learns it.

Prompt: named amounts, oldest first, one word each, name and value in one - `a+3 b+1 c+4`. Target: the running totals
modulo m, NEWEST FIRST - `c=1 b=4 a=3` for m = 7 (a = 3, b = 3+1, c = 3+1+4 = 8 = 1 mod 7).

Why it tests warmups: the first word of the target needs the sum over the whole ledger, which a small network does not
learn in one step. In the order oldest first, each total needs only the previous total and one amount. So a warmup with
the totals oldest first, the reversed target, turns one hard step into many easy ones. As the target shows this order, the
task tests whether a warmup can carry computation, not whether a policy discovers the order.
"""

import random
from itertools import count, islice, product
from string import ascii_lowercase

from rl_warmup.tasks.rows import Row, Task

SHUFFLE_LIMIT = 1 << 18  # up to this many possible prompts are shuffled; of more, distinct ones are drawn


def load(
    length: int = 10, modulus: int = 7, train_size: int = 20_000, validation_size: int = 300, test_size: int = 300,
    seed: int = 0,
) -> Task:  # fmt: skip
    """The ledger task; no prompt occurs twice, in one split or across splits.

    Test rows are drawn first, then validation, then training, so they do not depend on `train_size`.

    Args:
        length: amounts per prompt, and totals per target.
        modulus: amounts and totals are 0 to modulus - 1.

    Raises:
        ValueError: for length < 1, modulus < 2, a negative size, or more rows than the modulus**length prompts.
    """
    if length < 1 or modulus < 2:
        raise ValueError(f"ledger: length={length}, modulus={modulus}; give length >= 1 and modulus >= 2")
    sizes = {"test": test_size, "validation": validation_size, "train": train_size}
    if min(sizes.values()) < 0:
        raise ValueError(f"ledger: sizes {sizes} must not be negative")
    asked, possible = sum(sizes.values()), modulus**length
    if asked > possible:
        raise ValueError(
            f"ledger: {asked} rows asked for, but modulus**length = {modulus}**{length} = {possible} distinct prompts "
            "exist; raise length or modulus, or lower the sizes"
        )
    codes = _distinct_codes(possible, asked, random.Random(f"ledger/{seed}/{length}/{modulus}"))
    names = _names(length)
    splits: dict[str, list[Row]] = {}
    for split, size in sizes.items():
        drawn, codes = codes[:size], codes[size:]
        splits[split] = _rows(drawn, split, names, modulus)
    return Task("ledger", splits, ("exact_match",))


def _distinct_codes(possible: int, wanted: int, rng: random.Random) -> list[int]:
    """`wanted` different numbers below `possible`; the first k do not depend on `wanted`."""
    if possible <= SHUFFLE_LIMIT:
        codes = list(range(possible))
        rng.shuffle(codes)
        return codes[:wanted]
    drawn: dict[int, None] = {}  # a set that keeps its order
    while len(drawn) < wanted:
        drawn[rng.randrange(possible)] = None
    return list(drawn)


def _names(length: int) -> list[str]:
    """a, b, ..., z, aa, ab, ...: one name per amount, oldest first."""
    names = ("".join(letters) for size in count(1) for letters in product(ascii_lowercase, repeat=size))
    return list(islice(names, length))


def _rows(codes: list[int], split: str, names: list[str], modulus: int) -> list[Row]:
    """The digits of a code, base modulus, are the amounts, oldest first."""
    rows: list[Row] = []
    for number, code in enumerate(codes):
        prompt, target, total = [], [], 0
        for name in names:
            code, amount = divmod(code, modulus)
            total = (total + amount) % modulus
            prompt.append(f"{name}+{amount}")
            target.append(f"{name}={total}")
        rows.append({"id": f"{split}-{number}", "prompt": " ".join(prompt), "target": " ".join(reversed(target))})
    return rows
