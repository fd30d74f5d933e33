"""Public benchmarks as reports like any other, offline."""

import importlib.util

import pytest
import torch

from ftkit import evaluation
from ftkit.errors import DataError, MissingExtra
from ftkit.evaluation import standard_tasks
from ftkit.evaluation.lm_eval_tasks import mmlu_questions

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra")


@needs_lm_eval
def test_the_wheel_holds_mmlus_examples():
    questions = mmlu_questions()
    assert len(questions) == 282
    assert len({row["id"] for row in questions}) == 282
    assert len({row["subject"] for row in questions}) == 57
    assert all(row["question"] and all(row["choices"]) and row["answer"] < len(row["choices"]) for row in questions)
    pituitary = next(row for row in questions if "pituitary" in row["question"])
    assert pituitary["choices"][pituitary["answer"]] == "Cranial"


@pytest.mark.parametrize("call", [mmlu_questions, lambda: standard_tasks(None, None)], ids=["questions", "tasks"])
def test_without_lm_eval_the_message_names_the_line_that_installs_it(monkeypatch, call):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "lm-eval'):
        call()


@pytest.mark.slow
@needs_lm_eval
def test_mmlu_is_scored_question_by_question(model, tokenizer):
    """The likeliest letter is the answer: for three questions computed by hand."""
    report = standard_tasks(model, tokenizer, limit=6, name="toy")["mmlu_dev"]
    questions = mmlu_questions()[:6]
    assert [row["id"] for row in report.rows] == [question["id"] for question in questions]
    assert [row["expected"] for row in report.rows] == [["ABCD"[question["answer"]]] for question in questions]
    for row, question in zip(report.rows[:3], questions, strict=False):
        ids = tokenizer(row["prompt"] + " ", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
        assert row["answer"] == "ABCD"[int(logits[letters].argmax())]
        assert row["acc"] == float(row["answer"] == "ABCD"[question["answer"]])
    assert report.scores["acc"].value == sum(row["acc"] for row in report.rows) / 6


@pytest.mark.slow
@needs_lm_eval
def test_our_paired_test_takes_its_log(model, tokenizer):
    before = standard_tasks(model, tokenizer, limit=8, name="base")
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    after = standard_tasks(model, tokenizer, limit=8, name="tuned")
    verdict = evaluation.gate(before, after)
    assert [change.suite for change in verdict.changes] == ["mmlu_dev"]
    assert verdict.changes[0].items == 8
    assert evaluation.compare(before["mmlu_dev"], after["mmlu_dev"]).differences
    with pytest.raises(DataError, match=r"different prompts"):
        evaluation.gate(before, standard_tasks(model, tokenizer, limit=4))


@pytest.mark.slow
@needs_lm_eval
def test_an_unknown_task_is_named(model, tokenizer):
    with pytest.raises(DataError, match="no_such_task"):
        standard_tasks(model, tokenizer, ["no_such_task"])
