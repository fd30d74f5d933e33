"""Is it better? Reports score every row, and a verdict is plain."""

import json
import math

import pytest
import torch
from toys import CHATML, make_tokenizer

from ftkit import chat, data, evaluation, models
from ftkit.errors import DataError, FtkitWarning, MissingArtifact
from ftkit.evaluation import EvalReport, evaluate_checkpoints, interval, perplexity, score_answers
from ftkit.models import Answer
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


def ask(question, answer, **columns):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


CITIES = [ask("France?", "Paris"), ask("Italy?", "Rome"), ask("Spain?", "Madrid")]


def test_answers_of_any_system_are_scored_like_a_models_own():
    report = score_answers(["Paris", "Milan", ""], CITIES, name="an API", number_format="api")
    assert [row["exact_match"] for row in report.rows] == [1.0, 0.0, 0.0]
    assert (report.exact_match.value, report.number_format, report.unscored) == (pytest.approx(1 / 3), "api", {})


def test_a_missing_answer_is_unscored_and_counted_and_is_no_zero():
    report = score_answers(["Paris", None, "Madrid"], CITIES)
    assert report.rows[1]["exact_match"] is None
    assert report.exact_match.value == 1.0
    assert report.unscored == {"exact_match": 1, "token_f1": 1}
    assert "1 of 3 answers are unscored by exact_match" in str(report)


def test_nothing_scored_is_said_and_is_no_number(tmp_path):
    report = score_answers([None], CITIES[:1], metrics=["exact_match"])
    assert "not scored" in str(report)
    assert report.summary()["exact_match"]["value"] is None
    evaluation.save_reports(Run.create("x", tmp_path), none=report)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "0 answers to 3 examples"),
        (["Paris"], "1 answers to 3 examples"),
        (["Paris", 5, "Madrid"], "Answer 2 is '5' and no text"),
    ],
)
def test_answers_that_are_none_are_refused(answers, said):
    with pytest.raises(DataError, match=said):
        score_answers(answers, CITIES)


def test_ids_are_the_rows_own_and_no_two_are_equal():
    rows = [row | {"id": f"q{i}"} for i, row in enumerate(CITIES)]
    assert [row["id"] for row in score_answers(["", "", ""], rows).rows] == ["q0", "q1", "q2"]
    assert [row["id"] for row in score_answers(["", "", ""], CITIES).rows] == ["1", "2", "3"]
    with pytest.raises(DataError, match=r"1 ids stand more than once \(the first is 'q1'"):
        score_answers(["", ""], [rows[1], rows[1]])


def test_answers_to_one_prompt_are_one_cluster():
    """Named by the row, or found by the prompt."""
    rows = [CITIES[0], CITIES[1], CITIES[0]]
    assert [row["cluster"] for row in score_answers(["", "", ""], rows).rows] == ["1", "2", "1"]
    named = [row | {"cluster": "Europe"} for row in CITIES]
    assert {row["cluster"] for row in score_answers(["", "", ""], named).rows} == {"Europe"}


def test_a_report_is_read_back_as_it_was_saved(tmp_path):
    metrics = ("exact_match", "macro_f1", "stopped", "chrf")
    answers = [Answer("Paris", 2, True), Answer("Rome is it", 4, False), None]
    report = score_answers(answers, CITIES, name="<b>", metrics=metrics, number_format="float32")
    assert EvalReport.load(report.save(tmp_path / "a.jsonl")) == report
    assert report.scores["stopped"].value == 0.5


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no JSON", '{"report": 5}', '{"report": {"name": "x"}}', "\x00"])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="no evaluation that ftkit wrote"):
        EvalReport.load(path)


def test_lines_of_two_evaluations_are_refused(tmp_path):
    lines = [score_answers(["x"], [row]).save(tmp_path / "a.jsonl").read_text() for row in CITIES[:2]]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    with pytest.raises(DataError, match="several evaluations"):
        EvalReport.load(tmp_path / "a.jsonl")
    with pytest.raises(MissingArtifact, match="no file"):
        EvalReport.load(tmp_path / "b.jsonl")


def length(answer, references):
    return len(answer) / 10


def test_a_function_of_ones_own_is_a_metric():
    report = score_answers(["Paris<|im_end|>", "", "four"], CITIES, metrics=["exact_match", length])
    assert [row["length"] for row in report.rows] == [0.5, 0.0, 0.4]


def test_a_function_that_fails_on_an_answer_leaves_it_unscored_and_the_rest_scored():
    def quotient(answer, references):
        return 1 / len(answer)

    with pytest.warns(FtkitWarning, match="quotient could not score 1 of 3 .* row 2: ZeroDivisionError"):
        report = score_answers(["Paris", "", "four"], CITIES, metrics=[quotient])
    assert (report.rows[1]["quotient"], report.unscored) == (None, {"quotient": 1})


