"""The PEFT recipe runs as written: counts agree, the base comes back bit for bit, and four bits swallow a merge."""

import json
import re

import pytest

from ftkit.lessons import check

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("04_peft", max_examples=6)


@pytest.fixture(scope="module")
def facts(book):
    return book.run.facts["peft"]


def test_counts_agree_with_the_formula(book, facts):
    """The bundled model by walking it, Llama-3.1-8B from its shape."""
    assert (facts["trainable"], facts["total"]) == (4_884_480, 139_399_488)
    assert (facts["llama_trainable"], facts["llama_total"]) == (41_943_040, 8_072_204_288)
    assert "✓ counted less computed by formula: 0" in book.text


def test_the_wrong_comment_stands_beside_the_count(book):
    line = next(line for line in book.text.splitlines() if line.startswith("all "))
    assert line.split() == ["all", "claimed", "8,072,884,224", "counted", "8,072,204,288"]


def test_the_question_is_masked(book):
    """In the page the words of the answer stand in green, and those of the question do not stand at all."""
    page = book.page.read_text()
    shown = page[page.index("overflow-wrap:anywhere") :].split("tokens are trained")[0]
    trained = re.findall(r'title="trained">([^<]*)<', shown)
    assert "Products" in "".join(trained)
    assert "Invoice" not in "".join(trained)


def test_switched_off_the_base_answers_bit_for_bit(book, facts):
    assert facts["switched_off_equal"] is True
    assert "4-bit weights as before: True" in book.text


def test_training_taught_the_adapter(facts):
    assert facts["in_4bit"] < 0.3 * facts["untrained"]
    assert facts["in_16bit"] < 0.4 * facts["untrained"]


def test_merging_in_16_bits_keeps_it_and_into_4_bits_loses_it(facts):
    """Neither is exact; one hardly costs anything, the other nearly all."""
    assert facts["merge_gap"] > 0
    assert abs(facts["merged_16bit"] - facts["in_16bit"]) < 0.1
    assert facts["merged_4bit"] > 0.6 * facts["untrained"]


def test_the_kit_refuses_the_mistake(book):
    assert "4-bit weights would round the adapter away" in book.text


def test_two_adapters_answer_differently(book):
    """One of them in capitals."""
    said = {
        name: next(line for line in book.text.splitlines() if line.startswith(name))
        for name in ("default ", "capitals ")
    }
    answer = said["capitals "].removeprefix("capitals").strip()
    assert answer == answer.upper()
    assert said["default "].removeprefix("default").strip() != answer


def test_the_file_is_the_adapter_and_its_recipe(book, facts):
    from safetensors.torch import load_file

    tensors = load_file(book.run.require("adapter/adapter_model.safetensors"))
    assert sum(tensor.numel() for tensor in tensors.values()) == facts["trainable"]
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float32"}
    assert facts["adapter_bytes"] > 4 * facts["trainable"]
    assert json.loads(book.run.require("adapter/adapter_config.json").read_text())["r"] == 16


def test_no_check_of_the_notebook_failed(book):
    assert [line for line in book.text.splitlines() if line.startswith("✗")] == []


def test_figures_are_left_and_shown(book):
    book.run.require("figures/weight.png")
    assert book.page.read_text().count("data:image/png;base64") >= 2


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "mib = ...": "mib = 41_943_040 * 4 / 2**20",
    "alpha = ...": "alpha = 16",
    "mine = ...": "mine = [key for key in keys if '.layers.0.self_attn.q_proj.' in key]",
}
MISTAKES = {
    "mib = ...": "mib = 41.9",
    "alpha = ...": "alpha = 32",
    "mine = ...": "mine = keys",
}


@pytest.mark.parametrize(("answers", "mark"), [(SOLUTIONS, "✓"), (MISTAKES, "✗")])
def test_exercises_know_right_from_wrong(book, capsys, answers, mark):
    """Each `...` of the notebook is replaced by an answer; every check must say what it is worth."""
    from safetensors import safe_open

    with safe_open(book.run.require("adapter/adapter_model.safetensors"), "pt") as tensors:
        names = {"check": check, "keys": list(tensors.keys()), "llama_trainable": 41_943_040}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, answer in answers.items():
        exec(next(source for source in sources if blank in source).replace(blank, answer), names)
    assert capsys.readouterr().out.count(mark) == len(answers)
