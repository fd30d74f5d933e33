"""Scores follow the field's formulas."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.errors import DataError
from ftkit.evaluation import chrf, exact_match, exact_words, mentions, token_f1
from ftkit.evaluation.metrics import json_valid, keeps_schema, label_in, rouge_l, squad_normalise, tool_calls

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
    with pytest.raises(DataError, match="no reference to compare with"):
        exact_match("x", [])


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


@settings(deadline=None)
@given(st.text(alphabet="abc XYZ", max_size=30), st.text(alphabet="abc XYZ", min_size=1, max_size=30))
def test_overlaps_are_the_libraries_own(a, b):
    """On plain ASCII ROUGE-L and chrF are what rouge-score and sacrebleu give."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    if a.split() and b.split():
        assert rouge_l(a, b) == pytest.approx(RougeScorer(["rougeL"]).score(b, a)["rougeL"].fmeasure)
        assert chrf(a, b) == pytest.approx(CHRF().sentence_score(a.strip(), [b.strip()]).score / 100)


@settings(deadline=None)
@given(st.text(max_size=40), st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_every_metric_gives_a_share_for_every_text(said, references):
    for metric in (exact_match, token_f1, tool_calls, rouge_l, chrf):
        assert 0 <= metric(said, references) <= 1 + 1e-9
    assert json_valid(said) in (0.0, 1.0)


@given(st.text(max_size=40))
def test_normalising_leaves_no_outer_blanks_and_no_capitals(text):
    normal = squad_normalise(text)
    assert normal == " ".join(normal.split())
    assert normal == normal.lower() or not text.isascii()


PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('{"age": 3}', 1.0),
        ('```json\n{"age": 3}\n```', 1.0),
        ('{"age": "3"}', 0.0),
        ('{"age": -1}', 0.0),
        ('{"age": 3, "name": "x"}', 0.0),
        ("{}", 0.0),
        ("[]", 0.0),
        ('{"age": 3', 0.0),
        ("", 0.0),
    ],
)
def test_a_schema_is_kept_or_not(said, kept):
    assert keeps_schema(said, PERSON) == kept


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"$ref": "https://example.invalid/person.json"}])
def test_a_schema_that_is_none_or_lies_elsewhere_is_refused(schema):
    """Nothing is fetched."""
    with pytest.raises(DataError, match="no JSON schema"):
        keeps_schema('{"age": 3}', schema)


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("not spam", "not spam"),
        ("It is not spam.", "not spam"),
        ("spam", "spam"),
        ("Spam or not spam?", None),
        ("neutral", None),
        ("<think>spam?</think>not spam", "not spam"),
    ],
)
def test_a_longer_label_is_looked_for_first(said, label):
    assert label_in(said, ["spam", "not spam"]) == label


SCORES = (exact_match, token_f1, rouge_l, chrf, tool_calls, mentions)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("prediction", "references"), [(None, ["a"]), (3, ["a"]), ("a", [None]), ("a", [3]), ("a", None), ("a", [])]
)
def test_what_is_no_text_is_refused(score, prediction, references):
    with pytest.raises(DataError, match=r"no text|no reference"):
        score(prediction, references)


@pytest.mark.parametrize("schema", [None, {"$schema": 5}, {"$ref": "#"}])
def test_a_schema_that_cannot_be_used_is_refused(schema):
    with pytest.raises(DataError, match="no JSON schema that can be used"):
        keeps_schema("{}", schema)


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("The answer is A.", "a"),
        ("I think A", "a"),
        ("A is right", "a"),
        ("A or B", None),
        ("A good choice is B", "b"),
        ("(A)", "a"),
        ("It is a B", "b"),
    ],
)
def test_the_letter_a_is_a_label_and_an_article(said, label):
    assert label_in(said, ["A", "B", "C"]) == label


@pytest.mark.parametrize("said", ["I don't think it is spam", "It cannot be spam", "hardly spam", "not really spam"])
def test_a_label_that_is_denied_in_other_words_is_not_named(said):
    assert label_in(said, ["spam", "ham"]) is None


@pytest.mark.parametrize("said", ["1.5", "-1", "1/2"])
def test_a_part_of_a_number_is_no_label(said):
    assert label_in(said, ["1", "2"]) is None
