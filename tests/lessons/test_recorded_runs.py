"""The recorded sick runs: each is read for what it has, by the kit's own reports, and letters tell no names."""

import copy
import math
from importlib import resources

import pytest

from ftkit import data, evaluation, lessons, preflight, training
from ftkit.lessons.recorded_runs import sick_runs

NAMES = {
    "nothing is trained",
    "not a number",
    "overfitting",
    "never stops",
    "below the base",
    "test rows leaked",
}


@pytest.fixture(scope="module")
def sick():
    return sick_runs()


def test_six_letters_stand_for_six_illnesses(sick):
    assert sorted(sick.histories) == list("ABCDEF")
    assert set(sick.names.values()) == NAMES


def test_the_seed_decides_the_order():
    assert sick_runs(1).names == sick_runs(1).names
    assert len({tuple(sick_runs(seed).names.values()) for seed in range(5)}) > 1


def test_a_run_is_found_by_letter_and_by_name(sick):
    letter = next(letter for letter, name in sick.names.items() if name == "overfitting")
    assert sick[letter] is sick["overfitting"]
    with pytest.raises(KeyError, match="no run 'flu'"):
        sick["flu"]


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("nothing is trained", "nothing-trained"),
        ("not a number", "nan"),
        ("overfitting", "overfitting"),
        ("never stops", "healthy"),
        ("below the base", "healthy"),
        ("test rows leaked", "healthy"),
    ],
)
def test_three_show_in_the_curve_and_three_do_not(sick, name, reading):
    run = sick[name]
    assert training.diagnose(run.history, run.config).ids[0] == reading


def test_a_filtered_nan_is_read_from_the_gradient():
    run = lessons.hidden_nan()
    assert all(loss == 0 for _, loss in run.history.losses)
    assert all(math.isnan(p.grad_norm) for p in run.history.points)
    assert training.diagnose(run.history).verdict.startswith("Not a number, logged as 0")


def test_the_run_without_labels_is_refused_by_preflight(sick, tokenizer):
    run = sick["nothing is trained"]
    assert "no-trained-tokens" in {found.id for found in preflight.check(None, tokenizer, run.train, run.config).errors}
    assert [row["base"]["answer"] for row in run.kept["rows"]] == [row["tuned"]["answer"] for row in run.kept["rows"]]


def test_endless_answers_show_in_the_share_that_stopped_and_in_the_tokenizer(sick, tokenizer):
    run, careless = sick["never stops"], copy.copy(tokenizer)
    careless.pad_token = careless.eos_token
    assert run.report("tuned").stopped < 0.2
    assert "pad-is-stop" in {found.id for found in preflight.check(None, careless, run.train, run.config).warnings}


def test_the_forgetful_run_is_worse_than_its_base_and_good_at_its_own_task(sick):
    run = sick["below the base"]
    assert "WORSE" in evaluation.compare(run.report("base"), run.report("tuned")).verdict()
    assert run.report("tuned", "task").exact_match.value > run.report("base", "task").exact_match.value
    assert run.report("without template", "task").exact_match.value < run.report("tuned", "task").exact_match.value


def test_the_leak_is_found_and_fresh_rows_tell_the_truth(sick):
    run = sick["test rows leaked"]
    assert len(data.leakage(run.train, run.examples()).exact) == len(run.kept["rows"])
    score, fresh = (run.report("tuned", rows).scores["mentions"].value for rows in ("rows", "fresh"))
    assert score > 0.6 > 0.2 > fresh


def test_tables_show_letters_and_no_names(sick):
    for page in (str(sick), str(sick.answers())):
        assert not [name for name in NAMES if name in page]
    assert len(sick.answers(2).rows) == 12


def test_the_file_stays_small():
    path = resources.files("ftkit").joinpath("samples/sick_runs.json")
    assert len(path.read_bytes()) < 100_000
