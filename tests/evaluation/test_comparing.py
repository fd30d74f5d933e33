"""Which system is better? A verdict is plain, paired, and no bolder than the sample."""

import pytest

from ftkit.errors import DataError
from ftkit.evaluation import EvalReport, compare, score_answers


def ask(number):
    turns = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes"}]
    return {"messages": turns}


def report(name, hits, **settings):
    """A system that answers right where a hit is 1, wrong where it is 0, and not at all where it is None."""
    answers = [None if hit is None else "yes" if hit else "no" for hit in hits]
    return score_answers(answers, [ask(i) for i in range(len(hits))], name=name, **settings)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0] * 20, [1] * 20, "is better"),
        ([1] * 20, [0] * 20, "WORSE"),
        ([0, 1] * 10, [0, 1] * 9 + [1, 0], "No difference"),
    ],
)
def test_verdict_is_plain(before, after, verdict):
    assert verdict in compare(report("base", before), report("tuned", after)).verdict()


def test_equal_models_may_differ_either_way():
    """Twenty pairs without a difference leave room for one in both directions."""
    difference = compare(report("a", [1] * 20), report("b", [1] * 20)).difference
    assert difference.low == -difference.high < 0


def test_a_verdict_that_cannot_tell_says_what_it_could_find_and_how_many_prompts_are_missing():
    before = [1, 0] * 50
    after = [1, 0] * 47 + [1] * 6
    comparison = compare(report("base", before), report("tuned", after))
    verdict = comparison.verdict()
    difference = comparison.differences[0]
    assert f"differences of {difference.told(difference.detectable)} points of exact match or more" in verdict
    missing = difference.prompts_for(difference.score.value) - 100
    assert f"about {missing:,} more prompts" in verdict
    assert difference.prompts_for(0.05) == pytest.approx(100 * (difference.reach / 0.05) ** 2, abs=1)


def test_any_number_of_systems_stand_beside_one_baseline_and_the_best_is_named():
    base, worse, better = report("base", [0, 1] * 20), report("worse", [0] * 40), report("better", [1] * 40)
    comparison = compare(base, worse, better)
    assert (comparison.best.name, comparison.before.name, comparison.after.name) == ("better", "base", "better")
    assert "worse is WORSE than base" in comparison.verdict()
    assert "better has the highest exact match." in comparison.verdict()
    assert str(comparison).count("\n") >= 4
    assert "float" not in comparison._repr_html_()
    assert "<caption>40 prompts, weights: unknown</caption>" in comparison._repr_html_()


def test_p_values_are_raised_for_all_that_is_compared():
    """Five won and none lost: p is 1/16 alone; six won: 1/32, which two metrics of two systems raise past 5 %."""
    base = report("base", [0] * 40)
    six = [1] * 6 + [0] * 34
    alone = compare(report("base", [0] * 40, metrics=["exact_match"]), report("a", six, metrics=["exact_match"]))
    assert (alone.differences[0].p, alone.better) == (pytest.approx(1 / 32), True)
    several = compare(base, report("a", six), report("b", six))
    assert len(several.differences) == 4
    assert several.differences[0].holm > several.differences[0].p
    assert not several.better


def test_metrics_that_only_one_has_are_left_out_and_another_may_be_chosen():
    both = compare(report("a", [0] * 9, metrics=["exact_match", "chrf"]), report("b", [1] * 9, metrics=["chrf"]))
    assert [d.metric for d in both.differences] == ["chrf"]
    chosen = compare(report("a", [0] * 9), report("b", [1] * 9), metric="token_f1")
    assert "points of token F1" in chosen.verdict()


def test_pairs_without_a_score_on_one_side_are_left_out_and_told():
    comparison = compare(report("a", [0] * 20), report("b", [None] * 5 + [1] * 15))
    assert (comparison.differences[0].prompts, comparison.differences[0].left_out) == (15, 5)
    assert "b: 5 of 20 answers are unscored by exact_match" in str(comparison)
    with pytest.raises(DataError, match="no prompt that exact_match could score on both sides"):
        compare(report("a", [0] * 3), report("b", [None] * 3))


def test_an_interval_that_holm_overrules_is_told():
    """Or a reader would see an interval above zero beside "no difference"."""
    told = compare(report("base", [0] * 32), report("told", [1] * 5 + [0] * 27)).verdict()
    assert "No difference" in told
    assert "the interval leaves out 0, but p is" in told


def nothing(answer, references):
    return None


def test_a_metric_that_scores_nothing_is_told_and_stops_no_other():
    both = [report(name, [1] * 9, metrics=["exact_match", nothing]) for name in "ab"]
    comparison = compare(*both)
    assert [d.metric for d in comparison.differences] == ["exact_match"]
    assert "a: 9 of 9 answers are unscored by nothing" in str(comparison)
    with pytest.raises(DataError, match="no prompt that nothing could score"):
        compare(*both, metric="nothing")


def test_a_smaller_sample_is_the_first_prompts_of_both():
    """What six prompts would have told: equal beginnings compare, unequal ones do not."""
    old, new = report("a", [0] * 20), report("b", [0] * 5 + [1] * 15)
    few = compare(old.first(6), new.first(6))
    assert (few.differences[0].prompts, few.better) == (6, False)
    assert few.difference.value == pytest.approx(1 / 6)
    with pytest.raises(DataError, match="different prompts"):
        compare(old, new.first(6))
    with pytest.raises(DataError, match="count=0"):
        old.first(0)


