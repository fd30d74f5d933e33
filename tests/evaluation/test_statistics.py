"""Intervals claim no more than the sample; tests agree with the field's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from ftkit.errors import DataError
from ftkit.evaluation import Score, detectable, difference_interval, holm, interval, mcnemar, paired_test
from ftkit.evaluation.statistics import macro_f1, macro_f1_difference

shares = st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=60)


def test_interval_covers_the_mean_and_narrows_with_the_sample():
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 500)
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_interval_of_nothing_but_zeros_does_not_claim_certainty():
    """Wilson's interval for 0 of 40 reaches 8.8 %."""
    assert interval([0.0] * 40) == Score(0.0, 0.0, pytest.approx(0.0876, abs=1e-4))


def test_passes_and_failures_get_wilsons_interval():
    """As scipy computes it."""
    wanted = stats.binomtest(7, 20).proportion_ci(method="wilson")
    assert interval([1.0] * 7 + [0.0] * 13) == Score(0.35, pytest.approx(wanted.low), pytest.approx(wanted.high))


@given(shares, st.integers(1, 5))
def test_an_interval_of_shares_holds_their_mean_and_stays_between_0_and_1(values, prompts):
    score = interval(values, [str(i % prompts) for i in range(len(values))])
    assert 0 <= score.low <= score.value + 1e-12
    assert score.value - 1e-12 <= score.high <= 1
    assert score.value == pytest.approx(sum(values) / len(values))


@given(st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.4, 1.0]), min_size=1, max_size=60))
def test_an_interval_of_differences_turns_with_its_sign(values):
    score, other = difference_interval(values), difference_interval([-v for v in values])
    assert (score.low, score.high) == (pytest.approx(-other.high, abs=1e-6), pytest.approx(-other.low, abs=1e-6))


