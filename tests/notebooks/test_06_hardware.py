"""The hardware notebook: estimates that measurements bear out, one of them from a real run on this machine."""

import re

import pytest

from ftkit import memory
from ftkit.config import TrainConfig
from ftkit.lessons import check
from ftkit.runs import Run
from ftkit.training import History

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("06_hardware")


def short(book):
    """The folder of the few real steps."""
    return Run.open(book.root / "hardware-short")


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗")] == []
    assert "✓ share of runs that were measured below high: 1" in book.text


def test_the_real_run_lies_within_its_estimate(book):
    facts = book.run.facts["memory"]
    assert facts["low_gib"] <= facts["measured_gib"] <= facts["high_gib"]
    assert facts["measured_gib"] == pytest.approx(short(book).facts["train"]["peak_memory_gib"], abs=0.01)
    assert facts["measured_gib"] < 3


def test_the_run_was_real(book):
    history = History.load(short(book).require("history.csv"))
    assert history.steps == 3
    short(book).require("adapter/adapter_model.safetensors")


def test_repeated_numbers_stand_beside_computed_and_measured_ones(book):
    page = book.page.read_text()
    assert "a best case: 8-bit Adam" in page
    assert "67.5: Mistral-7B-v0.1, 16,384 tokens" in page
    assert "right for 8-bit Adam and 16-bit gradients alone" in page


def test_the_hand_count_says_which_optimiser_is_assumed(book):
    """27 GB with 8-bit averages, 67 with 32-bit ones; mixed precision keeps a 32-bit copy besides."""
    page = book.page.read_text()
    assert "<td>16-bit, averages in 8-bit</td><td>6</td><td>27</td><td>40</td>" in page
    assert "<td>mixed precision</td><td>18</td><td>81</td><td>121</td>" in page


def test_errors_on_public_points_are_small(book):
    """Each model held out of the fit that estimates it; both qualities are shown."""
    page = book.page.read_text()
    for quality, runs, limit in (("A", 89, 5), ("B", 17, 20)):
        error, covered = re.search(
            rf"<td>{quality}</td><td>{runs}</td><td[^>]*>([^<]*?)%</td><td[^>]*>(.*?)</td>", page
        ).groups()
        assert float(error) < limit
        assert covered == "100%"


def test_a_mixture_of_experts_is_refused_by_name(book):
    assert "Mixtral 8x7B (mixtral) is a mixture of experts" in book.text


def test_figures_are_left_and_shown(book):
    for name in ("parts", "length", "any", "measured"):
        book.run.require(f"figures/{name}.png")
    for words in ("Bars of memory by part: full, mixed 135 GiB", "Memory rises with row length", "106 runs along"):
        assert f'alt="{words}' in book.page.read_text()


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "gib = ...": "gib = shape.matrix_parameters * 4.127 / 8 / 2**30",
    "length = ...": "length = next(t for t in (2**n for n in range(20, 5, -1)) if memory.fits(memory.estimate("
    "shape, config.replace(max_length=t, backend='unsloth')))['T4'] == 'fits')",
    "mine = ...": "mine = TrainConfig(per_device_train_batch_size=4, max_length=2048, backend='unsloth')",
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    config = TrainConfig(max_length=2048, per_device_train_batch_size=1, lora_r=16, backend="transformers")
    names = {
        "memory": memory,
        "TrainConfig": TrainConfig,
        "check": check,
        "config": config,
        "shape": memory.find("meta-llama/Llama-3.1-8B"),
    }
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution, 1), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
