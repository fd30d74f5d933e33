"""Answers and scores: batching changes nothing, formulas are the field's."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit import chat, data, evaluation
from ftkit.errors import DataError
from ftkit.evaluation import Score, compare, exact_match, exact_words, interval, perplexity, token_f1
from ftkit.evaluation.scoring import EvalReport
from ftkit.models import generate
from ftkit.models.generation import Answer
from ftkit.runs import Run

words = st.text(alphabet="abc XYZ.,the", max_size=20)


def test_batched_answers_equal_single_ones_in_the_order_given(model, tokenizer):
    """Padding on the left and sorting by length must not change an answer."""
    prompts = ["a", "a much longer question than the first", "mid-sized one", "b" * 60, "c"]
    together = generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=3)
    alone = [generate(model, tokenizer, [p], max_new_tokens=12)[0] for p in prompts]
    assert together == alone


def test_an_answer_says_whether_it_stopped(model, tokenizer):
    """A model that always writes the stop token stops after one token; one that never does is cut."""
    with torch.no_grad():
        model.model.norm.weight.zero_()  # hidden state 0: logits are all equal, so the lowest id wins
    never = generate(model, tokenizer, ["x"], max_new_tokens=5)[0]
    assert (never.tokens, never.stopped) == (5, False)
    model.generation_config.eos_token_id = 0
    assert generate(model, tokenizer, ["x"], max_new_tokens=5)[0] == Answer("", 1, True)


def test_generate_leaves_the_model_in_the_mode_it_found(model, tokenizer):
    model.train()
    padding = tokenizer.padding_side
    generate(model, tokenizer, ["x"], max_new_tokens=2)
    assert (model.training, tokenizer.padding_side) == (True, padding)


def test_drawn_answers_repeat_with_their_seed(model, tokenizer):
    draw = {"max_new_tokens": 8, "temperature": 1.0}
    assert generate(model, tokenizer, ["x"], seed=1, **draw) == generate(model, tokenizer, ["x"], seed=1, **draw)
    assert generate(model, tokenizer, ["x"], seed=1, **draw) != generate(model, tokenizer, ["x"], seed=2, **draw)


def test_no_prompts_no_answers(model, tokenizer):
    assert generate(model, tokenizer, []) == []


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


def test_interval_covers_the_mean_and_narrows_with_the_sample():
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 500)
    assert few.low < few.value < few.high
    assert many.high - many.low < few.high - few.low


def test_interval_of_nothing_but_zeros_does_not_claim_certainty():
    """Wilson's interval for 0 of 40 reaches 8.8 %."""
    assert interval([0.0] * 40) == Score(0.0, 0.0, pytest.approx(0.0876, abs=1e-4))


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