def test_macro_f1_is_compared_as_a_score_of_the_whole():
    answers = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": label}]}
        for i, label in enumerate(["ham", "spam"] * 30)
    ]
    one = score_answers(["ham"] * 60, answers, name="one label", metrics=["macro_f1"])
    all_ = score_answers(["ham", "spam"] * 30, answers, name="right", metrics=["macro_f1"])
    comparison = compare(one, all_)
    assert comparison.difference.value == pytest.approx(1 - 1 / 3)
    assert comparison.better


def test_scores_of_ones_own_beyond_1_are_told_as_they_are():
    def length(answer, references):
        return len(answer)

    comparison = compare(report("a", [0] * 9, metrics=[length]), report("b", [1] * 9, metrics=[length]))
    assert "+1.000 of length" in comparison.verdict()


def test_reports_on_other_prompts_cannot_be_compared():
    with pytest.raises(DataError, match="different prompts"):
        compare(report("a", [1, 0]), report("b", [1]))


def test_reports_on_other_references_cannot_be_compared():
    other = [{"messages": [{"role": "user", "content": "0?"}, {"role": "assistant", "content": "no"}]}]
    with pytest.raises(DataError, match="different prompts"):
        compare(report("a", [1]), score_answers(["no"], other, name="b"))


def test_other_number_formats_are_refused_unless_they_are_meant():
    base, tuned = (report(name, [1, 0], number_format=f) for name, f in (("base", "4-bit nf4"), ("tuned", "bfloat16")))
    with pytest.raises(DataError, match="base answered in 4-bit nf4 and tuned in bfloat16"):
        compare(base, tuned)
    across = compare(base, tuned, across_formats=True)
    assert "MIND: the weights" in across.verdict()
    assert "stopped by itself  weights\n" in str(across)
    assert "  4-bit nf4\n" in str(across)


def test_all_that_speaks_against_a_comparison_is_named_at_once():
    from ftkit.evaluation import exact_words

    with pytest.raises(DataError) as caught:
        compare(report("a", [1, 0]), report("a", [1], number_format="x", normalise=exact_words), metric="chrf")
    for problem in ("called 'a'", "different prompts", "across_formats=True", "normalise=", "metric='chrf'"):
        assert problem in str(caught.value)
    with pytest.raises(DataError, match="nothing to compare it with"):
        compare(report("a", [1]))


def test_examples_are_the_first_or_those_that_were_lost_or_won():
    comparison = compare(report("base", [1, 1, 0, 0]), report("tuned", [1, 0, 1, 0]))
    assert [pair[0]["prompt"] for pair in comparison.examples(2).pairs] == ["0?", "1?"]
    assert [pair[0]["prompt"] for pair in comparison.examples(which="lost").pairs] == ["1?"]
    assert [pair[0]["prompt"] for pair in comparison.examples(which="won").pairs] == ["2?"]
    assert "BASE ✓\nyes\nTUNED ✗\nno" in str(comparison.examples(which="lost"))


def test_a_report_made_by_hand_can_be_compared():
    """What another room or a file hands over: name, scores and rows are enough."""
    a, b = report("a", [0, 1]), report("b", [1, 1])
    bare = [EvalReport(r.name, r.scores, r.rows) for r in (a, b)]
    assert compare(*bare).difference.value == 0.5


@pytest.mark.parametrize("given", [None, "base.jsonl", {"base": 1}, [1]])
def test_what_is_no_report_cannot_be_compared(given):
    with pytest.raises(DataError, match="is no evaluation"):
        compare(report("base", [1, 0]), given)


@pytest.mark.parametrize("odd", [float("nan"), "x"])
def test_scores_that_are_no_numbers_are_named(odd):
    after = report("tuned", [1, 0])
    after.rows[1]["exact_match"] = odd
    with pytest.raises(DataError, match="tuned has exact_match scores that are no numbers: 2"):
        compare(report("base", [1, 0]), after)


def test_rows_with_one_id_cannot_be_paired():
    before, after = report("base", [1, 0]), report("tuned", [1, 0])
    for row in (*before.rows, *after.rows):
        row["id"] = "same"
    with pytest.raises(DataError, match="base has ids more than once: same"):
        compare(before, after)


def test_a_metric_that_scored_nothing_does_not_stop_the_others():
    before, after = report("base", [1, 0]), report("tuned", [1, 0])
    for row in after.rows:
        row["token_f1"] = None
    assert [d.metric for d in compare(before, after).differences] == ["exact_match"]
    with pytest.raises(DataError, match="no prompt that token_f1 could score"):
        compare(before, after, metric="token_f1")


def test_so_few_prompts_that_no_difference_can_be_found_are_told():
    """Of five pairs, all lost, chance makes as many once in sixteen: two-sided that is no proof."""
    comparison = compare(report("base", [1] * 5), report("tuned", [0] * 5))
    assert "So few prompts find no difference, however large" in comparison.verdict()
    assert "none" in str(comparison)


def test_a_difference_of_nothing_takes_no_number_of_prompts():
    with pytest.raises(DataError, match="no sample finds nothing"):
        compare(report("base", [1, 0]), report("tuned", [0, 1])).differences[0].prompts_for(0)


def test_examples_are_the_first_the_lost_or_the_won():
    with pytest.raises(DataError, match="first, lost or won"):
        compare(report("base", [1, 0]), report("tuned", [0, 1])).examples(1, "worst")