def test_a_score_that_is_no_number_is_counted_and_none_is_no_failure():
    def odd(answer, references):
        return {"Paris": 1.0, "nan": math.nan}.get(answer)

    with pytest.warns(FtkitWarning, match="it gave nan, which is no number; None says"):
        report = score_answers(["Paris", "nan", "unknown"], CITIES, metrics=[odd])
    assert (report.unscored, report.scores["odd"].value) == ({"odd": 2}, 1.0)


def test_a_function_that_fails_on_the_reference_is_refused_before_any_answer(scored):
    def broken(answer, references):
        return answer.missing

    with pytest.raises(DataError, match="broken fails on the reference of row 1 itself: AttributeError"):
        scored(CITIES, "x", metrics=[broken])


def tokens(answer, references):
    return 1.0


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["exact"], "'exact' is no metric; there are: exact_match"),
        ([], "metrics is empty"),
        (["chrf", "chrf"], "'chrf' would overwrite"),
        ([tokens], "'tokens' would overwrite"),
        (["schema"], "needs a JSON schema"),
    ],
)
def test_metrics_that_cannot_work_are_refused(metrics, said):
    with pytest.raises(DataError, match=said):
        score_answers(["", "", ""], CITIES, metrics=metrics)


def test_labels_that_are_many_are_no_classification():
    rows = [ask(f"{i}?", f"answer {i}") for i in range(50)]
    with pytest.raises(DataError, match="50 different ones in 50 rows"):
        score_answers([""] * 50, rows, metrics=["accuracy"])


def test_accuracy_and_macro_f1_read_the_label_in_an_answer():
    rows = [ask(f"{i}?", label) for i, label in enumerate(["ham"] * 3 + ["spam"])]
    said = ["Ham.", "It is ham", "ham", "I cannot tell."]
    report = score_answers(said, rows, metrics=["accuracy", "macro_f1"])
    assert [row["label"] for row in report.rows] == ["ham", "ham", "ham", None]
    assert (report.scores["accuracy"].value, report.scores["macro_f1"].value) == (0.75, 0.5)


def test_a_rows_own_schema_goes_before_the_common_one_and_a_row_without_is_unscored():
    rows = [ask("1?", "{}", schema='{"type": "array"}'), ask("2?", "{}")]
    report = score_answers(["[]", "{}"], rows, metrics=["schema"], schema={"type": "object"})
    assert [row["schema"] for row in report.rows] == [1.0, 1.0]
    assert score_answers(["[]", "{}"], rows, metrics=["schema"]).unscored == {"schema": 1}


def test_the_digest_is_of_prompts_and_references_and_of_nothing_else():
    digest = score_answers(["", "", ""], CITIES).digest
    assert score_answers(["a", "b", "c"], CITIES, name="b", metrics=["chrf"]).digest == digest
    others = [
        [CITIES[1], CITIES[0], CITIES[2]],
        [*CITIES[:2], ask("Spain?", "Toledo")],
        [*CITIES[:2], ask("Spain", "Madrid")],
        [*CITIES[:2], CITIES[2] | {"accept": ["Madrid", "Madrid!"]}],
    ]
    assert len({digest, *(score_answers(["", "", ""], rows).digest for rows in others)}) == 5
    assert score_answers(["", "", ""], CITIES, tokenizer=make_tokenizer()).digest == digest


def test_the_number_format_is_that_of_most_weights(model, tokenizer, rows):
    examples = data.load_examples(rows)
    report = evaluation.evaluate(model, tokenizer, examples, max_new_tokens=2)
    assert (report.number_format, report.settings["max_new_tokens"]) == ("float32", 2)
    assert evaluation.evaluate(model.bfloat16(), tokenizer, examples, max_new_tokens=2).number_format == "bfloat16"


def test_a_folder_without_adapters_is_named(tmp_path):
    with pytest.raises(MissingArtifact, match="holds no adapter"):
        evaluate_checkpoints(tmp_path, CITIES)


