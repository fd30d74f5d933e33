"""The evaluation notebook leaves reports that can be compared, a verdict, figures with words, and measured judges."""

import json
import re

import pytest

from ftkit import evaluation
from ftkit.evaluation import EvalReport
from ftkit.lessons import check

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("11_evaluate", max_steps=8, max_examples=20)


def reports(book, *names):
    return [EvalReport.load(book.run / f"eval/{name}.jsonl") for name in names]


def test_four_systems_answered_the_same_prompts_in_one_number_format(book):
    """And each attempt is better than the base model, which nobody told the form."""
    verdict = evaluation.compare(*reports(book, "base", "told", "short", "long"))
    assert verdict.before.exact_match.value < 0.1
    assert verdict.better
    assert (book.run / "eval/verdict.txt").read_text().startswith(verdict.verdict()[:40])
    assert 0 < verdict.reports[2].exact_match.value < 1  # somewhat better, so that there is something to tell apart


def test_the_judge_was_measured_before_it_was_believed(book):
    """The bundled model is a poor judge: written verdicts are lost, and many of the chosen ones follow the place."""
    assert "4 of 4 written verdicts are lost" in book.text
    page = book.page.read_text()
    flips = int(re.search(r"verdict changed with the order</th><td[^>]*>(\d+)%", page)[1])
    kappa = float(re.search(r">judge</td><td[^>]*>[^<]*</td><td[^>]*>[^<]*</td><td[^>]*>([+-][\d.]+)", page)[1])
    assert flips > 30
    assert abs(kappa) < 0.4
    book.run.require("judge_replies.jsonl")


def test_luck_is_found_uncorrected_and_gone_with_holm(book):
    assert "✓ share with a false alarm, uncorrected" in book.text
    assert "✓ share after Holm's correction" in book.text


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗ ") and "is normal" in line] == []


def test_mistakes_are_refused_by_name(book):
    assert "answered different prompts" in book.text
    assert re.search(r"8 of 8 test rows", book.text)


def test_preferences_are_left_to_train_on(book):
    rows = [json.loads(line) for line in (book.run / "eval/preferences.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert {"prompt", "chosen", "rejected"} <= rows[0].keys()


def test_every_figure_is_left_and_has_words(book):
    for name in ("scores", "comparison", "ratings_needed"):
        book.run.require(f"figures/{name}.png")
    page = book.page.read_text()
    assert page.count("data:image/png;base64") >= 3
    assert page.count("No description has been provided") <= 1  # the training's own figure


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


def test_ones_own_file_goes_through_the_same_cells(execute, shallow, tmp_path):
    """Answers without any price: the metric that looks for prices is left out, and told.

    The two cells in which a judge is asked, which take longest and read nothing of the file, are left out.
    """
    path = tmp_path / "sums.csv"
    path.write_text("question,reply\n" + "\n".join(f"What is {n} plus {n + 1}?,It is {2 * n + 1}." for n in range(80)))
    settings = {
        "my_file": path,
        "my_columns": "question,reply",
        "max_steps": 3,
        "max_examples": 8,
        "base_model": shallow,
    }
    own = execute("11_evaluate", without=("compare_pairs(", "alpaca_eval("), **settings)
    base, told, short = reports(own, "base", "told", "short")
    assert len(base.rows) == len(told.rows) == len(short.rows) == 8
    assert not (own.run / "eval/long.jsonl").exists()
    assert "unscored by prices_found" in (own.page.read_text())


SOLUTIONS = {
    "prompts_needed = ...": "prompts_needed = 50 * 4**2",
    "stay = ...": "stay = sum(p < 0.05 for p in evaluation.holm(p_values))",
    "    return ...": '    return float(answer.count("\\n") == references[0].count("\\n"))',
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), {"check": check, "evaluation": evaluation})
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
