"""The exam of the messy file: full marks for the default rules, and no marks for luck."""

import pytest

from ftkit import clean, planted


@pytest.fixture(scope="module")
def report():
    return clean.clean("messy", [*clean.default_rules()[:-1], clean.pii("redact")], on_error="drop")


def test_the_default_rules_catch_every_planted_defect_and_lose_no_good_row(report):
    exam = planted.mark(report)
    assert exam.lost_lines == ()
    assert [(kind, exam.missed(kind)) for kind in exam.kinds if exam.missed(kind)] == []
    assert exam.caught == 1.0


def test_without_rules_only_broken_rows_are_caught():
    exam = planted.mark(clean.clean("messy", [], on_error="drop"))
    assert {kind for kind, (_, caught) in exam.kinds.items() if caught} == {"broken"}


def test_dropping_look_alikes_is_counted_as_a_loss():
    exam = planted.mark(clean.clean("messy", [clean.near_duplicates(0.5)], on_error="drop"))
    looks = {d["line"] for d in planted.defects() if d["kind"] == "look-alike"}
    assert len(exam.lost_lines) == len(looks)
    assert "good rows lost" in str(exam) and "✗" in exam._repr_html_()
