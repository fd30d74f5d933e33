"""The pages as a phone shows them: served by a plain static server, opened in Chromium."""

import functools
import http.server
import threading
from pathlib import Path

import nbformat
import pytest

from ftkit import figures
from ftkit.tables import Table
from tools import pages

pytestmark = pytest.mark.slow
LESSONS = ("00_quickstart", "06_hardware", "10_axolotl")
WIDE, PHONE = 1250, 390
FAULTS = """() => [
    ...[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => 'unseen: ' + i.outerHTML.slice(0, 90)),
    ...[...document.images].filter(i => !i.alt.trim()).map(i => 'no words: ' + i.outerHTML.slice(0, 90)),
]"""


def as_if_executed(notebook: Path, folder: Path) -> Path:
    """A copy whose second code cell has what cells show: a figure, a table and lines wider than a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    ax = figure.add_subplot()
    ax.bar(["before", "after"], [1, 9])
    table = Table([f"a long heading {i}" for i in range(12)], [["12,345.678"] * 12] * 3)
    html = [figures.picture(ax, folder / "figure.png", "Two bars: 1 before, 9 after").data, table._repr_html_()]
    outputs = [nbformat.v4.new_output("display_data", data={"text/html": text}) for text in html]
    outputs.append(nbformat.v4.new_output("stream", name="stdout", text="word " * 60 + "\n" + "x" * 300))
    book = nbformat.read(notebook, as_version=4)
    [cell for cell in book.cells if cell.cell_type == "code"][1].outputs = outputs
    nbformat.write(book, folder / notebook.name)
    return folder / notebook.name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the pages of all lessons, three of them with outputs."""
    folder, out = tmp_path_factory.mktemp("executed"), tmp_path_factory.mktemp("pages")
    notebooks = sorted((pages.ROOT / "notebooks").glob("*.ipynb"))
    copies = {path.stem: as_if_executed(path, folder) for path in notebooks if path.stem in LESSONS}
    assert pages.write(notebooks, copies, out) == []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(out)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("width", [PHONE, WIDE])
@pytest.mark.parametrize("name", ["index", *LESSONS])
def test_a_page_is_whole_and_no_wider_than_the_screen(browser, site, name, width):
    page, asked = browser.new_page(viewport={"width": width, "height": 844}), []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    failed = []
    page.goto(f"{site}/{name}.html")
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()  # those of the index are loaded when they come into sight
    page.wait_for_load_state("networkidle")
    assert page.locator("img").count() >= (len(LESSONS) if name == "index" else 1)
    assert page.evaluate(FAULTS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert failed == []
    assert [url for url in asked if not url.startswith((site, "data:"))] == []
    page.close()


@pytest.mark.parametrize("name", ["index", *LESSONS])
def test_every_link_of_a_page_can_be_followed(browser, site, name):
    page = browser.new_page()
    page.goto(f"{site}/{name}.html")
    links = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    own = {link.partition("#")[0] for link in links if link.startswith(site)}
    assert own > {f"{site}/index.html", f"{site}/GLOSSARY.html"}
    assert [link for link in sorted(own) if page.request.get(link).status != 200] == []
    page.close()


def test_a_word_of_the_glossary_leads_to_its_heading(browser, site):
    page = browser.new_page(viewport={"width": PHONE, "height": 844})
    page.goto(f"{site}/GLOSSARY.html")
    page.locator('a[href^="00_quickstart.html#"]').first.click()
    heading = page.locator("h2:target")
    heading.wait_for()
    assert -1 < heading.bounding_box()["y"] < 844  # half a pixel may be above the edge
    page.close()
