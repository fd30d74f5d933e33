"""Scores follow the field's formulas, and intervals claim no more than the sample."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.errors import DataError
from ftkit.evaluation import Score, exact_match, exact_words, interval, token_f1

words = st.text(alphabet="abc XYZ.,the", max_size=20)


@pytest.mark.parametrize(
    ("prediction", "references", "em", "f1"),
    [
        ("The Cat!", "cat", 1.0, 1.0),
        ("a cat sat", "the cat sat down", 0.0, 0.8),
        ("", "", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("cat", "", 0.0, 0.0),
        ("the", "", 1.0, 1.0),  # articles alone normalise to nothing
        ("dog", ["cat", "dog"], 1.0, 1.0),
        ("cat cat", "cat", 0.0, 2 / 3),
    ],
)
def test_exact_match_and_f1_follow_squad(prediction, references, em, f1):
    assert (exact_match(prediction, references), token_f1(prediction, references)) == (em, pytest.approx(f1))


def test_exact_words_forgives_only_blanks_at_line_ends():
    assert exact_match("A: $1.00 \nB", "A: $1.00\nB\n", exact_words) == 1.0
    assert exact_match("A: $1.00", "A: 1.00", exact_words) == 0.0


@given(words, words)
def test_f1_is_symmetric_bounded_and_one_where_exact(a, b):
    assert token_f1(a, b) == token_f1(b, a)
    assert exact_match(a, b) <= token_f1(a, b) <= 1


def test_no_reference_is_an_error():
    with pytest.raises(DataError, match="at least one reference"):
        exact_match("x", [])


def test_interval_covers_the_mean_and_narrows_with_the_sample():
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 500)
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_interval_of_nothing_but_zeros_does_not_claim_certainty():
    """Wilson's interval for 0 of 40 reaches 8.8 %."""
    assert interval([0.0] * 40) == Score(0.0, 0.0, pytest.approx(0.0876, abs=1e-4))


BREST = '{"name": "tide", "arguments": {"port": "Brest", "days": [1, 2]}}'
CALAIS = '{"name": "tide", "arguments": {"port": "Calais"}}'


def hermes(*calls):
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        (hermes(BREST), hermes(BREST), 1.0),
        (
            "Let me look.\n" + hermes('{"arguments": {"days": [1, 2], "port": "Brest"}, "name": "tide"}'),
            hermes(BREST),
            1.0,
        ),
        (BREST, hermes(BREST), 1.0),
        (BREST.replace("arguments", "parameters"), hermes(BREST), 1.0),
        (f"[TOOL_CALLS] [{BREST}, {CALAIS}]", hermes(BREST, CALAIS), 1.0),
        ('{"name": "tide", "arguments": "{\\"port\\": \\"Calais\\"}"}', hermes(CALAIS), 1.0),
        (hermes(CALAIS, BREST), hermes(BREST, CALAIS), 0.0),
        (hermes(BREST, BREST), hermes(BREST), 0.0),
        (hermes(BREST) + hermes("{broken"), hermes(BREST), 0.0),
        (hermes(BREST.replace("Brest", "brest!")), hermes(BREST), 0.0),
        (hermes(BREST.replace("[1, 2]", "[2, 1]")), hermes(BREST), 0.0),
        (hermes(BREST.replace("tide", "tides")), hermes(BREST), 0.0),
        ("", hermes(BREST), 0.0),
        ("tide Brest 1 2", hermes(BREST), 0.0),
        (hermes(BREST), "At ten.", 0.0),
        ('{"name": "Ada", "age": 3}', '{"name": "Ada", "age": 4}', 0.0),
    ],
)
def test_a_call_is_compared_as_a_call(said, wanted, right):
    """Names and arguments as objects, calls in their order; the order of keys and what is said beside do not count."""
    assert exact_match(said, wanted) == right


@given(st.text(max_size=60), st.text(alphabet='<>tool_call/{}[]":,name arguments', max_size=60))
def test_any_text_equals_itself_and_is_never_a_foreign_error(text, broken):
    for said in (text, broken, hermes(broken)):
        assert exact_match(said, said) == 1.0
        assert exact_match(said, hermes(BREST)) == 0.0
