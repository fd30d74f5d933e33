"""Documents out of a folder, a file or a list, and chunks out of documents. Knows no index and no model."""

import json
import os
import re
import warnings
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ftkit.errors import DataError, FtkitWarning

ENDINGS = (".txt", ".md", ".jsonl")
MOST_BYTES = 16 * 2**20  # of one file: thousands of pages of text
MOST_FILES = 10_000
# Japanese, Chinese and Korean put no space between words: there each character counts as one.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,40}")
_HEADING = re.compile(r"^#{1,6}[ \t]+(\S.*)$", re.MULTILINE)
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_SENTENCE_ENDS = ".!?。！？"
_SHOWN = 20


@dataclass(frozen=True)
class Document:
    """A text under the name by which answers cite it."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Chunk:
    """A piece of a document; `title` is the document's, and the heading that the piece stands under."""

    document: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title and text, as they are searched and put into prompts."""
        return f"{self.title}\n{self.text}"


def read_documents(source: Any, *, on_error: str = "raise") -> tuple[Document, ...]:
    """Every document of a source, in order.

    Args:
        source: a folder of .txt, .md and .jsonl files, one such file, the bundled "handbook", or a list of texts, of
            `Document`s, or of dicts with `text` and perhaps `id` and `title`. A .jsonl file holds one such dict a line.
        on_error: "raise" lists all documents that cannot be used and stops; "skip" leaves them out and warns.

    Raises:
        DataError: no such folder, no documents, or some that are binary, empty, huge, or there twice.
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error={on_error!r} is not 'raise' or 'skip'.")
    found: list[Document] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    names: set[str] = set()
    for name, made in _listed(source):
        if not (why := made if isinstance(made, str) else _fault(made)):
            assert isinstance(made, Document)
            same = " ".join(made.text.split()).casefold()
            if same in seen:
                why = f"says the same as {seen[same]}"
            elif made.id in names:
                why = f"has the name {made.id!r}, as another document has"
            else:
                seen[same] = name
                names.add(made.id)
                found.append(made)
        if why:
            problems.append(f"{name} {why}")
    more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    said = f"{len(problems)} of {len(problems) + len(found)} documents cannot be used:\n  "
    said += "\n  ".join(problems[:_SHOWN]) + more
    if not found:
        raise DataError(said if problems else f"There are no documents in {_short(source)}.")
    if problems and on_error == "raise":
        raise DataError(f"{said}\nFix them, or leave them out with on_error='skip'.")
    if problems:
        warnings.warn(f"Left out: {said}", FtkitWarning, stacklevel=2)
    return tuple(found)


