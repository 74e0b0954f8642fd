"""Every family is solved by brute force from its text alone: exactly the labelled choice is right, and no other."""

# ruff: noqa: E731 - the kinship solver reads best as a list of named one-line relations
import random
import re
from datetime import date, timedelta
from itertools import permutations, product

import numpy as np
import pytest

from rl_warmup.tasks import load_task
from rl_warmup.tasks.puzzles import FAMILIES, Puzzle

PUZZLES_PER_FAMILY = 300


def right_order(puzzle: Puzzle) -> set[str]:
    """All orders that agree with the clues, and whom they put at the asked place."""
    clues = re.findall(r"(\w+) is (\w+) than (\w+)\.", puzzle.context)
    assert len(clues) == puzzle.context.count(".")
    more = {"taller", "older", "faster", "heavier"}
    pairs = [(one, other) if word in more else (other, one) for one, word, other in clues]
    rank, word = re.fullmatch(r"Who is the (second |third |)(\w+)\?", puzzle.question).groups()
    place = {"": 0, "second ": 1, "third ": 2}[rank]
    from_top = word in {"tallest", "oldest", "fastest", "heaviest"}
    answers = set()
    for order in permutations({name for pair in pairs for name in pair}):
        if all(order.index(one) < order.index(other) for one, other in pairs):
            answers.add(order[place if from_top else len(order) - 1 - place])
    return answers


def right_weekdays(puzzle: Puzzle) -> set[str]:
    """Every possible date of today that agrees with the first sentence, and the weekday it gives the asked event."""
    near = {"the day before yesterday": -2, "yesterday": -1, "today": 0, "tomorrow": 1, "the day after tomorrow": 2}
    first, *rest = puzzle.context.removesuffix(".").split(". ")
    name, weekday = re.fullmatch(r"(.+) (?:is|was) (\w+)", first).groups()
    asked = re.fullmatch(r"On which day of the week is (the \w+)\?", puzzle.question).group(1)
    answers = set()
    for k in range(7):
        today = date(2024, 2, 26) + timedelta(days=k)
        days = {word: today + timedelta(days=offset) for word, offset in near.items()}
        if days[name.lower()].strftime("%A") != weekday:
            continue
        for sentence in rest:
            event, number, side, anchor = re.fullmatch(
                r"The (\w+) is (\d+) days (after|before) (.+)", sentence
            ).groups()
            days[f"the {event}"] = days[anchor] + timedelta(days=int(number) * (1 if side == "after" else -1))
        answers.add(days[asked].strftime("%A"))
    return answers


def right_classes(puzzle: Puzzle) -> set[str]:
    """Choices that hold in every one of the 2**16 models (which of 16 kinds of thing exist) that fit the premises."""
    intro, *premises = puzzle.context.removesuffix(".").split(". ")
    names = re.findall(r"\w+", intro.removeprefix("There is at least one of each of these: ").replace(" and ", ", "))
    assert len(names) == 4
    models = np.arange(1 << 16)

    def exists(wanted):
        """Whether a model has a thing of a kind that is wanted; a kind is a set of class memberships."""
        kinds = sum(1 << kind for kind in range(16) if wanted([bool(kind >> i & 1) for i in range(4)]))
        return (models & kinds) != 0

    def holds(sentence):
        form, one, negation, other = re.fullmatch(r"(All|No|Some) (\w+) are (not )?(\w+)", sentence).groups()
        i, j = names.index(one), names.index(other)
        if form == "All":
            return ~exists(lambda member: member[i] and not member[j])
        if form == "No":
            return ~exists(lambda member: member[i] and member[j])
        return exists(lambda member: member[i] and member[j] != bool(negation))

    given = [exists(lambda member, i=i: member[i]) for i in range(4)] + [holds(premise) for premise in premises]
    fits = np.logical_and.reduce(given)
    assert fits.any()
    for k in range(4, len(given)):  # no premise follows from the others
        assert not given[k][np.logical_and.reduce(given[:k] + given[k + 1 :])].all()
    return {choice for choice in (puzzle.answer, *puzzle.distractors) if holds(choice)[fits].all()}


