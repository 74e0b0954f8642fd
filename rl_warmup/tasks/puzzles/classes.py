"""Knows puzzles about classes of things ("All wugs are daxes. No daxes are fendles. Which statement must be true?").

Every class has a member, as the context states. With k classes a thing belongs to one of 2**k regions; a set of regions is
a bit mask. "All" and "No" empty some regions; "Some" and "has a member" require a thing in at least one region of a set.
Entailment is decided exactly: the largest model fills every region that is not emptied, and refutes any universal claim
that is not entailed; an existential claim is entailed only if some required set is a subset of the claim's regions. Tests
compare this with all 2**(2**k) models. Must not know prompts or rows.
"""

import random
from itertools import permutations

from rl_warmup.tasks.puzzles.puzzle import NUM_CHOICES, Puzzle, listing

THINGS = (
    "wugs", "daxes", "blickets", "fendles", "toves", "zorps", "mipps", "gorbs", "plinks", "quaffs", "snerds", "vloons",
)  # fmt: skip
NUM_CLASSES = 4
REGIONS = 1 << NUM_CLASSES
EVERYWHERE = (1 << REGIONS) - 1
MEMBER = [sum(1 << region for region in range(REGIONS) if region >> i & 1) for i in range(NUM_CLASSES)]

Statement = tuple[str, int, int]  # form, subject, object
FORMS = {
    "all": "All {} are {}",
    "no": "No {} are {}",
    "some": "Some {} are {}",
    "some not": "Some {} are not {}",
}
STATEMENTS: list[Statement] = [(form, i, j) for form in FORMS for i, j in permutations(range(NUM_CLASSES), 2)]
FORM_WEIGHTS = {"all": 6, "no": 3, "some": 2, "some not": 1}
WEIGHTS = [FORM_WEIGHTS[form] for form, _, _ in STATEMENTS]


def _regions(statement: Statement) -> int:
    """The regions that a universal statement empties, or the set of which an existential one requires a thing."""
    form, i, j = statement
    return MEMBER[i] & (MEMBER[j] if form in ("no", "some") else ~MEMBER[j])


def _existential(statement: Statement) -> bool:
    return statement[0] in ("some", "some not")


class _Facts:
    """The regions allowed and required by a set of statements and "every class has a member"."""

    def __init__(self, statements: list[Statement]) -> None:
        self.allowed = EVERYWHERE
        for statement in statements:
            if not _existential(statement):
                self.allowed &= ~_regions(statement)
        asked = MEMBER + [_regions(statement) for statement in statements if _existential(statement)]
        self.asked = [regions & self.allowed for regions in asked]

    def entail(self, statement: Statement) -> bool:
        regions = _regions(statement)
        if _existential(statement):
            return any(asked & ~regions == 0 for asked in self.asked)
        return self.allowed & regions == 0


def make(rng: random.Random) -> Puzzle:
    """Three or four premises over four classes, none superfluous, and a conclusion that needs at least two of them.

    The wrong choices do not follow, and have the form of the right one, so that the form tells nothing.
    """
    form = rng.choice(list(FORMS))
    answer = None
    while answer is None:
        premises = rng.choices(STATEMENTS, WEIGHTS, k=rng.randint(3, 4))
        facts = _Facts(premises)
        follows_from_others = (
            _Facts(premises[:k] + premises[k + 1 :]).entail(premise) for k, premise in enumerate(premises)
        )
        if not all(facts.asked) or any(follows_from_others):  # inconsistent, or one premise is superfluous
            continue
        alone = [_Facts([premise]) for premise in premises]
        follows = [s for s in STATEMENTS if s[0] == form and facts.entail(s)]
        conclusions = [s for s in follows if not any(facts_of_one.entail(s) for facts_of_one in alone)]
        wrong = [s for s in STATEMENTS if s[0] == form and s not in follows]
        if conclusions and len(wrong) >= NUM_CHOICES - 1:
            answer = rng.choice(conclusions)
    names = rng.sample(THINGS, NUM_CLASSES)
    intro = f"There is at least one of each of these: {listing(names)}."
    return Puzzle(
        context=" ".join([intro, *(_sentence(s, names) + "." for s in premises)]),
        question="Which of these statements must be true?",
        answer=_sentence(answer, names),
        distractors=tuple(_sentence(s, names) for s in rng.sample(wrong, NUM_CHOICES - 1)),
    )


def _sentence(statement: Statement, names: list[str]) -> str:
    form, i, j = statement
    return FORMS[form].format(names[i], names[j])
