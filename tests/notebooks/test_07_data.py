"""The data notebook finds every planted defect, loses no good row, and leaves splits that do not leak."""

import csv
import json

import pytest

from ftkit import cleaning, data, lessons
from ftkit.cleaning.privacy import scan
from ftkit.lessons import check

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("07_data", max_steps=4, max_examples=8)


@pytest.fixture(scope="module")
def saved(book):
    return json.loads(book.run.require("data/report.json").read_text())


def test_every_row_of_the_file_is_accounted_for(saved):
    assert saved["kept"] + len(saved["dropped"]) == saved["total"] == 733


def test_no_check_of_the_notebook_failed(book):
    """Among them: every planted defect was caught, and no good row was lost."""
    assert [line for line in book.text.splitlines() if line.startswith("✗ ") and "overlaps" not in line] == []
    assert "✓ planted defects that were caught, share: 1" in book.text
    assert "✓ good rows that were dropped or altered: 0" in book.text


def test_the_leak_in_the_given_test_file_is_refused(book):
    assert "2 of 43 test rows are training rows too" in book.text


def test_the_splits_that_it_leaves_do_not_leak(book):
    splits = data.load_splits(book.run)
    for a, b in ((splits.train, splits.test), (splits.train, splits.val), (splits.val, splits.test)):
        assert data.leakage(a, b).leaked_rows == ()
    assert book.run.facts["data"]["data_digest"] == data.digest(splits.train, splits.val)


def test_no_personal_data_is_left(book):

    rows = data.load_splits(book.run)
    texts = [m["content"] for part in (rows.train, rows.val, rows.test) for turns in part["messages"] for m in turns]
    assert [t for t in texts if scan(t)] == []
    assert any("[EMAIL]" in t or "[CARD]" in t or "[PHONE]" in t for t in texts)


def test_general_rows_are_mixed_in_and_no_task_is_half_of_the_rest(book):
    train = data.load_splits(book.run).train
    assert 0.07 < train["source"][:].count("general") / len(train) < 0.09
    drops = json.loads(book.run.require("data/report_balance.json").read_text())["dropped"]
    assert {drop["rule"] for drop in drops} == {"balance"}


def test_the_quality_score_is_tested_against_a_random_choice(book):
    """Both halves are trained on, and the difference on unseen rows comes with its interval."""
    assert "loss of random minus loss of chosen, on rows that neither has seen: measured" in book.text
    assert "random minus chosen, 95 % interval" in book.page.read_text()


def test_a_threshold_that_is_too_strict_costs_the_look_alikes(book):
    assert "6 rows that should have stayed are gone" in book.text


def test_figures_are_left_and_shown(book):
    book.run.require("figures/cleaned.png")
    book.run.require("figures/lengths.png")
    assert book.page.read_text().count("data:image/png;base64") >= 2


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


def test_every_figure_has_words(book):
    for words in ("Rows dropped by each rule: well-formed 3,", "Row lengths: longest 5,"):
        assert f'alt="{words}' in book.page.read_text()


@pytest.fixture(scope="module")
def own(execute, tmp_path_factory):
    """The same cells on a reader's file: 60 rows of a CSV, a copy among them, and one without an answer."""
    path = tmp_path_factory.mktemp("own") / "mine.csv"
    parcels = [(f"Where is parcel {i} of street {i % 7} now?", f"Parcel {i} is at desk {i % 5}.") for i in range(60)]
    rows = [("question", "reply"), *parcels, parcels[2], ("And parcel 99?", "")]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return execute("07_data", my_file=path, my_columns="question, reply", max_steps=1, max_examples=8)


def test_an_own_file_is_cleaned_and_split_and_its_broken_row_named(own):
    saved = json.loads(own.run.require("data/report.json").read_text())
    assert saved["total"] == 62
    assert {(drop["place"], drop["rule"]) for drop in saved["dropped"]} == {
        ("line 62", "exact duplicates"),
        ("line 63", "well-formed"),
    }
    assert "line 63: has an empty answer" in own.text
    splits = data.load_splits(own.run)
    assert splits.train["source"][:].count("task") + len(splits.val) + len(splits.test) == 60


def test_planted_defects_are_asked_of_the_sample_alone(own):
    assert "planted defects that were caught" not in own.text
    assert "No list of defects: read a random sample of what is left." in own.text


SOLUTIONS = {
    "likeness = ...": "likeness = 40 / 50",
    "threshold = ...": "threshold = 0.75",
    "    return ...": "    return 'photo' in answer",
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    report = cleaning.clean("messy", on_error="drop")
    names = {"cleaning": cleaning, "data": data, "lessons": lessons, "report": report, "check": check}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
