"""A verdict follows from the table: ties, limits, too few examples, and "do not fine-tune"."""

import json
import math

import pytest

from ftkit import evaluation
from ftkit.decision import Approach, Decision, Terms
from ftkit.errors import ConfigError
from ftkit.evaluation import EvalReport


def report(name, hits):
    """Answers that are right where a hit is 1, wrong where it is 0, and unscored where it is None."""
    rows = tuple(
        {"id": str(i), "cluster": str(i), "prompt": "", "expected": [""], "answer": "", "exact_match": hit}
        for i, hit in enumerate(hits)
    )
    known = [hit for hit in hits if hit is not None]
    score = evaluation.interval(known) if known else evaluation.Score(math.nan, math.nan, math.nan)
    return EvalReport(name, {"exact_match": score}, rows)


def approach(name, hits, minutes=1.0, **facts):
    return Approach(name, report(name, hits), minutes_per_1000=minutes, **facts)


def right(count, of=50, first=0):
    """So many right answers, from the row `first` on."""
    return [float(first <= i < first + count) for i in range(of)]


def decided(*approaches, **facts):
    return Decision(approaches, "exact_match", **facts)


class TestChoice:
    """Which approach is taken."""

    def test_a_clear_winner_is_taken_and_fine_tuning_pays(self):
        found = decided(approach("zero_shot", right(0)), approach("fine_tune", right(45), 2, tuned=True))
        assert found.chosen.name == "fine_tune"
        assert found.settled
        assert found.verdict().startswith("Take fine_tune: 90.0%, better than every other approach.")
        assert "Fine-tuning pays: +90.0 [" in found.verdict()

    def test_the_cheaper_one_wins_a_tie(self):
        cheap, dear = approach("few_shot", right(40), 1), approach("rag", right(40), 5)
        found = decided(dear, cheap, approach("zero_shot", right(2), 0.5))
        assert found.chosen is cheap

    def test_a_difference_that_does_not_matter_is_a_tie(self):
        """Four of 1,000 prompts: the whole interval lies below the margin."""
        found = decided(approach("few_shot", right(896, 1000), 1), approach("rag", right(900, 1000), 5))
        assert (found.chosen.name, found.settled) == ("few_shot", True)
        assert "a difference that does not matter" in found.verdict()

    def test_what_is_spent_once_is_shared_among_the_answers_that_are_wanted(self):
        """A fine-tune of 100 minutes saves one minute in 1,000 answers: it pays from 100,000 answers on."""
        both = approach("few_shot", right(40), 2), approach("fine_tune", right(40), 1, tuned=True, setup_minutes=100)
        assert decided(*both, terms=Terms(answers=90_000)).chosen.name == "few_shot"
        assert decided(*both, terms=Terms(answers=110_000)).chosen.name == "fine_tune"

    def test_too_small_a_sample_for_the_best_says_how_many_prompts_are_missing(self):
        found = decided(approach("few_shot", right(20), 1), approach("rag", right(25), 2))
        assert (found.best.name, found.chosen.name, found.settled) == ("rag", "few_shot", False)
        beside = found.difference("rag", "few_shot")
        missing = beside.prompts_for(beside.score.value) - 50
        assert (
            f"Too few examples to tell the best: rag scores 50.0% and few_shot 40.0% ({beside} points"
            in found.verdict()
        )
        assert f"About {missing} more test prompts would tell it." in found.verdict()

    def test_fewer_than_twenty_prompts_are_answered_with_what_can_be_said(self):
        found = decided(approach("zero_shot", right(0, 12)), approach("rag", right(12, 12), 2))
        assert found.verdict().startswith("Too few examples: 12 test prompts")
        assert "Take rag: 100.0%, better than every other approach." in found.verdict()
        assert not found.settled

    def test_a_cheap_approach_that_is_probably_worse_is_not_taken(self):
        """Ten against one of 51 prompts: the pair's interval lies above 0, and Holm's p over all pairs does not."""
        others = [approach(f"prompt {i}", right(1, 51, first=i), 2) for i in range(3)]
        found = decided(
            approach("zero_shot", right(1, 51, first=50)), *others, approach("rag", right(10, 51, first=30), 9)
        )
        assert not found.shown(found.best, found.approaches[0])
        assert found.chosen.name == "rag"
        assert "It is probably better than zero_shot" in found.verdict()

    def test_an_approach_that_is_never_right_is_not_taken_for_being_cheap(self):
        found = decided(approach("zero_shot", right(0, 12)), approach("rag", right(3, 12), 2))
        assert found.chosen.name == "rag"

    def test_equal_scores_are_said_and_the_cheapest_is_taken(self):
        found = decided(approach("rag", right(50), 2), approach("zero_shot", right(50), 1))
        assert "All approaches score the same, 100.0%. Take zero_shot, the cheapest." in found.verdict()

    def test_nothing_is_taken_where_nothing_works(self):
        found = decided(approach("zero_shot", right(0)), approach("rag", right(0)))
        assert found.chosen is None
        assert "Nothing works" in found.verdict()

    def test_one_approach_has_nothing_to_be_compared_with(self):
        assert "nothing else to compare it with" in decided(approach("rag", right(9))).verdict()

    def test_unscored_answers_leave_no_score_and_no_crash(self):
        found = decided(approach("zero_shot", [None] * 30), approach("rag", right(20, 30)))
        assert [one.name for one in found.scored] == ["rag"]
        assert "not scored" in str(found)
        assert "Nothing was scored" in decided(approach("zero_shot", [None] * 30)).verdict()


