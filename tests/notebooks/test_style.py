"""How notebooks read: nine parts, short cells, nothing stored, a badge that points at itself."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from tools import badges

LESSONS = {"02_lora", "03_qlora"}  # each builds a thing by hand first, in smaller steps
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request):
    return json.loads(request.param.read_text()) | {"path": request.param}


def lines(cell):
    return [line for line in "".join(cell["source"]).splitlines() if line.strip()]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_it_is_a_valid_notebook_without_outputs_or_widget_state(book):
    """GitHub shows "Invalid Notebook" for widget metadata without state."""
    nbformat.validate(nbformat.read(book["path"], as_version=4))
    assert "widgets" not in book["metadata"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in book["cells"])


def test_cells_are_few_and_short(book):
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert 20 <= len(book["cells"]) <= (50 if book["path"].stem in LESSONS else 42)
    assert max(len(lines(cell)) for cell in code) <= 15
    assert sorted(len(lines(cell)) for cell in code)[len(code) // 2] <= 4


def test_markdown_cells_are_short(book):
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            assert len("".join(cell["source"]).split()) <= 90


def test_the_nine_parts_come_in_order(book):
    text = "\n".join("".join(cell["source"]) for cell in book["cells"])
    parts = [
        "# ",
        "colab-badge.svg",
        "By the end you can",
        "colab.install()",
        "max_examples =",
        "## ",
        "## Break it",
        "## Your turn",
        "## What you saw",
        "## Questions",
        "**Next**",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert re.match(r"# .*\?$", text.splitlines()[0])


def test_setup_is_six_lines_at_most(book):
    setup = next(cell for cell in book["cells"] if "colab.install()" in "".join(cell["source"]))
    assert len(lines(setup)) <= 6


def test_no_dead_code_no_absolute_paths(book):
    for cell in book["cells"]:
        source = "".join(cell["source"])
        assert not re.search(r"^\s*if (False|True|0|1):", source, re.M)
        assert not re.search(r"[\"']/(home|root|tmp|content|Users)/", source)


def test_the_strip_is_what_was_recorded(book):
    """Minutes and memory in the first cell come from costs.json."""
    costs = json.loads((NOTEBOOKS[0].parent / "costs.json").read_text())[book["path"].stem]
    assert badges.strip(badges.Cost(**costs)) in "".join(book["cells"][0]["source"])
