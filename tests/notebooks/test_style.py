"""How notebooks read: nine parts, short cells, nothing stored, a badge that points at itself."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from tools import badges

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


def code_cells(book):
    """Sources of the code cells but for the setup and the parameters, whose form Colab prescribes."""
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    return [source for source in cells if "colab.install()" not in source and "#@param" not in source]


def nodes(book, kind):
    return [node for source in code_cells(book) for node in ast.walk(ast.parse(source)) if isinstance(node, kind)]


def test_cells_are_few_and_short(book):
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert 20 <= len(book["cells"]) <= 60
    assert max(len(lines(cell)) for cell in code) <= 15
    statements = sorted(len(ast.parse(source).body) for source in code_cells(book))
    assert statements[len(statements) // 2] <= 4


def test_lines_fit_a_narrow_window(book):
    assert [line for source in code_cells(book) for line in source.splitlines() if len(line) > 88] == []


def test_no_cell_is_clever(book):
    """No lambda, no comprehension of several loops, no arithmetic inside an f-string."""
    comprehensions = nodes(book, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp)
    assert nodes(book, ast.Lambda) == []
    assert [ast.unparse(node) for node in comprehensions if len(node.generators) > 1] == []
    shown = [node.value for node in nodes(book, ast.FormattedValue)]
    assert [ast.unparse(value) for value in shown if isinstance(value, ast.BinOp)] == []


def test_imports_stand_in_one_cell(book):
    """Once, before the first section; a library that a lesson is about may be imported where it first appears."""
    importing = [source for source in code_cells(book) if re.search(r"^(from|import) ftkit", source, re.M)]
    assert len(importing) == 1


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
