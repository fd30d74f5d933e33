"""Agreement by published tables and by the field's libraries; how many ratings are needed."""

import math

import krippendorff
import matplotlib
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from ftkit import evaluation
from ftkit.errors import ConfigError, DataError
from ftkit.evaluation.agreements import RatingsNeeded

# Fleiss (1971), table 1: 30 patients, 6 psychiatrists each, five diagnoses. Printed there: kappa 0.430.
FLEISS_1971 = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
# Krippendorff (2011), section E: four observers, twelve units, with gaps.
# Printed there: nominal 0.743, ordinal 0.815, interval 0.849.
OBSERVERS = ("123321412...", "1233224125..", ".33323422513", "12332441251.")


def fleiss_table():
    by_rater = {f"rater {number}": {} for number in range(6)}
    for patient, counts in enumerate(FLEISS_1971.split()):
        diagnoses = [diagnosis for diagnosis, count in enumerate(map(int, counts)) for _ in range(count)]
        for rater, diagnosis in zip(by_rater, diagnoses, strict=True):
            by_rater[rater][patient] = diagnosis
    return by_rater


def krippendorff_table():
    found = {}
    for number, line in enumerate(OBSERVERS):
        found[f"observer {number}"] = {unit: int(value) for unit, value in enumerate(line) if value != "."}
    return found


def two_raters(n=200, seed=0):
    draw = np.random.default_rng(seed)
    first = draw.integers(1, 6, n)
    second = np.clip(first + draw.integers(-1, 2, n), 1, 5)
    return {"ana": dict(enumerate(first.tolist())), "ben": dict(enumerate(second.tolist()))}


def test_fleiss_kappa_is_that_of_his_paper():
    found = evaluation.agreement(fleiss_table(), "nominal")["Fleiss' kappa"]
    assert round(found.value, 3) == 0.430
    assert found.units == 30
    assert found.low < 0.430 < found.high


