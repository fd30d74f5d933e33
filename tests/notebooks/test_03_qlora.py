"""The QLoRA notebook: codes equal to bitsandbytes', bits as the paper says, and a price that is measured."""

import pytest

from ftkit import hardware
from ftkit.lessons import check
from ftkit.lessons.quantization import levels_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("03_qlora", max_examples=24)


@pytest.fixture(scope="module")
def facts(book):
    return book.run.facts["qlora"]


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗")] == []


def test_codes_by_hand_equal_those_of_the_library(facts):
    assert facts["bytes_different"] == 0


def test_bits_are_counted_in_the_tensors(facts):
    assert facts["bits_plain"] == pytest.approx(4.5, abs=0.001)
    assert facts["bits_double"] == pytest.approx(4.127, abs=0.001)


def test_the_price_is_above_zero_and_has_an_interval(facts):
    low, value, high = facts["cost_nats"]
    assert 0 < low < value < high < 0.5


def test_nf4_rounds_best_among_four_bits(facts):
    error = facts["error"]
    assert error["int8"] < error["nf4"] < min(error["fp4"], error["int4"])


def test_a_forgotten_format_costs(facts):
    """FP4, which Transformers takes unless asked for NF4, loses more on invoices."""
    assert facts["loss_nf4"] < facts["loss_fp4"] < facts["loss_one_scale"]


def test_nf4_is_not_what_transformers_takes_by_default():
    from transformers import BitsAndBytesConfig

    assert BitsAndBytesConfig(load_in_4bit=True).bnb_4bit_quant_type == "fp4"


def test_one_scale_for_a_matrix_ruins_the_model(facts):
    assert facts["loss_one_scale"] > 2


@pytest.mark.skipif(not hardware.detect().bf16, reason="here everything is 32-bit, so there is nothing to upcast")
def test_the_upcast_costs_memory(facts):
    assert facts["gib"]["nf4"] < facts["gib"]["upcast"] < facts["gib"]["16-bit"]


def test_only_the_adapter_moved(book):
    assert "4-bit tensors changed: 0 of 210" in book.text
    assert "'lora_A'" in book.text
    assert "'lora_B'" in book.text


def test_figures_are_left_and_shown(book):
    for name in ("levels", "rounding", "blocksize", "training"):
        book.run.require(f"figures/{name}.png")
    page = book.page.read_text()
    assert page.count("data:image/png;base64") >= 4
    assert "No description has been provided" not in page


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "in_blocks_of_128 = ...": "in_blocks_of_128 = 4.25",
    "top, zero = ..., ...": "top, zero = 0.5, 0.0",
    "seven_billion = ...": "seven_billion = 7e9 * 4.127 / 8 / 2**30",
}
MISTAKES = {
    "in_blocks_of_128 = ...": "in_blocks_of_128 = 4.5",
    "top, zero = ..., ...": "top, zero = 1.0, 0.5",
    "seven_billion = ...": "seven_billion = 7 * 4.127 / 8",
}


@pytest.mark.parametrize(("answers", "mark"), [(SOLUTIONS, "✓"), (MISTAKES, "✗")])
def test_exercises_know_right_from_wrong(book, capsys, answers, mark):
    """Each `...` of the notebook is replaced by an answer; every check must say what it is worth."""
    names = {"check": check, "levels": levels_of("nf4"), "bits": book.run.facts["qlora"]["bits_double"]}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, answer in answers.items():
        exec(next(source for source in sources if blank in source).replace(blank, answer), names)
    assert capsys.readouterr().out.count(mark) == 4
