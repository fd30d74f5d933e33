"""The glossary's links lead to cells, and the notebooks use its words and no others."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
GLOSSARY = (FOLDER / "GLOSSARY.md").read_text()
STRUCTURE = {"predict", "parameters", "next", "by the end you can", "note", "tip", "warning", "cost"}
TERM = re.compile(r"\b(?:[A-Za-z]*[A-Z]{2,}[A-Za-z0-9]*|[A-Z]+\d+|[a-z]+[A-Z]\w*|[A-Z][a-z]+[A-Z]\w*)\b")


def entries():
    """Every word that the glossary explains, lower-case, as it stands in bold and in the brackets after it."""
    words = set()
    for bold, more in re.findall(r"^- \*\*(.+?)\*\*(?: \(([^)]*)\))?:", GLOSSARY, re.M):
        words |= {part.strip(" `").lower() for part in [*bold.split(","), *(more or "").split(",")] if part}
    return words


def names():
    """Names of products, formats and units, which the glossary only lists."""
    line = next(line for line in GLOSSARY.splitlines() if line.startswith("Names of products"))
    return {name.strip(" .").lower() for name in line.split(":", 1)[1].split(",")}


def headings(notebook):
    cells = json.loads((FOLDER / notebook).read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line.startswith("#")}


def prose(notebook):
    """Markdown without links' targets and code."""
    cells = json.loads(notebook.read_text())["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"`[^`]*`", "", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text))


@pytest.fixture(params=sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def text(request):
    return prose(request.param)


def test_every_entry_links_to_the_cell_that_shows_it():
    for line in GLOSSARY.splitlines():
        if line.startswith("- **"):
            assert ".ipynb#" in line, line


def test_every_link_leads_to_a_heading():
    links = re.findall(r"\((\d\d_\w+\.ipynb)#([^\s]+)\)", GLOSSARY)
    assert len(links) > 25
    assert [link for link in links if link[1] not in headings(link[0])] == []


def test_the_words_of_the_brief_are_explained():
    wanted = {"lora", "qlora", "peft", "instruction tuning", "catastrophic forgetting", "rank", "r"}
    assert wanted <= entries()


def test_bold_words_are_entries(text):
    bold = {word.strip(" .:").lower() for word in re.findall(r"\*\*(.+?)\*\*", text)} - STRUCTURE
    assert bold - entries() - {"train", "val", "test"} == set()


def test_terms_are_entries_or_listed_names(text):
    known = entries() | names()
    assert {t for t in TERM.findall(text) if t.lower() not in known and t.lower().rstrip("s") not in known} == set()


def test_no_other_word_for_the_same_thing(text):
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|$", GLOSSARY, re.M)
    others = {word.strip().lower() for row in rows for word in row.split(",")} - {"not"}
    assert len(others) > 8
    assert [word for word in others if re.search(rf"\b{re.escape(word)}\b", text.lower())] == []
