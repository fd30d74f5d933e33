"""Pages are made once from what each depends on, link to each other, and say what is wrong with them."""

import base64
import json
from pathlib import Path

import nbformat
import pytest

from ftkit import figures
from ftkit.errors import NotebookError
from tools import badges, pages

v4 = nbformat.v4


def png(tmp_path, words):
    """A figure as a notebook shows it."""
    ax = figures.blank_axes(2, 1)
    return figures.picture(ax, tmp_path / "figure.png", words).data


def shown(html):
    """A code cell whose output is `html`."""
    return v4.new_code_cell("figure", outputs=[v4.new_output("display_data", data={"text/html": html})])


def title(name):
    return f"# Will {name} do?\n\n{badges.badge(name)}\n\nYou find out.\n\n7 minutes to read."


@pytest.fixture
def root(tmp_path):
    """A project of two notebooks and a glossary."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("00_first", "01_second"):
        other = "See [the other](01_second.ipynb#A-head) and [a word](GLOSSARY.md#Words).\n\n## A head"
        cells = [v4.new_markdown_cell(title(name)), v4.new_markdown_cell(other)]
        nbformat.write(v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder / "GLOSSARY.md").write_text("# Glossary\n\n## Words\n\n- **Head**: [there](00_first.ipynb#A-head)\n")
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    """Names of the notebooks that were executed; one that is called 00_bad fails."""
    names = []

    def execute(path, output, parameters):
        names.append(path.stem)
        output.mkdir(parents=True, exist_ok=True)
        (output / path.name).write_bytes(path.read_bytes())
        if path.stem == "00_bad":
            raise NotebookError("00_bad.ipynb cell 3: ValueError: no")

    monkeypatch.setattr(pages.headless, "execute", execute)
    return names


def test_links_lead_to_pages_and_nothing_is_fetched_from_elsewhere(root):
    text = pages.page(root / "notebooks/00_first.ipynb")
    assert 'href="01_second.html#A-head"' in text
    assert 'href="GLOSSARY.html#words"' in text
    assert "<img" not in text
    assert badges.link("00_first") in text


def test_a_table_scrolls_alone_and_a_widget_is_left_out(root):
    """Neither may move the page: a phone shows a wide table's part, and no script waits for a kernel."""
    book = nbformat.read(root / "notebooks/00_first.ipynb", 4)
    widget = {pages._WIDGET: {"model_id": "a", "version_major": 2, "version_minor": 0}, "text/plain": "0%"}
    cell = shown("<table><tr><td>1</td></tr></table>")
    cell.outputs.append(v4.new_output("display_data", data=widget))
    book.cells.append(cell)
    nbformat.write(book, root / "00_first.ipynb")
    text = pages.page(root / "00_first.ipynb")
    assert '<div class="wide"><table>' in text
    assert "</table></div>" in text
    assert "widget" not in text
    assert "<script" not in text


def test_what_a_kernel_sent_in_pieces_is_one_text(root):
    book = nbformat.read(root / "notebooks/00_first.ipynb", 4)
    pieces = [v4.new_output("stream", name="stdout", text=f"rank {n}\n") for n in (1, 4)]
    book.cells.append(v4.new_code_cell("", outputs=pieces))
    nbformat.write(book, root / "00_first.ipynb")
    assert "rank 1\nrank 4\n" in pages.page(root / "00_first.ipynb")


def test_a_page_does_not_show_where_it_was_made(root):
    """Papermill's cell of injected parameters holds a path of this machine."""
    book = nbformat.read(root / "notebooks/00_first.ipynb", 4)
    injected = v4.new_code_cell('run_root = "elsewhere"')
    injected.metadata["tags"] = ["injected-parameters"]
    book.cells.append(injected)
    nbformat.write(book, root / "00_first.ipynb")
    assert "elsewhere" not in pages.page(root / "00_first.ipynb")


def test_the_picture_is_the_last_before_the_deliberate_mistake(root, tmp_path):
    cells = [v4.new_markdown_cell(title("00_first")), shown(png(tmp_path, "one")), shown(png(tmp_path, "two > one"))]
    cells += [v4.new_markdown_cell("## Break it: here"), shown(png(tmp_path, "three"))]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "00_first.ipynb")
    data, words = pages.picture(pages.page(tmp_path / "00_first.ipynb"))
    assert words == "two > one"
    assert data.startswith(b"\x89PNG")


