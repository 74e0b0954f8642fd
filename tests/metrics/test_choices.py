import itertools

import pytest

from rl_warmup.metrics import compute, row_statistics
from rl_warmup.metrics.significance import approximate_randomization, paired_bootstrap

CHOICES = ["Ada", "Ben", "a man", "X"]
ROWS = [{"choices": CHOICES}]


def pick(text: str) -> str | None:
    """The letter that `text` counts as, found by trying every letter as the target."""
    right = [letter for letter in "ABCD" if compute(["accuracy"], [text], [letter], ROWS)["accuracy"]]
    return right[0] if right else None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), (" b\n", "B"), ("(B)", "B"), ("B)", "B"), ("B.", "B"), ("B) Ben", "B"), ("b: whatever", "B"),
        ("The answer is B.", "B"), ("Answer: (b)", "B"), ("Ben", "B"), ("ben.", "B"),
        ("the correct answer is  Ben", "B"),
        ("B) Ada", "B"), ("a man", "C"), ("A man", "C"), ("x", "D"), ("D", "D"),
        ("E", None), ("", None), ("Because", None), ("A woman", None), ("BB", None), ("A B", None), ("Ben Ada", None),
    ],
)  # fmt: skip
def test_what_a_prediction_picks(text, letter):
    assert pick(text) == letter
    assert compute(["accuracy"], [text], ["A"], ROWS)["unparsed"] == float(letter is None)


def test_targets_as_text_are_read_the_same_way():
    assert compute(["accuracy"], ["B", "Ben", "b) x"], ["B) Ben", "Ben", "B"], ROWS * 3)["accuracy"] == 1.0


def test_macro_f1_by_hand():
    assert compute(["macro_f1"], ["Paris", "B", "Rome", "Paris"], ["A", "B", "C", "B"])["macro_f1"] == 2 / 3 / 4
    targets = ["A", "A", "A", "B", "B", "C"]
    predictions = ["A", "A", "B", "B", "nonsense", "A"]
    # A: 2 hits, 3 said, 3 wanted -> 2*2/6. B: 1 hit, 2 said, 2 wanted -> 2*1/4. C: never said -> 0, nonsense: never wanted -> 0.
    scores = compute(["accuracy", "macro_f1"], predictions, targets)
    assert scores["macro_f1"] == pytest.approx((4 / 6 + 2 / 4 + 0 + 0) / 4)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert scores["unparsed"] == 1.0


def test_macro_f1_counts_a_class_that_is_only_predicted():
    # A: 1 hit, 1 said, 2 wanted -> 2/3. B: said once, never wanted -> 0.
    assert compute(["macro_f1"], ["A", "B"], ["A", "A"])["macro_f1"] == pytest.approx(1 / 3)


def test_macro_f1_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    targets, predictions = list("ABCDABCDAABBCCDD"), list("ABCABBCDDABACCDA")
    expected = metrics.f1_score(targets, predictions, average="macro")
    assert compute(["macro_f1"], predictions, targets)["macro_f1"] == pytest.approx(expected)


def test_nothing_parsed_is_zero_not_an_error():
    assert compute(["accuracy", "macro_f1"], ["?", "!"], ["A", "B"]) == {"accuracy": 0, "macro_f1": 0, "unparsed": 2}


def test_labels_other_than_letters():
    scores = compute(["accuracy", "macro_f1"], ["Yes", "no", "perhaps"], ["yes", "yes", "no"])
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["unparsed"] == 1.0
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 0) / 3)  # `perhaps` is a class too


@pytest.mark.parametrize(
    ("targets", "predictions"),
    [
        ("pos neg pos", "pos neg neutral"),
        ("a b c a", "a d e f"),
        ("A B C", "A B paris"),
        ("yes no", "maybe maybe"),
        ("x1 x2 x1 x3", "x2 x9 x1 x8"),
    ],
)
def test_macro_f1_equals_scikit_learn_on_labels_that_no_target_has(targets, predictions):
    metrics = pytest.importorskip("sklearn.metrics")
    wanted, written = targets.split(), predictions.split()
    expected = metrics.f1_score(wanted, written, average="macro")
    assert compute(["macro_f1"], written, wanted)["macro_f1"] == pytest.approx(expected)
    assert row_statistics(["macro_f1"], written, wanted)["macro_f1"].value() == pytest.approx(expected)


@pytest.mark.parametrize("method", ["bootstrap", "randomization"])
def test_lists_with_other_unseen_labels_can_be_compared(method):
    wanted = ["pos", "neg"] * 4
    both = ["pos", "neutral"] * 4, ["maybe", "neg", "pos", "none"] * 2
    sides = [[{"target": t, "prediction": p} for t, p in zip(wanted, said, strict=True)] for said in both]
    tests = {"bootstrap": paired_bootstrap, "randomization": approximate_randomization}
    found = tests[method]("macro_f1", *sides, samples=50)
    assert (found.one, found.other) == tuple(
        compute(["macro_f1"], [r["prediction"] for r in s], wanted)["macro_f1"] for s in sides
    )


def test_swapped_rows_keep_their_classes():
    """The naive twin: all swaps of two rows, each scored from its texts."""
    wanted, one, other = ["pos", "neg", "pos"], ["pos", "paris", "x y"], ["rome", "neg", "x y"]
    found = approximate_randomization(
        "macro_f1", *([{"target": t, "prediction": p} for t, p in zip(wanted, s, strict=True)] for s in (one, other)),
        samples=4000,
    )  # fmt: skip
    gaps = []
    for swaps in itertools.product((0, 1), repeat=3):
        sides = zip(
            *(pair[::-1] if swap else pair for swap, pair in zip(swaps, zip(one, other, strict=True), strict=True)),
            strict=True,
        )
        mine, theirs = (compute(["macro_f1"], side, wanted)["macro_f1"] for side in sides)
        gaps.append(abs(theirs - mine))
    observed = abs(found.other - found.one)
    assert found.p_value == pytest.approx(sum(gap >= observed - 1e-12 for gap in gaps) / 8, abs=0.05)


def test_a_target_outside_the_choices_is_an_error():
    with pytest.raises(ValueError, match="target 'Cleo' of row 1 is neither a letter nor the text"):
        compute(["accuracy"], ["A", "A"], ["A", "Cleo"], ROWS * 2)
