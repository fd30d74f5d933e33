"""Only what the format allows is written."""

import pytest

from ftkit import models
from ftkit.decision.constraints import Constraint
from ftkit.errors import DataError


@pytest.fixture
def toy(tokenizer, model):
    pytest.importorskip("llguidance")
    return tokenizer, model


@pytest.mark.parametrize(
    ("given", "yes", "no"),
    [
        (r"[0-9]{3}", "123", "1234"),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{"a": 5}', '{"b": 5}'),
        ('start: "yes" | "no"', "yes", "perhaps"),
    ],
)
def test_a_pattern_a_schema_and_a_grammar_hold_an_untrained_model(toy, given, yes, no):
    tokenizer, model = toy
    constraint = Constraint.of(given, tokenizer, model)
    assert constraint.allows(yes)
    assert not constraint.allows(no)
    prompts = ["What is it?", "A longer question, so that the batch is padded: what is it?"]
    free = models.generate(model, tokenizer, prompts, max_new_tokens=60)
    assert not any(constraint.allows(answer.text) for answer in free)
    held = models.generate(model, tokenizer, prompts, max_new_tokens=60, constraint=constraint.processor)
    assert all(constraint.allows(answer.text) for answer in held if answer.stopped)
    assert any(answer.stopped for answer in held)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "minLength": 3, "maxLength": 2},
        "(ab",
        "start: nothing",
    ],
)
def test_a_format_that_nothing_can_satisfy_is_refused(toy, given):
    with pytest.raises(DataError, match="cannot be kept by any answer"):
        Constraint.of(given, *toy)
    with pytest.raises(DataError, match="answer_format=False is bool"):
        Constraint.of(False, *toy)
