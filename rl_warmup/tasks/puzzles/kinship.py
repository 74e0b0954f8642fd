"""Knows puzzles about relatives in a family of three generations ("What is Ada to Ben?").

Questions are about pairs for which exactly one word of WORDS is right: relatives by the marriage of an aunt or uncle, and
the spouses of two siblings, are left out because usage differs. Must not know prompts or rows.
"""

import random
from dataclasses import dataclass
from itertools import permutations

from rl_warmup.tasks.puzzles.puzzle import MEN, NUM_CHOICES, WOMEN, Puzzle, listing

WORDS = {  # kind of relation -> (word for a man, word for a woman)
    "parent": ("father", "mother"),
    "child": ("son", "daughter"),
    "sibling": ("brother", "sister"),
    "spouse": ("husband", "wife"),
    "grandparent": ("grandfather", "grandmother"),
    "grandchild": ("grandson", "granddaughter"),
    "parent's sibling": ("uncle", "aunt"),
    "sibling's child": ("nephew", "niece"),
    "cousin": ("cousin", "cousin"),
    "spouse's parent": ("father-in-law", "mother-in-law"),
    "child's spouse": ("son-in-law", "daughter-in-law"),
    "sibling by marriage": ("brother-in-law", "sister-in-law"),
}
# (place of X, place of Y) -> what X is to Y. Places: the old couple; a child; the child's spouse; a grandchild.
SAME_BRANCH = {
    ("child", "spouse"): "spouse", ("spouse", "child"): "spouse",
    ("child", "grandchild"): "parent", ("spouse", "grandchild"): "parent",
    ("grandchild", "child"): "child", ("grandchild", "spouse"): "child",
    ("grandchild", "grandchild"): "sibling",
}  # fmt: skip
ACROSS = {
    ("old", "old"): "spouse", ("old", "child"): "parent", ("child", "old"): "child",
    ("old", "spouse"): "spouse's parent", ("spouse", "old"): "child's spouse",
    ("old", "grandchild"): "grandparent", ("grandchild", "old"): "grandchild",
    ("child", "child"): "sibling",
    ("child", "spouse"): "sibling by marriage", ("spouse", "child"): "sibling by marriage",
    ("child", "grandchild"): "parent's sibling", ("grandchild", "child"): "sibling's child",
    ("grandchild", "grandchild"): "cousin",
}  # fmt: skip
COUNTS = {1: "one child", 2: "two children", 3: "three children"}


@dataclass(frozen=True)
class _Person:
    name: str
    woman: bool
    place: str
    branch: int  # number of the old couple's child through whom the person belongs; -1 for the couple


class _Family:
    """People and the sentences that introduce them; names are drawn without repetition."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.women, self.men = list(WOMEN), list(MEN)
        rng.shuffle(self.women)
        rng.shuffle(self.men)
        self.people: list[_Person] = []
        self.sentences: list[str] = []

    def add(self, place: str, branch: int, woman: bool) -> _Person:
        person = _Person((self.women if woman else self.men).pop(), woman, place, branch)
        self.people.append(person)
        return person

    def marry(self, one: _Person, other: _Person) -> None:
        first, second = (one, other) if self.rng.random() < 0.5 else (other, one)
        self.sentences.append(f"{first.name} is the {'wife' if first.woman else 'husband'} of {second.name}.")

    def raise_children(self, parents: list[_Person], children: list[_Person]) -> None:
        named = listing([f"a {'daughter' if child.woman else 'son'} named {child.name}" for child in children])
        self.sentences.append(f"{parents[0].name} and {parents[1].name} have {COUNTS[len(children)]}: {named}.")


def make(rng: random.Random) -> Puzzle:
    """An old couple, two or three children, of whom one or two are married with one to three children of their own."""
    family = _Family(rng)
    old = [family.add("old", -1, woman) for woman in rng.sample([True, False], 2)]
    children = [family.add("child", branch, rng.random() < 0.5) for branch in range(rng.randint(2, 3))]
    family.marry(*old)
    family.raise_children(old, children)
    for child in children[: rng.randint(1, 2)]:
        spouse = family.add("spouse", child.branch, not child.woman)
        family.marry(child, spouse)
        grandchildren = [family.add("grandchild", child.branch, rng.random() < 0.5) for _ in range(rng.randint(1, 3))]
        family.raise_children([child, spouse], grandchildren)
    pairs: dict[str, list[tuple[_Person, _Person]]] = {}
    for one, other in permutations(family.people, 2):
        table = SAME_BRANCH if one.branch == other.branch and one.branch >= 0 else ACROSS
        if relation := table.get((one.place, other.place)):  # else no word, or more than one, is right
            pairs.setdefault(relation, []).append((one, other))
    relation = rng.choice(sorted(pairs))
    one, other = rng.choice(pairs[relation])
    wrong = [words[one.woman] for kind, words in WORDS.items() if kind != relation]
    rng.shuffle(family.sentences)
    return Puzzle(
        context=" ".join(family.sentences),
        question=f"What is {one.name} to {other.name}?",
        answer=WORDS[relation][one.woman],
        distractors=tuple(rng.sample(wrong, NUM_CHOICES - 1)),
    )
