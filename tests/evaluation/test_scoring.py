"""Is it better? Reports score every row, and a verdict is plain."""

import json
import math

import pytest
import torch
from toys import CHATML, make_tokenizer

from ftkit import chat, data, evaluation
from ftkit.errors import DataError
from ftkit.evaluation import compare, interval, perplexity
from ftkit.evaluation.scoring import EvalReport
from ftkit.models.generation import Answer
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


def report(name, hits, **facts):
    rows = tuple(
        {
            "id": str(i),
            "cluster": str(i),
            "prompt": str(i),
            "expected": ["x"],
            "answer": "x",
            "exact_match": float(h),
            "token_f1": float(h),
            "stopped": True,
        }
        for i, h in enumerate(hits)
    )
    score = interval([float(h) for h in hits])
    return EvalReport(name, {"exact_match": score, "token_f1": score}, rows, **facts)


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


CALL = '[{"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}]'
TIDE = '[{"type": "function", "function": {"name": "tide", "description": "High water", "parameters": {}}}]'
TELLS = CHATML.replace(
    "{% for m in messages %}",
    "{{ (tools or '') | string }}{% for m in messages %}{% set calls = m.tool_calls or [] %}",
).replace("{{ m['content'] }}", "{{ m['content'] }}{% for c in calls %}CALL {{ c.function | tojson }}{% endfor %}")


@pytest.fixture
def scored(monkeypatch):
    """A report on rows to which the model is said to answer so, and what it was asked."""

    def score(rows, answer, **settings):
        from ftkit.evaluation import scoring

        asked = []

        def generate(model, tokenizer, prompts, **_):
            asked.extend(chat.render(prompt, tokenizer, add_generation_prompt=True) for prompt in prompts)
            return [Answer(answer, 1, True) for _ in prompts]

        monkeypatch.setattr(scoring, "generate", generate)
        report = evaluation.evaluate(None, make_tokenizer(TELLS), data.load_examples(rows), **settings)
        return report, asked

    return score


TOOL_ROW = {
    "messages": [
        {"role": "user", "content": "High water at Brest?"},
        {"role": "assistant", "content": "", "tool_calls": json.loads(CALL)},
    ],
    "tools": json.loads(TIDE),
}


def test_a_tool_row_is_asked_with_its_schemas(scored):
    assert "High water" in scored([TOOL_ROW], "")[1][0].partition("<|im_start|>")[0]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('<tool_call>{"name": "tide", "arguments": {"port": "Brest"}}</tool_call>', 1.0),
        ('CALL {"name": "tide", "arguments": {"port": "Brest"}}', 1.0),  # as this template writes it
        ('<think>Ask.</think>\n\n{"name": "tide", "arguments": {"port": "Brest"}}', 1.0),
        ('<tool_call>{"name": "tide", "arguments": {"port": "Calais"}}</tool_call>', 0.0),
        ("", 0.0),
    ],
)
def test_a_call_is_scored_as_a_call(scored, answer, right):
    assert scored([TOOL_ROW], answer)[0].exact_match.value == right


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("Yes, sir", ["Yes, sir"]),
        (["aye", "yes"], ["aye", "yes"]),
        (None, ["It is."]),
        ("", ["It is."]),
        ([], ["It is."]),
    ],
)
def test_a_text_that_is_accepted_is_one_reference(scored, accept, expected):
    row = {
        "messages": [{"role": "user", "content": "Low?"}, {"role": "assistant", "content": "It is."}],
        "accept": accept,
    }
    assert scored([row], "x")[0].rows[0]["expected"] == expected


@pytest.mark.parametrize("accept", [5, True, 0.5])
def test_what_is_accepted_must_be_text(scored, accept):
    row = {"messages": [{"role": "user", "content": "Low?"}, {"role": "assistant", "content": "It is."}]}
    with pytest.raises(DataError, match=f"Row 1 has accept='{accept}'"):
        scored([row | {"accept": accept}], "x")


def test_the_reference_is_the_last_answer_that_may_be_trained(scored):
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Draft.", "train": False},
    ]
    report, asked = scored([{"messages": turns}], "First.")
    assert (report.rows[0]["expected"], report.exact_match.value) == (["First."], 1.0)
    assert "Two?" not in asked[0]


def test_what_a_model_reasons_is_not_scored(scored):
    row = {"messages": [{"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "Seven"}]}
    assert scored([row], "<think>\nThree, four: eight?\n</think>\n\nSeven")[0].token_f1.value == 1


def test_a_row_without_an_answer_is_named():
    from datasets import Dataset

    rows = [{"messages": TOOL_ROW["messages"][:1], "text": None}, {"messages": [], "text": "A mill."}]
    for number, row in enumerate(rows, 1):
        examples = Dataset.from_list([row] * number)
        with pytest.raises(DataError, match="Row 1 has no answer"):
            evaluation.evaluate(None, make_tokenizer(), examples)
