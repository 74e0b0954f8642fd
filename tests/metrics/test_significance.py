import itertools
import json
import math
import random

import numpy as np
import pytest

from rl_warmup.metrics import compute, row_statistics
from rl_warmup.metrics.significance import (
    approximate_randomization,
    compare_seeds,
    holm,
    over_seeds,
    paired_bootstrap,
)

WORDS = [f"w{i}" for i in range(60)]
TESTS = [paired_bootstrap, approximate_randomization]


def records(predictions, targets):
    return [{"prediction": text, "target": target} for text, target in zip(predictions, targets, strict=True)]


def right_or_wrong(rng, rows, share):
    return records(["A" if rng.random() < share else "B" for _ in range(rows)], ["A"] * rows)


def noisy(rng, targets, share):
    """Each word is kept with probability `share`."""
    return records(
        [" ".join(w if rng.random() < share else rng.choice(WORDS) for w in t.split()) for t in targets], targets
    )


# --- the two tests against exact values ---------------------------------------------------------------------------


def test_randomization_against_all_swaps_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    one, other = [0.1, 0.5, 0.3, 0.9, 0.2, 0.4, 0.4], [0.6, 0.4, 0.8, 1.0, 0.9, 0.5, 0.2]
    exact = stats.permutation_test(
        (other, one), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    # by hand: all 2^7 signs of the row differences
    signs = itertools.product([1, -1], repeat=7)
    gaps = [sum(s * (b - a) for s, a, b in zip(sign, one, other, strict=True)) for sign in signs]
    by_hand = np.mean([abs(gap) >= abs(gaps[0]) - 1e-12 for gap in gaps])
    found = approximate_randomization("row score", one, other, samples=20_000)
    assert exact.pvalue == pytest.approx(by_hand)
    assert found.p_value == pytest.approx(by_hand, abs=0.01)
    assert found.difference == pytest.approx(gaps[0] / 7)
    assert found.interval is None


def test_bootstrap_of_a_mean_against_the_normal_law():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    one = rng.normal(size=400)
    other = one + rng.normal(0.1, 1.0, size=400)
    found = paired_bootstrap("row score", one.tolist(), other.tolist(), samples=10_000)
    gap = other - one
    error = gap.std() / math.sqrt(400)
    assert found.interval == pytest.approx(stats.norm.interval(0.95, gap.mean(), error), abs=0.05 * error + 0.005)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(gap.mean()) / error), abs=0.02)


def test_bootstrap_of_two_rows_by_hand():
    # The gaps are 1 and 0. Two draws: (1, 1), (1, 0), (0, 1), (0, 0), so the mean gap is 1, 1/2, 1/2 or 0. The observed
    # one is 1/2, and half of the samples lie 1/2 or more from their mean.
    found = paired_bootstrap("row score", [0, 0], [1, 0], samples=4000)
    assert found.difference == 0.5
    assert found.interval == (0, 1)
    assert (
        found.p_value > 0.2
    )  # only samples at 0 or 1 reach |1/2 - mean|, and the mean of the samples is not exactly 1/2


@pytest.mark.parametrize("key", ["bleu", "chrf++", "rougeL", "exact_match", "macro_f1", "accuracy"])
def test_resampled_values_equal_the_metric_on_resampled_texts(key):
    """The naive twin: draw rows, build the lists, and ask the library again."""
    rng = random.Random(3)
    targets = [" ".join(rng.choices(WORDS, k=8)) for _ in range(25)]
    if key in ("macro_f1", "accuracy", "exact_match"):
        targets = rng.choices("ABC", k=25)
        one, other = records(rng.choices("ABCD?", k=25), targets), records(rng.choices("ABCD", k=25), targets)
    else:
        one, other = noisy(rng, targets, 0.6), noisy(rng, targets, 0.7)
    drawn = np.random.default_rng(0).integers(25, size=(40, 25))

    def naive(side):
        return [compute([key], [side[i]["prediction"] for i in d], [side[i]["target"] for i in d])[key] for d in drawn]

    gaps = np.array(naive(other)) - np.array(naive(one))
    found = paired_bootstrap(key, one, other, samples=40, seed=0)
    assert found.interval == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=1e-9)
    texts = [row["prediction"] for row in one]
    assert found.one == pytest.approx(compute([key], texts, targets)[key])