def test_repeating_every_answer_makes_no_interval_narrower_where_clusters_are_named():
    values = [0.0, 0.3, 0.6, 1.0, 1.0, 0.2, 0.9, 0.4]
    once, names = interval(values), [str(i % 8) for i in range(80)]
    again = interval(values * 10, names)
    assert (again.low, again.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert interval(values * 10).high < once.high


def test_many_clusters_get_the_bootstrap():
    """Scipy's own percentile bootstrap gives the same within its noise."""
    values = np.random.default_rng(3).beta(1, 3, 300)
    wanted = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    score = interval(values.tolist())
    assert (score.low, score.high) == (pytest.approx(wanted.low, abs=0.003), pytest.approx(wanted.high, abs=0.003))
    assert interval(values.tolist()) == score


def test_few_clusters_get_students_t():
    """Scores without bounds: as scipy's interval of a mean with clusters - 1 degrees of freedom."""
    values = [3.0, 5.0, 9.0, 4.0, 7.0]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert interval(values) == Score(5.6, pytest.approx(low), pytest.approx(high))


def test_one_prompt_says_nothing_of_others():
    assert interval([0.2, 0.9], ["a", "a"]) == Score(pytest.approx(0.55), 0.0, 1.0)
    assert difference_interval([0.2, 0.9], ["a", "a"]).low == -1.0


@pytest.mark.parametrize("function", [interval, difference_interval, paired_test, detectable])
@pytest.mark.parametrize(
    ("values", "clusters", "said"),
    [
        ([], None, "no scores"),
        ([0.5, math.nan, math.inf], None, "2 of 3 scores are no numbers"),
        ([0.5, 1.0], ["a"], "2 scores and 1 clusters"),
    ],
)
def test_what_cannot_be_averaged_is_refused(function, values, clusters, said):
    with pytest.raises(DataError, match=said):
        function(values, clusters)


def coverage(draw, repeats=300):
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(repeats):
        score, truth = draw(random)
        hits += score.low <= truth <= score.high
    return hits / repeats


def test_intervals_cover_what_they_say():
    """95 % of them, within what 300 repeats can tell; the table of many sizes is benchmarks/intervals.py."""
    names = [str(i // 4) for i in range(160)]

    def passes(random):
        return interval((random.random(100) < 0.3).astype(float).tolist()), 0.3

    def overlaps(random):
        u = random.random(40)
        values = np.where(u < 0.2, 0.0, np.where(u < 0.4, 1.0, random.beta(2, 2, 40)))
        return interval(values.tolist()), 0.5

    def clustered(random):
        hard = np.repeat(random.beta(1, 1, 40), 4)
        return interval((random.random(160) < hard).astype(float).tolist(), names), 0.5

    def changes(random):
        u = random.random(100)
        return difference_interval(np.where(u < 0.3, 1.0, np.where(u < 0.4, -1.0, 0.0)).tolist()), 0.2

    for draw in (passes, overlaps, clustered, changes):
        assert 0.92 <= coverage(draw) <= 0.98


def test_clusters_forgotten_cover_too_little():
    """What naming them is for: four answers to one prompt are not four witnesses."""

    def forgotten(random):
        hard = np.repeat(random.beta(0.5, 0.5, 40), 4)
        return interval((random.random(160) < hard).astype(float).tolist()), 0.5

    assert coverage(forgotten) < 0.88


def test_mcnemar_is_the_exact_test_of_the_pairs_that_differ():
    before, after = [1] * 2 + [0] * 10 + [1] * 30, [0] * 2 + [1] * 10 + [1] * 30
    assert mcnemar(before, after) == pytest.approx(stats.binomtest(2, 12).pvalue)
    assert mcnemar([1, 0], [1, 0]) == 1.0


@pytest.mark.parametrize(("before", "after"), [([0.5], [1]), ([1], [1, 0])])
def test_mcnemar_takes_passes_and_failures_alone(before, after):
    with pytest.raises(DataError, match="passes and failures"):
        mcnemar(before, after)


def test_holm_raises_p_values_in_their_order():
    """Holm's own steps: smallest times three, next times two, never below one before."""
    assert holm([0.04, 0.01, 0.03]) == [pytest.approx(0.06), pytest.approx(0.03), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_test_is_students_where_prompts_are_few():
    values = [0.3, 0.1, -0.2, 0.4, 0.25, 0.0]
    assert paired_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_paired_test_of_many_prompts_is_near_students():
    values = np.random.default_rng(0).normal(0.05, 0.4, 400)
    assert paired_test(values.tolist()) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)


def test_what_is_detectable_is_found_in_four_of_five_repeats():
    """Data whose true difference is the one that samples of its kind call detectable."""
    random = np.random.default_rng(1)
    reach = np.mean([detectable(random.normal(0, 0.5, 100).tolist()) for _ in range(50)])
    found = sum(difference_interval(random.normal(reach, 0.5, 100).tolist()).low > 0 for _ in range(300))
    assert 0.74 < found / 300 < 0.86


def test_two_hundred_prompts_find_what_the_field_says():
    """Six to nine points for 200 prompts of which a tenth to a sixth differ."""
    for differing in (20, 36):
        values = [1.0] * (differing // 2) + [-1.0] * (differing // 2) + [0.0] * (200 - differing)
        assert 0.06 <= detectable(values) <= 0.09


def test_pairs_that_all_agree_do_not_make_everything_detectable():
    assert 0.01 < detectable([0.0] * 200) < 0.05


labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", ""])), min_size=2, max_size=40)


@settings(max_examples=30, deadline=None)
@given(labels)
def test_macro_f1_is_scikit_learns(pairs):
    wanted, said = zip(*pairs, strict=True)
    score = macro_f1(wanted, said, [str(i) for i in range(len(pairs))])
    expected = f1_score(wanted, said, labels=sorted(set(wanted)), average="macro", zero_division=0)
    assert score.value == pytest.approx(expected)
    assert 0 <= score.low <= score.value <= score.high <= 1


def test_macro_f1_of_a_classifier_that_says_one_label_is_low_where_its_accuracy_is_high():
    wanted = ["a"] * 18 + ["b"] * 2
    assert macro_f1(wanted, ["a"] * 20, [str(i) for i in range(20)]).value == pytest.approx(18 / 19 / 1 * 0.5, abs=0.01)


def test_macro_f1_of_two_systems_is_compared_on_the_same_draws():
    wanted, clusters = ["a", "b"] * 50, [str(i) for i in range(100)]
    before = ["a"] * 100
    score, p, reach = macro_f1_difference(wanted, before, wanted, clusters)
    assert (score.low > 0.5, p < 0.01, 0 < reach < 0.3) == (True, True, True)
    same, p, reach = macro_f1_difference(wanted, before, before, clusters)
    assert (same.value, p, reach > 0) == (0.0, 1.0, True)


BAD = {
    "texts": ["a", 1],
    "a table": [[0, 1], [1, 0]],
    "a generator": (x for x in [0, 1]),
    "nothing": None,
    "huge": [1e300, 0],
}


@pytest.mark.parametrize("count", [interval, difference_interval, detectable])
@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_what_is_no_list_of_numbers_is_refused(count, values):
    with pytest.raises(DataError, match=r"wanted|numbers"):
        count(values)


def test_clusters_may_be_called_anything():
    """Names of clusters need no order: None, numbers and texts stand beside each other."""
    named = interval([0, 1, 1, 0], [None, "a", 2, ("b", 1)])
    assert named == interval([0, 1, 1, 0])


def test_clusters_that_look_alike_by_chance_leave_an_interval():
    """Two prompts with one pass of two each: the spread between them is 0, and nobody knows the share exactly."""
    score = interval([0, 1, 1, 0], ["a", "a", "b", "b"])
    change = difference_interval([0, 1, 1, 0], ["a", "a", "b", "b"])
    assert score.low < 0.2 < 0.8 < score.high
    assert change.low < 0 < change.high


def test_scores_next_to_nothing_are_averaged():
    assert interval([1e-300, 0]).value == pytest.approx(0)
    assert paired_test([1e-300, 0]) == 1


def test_differences_that_are_all_equal_are_told_by_their_number():
    """Every pair moved by half a point: a t-test has nothing to divide by, a coin toss a pair has."""
    assert paired_test([0.5] * 10) == pytest.approx(2 * 0.5**10)
    assert paired_test([0.5]) == 1


@pytest.mark.parametrize("odd", [math.nan, -0.1, 1.5, None, "small"])
def test_a_p_value_is_a_share(odd):
    with pytest.raises(DataError):
        holm([odd, 0.01])


def test_mcnemar_without_pairs_is_no_proof():
    with pytest.raises(DataError, match="no scores"):
        mcnemar([], [])


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_power_lies_between_0_and_1(power):
    with pytest.raises(DataError, match="power"):
        detectable([0, 1, 0], power=power)
