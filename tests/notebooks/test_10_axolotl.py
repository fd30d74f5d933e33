"""The notebook on Axolotl loses no field of the recipe, names what differs, and refuses a misspelt field."""

import os

import pytest
import yaml

from ftkit import publishing
from ftkit.config import TrainConfig
from ftkit.lessons import axolotl_recipe, check

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute, tmp_path_factory):
    """Run as where Axolotl is not installed; `make test-axolotl` runs it where it is."""
    before = os.environ.get("FTKIT_AXOLOTL")
    os.environ["FTKIT_AXOLOTL"] = str(tmp_path_factory.mktemp("none"))
    try:
        yield execute("10_axolotl")
    finally:
        os.environ.pop("FTKIT_AXOLOTL")
        os.environ |= {"FTKIT_AXOLOTL": before} if before else {}


def test_every_field_of_the_recipe_is_in_the_file_of_the_round_trip(book):
    back = yaml.safe_load(book.run.require("round_trip.yml").read_text())
    recipe = yaml.safe_load(axolotl_recipe())
    assert {name: back[name] for name in recipe} == recipe
    assert book.run.facts["axolotl"]["lost"] == []


def test_the_run_can_be_trained_by_axolotl(book):
    written = yaml.safe_load(book.run.require("mine.yml").read_text())
    assert (written["max_steps"], written["adapter"]) == (2, "lora")
    assert written["datasets"][0]["path"] == str(book.run.require("data/train.jsonl"))


def test_four_bits_are_asked_for_by_the_word_that_axolotl_obeys(book):
    for word in ("lora", "qlora"):
        assert yaml.safe_load(book.run.require(f"{word}.yml").read_text())["adapter"] == word


def test_the_misspelt_field_is_refused_with_its_name(book):
    assert "lora_dropuot is no field of Axolotl" in book.text
    assert "Did you mean lora_dropout?" in book.text


def test_it_says_how_to_install_axolotl_and_goes_on(book):
    assert "Axolotl is not installed: run make axolotl" in book.text
    assert book.run.facts["axolotl"]["alike"] is None  # nothing is claimed that was not compared


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


def test_a_file_of_ones_own_is_read_in_its_place(execute, tmp_path):
    (tmp_path / "own.yml").write_text("base_model: org/m\nlora_r: 4\ndatasets:\n  - path: org/rows\n    type: alpaca\n")
    own = execute("10_axolotl", my_file=tmp_path / "own.yml")
    assert own.run.facts["axolotl"]["fields"] == 3


SOLUTIONS = {
    "changes = ...": 'changes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}',
    "warm_up = ...": "warm_up = 50",
    "save_steps = ...": "save_steps = 40",
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    read = publishing.from_axolotl(axolotl_recipe())
    names = {"check": check, "publishing": publishing, "read": read, "TrainConfig": TrainConfig}
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
