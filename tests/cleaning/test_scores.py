"""Scores: rules that read text, likelihood by hand, and what a selection keeps."""

import json
import math
import random
import time
from importlib import resources

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import CHATML, GEMMA, LLAMA3, make_tokenizer

from ftkit import data, evaluation, models
from ftkit.chat import IGNORED, tokenize
from ftkit.cleaning import ifd, select
from ftkit.cleaning.scores import _with_and_without, explain, heuristics
from ftkit.config import TrainConfig
from ftkit.errors import DataError, FtkitWarning
from ftkit.models import answer_nll

BARE = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"  # no header, no start token
ESSAY = "The harbour woke slowly, one lamp after another, while the first boats came in with the tide. " * 4
PROSE = (
    "Bread rises because yeast eats sugar and gives off gas, which the stretched dough holds in small bubbles. Heat "
    "then sets the walls of those bubbles, drives off water and browns the crust, so that the loaf keeps its shape "
    "once it leaves the oven"
)


def chat(prompt, answer, system=None):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def bundled_rows(name):
    text = resources.files("ftkit").joinpath("samples", f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line)["messages"] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("prompt", "answer", "fault"),
    [
        ("Tell me about cats.", "", "empty answer"),
        ("Tell me about cats.", " \n\t ", "empty answer"),
        ("Describe how a kettle works in detail.", "Heat.", "hardly an answer"),
        ("Classify the mood, then explain it. Explain why: what a day!", "Good", "hardly an answer"),
        ("Tell me about the sea.", "Tell me about the sea.", "repeats the prompt"),
        ("Write a song.", "la la la la\nmy oh my\nla la la la\nmy oh my\nla la la la", "repeated lines"),
        ("Write a song.", "and so on " * 9, "repeated phrases"),
        ("Who won?", "As an AI language model, I have no view on that.", "refusal boilerplate"),
        ("Who won?", "I'm sorry, but I can't say who won the game.", "refusal boilerplate"),
        ("Write a letter.", "Dear [insert name], thank you for the flowers.", "placeholder text"),
        ("Write a page.", "Lorem ipsum dolor sit amet.", "placeholder text"),
        ("Write a plan.", "First we meet. TODO: the rest of it.", "placeholder text"),
        ("Who wrote it?", "<p>It was <b>Austen</b>.</p>", "markup left over"),
        ("Who wrote it?", "It was Austen.<|im_end|>", "markup left over"),
        ("Where?", "In the cafÃ© by the river.", "broken characters"),
        ("Where?", "In the caf\ufffd by the river.", "broken characters"),
        ("Where?", "-----====|||||-----=====////// a b", "few letters"),
        ("Where?", "IT IS RIGHT HERE BEHIND THE OLD HOUSE", "shouting"),
        ("Where?", "Right here!!!!!", "shouting"),
        ("Why does bread rise?", PROSE, "ends mid-sentence"),
        ("Show me the code.", "Here it is:\n```python\n" + "x = x + 1  # next one\n" * 20, "ends mid-sentence"),
    ],
)
def test_a_fault_costs_points_and_is_named(prompt, answer, fault):
    row = chat(prompt, answer)
    assert any(reason.startswith(fault) for reason in explain(row)), explain(row)
    assert heuristics([row])[0] < 1


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Is the sentiment positive or negative? The film was fine.", "positive"),
        ("How many legs has a spider?", "8"),
        ("Classify this ticket: my card is blocked.", "billing"),
        ("Compute 6 times 7.", "42"),
        ("Which sign says 'not equal'?", "≠"),
        ("日本の首都はどこですか。", "東京です。"),
        ("नमस्ते कैसे कहते हैं?", "हिन्दी में इसे नमस्ते कहते हैं और यह बहुत आम है।"),
        ("Write a web page with HTML.", "<p>Hello there, reader.</p>"),
        ("What does TODO mean in code?", "TODO marks work that is still open."),
        ("Say it in capital letters: good morning to all of you", "GOOD MORNING TO ALL OF YOU MY FRIENDS"),
        ("Show a loop.", "```html\n<div>TODO</div>\n```\nThat is the whole loop."),
        ("Why does bread rise?", PROSE + "."),
        ("List what to buy.", PROSE + ".\n- two eggs\n- a bag of flour"),
    ],
)
def test_a_fine_answer_keeps_all_points(prompt, answer):
    assert explain(chat(prompt, answer)) == []
    assert heuristics([chat(prompt, answer)]) == [1.0]


