"""The notebook on forgetting ends with a gate that passes the gentle adapter, fails the harsh one, and says why."""

import json

import pytest

from ftkit import evaluation, models
from ftkit.config import TrainConfig
from ftkit.lessons import check
from ftkit.runs import Run

pytestmark = pytest.mark.slow
REMEDIES = ("general-rows", "fewer-epochs", "lower-rank", "lower-rate")


@pytest.fixture(scope="module")
def book(execute):
    """With fewer updates and questions than a reader's: both adapters end where the text says."""
    return execute("12_regression", max_steps=8, max_examples=24)


def test_the_gentle_adapter_passes_and_its_verdict_is_bound_to_its_run(book):
    verdict = evaluation.read_verdict(book.run)
    assert verdict.passed
    assert verdict.run == "regression"
    assert verdict.adapter == evaluation.binding(book.run)["adapter"]


def test_the_command_failed_the_harsh_adapter_and_left_the_answers_of_both(book):
    harsh = Run.open(book.root / "regression-harsh")
    verdict = evaluation.read_verdict(harsh)
    assert not verdict.passed
    assert verdict.lost
    for side in ("before", "after"):
        assert evaluation.EvalReport.load(harsh / f"eval/gate/suite-{side}.jsonl").rows
    assert "✓ exit status for the harsh adapter: 2" in book.text


def test_the_suite_is_kept_as_a_file_that_can_be_asked_again(book):
    rows = [json.loads(line) for line in (book.run / "suite.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all(row["accept"] for row in rows)


def test_the_gate_raises_and_names_what_was_lost(book):
    assert "regression-harsh does not pass the gate" in book.text or "harsh does not pass the gate" in book.text
    assert "Items lost:" in book.text


def test_switched_off_the_base_answers_bit_for_bit_and_merged_and_back_it_does_not(book):
    assert "largest difference from base, adapter off: 0.0\n" in book.text
    assert "largest difference from base, merged and back: 0.0" not in book.text


def test_each_remedy_left_an_adapter_and_no_general_row_is_the_suites(book):
    for name in REMEDIES:
        Run.open(book.root / f"regression-{name}").require("adapter/adapter_model.safetensors")
    assert "0 exact and 0 near overlaps" in book.text


def test_figures_are_left_and_described(book):
    page = book.page.read_text()
    for name in ("loss", "suite", "remedies"):
        book.run.require(f"figures/{name}.png")
    assert page.count("data:image/png;base64") >= 3
    assert "No description has been provided" not in page


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "smallest = ...": "smallest = 5",
    "questions = ...": "questions = 100",
    "mine = ...": 'mine = "What is the capital of France?"',
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    base, tokenizer = models.load(config=TrainConfig(load_in_4bit=False, backend="transformers"))
    names = {"check": check, "evaluation": evaluation, "models": models, "base": base, "tokenizer": tokenizer}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution).replace('["..."]', '["Paris"]'), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
