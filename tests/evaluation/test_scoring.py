"""Is it better? Reports score every row, and a verdict is plain."""

import math

import pytest
import torch

from ftkit import chat, data, evaluation
from ftkit.errors import DataError
from ftkit.evaluation import compare, interval, perplexity
from ftkit.evaluation.scoring import EvalReport
from ftkit.runs import Run


def test_perplexity_is_total_loss_over_answer_tokens(model, tokenizer, rows):
    """Equal to exp of the summed loss of single rows over their answer tokens; batching and padding do not matter."""
    examples = data.load_examples(
        [*rows, {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "long " * 9}]}]
    )
    total = count = 0
    for messages in examples["messages"]:
        row = chat.tokenize(messages, tokenizer)
        labels = torch.tensor([row["labels"]])
        n = int((labels[:, 1:] != chat.IGNORED).sum())
        with torch.no_grad():
            total += n * float(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss)
        count += n
    assert perplexity(model, tokenizer, examples, batch_size=4) == pytest.approx(math.exp(total / count), rel=1e-4)


def test_perplexity_without_answer_tokens_is_an_error(model, tokenizer, rows):
    with pytest.raises(DataError, match="max_length"):
        perplexity(model, tokenizer, data.load_examples(rows), max_length=3)


def test_report_scores_every_row_and_accepts_alternatives(model, tokenizer, rows):
    examples = data.load_examples([{**row, "accept": ["", "x"]} for row in rows])
    report = evaluation.evaluate(model, tokenizer, examples, max_new_tokens=3)
    assert len(report.rows) == len(rows)
    assert report.rows[0]["expected"] == ["", "x"]


def test_empty_evaluation_is_an_error(model, tokenizer, rows):
    with pytest.raises(DataError, match="no examples"):
        evaluation.evaluate(model, tokenizer, data.load_examples(rows).select([]))


def report(name, hits):
    rows = tuple(
        {
            "prompt": str(i),
            "expected": ["x"],
            "answer": "x",
            "exact_match": float(h),
            "token_f1": float(h),
            "stopped": True,
        }
        for i, h in enumerate(hits)
    )
    return EvalReport(name, interval([float(h) for h in hits]), interval([float(h) for h in hits]), 1.0, rows)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0] * 20, [1] * 20, "is better"),
        ([1] * 20, [0] * 20, "WORSE"),
        ([0, 1] * 10, [0, 1] * 9 + [1, 0], "No difference"),
    ],
)
def test_verdict_is_plain(before, after, verdict):
    assert verdict in compare(report("base", before), report("tuned", after)).verdict()


def test_reports_on_other_prompts_cannot_be_compared():
    with pytest.raises(DataError, match="different prompts"):
        compare(report("a", [1, 0]), report("b", [1]))


def test_equal_models_may_differ_either_way():
    """Twenty pairs without a difference leave room for one in both directions."""
    difference = compare(report("a", [1] * 20), report("b", [1] * 20)).difference
    assert difference.low == -difference.high < 0


def test_leave_writes_answers_and_marks_the_step(tmp_path):
    run = Run.create("x", tmp_path)
    evaluation.save_reports(run, before=report("base", [0, 1]), after=report("tuned", [1, 1]))
    assert run.finished("evaluate")
    assert len(run.require("eval/after.jsonl").read_text().splitlines()) == 2
    assert run.facts["evaluate"] == {"before": 0.5, "after": 1.0}
