"""The exam of the messy file: full marks for the default rules, and no marks for luck."""

import pytest

from ftkit import cleaning, files, lessons
from ftkit.cleaning.cleaning import default_rules


@pytest.fixture(scope="module")
def report():
    return cleaning.clean("messy", [*default_rules()[:-1], cleaning.personal_data("redact")], on_error="drop")


def test_the_default_rules_catch_every_planted_defect_and_lose_no_good_row(report):
    exam = lessons.mark(report)
    assert exam.lost_lines == ()
    assert [kind for kind, (planted, caught) in exam.kinds.items() if caught < planted] == []
    assert exam.caught == 1.0


def test_without_rules_only_broken_rows_are_caught():
    exam = lessons.mark(cleaning.clean("messy", [], on_error="drop"))
    assert {kind for kind, (_, caught) in exam.kinds.items() if caught} == {"broken"}


def test_dropping_look_alikes_is_counted_as_a_loss():
    exam = lessons.mark(cleaning.clean("messy", [cleaning.near_duplicates(0.5)], on_error="drop"))
    looks = {d["line"] for d in files.sample("messy_defects")["defects"] if d["kind"] == "look-alike"}
    assert len(exam.lost_lines) == len(looks)
    assert "good rows lost" in str(exam) and "✗" in exam._repr_html_()
