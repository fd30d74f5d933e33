"""An exam for the scorers: planted answers with the score that each metric must give, and why."""

import json
from pathlib import Path

import pytest

from ftkit.evaluation import METRICS, score_answers

EXAM = [json.loads(line) for line in Path(__file__).with_name("exam.jsonl").read_text(encoding="utf-8").splitlines()]
LABELS = ("spam", "ham")
KINDS = {"fence", "boxed", "typography", "stop text", "cut", "units", "empty", "refusal"}


def test_the_exam_is_long_and_asks_of_everything_that_goes_wrong():
    assert len(EXAM) >= 60
    assert {question["kind"] for question in EXAM} >= KINDS
    assert all(question["scores"].keys() <= set(METRICS) for question in EXAM)
    assert all(question["why"] for question in EXAM)


@pytest.mark.parametrize("number", range(len(EXAM)), ids=lambda n: f"{n + 1} {EXAM[n]['kind']}: {EXAM[n]['why']}")
def test_every_planted_answer_gets_its_right_score(number):
    """Scored as `evaluate` scores: in a report, with every metric that the question asks of."""
    question = EXAM[number]
    row = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": question["references"][0]}],
        "accept": question["references"] if any(question["references"]) else None,
    }
    asked = tuple(question["scores"])
    report = score_answers([question["answer"]], [row], metrics=asked, labels=LABELS)
    assert {metric: report.rows[0][metric] for metric in asked} == pytest.approx(question["scores"], abs=1e-6)
    assert report.unscored == {}
