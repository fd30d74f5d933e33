"""The lessons as a folder of pages that any static host serves: each notebook executed, an index, the glossary.

`make pages` writes `pages/`; executed copies and run folders stay in `runs/pages/`. A notebook whose copy was made from
the same source, version of the library and parameters is not executed again, so a call that was interrupted goes on. A
notebook that fails is named, and its page shows it as it is stored.

    python -m tools.pages [NAME ...] [-p max_steps 4] [--as-they-are]

nbconvert renders the cells; the frame around them and `pages.css` are ours, to be read on a phone as well.
"""

import argparse
import base64
import hashlib
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

import ftkit
from ftkit import files, headless
from ftkit.config import typed_value
from ftkit.errors import FtkitError
from tools import badges

ROOT = badges.ROOT
STYLE = Path(__file__).with_suffix(".css")
GLOSSARY = "GLOSSARY"

_PICTURE = re.compile(r'<img [^>]*?src="data:image/png;base64,([^"]+)"[^>]*>')
_WIDGET = "application/vnd.jupyter.widget-view+json"
_ALT = re.compile(r'alt="([^"]*)"')
_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<nav><a href="index.html">All lessons</a> <a href="GLOSSARY.html">Glossary</a></nav>
<main>
{body}
</main>
</body>
</html>
"""


def made_from(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """Digest of all that an executed copy depends on: source, version of the library, parameters."""
    said = json.dumps([ftkit.__version__, dict(parameters)], sort_keys=True, default=str)
    return hashlib.sha256(notebook.read_bytes() + said.encode()).hexdigest()


def executed(notebook: Path, work: Path, parameters: Mapping[str, Any]) -> Path:
    """The executed copy of a notebook in `work`, made now unless one of the same source is there.

    Raises:
        FtkitError: the notebook failed, or has no such parameter.
    """
    copy, mark, digest = work / notebook.name, work / f"{notebook.stem}.made", made_from(notebook, parameters)
    if copy.exists() and mark.exists() and mark.read_text(encoding="utf-8") == digest:
        return copy
    mark.unlink(missing_ok=True)
    headless.execute(notebook, work, {"run_root": str(work.resolve() / "runs"), **parameters})
    files.write_text(mark, digest)  # last: a copy without it is not whole
    return copy


def page(path: Path) -> str:
    """A notebook, executed or not, or a Markdown file, as a page; its links lead to pages."""
    if path.suffix == ".ipynb":
        book = nbformat.read(path, as_version=4)
        book.cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        for cell in book.cells:  # a widget is nothing without its kernel
            shown = [output for output in cell.get("outputs", []) if _WIDGET not in output.get("data", {})]
            cell.update({"outputs": shown} if cell.cell_type == "code" else {})
        book.metadata.pop("widgets", None)
        first = next(cell for cell in book.cells if cell.cell_type == "markdown")
        first.source = first.source.replace(
            badges.badge(path.stem), f"[Open in Colab]({badges.link(path.stem)})"
        )  # Colab's picture would be fetched from elsewhere
    else:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))])
    body, _ = _exporter().from_notebook_node(book)
    body = re.sub(r'href="([\w-]+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', body)
    # a Markdown file's headings are linked as GitHub names them, in small letters
    body = re.sub(r'href="([\w-]+)\.md(#[^"]*)?"', lambda m: f'href="{m[1]}.html{(m[2] or "").lower()}"', body)
    if path.suffix == ".md":
        body = re.sub(r'(id|href)="(#?[^".:]+)"', lambda m: f'{m[1]}="{m[2].lower()}"', body)
    # a table keeps a readable width on a phone, and scrolls alone
    body = re.sub(r"<table.*?</table>", lambda m: f'<div class="wide">{m[0]}</div>', body, flags=re.S)
    title = re.search(r"^# (.+)$", book.cells[0].source, re.M)
    return _FRAME.format(title=html.escape(title[1] if title else path.stem), body=body)


@cache
def _exporter() -> HTMLExporter:
    """Cells as plain HTML without a style of their own; making it takes longer than using it."""
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    return exporter


def picture(text: str) -> tuple[bytes, str] | None:
    """The first figure from the cell tagged `thumbnail` on, else the last before the deliberate mistake.

    PNG and its words; None where there is no figure.
    """
    tagged = list(_PICTURE.finditer(text.partition("celltag_thumbnail")[2]))
    found = tagged[:1] or list(_PICTURE.finditer(text.partition('id="Break-it')[0]))
    if not found:
        return None
    words = _ALT.search(found[-1][0])
    return base64.b64decode(found[-1][1]), html.unescape(words[1]) if words else ""


def index(notebooks: Sequence[Path], pictures: Mapping[str, str], costs: Mapping[str, badges.Cost]) -> str:
    """The page that all others hang on: question, promise, minutes and a picture of each lesson."""
    cards = []
    for notebook in notebooks:
        name, question = notebook.stem, html.escape(badges.title(notebook))
        minutes = badges.minutes(badges.reading(notebook), costs.get(name))
        shown = ""
        if name in pictures:
            shown = f'<img src="{name}.png" alt="{html.escape(pictures[name])}" loading="lazy">'
        cards.append(
            f'<li><a href="{name}.html"><h2>{question}</h2></a>\n'
            f"<p>{html.escape(badges.promise(notebook))}</p>\n<p><small>{name} · {minutes}</small></p>{shown}</li>"
        )
    said = "Each page is a notebook that ran from top to bottom. Begin with the first: it explains the words."
    body = f'<h1>Learn fine-tuning</h1>\n<p>{said}</p>\n<ol class="lessons">\n' + "\n".join(cards) + "\n</ol>"
    return _FRAME.format(title="Learn fine-tuning", body=body)


class _Seen(HTMLParser):
    """Ids, links and images of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take down what a tag says."""
        said = dict(attrs)
        self.ids |= {said["id"]} if said.get("id") else set()
        if tag == "a" and said.get("href"):
            self.links.append(str(said["href"]))
        if tag == "img":
            self.images.append(said)


def problems(folder: Path) -> list[str]:
    """What a reader of the pages in `folder` would miss: the end of a link, a figure, a figure's words."""
    seen = {path.name: _Seen(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html"))}
    found = []
    for name, here in seen.items():
        for link in (link for link in here.links if not re.match(r"[a-z]+:", link)):
            file, _, heading = link.partition("#")
            there = seen.get(file or name)
            if there is None or (heading and not {heading, unquote(heading)} & there.ids):
                found.append(f"{name}: {link} leads nowhere")
        for image in here.images:
            source = str(image.get("src"))
            if not (image.get("alt") or "").strip():
                found.append(f"{name}: a figure without words ({source[:40]})")
            if not source.startswith("data:") and not (folder / source).is_file():
                found.append(f"{name}: {source} is missing")
    return found


def write(notebooks: Sequence[Path], copies: Mapping[str, Path], out: Path) -> list[str]:
    """Write the pages of `notebooks`, of each its executed copy where there is one; say what is wrong with them."""
    pictures = {}
    for notebook in notebooks:
        text = page(copies.get(notebook.stem, notebook))
        files.write_text(out / f"{notebook.stem}.html", text)
        if found := picture(text):
            files.write_bytes(out / f"{notebook.stem}.png", found[0])
            pictures[notebook.stem] = found[1]
    files.write_text(out / f"{GLOSSARY}.html", page(notebooks[0].parent / f"{GLOSSARY}.md"))
    costs = badges.load_costs(notebooks[0].parent / "costs.json")
    files.write_text(out / "index.html", index(notebooks, pictures, costs))
    files.write_text(
        out / "style.css", STYLE.read_text(encoding="utf-8") + HtmlFormatter().get_style_defs(".highlight")
    )
    return problems(out)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Execute, render, check; 1 where a notebook failed or a page has a fault, all of which are named."""
    parser = argparse.ArgumentParser(prog="python -m tools.pages", description="Notebooks as pages for a static host.")
    parser.add_argument("names", nargs="*", help="notebooks to execute, such as 00_quickstart (default: all)")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--as-they-are", action="store_true", help="execute nothing; show the copies that there are")
    parser.add_argument("--out", type=Path, default=root / "pages")
    parser.add_argument("--work", type=Path, default=root / "runs/pages", help="executed copies and run folders")
    options = parser.parse_args(arguments)
    parameters = {name: typed_value(value) for name, value in options.parameter}
    notebooks, copies, failed = sorted((root / "notebooks").glob("*.ipynb")), {}, []
    for notebook in notebooks:
        chosen = not options.names or notebook.stem in options.names
        if chosen and not options.as_they_are:
            print(f"{notebook.stem} …", flush=True)
            try:
                executed(notebook, options.work, parameters)
            except FtkitError as error:
                failed.append(f"{notebook.stem} failed: {error}")
        if (options.work / f"{notebook.stem}.made").exists():
            copies[notebook.stem] = options.work / notebook.name
    wrong = failed + write(notebooks, copies, options.out)
    print("\n".join([*wrong, f"{options.out / 'index.html'}: {len(copies)} of {len(notebooks)} lessons executed"]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
