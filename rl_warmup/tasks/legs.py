"""Knows the embedded questions about legs of animals; must not know models, nor reasoning-gym.

Prompt: `how many legs are there in total if you have 4 beetles , 1 shrimp , 6 flatworms ?` Target: `34`.

Why it tests warmups: the answer needs a product per animal and a sum over them. A network that first writes the products and
the running sums has only easy steps, but no row shows them. `worked` writes that warmup, to measure how often a policy finds
it and as a ceiling. The questions are reasoning-gym's `leg_counting` with 3 to 5 animals, 1 to 6 of each.
"""

from rl_warmup.tasks.embedded import read
from rl_warmup.tasks.rows import SPLITS, Task, take

BEFORE, AFTER = "how many legs are there in total if you have ", " ?"
LEGS = {
    animal: legs
    for legs, animals in {
        0: "snake, sea slug, jellyfish, flatworm, leech",
        2: "chicken, bird, human, duck",
        4: "dog, cat, cow, horse, lion, elephant, giraffe, tiger, deer, sheep",
        5: "starfish",
        6: "insect, ant, butterfly, beetle, bee, wasp, grasshopper, cricket, cockroach, praying mantis, firefly",
        8: "spider, scorpion",
        10: "crab, lobster, shrimp",
        14: "woodlouse",
    }.items()
    for animal in animals.split(", ")
}


def load(
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
) -> Task:
    """The legs task: 4,000 questions for training, 250 for validation, 800 for the test; no question occurs twice.

    Args:
        train_size: rows of that split, drawn under `seed`; None for all. The other sizes likewise.

    Raises:
        ValueError: for a size that is negative or larger than the split.
    """
    sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
    splits = {split: take(read("legs", split), size, seed, split) for split, size in sizes.items()}
    return Task("legs", splits, ("exact_match",))


def animals(prompt: str) -> list[tuple[int, str]]:
    """(how many, animal in the singular) in the order of the question.

    Raises ValueError: if the prompt is no question of this task.
    """
    if not (prompt.startswith(BEFORE) and prompt.endswith(AFTER)):
        raise ValueError(f"{prompt!r} is no question of legs; it should read '{BEFORE}4 beetles , 1 shrimp{AFTER}'.")
    counted = []
    for part in prompt[len(BEFORE) : -len(AFTER)].split(" , "):
        count, _, name = part.partition(" ")
        animal = name if name in LEGS else name.removesuffix("s")
        if not count.isdecimal() or animal not in LEGS:
            raise ValueError(f"legs: {part!r} in {prompt!r} is no number of a known animal.")
        counted.append((int(count), animal))
    return counted


def worked(prompt: str) -> str:
    """The worked-out warmup: the legs of each kind and the running sum, `24 ; 24 ; 10 ; 34`; the last number is the target.

    Raises ValueError: if the prompt is no question of this task.
    """
    numbers, total = [], 0
    for count, animal in animals(prompt):
        legs = count * LEGS[animal]
        total += legs
        numbers += [str(legs), str(total)]
    return " ; ".join(numbers)