@pytest.mark.parametrize("name", ["invoices", "invoices_unseen", "general"])
def test_bundled_answers_are_fine(name):
    assert {m[-1]["content"]: explain(m) for m in bundled_rows(name) if explain(m)} == {}


@given(st.text(), st.text(), st.sampled_from(["assistant", "user"]))
def test_any_text_scores_between_0_and_1_and_faults_explain_it(prompt, answer, role):
    row = [{"role": "user", "content": prompt}, {"role": role, "content": answer}]
    (score,) = heuristics([row])
    assert 0 <= score <= 1
    assert (score == 1) == (explain(row) == [])
    assert heuristics([row, row]) == [score, score]


def test_rows_without_turns_score_nothing():
    assert heuristics([[], [{"role": "user", "content": "x"}]]) == [0.0, 0.0]


def test_a_thousand_rows_take_less_than_a_second():
    rows = bundled_rows("invoices")
    before = time.process_time()
    heuristics(rows)
    assert time.process_time() - before < 0.8


def mean_nll(model, tokenizer, before, answer):
    """Mean -log p of the answer's tokens after `before`, one forward pass a token; nothing shared with the library."""
    ids, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, answer))
    losses = []
    for token in rest:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        losses.append(-float(torch.log_softmax(logits.double(), dim=-1)[token]))
        ids = [*ids, token]
    return sum(losses) / len(losses)


def test_ifd_is_the_ratio_computed_by_hand(model, tokenizer):
    header = "<|im_start|>assistant\n"
    asked = mean_nll(model, tokenizer, f"<|im_start|>user\nOne?<|im_end|>\n{header}", "First.<|im_end|>")
    alone = mean_nll(model, tokenizer, header, "First.<|im_end|>")
    assert ifd(model, tokenizer, limit=math.inf)([chat("One?", "First.")]) == [pytest.approx(asked / alone, rel=1e-4)]


def test_ifd_counts_the_last_answer_alone(model, tokenizer):
    """Earlier answers belong to the prompt."""
    header = "<|im_start|>assistant\n"
    before = f"<|im_start|>user\nA?<|im_end|>\n{header}B.<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n{header}"
    expected = mean_nll(model, tokenizer, before, "D.<|im_end|>") / mean_nll(model, tokenizer, header, "D.<|im_end|>")
    assert ifd(model, tokenizer, limit=9)([chat("A?", "B.") + chat("C?", "D.")]) == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize(
    ("source", "opening"),
    [
        (CHATML, "<|im_start|>assistant\n"),
        (LLAMA3, "<bos><|start_header_id|>assistant<|end_header_id|>\n\n"),
        (GEMMA, "<bos><start_of_turn>model\n"),
        (BARE, ""),
    ],
)
def test_without_the_prompt_only_the_templates_opening_is_read(source, opening):
    """The same answer tokens stand in both rows; where nothing stands before the first one, neither counts it."""
    tokenizer = make_tokenizer(source, adds_bos="bos" in opening)
    asked, alone = _with_and_without(chat("One?", "First."), tokenizer, None)
    labels = [[i for i in row["labels"] if i != IGNORED] for row in (asked, alone)]
    assert tokenizer.decode(alone["input_ids"]) == opening + "First.<|im_end|>"
    assert tokenizer.decode(labels[0]) == ("First." if opening else "irst.") + "<|im_end|>"
    assert labels[0] == labels[1]


def test_batched_scores_equal_single_ones_in_the_order_given(model, tokenizer):
    rows = [chat("?" * n, "answer " * (1 + n % 4)) for n in (30, 1, 12, 60, 5, 44, 2)]
    alone = [ifd(model, tokenizer, limit=math.inf)([row])[0] for row in rows]
    assert ifd(model, tokenizer, batch_size=3, limit=math.inf)(rows) == pytest.approx(alone, rel=1e-4)


