"""Rules about duplicates, length and quality judge rows as they say they do."""

import json
import random

import pytest
from toys import altered, chat, chats, make_tokenizer, random_text, rows_dropped

from ftkit import cleaning
from ftkit.chat import render
from ftkit.cleaning import clean, exact_duplicates, length, near_duplicates, quality
from ftkit.errors import ConfigError, DataError


def test_exact_duplicates_look_through_case_spaces_and_invisible_characters():
    rows = [
        chat("What is a Café?", "A place."),
        chat("what is  a cafe\u0301?", "A\u200b place. "),
        chat("What is a Café?", "A meal."),
    ]
    report = clean(rows, [exact_duplicates()])
    assert [(drop.row, drop.twin, drop.twin_place) for drop in report.dropped] == [(1, 0, "row 1")]


def test_the_same_words_in_other_roles_are_no_duplicate():
    a = {
        "messages": [
            {"role": "system", "content": "a b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
    }
    b = chat("a b\x00c", "d")
    assert len(clean([a, b], [exact_duplicates()]).kept) == 2


def test_of_a_chain_of_near_duplicates_one_row_stays():
    """A ~ b ~ c with a and c further apart: one cluster, and the reason says how c hangs on it."""
    draw = random.Random(3)
    a = random_text(draw, 100)
    b = altered(a, draw, 2)
    c = altered(b, draw, 2)
    report = clean([chat(t, "a fine answer") for t in (a, b, c)], [near_duplicates(0.8)])
    assert [(d.row, d.twin) for d in report.dropped] == [(1, 0), (2, 0)]
    assert "linked through others" in report.dropped[1].reason


def test_near_duplicates_of_the_prompt_alone():
    draw = random.Random(5)
    text = random_text(draw, 40)
    rows = [chat(text, random_text(draw, 60)), chat(text, random_text(draw, 60))]
    assert len(clean(rows, [near_duplicates()]).kept) == 2
    assert len(clean(rows, [near_duplicates(on="prompt")]).kept) == 1


def test_length_counts_tokens_under_the_template():
    tokenizer = make_tokenizer()
    rows = [chat("abc", "d e"), chat("abc" * 40, "d e")]
    whole = len(tokenizer(render(rows[0], tokenizer), add_special_tokens=False)["input_ids"])
    report = clean(rows, [length(tokenizer, max_length=whole, outlier=None)])
    assert rows_dropped(report, "length") == [1]
    assert report.counts[1].notes["share beyond max_length"] == 0.5


def test_length_finds_one_word_answers_and_outliers_but_keeps_ordinary_variety():
    draw = random.Random(6)
    rows = [chat(random_text(draw, draw.randint(20, 90)), random_text(draw, draw.randint(5, 40))) for _ in range(60)]
    rows += [chat("Is it so?", "Yes"), chat("Why?", random_text(draw, 1900))]
    report = clean(rows, [length()])
    assert rows_dropped(report, "length") == [60, 61]
    assert "words: 'Yes'" in report.dropped[0].reason and "times the median" in report.dropped[1].reason


def test_one_word_answers_of_a_classifier_can_be_kept():
    assert len(clean([chat("Is it so?", "Yes"), chat("Is it so now?", "No")], [length(min_answer_words=1)]).kept) == 2


def test_quality_by_a_score_keeps_the_unscored_and_says_so():
    rows = chats(4)
    report = clean(rows, [quality(lambda m: [0.9, 0.1, None, 0.6], minimum=0.5)])
    assert rows_dropped(report, "quality") == [1]
    assert report.counts[1].notes["rows without a score"] == 1


def test_quality_by_share_shows_random_selection_beside_it():
    rows = chats(10)
    report = clean(rows, [quality(lambda m: [i / 10 for i in range(10)], keep=0.3)])
    assert list(report.kept_rows) == [7, 8, 9]
    assert report.counts[1].notes["mean score kept"] == pytest.approx(0.8)
    assert report.counts[1].notes["mean score of a random selection"] < 0.8


@pytest.mark.parametrize(
    "make",
    [
        lambda: quality(lambda m: [], minimum=0.1, keep=0.5),
        lambda: quality(lambda m: []),
        lambda: quality(keep=2),
        lambda: near_duplicates(1.5),
        lambda: cleaning.personal_data("hide"),
        lambda: cleaning.balance("task", at_most=0),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(make):
    with pytest.raises(ConfigError):
        make()


def test_the_score_of_a_chained_twin_is_its_likeness_to_the_row_that_stays():
    draw = random.Random(3)
    a = random_text(draw, 100)
    b = altered(a, draw, 2)
    report = clean([chat(t, "a fine answer") for t in (a, b, altered(b, draw, 2))], [near_duplicates(0.8)])
    assert report.dropped[1].score < 0.8 <= report.dropped[0].score


@pytest.mark.parametrize("scores", [[0.5], [0.5] * 5])
def test_a_score_function_that_miscounts_is_refused(scores):
    with pytest.raises(DataError, match="scores for 4 rows"):
        clean(chats(4), [quality(lambda rows: scores, minimum=0.1)])


def test_a_score_that_is_no_number_counts_as_none():
    report = clean(chats(3), [quality(lambda rows: [float("nan"), 0.9, 0.1], minimum=0.5)])
    assert list(report.kept_rows) == [0, 1]


def test_calls_are_answers_and_schemas_tell_rows_apart():
    call = json.dumps([{"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}])
    turns = [{"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "", "tool_calls": call}]
    rows = [
        {"messages": turns, "tools": json.dumps([{"type": "function", "function": {"name": n, "parameters": {}}}])}
        for n in ("look", "ask")
    ]
    assert len(clean(rows, [exact_duplicates(), quality()]).kept) == 2