def right_kinship(puzzle: Puzzle) -> set[str]:
    """Choices whose definition holds; definitions are the broad ones, with relatives by marriage."""
    spouse, parents, woman = {}, {}, {}
    for sentence in puzzle.context.removesuffix(".").split(". "):
        if marriage := re.fullmatch(r"(\w+) is the (husband|wife) of (\w+)", sentence):
            one, word, other = marriage.groups()
            spouse[one], spouse[other] = other, one
            assert woman.setdefault(one, word == "wife") == (word == "wife")
            assert woman.setdefault(other, word != "wife") == (word != "wife")
        else:
            father, mother, listed = re.fullmatch(r"(\w+) and (\w+) have \w+ child(?:ren)?: (.+)", sentence).groups()
            for word, name in re.findall(r"a (son|daughter) named (\w+)", listed):
                parents[name] = {father, mother}
                assert woman.setdefault(name, word == "daughter") == (word == "daughter")
    everyone = set(woman)
    up = lambda x: parents.get(x, set())
    down = lambda x: {y for y in everyone if x in up(y)}
    mate = lambda x: {spouse[x]} if x in spouse else set()
    sibs = lambda x: {y for y in everyone if y != x and up(y) and up(y) == up(x)}
    over = lambda one, other: lambda x: {z for y in other(x) for z in one(y)}
    any_of = lambda *relations: lambda x: set().union(*(relation(x) for relation in relations))
    aunts = any_of(over(sibs, up), over(mate, over(sibs, up)))
    nephews = any_of(over(down, sibs), over(down, over(sibs, mate)))
    in_law = any_of(over(mate, sibs), over(sibs, mate), over(mate, over(sibs, mate)))
    definitions = {
        ("father", "mother"): up, ("son", "daughter"): down, ("husband", "wife"): mate, ("brother", "sister"): sibs,
        ("grandfather", "grandmother"): over(up, up), ("grandson", "granddaughter"): over(down, down),
        ("uncle", "aunt"): aunts, ("nephew", "niece"): nephews, ("cousin", "cousin"): over(down, over(sibs, up)),
        ("father-in-law", "mother-in-law"): over(up, mate), ("son-in-law", "daughter-in-law"): over(mate, down),
        ("brother-in-law", "sister-in-law"): in_law,
    }  # fmt: skip
    one, other = re.fullmatch(r"What is (\w+) to (\w+)\?", puzzle.question).groups()
    true = {words[woman[one]] for words, relation in definitions.items() if one in relation(other)}
    assert set(puzzle.distractors) < {word for words in definitions for word in words}
    return true


def right_knights(puzzle: Puzzle) -> set[str]:
    """All ways to be knights and knaves that fit what was said."""
    said = re.findall(r'(\w+) says: "(.+?)\."', puzzle.context)
    names = [name for name, _ in said]
    answers = set()
    for kinds in product((True, False), repeat=3):
        who = dict(zip(names, kinds, strict=True))

        def simple(text, who=who):
            name, kind = re.fullmatch(r"(\w+) is a (knight|knave)", text).groups()
            return who[name] == (kind == "knight")

        def true(claim, who=who, simple=simple):
            if number := re.fullmatch(r"Exactly (\d) of us three (?:is a knight|are knights)", claim):
                return sum(who.values()) == int(number.group(1))
            if claim == "At least one of us three is a knave":
                return not all(who.values())
            if pair := re.fullmatch(r"(\w+) and (\w+) are of (the same kind|different kinds)", claim):
                return (who[pair.group(1)] == who[pair.group(2)]) == (pair.group(3) == "the same kind")
            if " or " in claim:
                return any(simple(part) for part in claim.split(" or "))
            return all(simple(part) for part in claim.split(" and "))

        if all(true(claim) == who[name] for name, claim in said):
            described = [f"{name} is a {'knight' if who[name] else 'knave'}" for name in names]
            answers.add(f"{described[0]}, {described[1]} and {described[2]}")
    return answers


SOLVERS = {
    "order": right_order,
    "weekdays": right_weekdays,
    "classes": right_classes,
    "kinship": right_kinship,
    "knights": right_knights,
}


def test_every_family_has_a_solver():
    assert set(SOLVERS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_labelled_choice_is_right(family):
    for seed in range(PUZZLES_PER_FAMILY):
        puzzle = FAMILIES[family](random.Random(seed))
        right = SOLVERS[family](puzzle)
        assert right == {puzzle.answer}, puzzle
        assert len({puzzle.answer, *puzzle.distractors}) == 4


def test_the_letter_of_every_row_is_right():
    for row in load_task("multiple_choice", train_size=200, validation_size=0, test_size=0).splits["train"]:
        context, question, options = row["prompt"].split("\n")
        choices = re.split(r" ?[ABCD]\) ", options)[1:]
        labelled = choices.pop("ABCD".index(row["target"]))
        puzzle = Puzzle(context, question, labelled, tuple(choices))
        assert SOLVERS[row["family"]](puzzle) == {labelled}, row["prompt"]


def test_wrong_conclusions_have_the_form_of_the_right_one():
    for seed in range(50):
        puzzle = FAMILIES["classes"](random.Random(seed))
        shapes = {(text.split()[0], " not " in text) for text in (puzzle.answer, *puzzle.distractors)}
        assert len(shapes) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_puzzles_hardly_repeat(family):
    rng = random.Random(0)
    assert len({FAMILIES[family](rng).context for _ in range(500)}) > 450