def test_what_cannot_be_scored_is_none(model, tokenizer):
    """No answer, no text in it, longer than the toy's 512 tokens; the row between them keeps its place."""
    rows = [chat("x", ""), chat("x", " \n"), chat("x", "y" * 600), chat("x", "y"), chat("x", "y")[:1], []]
    assert [s is not None for s in ifd(model, tokenizer, limit=math.inf)(rows)] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]


def test_a_prompt_that_makes_its_answer_less_likely_is_left_out(model, tokenizer):
    """The paper drops what lies above 1; `limit` moves that line."""
    rows = [chat(f"{i} {i * i}?", f"It is {3 * i}.") for i in range(12)]
    everything = ifd(model, tokenizer, limit=math.inf)(rows)
    assert any(s > 1 for s in everything)
    assert ifd(model, tokenizer)(rows) == [s if s <= 1 else None for s in everything]


def test_a_row_that_the_template_refuses_is_counted(model):
    tokenizer = make_tokenizer(GEMMA)
    with pytest.warns(FtkitWarning, match=r"1 of 2 rows get no score.*System role not supported"):
        scores = ifd(model, tokenizer, limit=math.inf)([chat("x", "y", system="z"), chat("x", "y")])
    assert [s is None for s in scores] == [True, False]
    with pytest.raises(DataError, match="System role not supported"):
        ifd(model, tokenizer)([chat("x", "y", system="z")])


def test_scoring_leaves_the_model_in_the_mode_it_found(model, tokenizer):
    model.train()
    ifd(model, tokenizer)([chat("x", "y")])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_answer_nll_adds_up_to_perplexity(model, tokenizer, rows):
    examples = data.load_examples(rows)
    pairs = answer_nll(model, [tokenize(m, tokenizer) for m in examples["messages"]], batch_size=3)
    total, count = map(sum, zip(*pairs, strict=True))
    assert math.exp(total / count) == pytest.approx(evaluation.perplexity(model, tokenizer, examples), rel=1e-5)


def test_many_rows_show_a_bar_on_stderr(model, tokenizer, capsys):
    ifd(model, tokenizer, batch_size=40)([chat("x", str(i)) for i in range(33)])
    out, err = capsys.readouterr()
    assert (out, "66" in err) == ("", True)
    ifd(model, tokenizer)([chat("x", "y")])
    assert capsys.readouterr().err == ""


def examples_with(scores):
    return data.load_examples(
        [{"messages": chat(f"q{i}", f"answer {i} of {len(scores)}"), "score": s} for i, s in enumerate(scores)]
    )


def by_column(scores):
    return lambda rows: list(scores)


def test_the_best_share_is_chosen_in_its_own_order():
    scores = [0.1, 0.9, 0.5, 0.8, 0.2, 0.7]
    selection = select(examples_with(scores), by_column(scores), 0.5)
    assert selection.chosen_rows == (1, 3, 5)
    assert selection.chosen["score"] == [0.9, 0.8, 0.7]
    assert selection.scores == tuple(scores)


def test_rows_without_a_score_are_counted_and_never_chosen():
    """NaN and infinity are no scores either; with too few scored rows fewer are chosen, and as few drawn."""
    scores = [None, 0.2, math.nan, 0.1, math.inf, None]
    selection = select(examples_with([0.0] * 6), by_column(scores), 0.5)
    assert (selection.chosen_rows, len(selection.baseline)) == ((1, 3), 2)
    assert "4 of 6 rows have no score" in str(selection)