@pytest.mark.slow
def test_every_kept_checkpoint_and_the_adapter_are_evaluated_in_their_order(tmp_path, toy_config, rows):
    """Each on the same prompts, so that all can stand beside one baseline."""
    from toys import make_model

    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    run = Run.create("x", tmp_path)
    for name in ("checkpoints/checkpoint-10", "checkpoints/checkpoint-9", "adapter"):
        model, tokenizer = models.load(tmp_path / "base", toy_config)
        models.save_adapter(models.add_lora(model, toy_config), tokenizer, run / name)
    examples = data.load_examples(rows)
    reports = evaluate_checkpoints(run, examples, max_new_tokens=2)
    assert list(reports) == ["checkpoint-9", "checkpoint-10", "adapter"]
    assert len(evaluation.compare(*reports.values()).differences) == 4
    assert {report.digest for report in reports.values()} == {reports["adapter"].digest}


def test_a_file_that_was_cut_between_two_lines_is_refused(tmp_path):
    """Each line says how many there are."""
    path = report("base", [1, 0, 1, 1]).save(tmp_path / "base.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:2]), encoding="utf-8")
    with pytest.raises(DataError, match="2 lines of 4"):
        EvalReport.load(path)
    path.write_text("".join(lines[:3] + lines[:1]), encoding="utf-8")
    with pytest.raises(DataError, match="stand twice"):
        EvalReport.load(path)


@pytest.mark.parametrize("answer", ["a\u2028b", "a\x85b\x0cc", "\x00\x1b[31m"])
def test_answers_with_line_ends_of_any_kind_are_read_back(tmp_path, answer):
    saved = score_answers([answer], ROW).save(tmp_path / "r.jsonl")
    assert EvalReport.load(saved).rows[0]["answer"] == answer


def test_half_a_character_does_not_lose_a_report(tmp_path):
    saved = score_answers(
        ["\ud800"], [{"messages": [{**ROW[0]["messages"][0], "content": "\ud800"}, ROW[0]["messages"][1]]}]
    )
    assert EvalReport.load(saved.save(tmp_path / "r.jsonl")).rows[0]["answer"] == "?"


ROW = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]}]
ODD = {
    "answers are one text": ("y", ROW, {}),
    "no answers": (None, ROW, {}),
    "no examples": (["yes"], None, {}),
    "rows without messages": (["yes"], [{"prompt": "q", "answer": "yes"}], {}),
    "messages without a role": (["yes"], [{"messages": [{"content": "q"}]}], {}),
    "an answer of nothing": (["yes"], [{"messages": [{**ROW[0]["messages"][1], "content": None}]}], {}),
    "a reference of nothing": (["yes"], [ROW[0] | {"accept": [None]}], {}),
    "labels are one text": (["yes"], ROW, {"metrics": "accuracy", "labels": "yes"}),
    "labels are numbers": (["yes"], ROW, {"metrics": "accuracy", "labels": [1, 2]}),
    "no labels": (["yes"], ROW, {"metrics": "accuracy", "labels": []}),
    "labels without the right one": (["yes"], ROW, {"metrics": "accuracy", "labels": ["no", "maybe"]}),
    "metrics of nothing": (["yes"], ROW, {"metrics": None}),
}


@pytest.mark.parametrize(("answers", "examples", "how"), ODD.values(), ids=ODD)
def test_what_cannot_be_scored_is_refused(answers, examples, how):
    with pytest.raises(DataError):
        score_answers(answers, examples, **how)


def test_one_metric_needs_no_list():
    assert score_answers(["yes"], ROW, metrics="chrf").scores.keys() == {"chrf"}


def test_a_cluster_may_be_called_0():
    rows = [ROW[0] | {"cluster": 0}, ROW[0] | {"cluster": 0}]
    assert [row["cluster"] for row in score_answers(["yes", "no"], rows).rows] == ["0", "0"]


@pytest.mark.parametrize("failure", [RuntimeError, AssertionError, StopIteration, OSError])
def test_a_metric_that_fails_takes_no_other_answer_with_it(failure):
    def odd(answer, references):
        if answer == "no":
            raise failure("not this one")
        return 1

    with pytest.warns(FtkitWarning, match="1 of 2 answers"):
        scored = score_answers(["yes", "no"], ROW * 2, metrics=odd)
    assert [row["odd"] for row in scored.rows] == [1, None]


def test_macro_f1_of_nothing_right_has_an_interval():
    rows = [ROW[0], {"messages": [ROW[0]["messages"][0], {"role": "assistant", "content": "no"}]}]
    score = score_answers(["no", "yes"], rows, metrics=("macro_f1",)).scores["macro_f1"]
    assert score.value == 0 < score.high


def test_nothing_is_saved_as_nothing(tmp_path):
    with pytest.raises(DataError, match="no reports"):
        evaluation.save_reports(Run.create("r", tmp_path))


def test_perplexity_of_nothing_is_an_error(model, tokenizer):
    with pytest.raises(DataError, match="No example"):
        perplexity(model, tokenizer, [])