def test_a_tagged_cell_gives_the_picture(root, tmp_path):
    cells = [v4.new_markdown_cell(title("00_first")), *(shown(png(tmp_path, word)) for word in ("one", "two", "three"))]
    cells[2].metadata["tags"] = ["thumbnail"]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "00_first.ipynb")
    assert pages.picture(pages.page(tmp_path / "00_first.ipynb"))[1] == "two"


def test_a_page_without_a_figure_has_no_picture(root):
    assert pages.picture(pages.page(root / "notebooks/00_first.ipynb")) is None


def test_a_call_goes_on_where_it_was(root, ran):
    """What was executed from the same source, version and parameters is not executed again."""
    assert pages.main(["00_first"], root) == 0
    assert pages.main([], root) == 0
    assert ran == ["00_first", "01_second"]
    assert pages.main(["-p", "max_steps", "4"], root) == 0
    assert ran[2:] == ["00_first", "01_second"]
    (root / "notebooks/01_second.ipynb").write_text((root / "notebooks/01_second.ipynb").read_text() + "\n")
    assert pages.main(["-p", "max_steps", "4"], root) == 0
    assert ran[4:] == ["01_second"]


def test_another_version_of_the_library_executes_again(root, ran, monkeypatch):
    pages.main(["00_first"], root)
    monkeypatch.setattr(pages.ftkit, "__version__", "9.9")
    pages.main(["00_first"], root)
    assert ran == ["00_first", "00_first"]


def test_a_copy_that_was_not_finished_is_made_again(root, ran):
    pages.main(["00_first"], root)
    (root / "runs/pages/00_first.made").unlink()
    pages.main(["00_first"], root)
    assert ran == ["00_first", "00_first"]


def test_a_failed_notebook_is_named_and_the_rest_goes_on(root, ran, capsys):
    (root / "notebooks/00_first.ipynb").rename(root / "notebooks/00_bad.ipynb")
    (root / "notebooks/GLOSSARY.md").write_text("# Glossary\n\n## Words\n")
    assert pages.main([], root) == 1
    assert ran == ["00_bad", "01_second"]
    assert "00_bad failed: 00_bad.ipynb cell 3: ValueError: no" in capsys.readouterr().out
    assert {path.name for path in (root / "pages").iterdir()} == {
        *("00_bad.html", "01_second.html", "GLOSSARY.html", "index.html", "style.css")
    }


def test_the_index_says_what_each_lesson_asks_and_takes(root, ran):
    cost = {"minutes": 1.5, "peak_gib": 1, "device": "2 CPU cores", "date": "2026-11-27"}
    (root / "notebooks/costs.json").write_text(json.dumps({"00_first": cost}))
    pages.main(["--as-they-are"], root)
    text = (root / "pages/index.html").read_text()
    assert 'href="00_first.html"' in text
    assert "You find out." in text
    assert "00_first · 7 minutes to read, 1.5 to run on 2 CPU cores" in text
    assert ran == []


def test_what_a_reader_would_miss_is_told(tmp_path):
    data = base64.b64encode(b"x").decode()
    (tmp_path / "a.html").write_text(
        '<a href="b.html#50-%25">good</a> <a href="b.html#no">x</a> <a href="c.html">x</a> <a href="https://x.y">x</a>'
        f'<img src="a.png" alt="words"><img src="data:image/png;base64,{data}" alt=" ">'
    )
    (tmp_path / "b.html").write_text('<h2 id="50-%">x</h2>')
    told = pages.problems(tmp_path)
    assert [line.split(" (")[0] for line in told] == [
        "a.html: b.html#no leads nowhere",
        "a.html: c.html leads nowhere",
        "a.html: a.png is missing",
        "a.html: a figure without words",
    ]


@pytest.mark.slow
def test_the_lessons_themselves_lead_somewhere(tmp_path):
    """All sources as they are: every link between them, and into the glossary, has an end."""
    assert pages.main(["--as-they-are", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "none")]) == 0
    written = {path.stem for path in (tmp_path / "out").glob("*.html")}
    assert written == {path.stem for path in Path(pages.ROOT / "notebooks").glob("*.ipynb")} | {"index", "GLOSSARY"}