@pytest.mark.parametrize(("level", "printed"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_krippendorff_s_example(level, printed):
    found = evaluation.agreement(krippendorff_table(), level)["Krippendorff's alpha"]
    assert round(found.value, 3) == printed


@pytest.mark.parametrize(("level", "weights"), [("nominal", None), ("ordinal", "quadratic"), ("interval", "quadratic")])
def test_cohen_s_kappa_is_scikit_learn_s(level, weights):
    by_rater = two_raters()
    first, second = (list(given.values()) for given in by_rater.values())
    expected = cohen_kappa_score(first, second, labels=range(1, 6), weights=weights)
    assert evaluation.agreement(by_rater, level)["Cohen's kappa"].value == pytest.approx(expected)


def test_cohen_s_kappa_of_a_textbook_table():
    """50 proposals, two readers: 20 both yes, 15 both no, 5 and 10 apart: kappa 0.4."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    by_rater = {"a": dict(enumerate(a for a, _ in pairs)), "b": dict(enumerate(b for _, b in pairs))}
    assert evaluation.agreement(by_rater, "nominal")["Cohen's kappa"].value == pytest.approx(0.4)


def test_alpha_is_the_library_s_on_other_data():
    by_rater = two_raters()
    table = [list(given.values()) for given in by_rater.values()]
    expected = krippendorff.alpha(table, level_of_measurement="ordinal")
    assert evaluation.agreement(by_rater)["Krippendorff's alpha"].value == pytest.approx(expected)


def test_halves_count_as_preferences_do():
    """Preferences 0, 0.5 and 1 are as far apart as ranks 1, 2 and 3."""
    ranks = {rater: {i: 1 + v % 3 for i, v in given.items()} for rater, given in two_raters(40).items()}
    halves = {rater: {i: (v - 1) / 2 for i, v in given.items()} for rater, given in ranks.items()}
    of_ranks, of_halves = evaluation.agreement(ranks), evaluation.agreement(halves)
    for name in ("Cohen's kappa", "Fleiss' kappa", "Krippendorff's alpha"):
        assert of_ranks[name].value == pytest.approx(of_halves[name].value)


def test_intervals_keep_the_answers_to_one_item_together():
    """Ten copies of each rating, as answers of one item, tell no more than one."""
    single = {rater: {(i, ""): v for i, v in given.items()} for rater, given in two_raters(30).items()}
    copies = {rater: {(i, s): v for (i, _), v in given.items() for s in range(10)} for rater, given in single.items()}
    one, ten = (evaluation.agreement(given)["Cohen's kappa"] for given in (single, copies))
    assert (one.low, one.high) == (pytest.approx(ten.low), pytest.approx(ten.high))


def test_one_value_throughout_is_undefined_and_said():
    same = {"a": dict.fromkeys(range(5), 3), "b": dict.fromkeys(range(5), 3)}
    found = evaluation.agreement(same)
    for name in ("Cohen's kappa", "Fleiss' kappa", "Krippendorff's alpha"):
        assert found[name].value is None
        assert "one and the same value" in found[name].note
    assert found["exact agreement"].value == 1
    assert "undefined" in str(found)
    assert "nan" not in str(found)


def test_raters_who_share_nothing_are_told():
    found = evaluation.agreement({"a": {1: 3}, "b": {2: 4}})
    assert all(measured.value is None and measured.units == 0 for measured in found.coefficients)


def test_gaps_are_read_by_alpha_alone():
    found = evaluation.agreement(krippendorff_table())
    complete = sum(all(line[unit] != "." for line in OBSERVERS) for unit in range(12))
    assert (found["Fleiss' kappa"].units, found["Krippendorff's alpha"].units) == (complete, 11)


def test_cohen_s_kappa_is_of_two_raters():
    with pytest.raises(ConfigError, match='No coefficient "Cohen\'s kappa" for 4 raters'):
        evaluation.agreement(krippendorff_table())["Cohen's kappa"]


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "3", None])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(DataError, match=r"'a' gave .* to 7"):
        evaluation.agreement({"a": {7: value}, "b": {7: 3}})


def test_full_agreement_claims_no_certainty():
    """Resampling what never differs shows no spread: no interval is better than one of no width."""
    by_rater = {rater: {0: 1, 1: 2, 2: 3, 3: 4} for rater in "ab"}
    found = evaluation.agreement(by_rater)
    assert (found["Cohen's kappa"].value, found["Cohen's kappa"].low) == (1, None)
    assert "no interval" in found["exact agreement"].note


def test_nothing_rated_is_refused():
    with pytest.raises(DataError, match="None of the 2 raters"):
        evaluation.agreement({"a": {}, "b": {}})


def test_one_rater_agrees_with_nobody():
    with pytest.raises(DataError, match="two raters"):
        evaluation.agreement({"a": {1: 3}})


def test_an_unknown_level_is_refused():
    with pytest.raises(ConfigError, match="nominal, ordinal or interval"):
        evaluation.agreement(two_raters(), "ratio")


def test_five_points_take_385_items():
    """The textbook's 1.96² · 0.25 / 0.05² = 384.2, rounded up."""
    needed = evaluation.ratings_needed(0.05)
    assert needed.n == 385
    assert needed.half_width(385) <= 0.05 < needed.half_width(384)


def test_ten_points_with_power_take_197_items():
    """(1.960 + 0.842)² · 0.25 / 0.1² = 196.2, rounded up."""
    needed = evaluation.ratings_needed(0.1, power=0.8)
    assert needed.n == 197
    assert needed.detectable(197) <= 0.1 < needed.detectable(196)


def test_the_interval_covers_as_often_as_it_says():
    """Of simulated win shares from `n` votes 95 in 100 lie within the margin."""
    needed = evaluation.ratings_needed(0.07)
    shares = np.random.default_rng(0).binomial(needed.n, 0.5, 20_000) / needed.n
    assert np.mean(np.abs(shares - 0.5) <= 0.07) == pytest.approx(0.95, abs=0.01)


def test_where_200_to_500_comes_from_is_computed():
    text = str(evaluation.ratings_needed(0.05))
    assert "200 to 500 items are ±0.069 to ±0.044" in text


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"margin": 0}, "margin=0 is no positive number"),
        ({"margin": math.nan, "sd": -1}, "margin=nan is no positive number; sd=-1"),
        ({"margin": 0.1, "confidence": 95}, "confidence=95 is outside"),
        ({"margin": 0.1, "power": 1}, "power=1 is outside"),
    ],
)
def test_numbers_outside_their_range_are_refused(given, match):
    with pytest.raises(ConfigError, match=match):
        evaluation.ratings_needed(**given)


def test_the_figure_shows_what_is_wanted_and_what_is_advised():
    matplotlib.use("Agg")
    needed = evaluation.ratings_needed(0.05)
    assert isinstance(needed, RatingsNeeded)
    ax = evaluation.plot_ratings_needed(needed)
    assert "385" in ax.get_title(loc="left")
    assert {0.05} <= {line.get_ydata()[0] for line in ax.get_lines()}


@pytest.mark.parametrize("given", [None, [1, 2], {"a": [1], "b": [1]}])
def test_what_is_no_table_of_ratings_is_refused(given):
    with pytest.raises(DataError, match="answer: value"):
        evaluation.agreement(given)


def test_numbers_of_numpy_are_numbers():
    given = {"a": {1: np.int64(1), 2: np.float64(0)}, "b": {1: np.int64(1), 2: np.int64(1)}}
    assert evaluation.agreement(given)["exact agreement"].value == 0.5