@pytest.mark.parametrize("key", ["bleu", "chrf++"])
def test_p_values_against_sacrebleus_own_tests(key):
    """Its randomization is the same test. Its bootstrap counts only samples that lie above their mean by more than the
    difference, one side of ours, so its p-value is half as large."""
    significance = pytest.importorskip("sacrebleu.significance")
    from rl_warmup.metrics.ngrams import sacrebleu_metric

    rng = random.Random(4)
    targets = [" ".join(rng.choices(WORDS, k=12)) for _ in range(60)]
    one, other = noisy(rng, targets, 0.70), noisy(rng, targets, 0.73)
    systems = [(name, [r["prediction"] for r in side]) for name, side in (("one", one), ("other", other))]
    for test, kind in zip(TESTS, ("bs", "ar"), strict=True):
        sides = 2 if kind == "bs" else 1
        theirs = significance.PairedTest(
            systems, {key: sacrebleu_metric(key)}, references=[targets], test_type=kind, n_samples=2000
        )()[1]
        theirs = next(values for name, values in theirs.items() if name != "System")
        ours = test(key, one, other, samples=2000)
        assert ours.one == pytest.approx(theirs[0].score)
        assert ours.other == pytest.approx(theirs[1].score)
        assert ours.p_value == pytest.approx(sides * theirs[1].p_value, abs=0.06)


# --- planted differences and nulls --------------------------------------------------------------------------------


@pytest.mark.parametrize("test", TESTS)
def test_a_planted_difference_is_found(test):
    rng = random.Random(5)
    targets = [" ".join(rng.choices(WORDS, k=12)) for _ in range(300)]
    found = test("chrf++", noisy(rng, targets, 0.60), noisy(rng, targets, 0.66))
    assert found.difference > 0
    assert found.p_value < 0.01
    found = test("accuracy", right_or_wrong(rng, 500, 0.55), right_or_wrong(rng, 500, 0.68))
    assert found.p_value < 0.01
    assert found.samples == 1000
    assert found.rows == 500


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("key", ["accuracy", "bleu", "macro_f1"])
def test_a_planted_null_is_rarely_found(test, key):
    """200 pairs without a difference: at 5 %, between 4 and 18 of them are called different."""
    rng, false = random.Random(6), 0
    for number in range(200):
        if key == "bleu":
            targets = [" ".join(rng.choices(WORDS, k=8)) for _ in range(60)]
            pair = noisy(rng, targets, 0.6), noisy(rng, targets, 0.6)
        else:
            targets = rng.choices("AB", k=120)
            pair = [records([t if rng.random() < 0.6 else rng.choice("AB") for t in targets], targets) for _ in "12"]
        false += test(key, *pair, samples=300, seed=number).p_value <= 0.05
    assert 4 <= false <= 18


def test_equal_predictions_are_no_difference():
    for test in TESTS:
        found = test("accuracy", *[right_or_wrong(random.Random(0), 20, 0.5)] * 2)
        assert found.difference == 0
        assert found.p_value == 1


def test_a_seed_repeats_and_samples_bound_the_p_value():
    rng = random.Random(8)
    one, other = right_or_wrong(rng, 200, 0.1), right_or_wrong(rng, 200, 0.9)
    assert paired_bootstrap("accuracy", one, other, seed=3) == paired_bootstrap("accuracy", one, other, seed=3)
    for test in TESTS:
        assert test("accuracy", one, other, samples=99).p_value == pytest.approx(1 / 100)


# --- what cannot be compared --------------------------------------------------------------------------------------


