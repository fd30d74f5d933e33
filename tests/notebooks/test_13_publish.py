"""The notebook on publishing leaves a merged model and two GGUFs, each proved, and a card; it uploads nothing."""

import html
import json
import re

import pytest
from huggingface_hub import ModelCard

from ftkit import files, publishing
from ftkit.lessons import check
from ftkit.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(execute):
    return execute("13_publish")


def record(book):
    return json.loads((book.run / "export/export.json").read_text())


def test_the_merged_model_was_proved_token_by_token(book):
    proof = record(book)["merged"]["parity"]
    assert proof["passed"]
    assert proof["prompts"] == 10
    assert {check["name"] for check in proof["checks"]} >= {"token ids", "greedy tokens agree", "stop tokens"}


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_each_gguf_was_served_and_asked(book, quant):
    """It is whole, and its prompts and token ids are those of the merged model."""
    path = book.run / f"export/publish-{quant}.gguf"
    known = record(book)[path.name]
    assert known["sha256"] == files.digest(path)
    assert known["parity"]["passed"]
    checks = {check["name"]: check for check in known["parity"]["checks"]}
    assert checks["token ids"]["value"] == checks["rendered prompts"]["value"] == 1


def test_the_adapter_was_only_read(book):
    """What was copied from the sample is what stands there at the end."""
    for name, path in files.inside(Run.sample() / "adapter").items():
        assert files.digest(book.run / "adapter" / name) == files.digest(path)


def test_the_modelfile_has_the_stop_token_of_the_training(book):
    text = (book.run / "export/Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "FROM ./publish-f16.gguf" in text


def test_the_card_is_one_that_the_hub_reads(book):
    data = ModelCard((book.run / "MODEL_CARD.md").read_text()).data
    assert (data.base_model, data.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert data.eval_results


def test_nothing_was_uploaded_and_a_broken_duty_was_named(book):
    assert "nothing was uploaded" in book.page.read_text()
    assert "'Llama-invoices' would do" in book.text


def test_four_bits_are_refused(book):
    assert "merge=True with load_in_4bit=True" in book.text


def test_a_wrong_stop_token_cuts_the_answer(book):
    """The table of both answers: with the right one the products are there, with the wrong one they are not."""
    shown = ["".join(o["data"].get("text/html", "")) for c in book.cells for o in c.get("outputs", []) if "data" in o]
    table = html.unescape(next(text for text in shown if ">stop<" in text))
    right, wrong = (re.search(rf">{kind}</t.><td[^>]*>(.*?)</td>", table, re.S)[1] for kind in ("right", "wrong"))
    assert len(right) > len(wrong) + 20


def test_the_numbers_are_as_they_should_be(book):
    assert book.text.count("✓ f16 answers equal") == book.text.count("✓ token ids equal") == 1
    assert "✗" not in "".join(line for line in book.text.splitlines() if line.startswith("✗ f16"))


def test_no_warning_reaches_the_reader(book):
    assert "Warning" not in book.text


SOLUTIONS = {
    "bits = ...": "bits = (32 * 8 + 16) / 32",
    "allowed = ...": 'allowed = "Llama-invoices"',
    "use = ...": 'use = "research"',
}


def test_exercises_are_solved_by_the_hidden_solutions(book, capsys):
    """Each `...` of the notebook is replaced by its solution; every check must then say ✓."""
    names = {"check": check, "publishing": publishing, "run": book.run}
    names["llama"] = publishing.licence(book.run, base_licence="llama3.2")
    sources = ["".join(cell["source"]) for cell in book.cells if cell["cell_type"] == "code"]
    for blank, solution in SOLUTIONS.items():
        exercise = next(source for source in sources if blank in source)
        exec(exercise.replace(blank, solution), names)
    assert capsys.readouterr().out.count("✓") == len(SOLUTIONS)