@given(
    st.lists(st.none() | st.floats(0, 5), min_size=1, max_size=30).filter(lambda s: any(x is not None for x in s)),
    st.floats(0.01, 1),
    st.integers(0, 3),
)
def test_no_row_left_behind_scores_better_than_a_chosen_one(scores, share, seed):
    class Rows(list):  # the few methods of a Dataset that select needs, so that a thousand draws stay fast
        column_names = ("messages",)
        select = lambda self, picked: [self[i] for i in picked]  # noqa: E731
        __getitem__ = lambda self, key: list(self) if key == "messages" else list.__getitem__(self, key)  # noqa: E731

    selection = select(Rows([chat("q", "a")] * len(scores)), by_column(scores), share, seed=seed)
    picked = [scores[i] for i in selection.chosen_rows]
    left = [s for i, s in enumerate(scores) if s is not None and i not in selection.chosen_rows]
    assert None not in picked
    assert min(picked) >= max(left, default=-1)
    assert len(selection.baseline_rows) == len(picked) <= max(1, round(share * len(scores)))


def test_ties_and_baseline_are_drawn_with_the_seed():
    """With one value for all rows the choice must not be the file's beginning."""
    examples = examples_with([1.0] * 60)
    one, again, other = (select(examples, heuristics, 0.25, seed=s) for s in (1, 1, 2))
    assert (one.chosen_rows, one.baseline_rows) == (again.chosen_rows, again.baseline_rows)
    assert one.chosen_rows != other.chosen_rows != tuple(range(15))
    assert one.baseline_rows != other.baseline_rows


def test_table_shows_chosen_beside_random():
    """Two words an answer twice, three once: distinct-2 counts word pairs over the whole part."""
    rows = [chat("q", a) for a in ("red fox", "red fox", "a red fox", "<b>")]
    selection = select(data.load_examples([{"messages": m} for m in rows]), by_column([3, 3, 3, None]), 0.75)
    table, without = selection._parts()
    chosen, drawn = table.rows
    assert table.head[1:] == ("rows", "mean score", "mean answer words", "distinct-2", "without a score")
    assert chosen == ("chosen", 3, "3.000", "2.3", "0.500", 0)
    assert drawn[:2] == ("random", 3)
    assert without.startswith("1 of 4 rows have no score") and without in selection._repr_html_()


@pytest.mark.parametrize(
    ("scores", "share", "message"),
    [
        ([1, 2], 0, "share=0 is outside 0 to 1"),
        ([1, 2], 1.5, "share=1.5 is outside 0 to 1"),
        ([1], 0.5, "gave 1 scores for 2 rows"),
        ([None, math.nan], 0.5, "None of the 2 rows has a score"),
    ],
)
def test_what_cannot_be_selected_is_explained(scores, share, message):
    with pytest.raises(DataError, match=message):
        select(examples_with([0, 0]), by_column(scores), share)


@pytest.fixture(scope="module")
def bundled():
    return models.load(models.BUNDLED, TrainConfig(load_in_4bit=False, backend="transformers", dtype="bf16"))


@pytest.mark.slow
def test_prompts_help_their_own_answers_and_not_each_others(bundled):
    """On real answers every IFD lies below 1; answers shuffled among the prompts raise the mean, and some pass 1."""
    rows = bundled_rows("general")[:24]
    turned = [[question, rows[(i + 7) % len(rows)][-1]] for i, (question, _) in enumerate(rows)]
    own, others = (ifd(*bundled, limit=math.inf)(part) for part in (rows, turned))
    assert max(own) < 1
    assert sum(others) / len(others) > 2 * sum(own) / len(own)
    assert None in ifd(*bundled)(turned)
    assert None not in ifd(*bundled)(rows)


@pytest.mark.slow
def test_batches_move_the_bundled_models_scores_only_by_its_arithmetic(bundled):
    """fp32: within 1e-4 a row. bf16: its kernels round differently for another batch size, even without padding."""
    model, tokenizer = bundled
    rows = bundled_rows("general")[:16]
    random.Random(0).shuffle(rows)
    together, alone = (ifd(model, tokenizer, size, limit=math.inf)(rows) for size in (8, 1))
    assert sum(together) == pytest.approx(sum(alone), rel=3e-2)
    assert together == pytest.approx(alone, rel=0.12)
    model.float()
    try:
        together, alone = (ifd(model, tokenizer, size, limit=math.inf)(rows) for size in (8, 1))
    finally:
        model.bfloat16()
    assert together == pytest.approx(alone, rel=1e-4)