def cut(document: Document, chunk_words: int, overlap_words: int) -> Iterator[Chunk]:
    """The document in chunks of at most `chunk_words` words, cut at a heading, else a paragraph, line or sentence.

    A chunk repeats the last `overlap_words` words of the one before it, unless a heading stands between them.
    """
    text = document.text
    words = [match.span() for match in WORD.finditer(text)]
    fenced = [match.span() for match in _FENCED.finditer(text)]
    starts = [low for low, _ in fenced]
    headings: dict[int, str] = {}
    for match in _HEADING.finditer(text):
        block = bisect(starts, match.start()) - 1
        if block < 0 or match.start() >= fenced[block][1]:
            headings[match.start()] = match[1].rstrip(" \t#")
    places = list(headings)

    def strength(i: int) -> int:
        """How good a place for a cut lies before word `i`."""
        gap = text[words[i - 1][1] : words[i][0]]
        if words[i][0] in headings:
            return 3
        if gap.count("\n") > 1:
            return 2
        return int("\n" in gap or text[words[i - 1][1] - 1] in _SENTENCE_ENDS)

    start = 0
    while start < len(words):
        end = min(start + chunk_words, len(words))
        if end < len(words):
            end = max(range(start + chunk_words // 4 + 1, end + 1), key=lambda i: (strength(i), i))
        place = words[start][0]
        above = bisect(places, place)
        heading = headings[places[above - 1]] if above else document.title
        title = document.title if heading == document.title else f"{document.title} › {heading}"
        body = text[place : words[end - 1][1]]
        if place in headings:  # it stands in the title
            body = body.partition("\n")[2].strip()
        yield Chunk(document.id, title, body or heading)
        if end == len(words):
            return
        start = end if words[end][0] in headings else max(end - overlap_words, start + 1)


def _listed(source: Any) -> Iterator[tuple[str, Document | str]]:
    """Each document, or what is wrong with it, under the name by which a person finds it."""
    if isinstance(source, str | Path):
        path = Path(str(resources.files("ftkit") / "samples" / source)) if source == "handbook" else Path(source)
        yield from _of_path(path.expanduser())
        return
    if isinstance(source, bytes | Mapping) or not isinstance(source, Iterable):
        raise DataError(
            f"{type(source).__name__} holds no documents: give a folder, a file, or a list of texts or dicts."
        )
    for number, row in enumerate(source, 1):
        yield f"document {number}", _of_row(row, f"document-{number}")


def _of_path(path: Path) -> Iterator[tuple[str, Document | str]]:
    if not path.exists():
        raise DataError(f"{path} does not exist. Give a folder of {', '.join(ENDINGS)} files, or one such file.")
    files, others = ([path], []) if path.is_file() else _files(path)
    if others:
        warnings.warn(
            f"{path}: {len(others)} files are not read, as their names do not end in {', '.join(ENDINGS)}: "
            f"{', '.join(others[:10])}{', …' if len(others) > 10 else ''}. Save them as text if they belong to it.",
            FtkitWarning,
            stacklevel=5,
        )
    stems = Counter(file.with_suffix("") for file in files)
    root = path.parent if path.is_file() else path
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            text = _text(file)
        except DataError as error:
            yield name, str(error)
            continue
        if file.suffix.lower() == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    yield f"{name} line {number}", _of_line(line, f"{file.stem}-{number}")
        else:
            alone = stems[file.with_suffix("")] == 1
            yield name, _of_row({"text": text}, name.removesuffix(file.suffix) if alone else name)


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """Files that are read, and the names of others; hidden ones and what stands in hidden folders are neither."""
    wanted, others = [], []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                wanted.append(Path(here) / name)
            elif not name.startswith("."):
                others.append(name)
        if len(wanted) + len(others) > MOST_FILES:
            raise DataError(f"{folder} holds more than {MOST_FILES:,} files. Give the folder of the documents alone.")
    return wanted, others


def _text(file: Path) -> str:
    try:
        if why := _too_large(file.stat().st_size):
            raise DataError(why)
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"is binary or not in UTF-8 (byte {error.start:,}): save it as UTF-8 text") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


def _too_large(size: int) -> str:
    return f"has {size:,} bytes, and at most {MOST_BYTES:,} are read: cut it in parts" if size > MOST_BYTES else ""


def _of_line(line: str, name: str) -> Document | str:
    try:
        return _of_row(json.loads(line), name)
    except (ValueError, RecursionError):
        return "is no JSON"


def _of_row(row: Any, name: str) -> Document | str:
    if isinstance(row, Document):
        return row
    row = {"text": row} if isinstance(row, str) else row
    text = row.get("text") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(text, str):
        return f"is {type(row).__name__} without a text: wanted a text, or a dict with 'text'"
    id = str(row.get("id", name))
    first = _HEADING.match(text.lstrip())
    heading = first[1].rstrip(" \t#") if first else ""
    title = row.get("title") or heading or id.rpartition("/")[2].replace("-", " ").replace("_", " ")
    return Document(id, str(title), text)


def _fault(document: Document) -> str:
    """Why this text is no document; empty where it is one."""
    if not document.text.strip():
        return "is empty"
    if "\0" in document.text:
        return "is binary (it holds a NUL): save it as UTF-8 text"
    try:
        return _too_large(len("".join((document.id, document.title, document.text)).encode()))
    except UnicodeEncodeError:
        return "holds half a character (a lone surrogate)"


def _short(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "the list"