def test_different_rows_are_refused():
    one, other = records(["a", "b"], ["a", "b"]), records(["a", "b"], ["a", "c"])
    with pytest.raises(ValueError, match="row 1 differs: its target is 'b' in one list and 'c' in the other"):
        paired_bootstrap("exact_match", one, other)
    with pytest.raises(ValueError, match="2 and 1 predictions; give two lists for the same rows"):
        paired_bootstrap("exact_match", one, other[:1])
    with pytest.raises(ValueError, match="row 0 has no prediction or no target, only: target"):
        paired_bootstrap("exact_match", [{"target": "a"}], [{"target": "a"}])
    with pytest.raises(ValueError, match="at least one row"):
        paired_bootstrap("exact_match", [], [])
    with pytest.raises(ValueError, match="a row score is missing or not finite"):
        paired_bootstrap("gain", [1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="'rouge' has several values: rouge1, rouge2, rougeL; compare one"):
        paired_bootstrap("rouge", one, one)
    with pytest.raises(ValueError, match="samples=0"):
        paired_bootstrap("exact_match", one, one, samples=0)


# --- seeds and families -------------------------------------------------------------------------------------------


def test_seeds_by_hand():
    found = over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # Student's t at 0.975 with 2 degrees of freedom, std 1
    assert (found.n, found.mean, found.std) == (3, 2.0, 1.0)
    assert found.interval == pytest.approx((2 - half, 2 + half))


def test_intervals_end_where_the_metric_does():
    # 0.75, 1, 1: mean 11/12, std 1/sqrt(48), half width 4.303 / 12: up to 1.275
    found = over_seeds([0.75, 1.0, 1.0], bounds=(0, 1))
    half = 4.302652729911275 / 12
    assert found.interval == pytest.approx((11 / 12 - half, 1))
    assert (found.mean, found.std) == pytest.approx((11 / 12, 48**-0.5)), "cut is the interval alone"
    free, cut = compare_seeds([0.0, 0.5], [0.9, 1.0]), compare_seeds([0.0, 0.5], [0.9, 1.0], (0, 1))
    assert free.interval[1] > 1 == cut.interval[1]
    assert free.interval[0] < -1 == cut.interval[0]
    assert free.p_value == cut.p_value
    assert over_seeds([0.1, 0.1, 0.1]).std == 0
    assert over_seeds([0.1, 0.1, 0.1]).interval is None, "three seeds that agree are not certain"


def test_one_seed_has_no_interval():
    assert over_seeds([0.7]).std is None
    assert over_seeds([0.7]).interval is None
    found = compare_seeds([0.7], [0.8, 0.9])
    assert found.difference == pytest.approx(0.15)
    assert found.interval is None
    assert found.p_value is None
    for values in ([], [0.1, None], [0.1, math.nan]):
        with pytest.raises(ValueError, match="leave out seeds without one"):
            over_seeds(values)


def test_seeds_without_spread_have_no_test():
    found = compare_seeds([1.0, 1.0], [0.0, 0.0])
    assert found.difference == -1
    assert found.p_value is None
    assert compare_seeds([1.0, 1.0], [0.0, 0.1]).p_value is not None


def test_welch_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    one, other = [14.1, 15.0, 14.4], [15.2, 16.9, 15.5, 17.1]
    expected = stats.ttest_ind(other, one, equal_var=False)
    found = compare_seeds(one, other)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_holm_by_hand():
    # 0.01 x 4; 0.02 x 3; 0.04 x 2 = 0.08; 0.03 comes before 0.04: 0.03 x 2 = 0.06, then 0.04 x 1 is raised to 0.06
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02}) == pytest.approx(
        {"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    with pytest.raises(ValueError, match="the p-value of 'a' is None"):
        holm({"a": None})


def test_statistics_stay_json():
    counts = row_statistics(["bleu"], ["a b"], ["a b"])["bleu"].rows
    assert json.loads(json.dumps(counts)) == [list(counts[0])]
