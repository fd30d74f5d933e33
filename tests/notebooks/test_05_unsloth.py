"""Unsloth is measured beside plain libraries, and what it replaces is found by looking."""

import itertools
import json

import pytest

from ftkit import lessons
from ftkit.lessons import check

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("05_unsloth", max_steps=3, max_examples=8)


@pytest.fixture(scope="module")
def runs(book):
    files = ("side_by_side.json", "imported_last.json")
    found = [json.loads(book.run.require(file).read_text()) for file in files]
    return {run["name"]: run for run in itertools.chain.from_iterable(found)}


def test_four_runs_with_device_day_and_versions(runs):
    assert list(runs) == ["plain", "Unsloth", "Unsloth, checkpointing on", "imported last"]
    for run in runs.values():
        assert len(run["losses"]) == 3
        assert min(run["rates"]) > 0
        assert run["device"]
        assert run["versions"]["unsloth"]
    assert [len(run["rates"]) for run in runs.values()] == [2, 2, 2, 1]


def test_a_ratio_is_told_only_where_the_repeats_agree(book, runs):
    """On a busy machine there may be none."""
    spreads = [max(runs[name]["rates"]) / min(runs[name]["rates"]) for name in ("plain", "Unsloth")]
    told = "Unsloth over plain: speed too noisy to read" not in book.text
    assert told is (max(spreads) <= 1.2)
    assert (book.run.facts["unsloth"]["speed_up"] is not None) is told
    assert "imported last over" not in book.text


def test_the_plain_run_is_plain(runs):
    """Nothing of Unsloth is in its process; in the others there is."""
    assert [runs["plain"][fact] for fact in ("replaced", "stale", "warned")] == [0, [], ""]
    assert all(run["replaced"] > 0 for name, run in runs.items() if name != "plain")


def test_both_backends_learn_the_same(book, runs):
    """From the same first loss, in 4-bit, in the memory that such a model takes."""
    assert runs["Unsloth"]["losses"][0] == pytest.approx(runs["plain"]["losses"][0], rel=0.02)
    assert all(0.1 < run["peak_gib"] < 4 for run in runs.values())
    assert book.run.facts["unsloth"]["loss_gap"] < 0.05


def test_what_was_replaced_is_found_in_the_notebook_too(book):
    """Its own process imported Unsloth first, as the recipe says."""
    facts = book.run.facts["unsloth"]
    assert facts["replaced"] > 3
    assert facts["waiting"] >= 5
    assert facts["families"] > 20
    assert "trl.trainer.sft_trainer" in book.page.read_text()


def test_imported_last_it_warns_and_leaves_names_stale(book, runs):
    assert "Unsloth is imported after" in runs["imported last"]["warned"]
    assert "trl.SFTTrainer" in book.run.facts["unsloth"]["stale"]


def test_the_record_comes_with_device_day_and_source(book):
    page = book.page.read_text()
    for name in ("length", "baseline", "t4", "h200"):
        record = lessons.load_record(name)
        assert record.device in page
        assert record.source in page


def test_a_t4_gets_fp16(book):
    line = next(line for line in book.text.splitlines() if line.startswith("dtype"))
    assert line.split() == ["dtype", "T4:", "fp16", "L4:", "bf16", "A100:", "bf16"]


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗")] == []


def test_figures_are_left_and_shown(book):
    book.run.require("figures/backends.png")
    book.run.require("figures/by_length.png")
    book.run.require("figures/opponents.png")
    page = book.page.read_text()
    assert page.count("data:image/png;base64") >= 3
    assert "No description has been provided" not in page


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "times = ...": "times = 4050 / 3542",
    "share = ...": "share = 131 / 100 - 1",
    "    return ...": "    return 'unsloth' in function.__code__.co_filename",
}
MISTAKES = {"times = ...": "times = 2.0", "share = ...": "share = 0.2", "    return ...": "    return True"}


class Patched:
    """Stands for a class of the installed library, which this process need not import."""

    exec(compile("def from_pretrained(): pass", "/x/site-packages/unsloth/models/loader.py", "exec"))


@pytest.mark.parametrize(("answers", "mark"), [(SOLUTIONS, "✓"), (MISTAKES, "✗")])
def test_exercises_know_right_from_wrong(book, capsys, answers, mark):
    """Each `...` of the notebook is replaced by an answer; every check must say what it is worth."""
    names = {"check": check, "length": lessons.load_record("length"), "lessons": lessons, "FastLanguageModel": Patched}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, answer in answers.items():
        exec(next(source for source in sources if blank in source).replace(blank, answer), names)
    assert capsys.readouterr().out.count(mark) == len(answers)
