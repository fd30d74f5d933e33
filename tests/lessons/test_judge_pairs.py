"""The pairs that a judge is measured with."""

from ftkit import lessons


def test_no_rule_of_thumb_passes_the_exam():
    """The better answer is the longer one in half of the pairs, and stands first in half of them."""
    exam = lessons.judge_exam()
    assert len(exam.labels) == len({row["prompt"] for row in exam.answers}) == 16
    longer = [
        float(len(mine["answer"]) > len(theirs["answer"]))
        for mine, theirs in zip(exam.answers, exam.others, strict=True)
    ]
    assert sum(exam.labels) == 8
    assert sum(guess == label for guess, label in zip(longer, exam.labels, strict=True)) == 8


def test_both_sides_answer_the_same_questions():
    exam = lessons.judge_exam()
    assert [row["prompt"] for row in exam.answers] == [row["prompt"] for row in exam.others]


def test_the_table_marks_the_better_answer():
    assert str(lessons.judge_exam()).count("✓") == 17  # the caption has one