class TestTuning:
    """Whether to fine-tune."""

    def test_a_fine_tune_that_is_worse_is_refused(self):
        found = decided(approach("rag", right(40), 2), approach("fine_tune", right(3, first=47), 1, tuned=True))
        assert found.chosen.name == "rag"
        assert "Do not fine-tune: fine_tune brings nothing that matters beside rag" in found.verdict()

    def test_a_fine_tune_that_was_not_shown_to_be_better_waits(self):
        found = decided(approach("rag", right(20), 1), approach("rag_fine_tune", right(25), 2, tuned=True))
        assert "Do not fine-tune yet: rag_fine_tune was not shown to be better than rag" in found.verdict()

    def test_a_cheaper_fine_tune_says_that_it_is_only_cheaper(self):
        found = decided(approach("few_shot", right(40), 9), approach("fine_tune", right(40), 1, tuned=True))
        assert "not shown to be better than few_shot without fine-tuning" in found.verdict()

    @pytest.mark.parametrize(
        ("hits", "said"),
        [
            (right(45), "More rows still help: from 100 to 200 training rows"),
            (right(10), "There are enough rows"),
            (right(25), "Whether more rows would help cannot be told"),
        ],
    )
    def test_the_last_step_of_the_learning_curve_is_read(self, hits, said):
        curve = tuple((rows, report(f"{rows}", right(20))) for rows in (50, 100))
        found = decided(approach("fine_tune", hits, tuned=True), curve=(*curve, (200, report("200", hits))))
        assert said in found.verdict()


class TestTerms:
    """Limits and prices."""

    def test_a_limit_on_latency_takes_the_best_out_and_says_so(self):
        slow = approach("rag", right(45), latency_s=3.1)
        found = decided(slow, approach("few_shot", right(20), latency_s=0.4), terms=Terms(max_latency_s=1))
        assert found.chosen.name == "few_shot"
        assert "Out by the limits: rag (3.1 s an answer, at most 1 wanted)." in found.verdict()

    def test_a_latency_that_was_not_measured_keeps_no_limit(self):
        assert decided(approach("rag", right(9)), terms=Terms(max_latency_s=1)).chosen is None

    def test_both_prices_are_those_of_a_thousand_answers(self):
        one = approach("rag", right(9), 30, prompt_tokens=400, answer_tokens=50)
        terms = Terms(price_per_hour=2, price_per_million_tokens=(1, 4))
        assert list(terms.prices(one).values()) == pytest.approx([1.0, 0.6])
        assert terms.broken(one) == ""
        limited = Terms(price_per_hour=2, max_cost=0.9)
        assert limited.broken(one) == "1 for 1,000 answers at 2 an hour, at most 0.9 wanted"

    def test_where_nothing_keeps_the_limits_the_advice_is_to_raise_them(self):
        found = decided(approach("rag", right(9), 60), terms=Terms(price_per_hour=2, max_cost=1))
        assert "No approach keeps the limits" in found.verdict()

    @pytest.mark.parametrize("given", [{"answers": 0}, {"margin": -0.1}, {"max_cost": 1}, {"price_per_hour": -1}])
    def test_terms_that_mean_nothing_are_refused(self, given):
        with pytest.raises(ConfigError, match=next(iter(given))):
            Terms(**given)


class TestStatistics:
    """Differences are paired, and corrected for every pair that could have been the best."""

    def test_every_pair_is_counted(self):
        """Ten against one discordant prompts: p = 0.012 alone, and not told among the fifteen pairs of six."""
        other = right(11, 30)[:10] + [0.0] * 20
        pair = approach("a", right(1, 30, first=29)), approach("b", other)
        assert decided(*pair).difference("b", "a").better
        many = decided(*pair, *(approach(f"c{i}", right(5, 30, first=i)) for i in range(4)))
        assert many.difference("b", "a").p == pytest.approx(decided(*pair).difference("b", "a").p)
        assert not many.difference("b", "a").better

    def test_a_difference_read_the_other_way_round_is_its_mirror(self):
        found = decided(approach("a", right(10)), approach("b", right(30)))
        there, back = found.difference("b", "a"), found.difference("a", "b")
        assert (there.score.low, there.score.high) == (-back.score.high, -back.score.low)
        assert there.better
        assert back.worse


def test_the_table_names_what_was_left_out_and_shows_groups_apart():
    found = decided(
        approach("zero_shot", right(10)),
        left_out={"rag": "no documents were given."},
        groups=("easy",) * 10 + ("hard",) * 40,
    )
    assert "Not measured: rag, as no documents were given." in str(found)
    assert "easy (10 rows)" in str(found)
    assert "100.0% [72%, 100%]" in str(found)


def test_a_saved_decision_holds_the_numbers_and_the_verdict(tmp_path):
    found = decided(approach("zero_shot", right(0)), approach("rag", right(45), 2))
    saved = json.loads(found.save(tmp_path / "decision.json").read_text())
    assert (saved["chosen"], saved["verdict"]) == ("rag", found.verdict())
    assert saved["approaches"][1]["score"]["value"] == 0.9
    assert saved["approaches"][1]["latency_s"] is None
